"""What a cache keeps, when it is made anew, and what is left of one that was not finished."""

from __future__ import annotations

import functools
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import qflow as qf
from qflow.graph.fingerprint import Unknown, fingerprint
from qflow.train import cache

calls: list[Any] = []  # named by a step: it must be empty when a run begins, for its value counts
factor = 10


def slow(number: int) -> int:
    calls.append(number)
    return number * number


def scaled(number: int) -> int:
    return factor * number


def noted(path: str, number: int) -> dict[str, Any]:
    """A call that leaves a mark, also in a worker."""
    with open(path, "a") as file:
        file.write(f"{number}\n")
    return {"x": np.full((500, 100), number), "t": torch.full((3,), float(number)), "name": str(number)}


def marks(path: Path) -> list[int]:
    found = sorted(map(int, path.read_text().split())) if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def draws(value: Any, rng: Any) -> tuple[Any, int]:
    return value, int(rng.integers(1 << 40))


def caches(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def run(flow: Any, source: Any, **options: Any) -> list[Any]:
    calls.clear()
    return [*qf.Flow(flow)(source, **{"engine": "serial", **options})]


# ---- once, and then no more


def test_the_first_run_writes_and_later_ones_do_nothing_upstream(tmp_path: Path) -> None:
    pipe = qf.map(slow) | qf.cache(tmp_path / "c") | qf.pack(2)
    assert run(pipe, [1, 2, 3]) == [[1, 4], [9]]
    assert calls == [1, 2, 3]
    assert run(pipe, [1, 2, 3]) == [[1, 4], [9]]
    assert calls == []
    assert len(caches(tmp_path / "c")) == 1


@pytest.mark.parametrize("n", [1, 3])
def test_workers_read_what_workers_wrote(tmp_path: Path, n: int) -> None:
    log = tmp_path / "log"
    step = qf.process(n=2)(functools.partial(noted, str(log)))
    with step | qf.cache(tmp_path / "c") | qf.process(n=n)(draws) as pipe:
        first = [*pipe(range(40), seed=1)]
        assert marks(log) == [*range(40)]
        again = [*pipe(range(40), seed=1)]
        assert marks(log) == []
    assert [number for _, number in first] == [number for _, number in again]  # what is random behind it, too
    for (before, _), (after, _) in zip(first, again, strict=True):
        assert np.array_equal(before["x"], after["x"])
        assert torch.equal(before["t"], after["t"])
        assert before["name"] == after["name"]


@given(st.lists(st.one_of(st.integers(), st.text(), st.floats(allow_nan=False), st.lists(st.booleans())), max_size=20))
def test_any_values_come_back_in_order(values: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pipe = qf.cache(folder) | qf.pack(3)
        assert run(pipe, values) == run(pipe, values) == run(qf.pack(3), values)


def test_steps_of_one_name_on_both_sides_draw_what_they_drew(tmp_path: Path) -> None:
    pipe = qf.process(name="draws")(slow) | qf.pack(1) | qf.cache(tmp_path) | qf.map(draws) | qf.pack(2) | qf.map(draws)
    assert run(pipe, range(7), seed=3) == run(pipe, range(7), seed=3)
    assert calls == []


def test_two_caches_the_later_one_is_read(tmp_path: Path) -> None:
    pipe = qf.map(slow) | qf.cache(tmp_path / "a") | qf.map(scaled) | qf.cache(tmp_path / "b") | qf.pack(2)
    assert run(pipe, [1, 2]) == run(pipe, [1, 2]) == [[10, 40]]
    assert calls == []
    other = qf.map(slow) | qf.cache(tmp_path / "a") | qf.map(str)
    assert run(other, [1, 2]) == ["1", "4"]
    assert calls == []  # the first one was written in the same run


def test_a_repeated_source_is_written_in_its_first_repetition(tmp_path: Path) -> None:
    pipe = qf.map(slow) | qf.cache(tmp_path) | qf.repeat() | qf.pack(2)
    calls.clear()
    with pipe([1, 2, 3], engine="serial") as results:
        assert [next(results) for _ in range(3)] == [[1, 4], [9, 1], [4, 9]]
    assert run(qf.map(slow) | qf.cache(tmp_path) | qf.repeat(2), [1, 2, 3]) == [1, 4, 9] * 2
    assert calls == []


def test_each_rank_has_its_own(tmp_path: Path) -> None:
    for _ in range(2):
        found = [
            run(qf.shard(rank, 2) | qf.map(slow) | qf.cache(tmp_path) | qf.map(draws), range(6), seed=1) for rank in range(2)
        ]
        assert [[value for value, _ in part] for part in found] == [[0, 4, 16], [1, 9, 25]]
        assert len({number for part in found for _, number in part}) == 6
        if calls:
            first = found
    assert found == first
    assert calls == []


# ---- made anew


def test_a_changed_step_source_or_parameter_makes_it_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def times(number: int, by: int = 2) -> int:
        calls.append(number)
        return number * by

    def made(*, step: Any = times, source: Any = (1, 2), **options: Any) -> bool:
        run(qf.map(step) | qf.cache(tmp_path), source, **options)
        return bool(calls)

    assert made()
    assert not made()
    assert not made(source=(1, 2), seed=4, epoch=3)
    assert made(source=(1, 3))
    assert made(step=functools.partial(times, by=3))
    assert not made()  # the earlier ones stay
    assert made(params={"by": 5})
    assert not made(params={"by": 5})

    def global_(number: int) -> int:
        return times(scaled(number))

    assert made(step=global_)
    assert not made(step=global_)
    monkeypatch.setattr("test_cache.factor", 11)
    assert made(step=global_)


def test_a_changed_file_makes_it_anew(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    file.write_text("one")
    pipe = qf.map(lambda path: Path(path).read_text()) | qf.cache(tmp_path / "c")
    assert run(pipe, [str(file)]) == ["one"]
    file.write_text("other")
    assert run(pipe, [str(file)]) == run(pipe, [file]) == ["other"]


def test_a_source_that_can_t_be_looked_through_needs_a_name(tmp_path: Path) -> None:
    with pytest.raises(qf.GraphError, match=r"can't tell whether the source.*qf.cache\(.*key="):
        run(qf.map(slow) | qf.cache(tmp_path), iter([1]))
    named = qf.map(slow) | qf.cache(tmp_path, key="v1")
    assert run(named, iter([1])) == run(named, iter([2])) == [1]
    assert run(qf.map(slow) | qf.cache(tmp_path, key="v2"), iter([2])) == [4]


def test_the_fingerprint_is_the_same_in_another_process_and_sees_changes() -> None:
    class Scale:
        def __init__(self, by: int) -> None:
            self.by = by

        def __call__(self, value: int) -> int:
            return value * self.by

    values = [
        slow,
        scaled,
        Scale(2),
        Scale(3),
        Scale,
        functools.partial(slow, 1),
        {"a": {*"abcdef"}, "b": np.arange(3)},
        {"a": {3, 1, 2}, "b": np.arange(4)},
        torch.zeros(3),
        torch.zeros(4),
        range(3),
        range(4),
        (1, 2),
        [1, 2],
        1,
        1.0,
        True,
        "1",
        np.float32(1),
        len,
        np.sum,
        Path("x"),
    ]
    found = [fingerprint(each) for each in values]
    assert len({*found}) == len(values)
    step = qf.process(n=1)(lambda each: fingerprint(each))
    with qf.Flow(step) as pipe:
        assert [*pipe(values[6:16])] == found[6:16]
    lock = threading.Lock()
    assert fingerprint(lambda: lock) == fingerprint(lambda: lock)  # nobody could give it another value
    loop: list[Any] = []
    loop.append(loop)
    assert fingerprint(loop) == fingerprint(loop)
    with pytest.raises(Unknown):
        fingerprint(iter([]))


def changing(make: Any) -> bool:
    """Whether what is made of two numbers differs."""
    return fingerprint(make(1), lenient=True) != fingerprint(make(2), lenient=True)


def uses(value: Any) -> Any:
    return lambda _: value


@functools.lru_cache
def cached_one(_: int) -> int:
    return 1


@functools.lru_cache
def cached_two(_: int) -> int:
    return 2


def with_cached(number: int) -> type:
    class Step:
        @functools.cached_property
        def by(self) -> int:
            return 1

        def __call__(self, value: int) -> int:
            return value + number

    return Step


@pytest.mark.parametrize(
    "make",
    [
        lambda number: uses(re.compile(str(number))),
        lambda number: uses([cached_one, cached_two][number - 1]),
        lambda number: {"a": number}.get,
        lambda number: [number].__getitem__,
        lambda number: uses({"lock": threading.Lock(), "scale": number}),
        with_cached,
        lambda number: with_cached(number)(),
        lambda number: np.ma.masked_array([1, 2, 3], [number == 1, False, False]),
        lambda number: torch.zeros(number - 1, requires_grad=True),
        lambda number: torch.zeros(number - 1, dtype=torch.bfloat16),
        lambda number: torch.full((2,), 1 + number * 1j).conj(),
    ],
)
def test_what_decides_a_result_is_seen(make: Any) -> None:
    assert changing(make)
    assert not changing(lambda _: make(1))


def test_modules_of_the_user_are_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "theirs"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "helper.py").write_text("from theirs import deep\ndef go(x): return deep.down(x)")
    step = "import theirs.helper\ndef step(x): return theirs.helper.go(x)"

    def made(down: str) -> str:
        (package / "deep.py").write_text(down)
        for name in [name for name in sys.modules if name.partition(".")[0] == "theirs"]:
            del sys.modules[name]
        importlib.invalidate_caches()
        space: dict[str, Any] = {"__name__": "__main__"}
        exec(step, space)
        return fingerprint(space["step"])

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert made("def down(x): return x") == made("def down(x): return x")
    assert made("def down(x): return x") != made("def down(x): return 2 * x")
    for name in [name for name in sys.modules if name.partition(".")[0] == "theirs"]:
        del sys.modules[name]


def test_sizes_and_chains_count(tmp_path: Path) -> None:
    size = [2]
    pipe = qf.pack(lambda: size[0]) | qf.cache(tmp_path)
    assert run(pipe, [1, 2, 3]) == [[1, 2], [3]]
    size[0] = 3
    assert run(pipe, [1, 2, 3]) == [[1, 2, 3]]
    assert run(qf.process(qf.map(bool) | str) | qf.cache(tmp_path), [0, 1]) == ["False", "True"]
    assert run(qf.process(qf.filter(bool) | str) | qf.cache(tmp_path), [0, 1]) == ["1"]


def test_values_that_hold_themselves_or_much_have_a_fingerprint() -> None:
    def one(_: Any) -> Any:
        return holder

    holder = {one}
    assert fingerprint(one) == fingerprint(one)
    deep: Any = None
    for _ in range(300):
        deep = uses(deep)
    assert fingerprint(deep) == fingerprint(deep)
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(Unknown, match="nested too deeply"):
        fingerprint(deep)
    pair = (1, 2)
    assert fingerprint([pair, pair]) == fingerprint([(1, 2), (1, int("2"))])
    assert fingerprint(np.sqrt) != fingerprint(np.cos)


# ---- nothing half done


def test_a_later_take_does_not_make_a_short_cache(tmp_path: Path) -> None:
    for flow in (qf.take(3), qf.map(abs) | qf.take(3), qf.pack(2) | qf.take(1), qf.take(3) | qf.repeat(2)):
        for engine in ("serial", "processes"):
            run(qf.map(slow) | qf.cache(tmp_path) | flow, range(10), engine=engine)
            for name in caches(tmp_path):
                assert json.loads((tmp_path / name / "about.json").read_text())["items"] == 10
    assert run(qf.map(slow) | qf.cache(tmp_path), range(10)) == [number**2 for number in range(10)]


def test_an_item_that_failed_inside_a_chain_is_not_missing_later(tmp_path: Path) -> None:
    pipe = qf.process(n=2)(qf.map(abs) | fails) | qf.cache(tmp_path)
    assert run(pipe, range(4), on_error="skip") == [0, 1, 9]
    with pytest.raises(ValueError, match="two"):
        run(pipe, range(4))


def test_runs_at_once_on_one_folder_all_get_everything(tmp_path: Path) -> None:
    script = (
        "import sys, qflow as qf\n"
        "pipe = qf.map(abs) | qf.cache(sys.argv[1]) | qf.pack(7)\n"
        "for number in range(30):\n"
        "    assert sum(pipe(range(50 + number % 3), engine='serial'), []) == [*range(50 + number % 3)]\n"
    )
    several = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(60) for process in several] == [0, 0, 0]
    assert len(caches(tmp_path)) == 3
    assert not any(name.startswith(".") for name in caches(tmp_path))


def test_nobody_adds_to_a_folder_while_another_run_looks_through_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    make = cache.mkdtemp
    monkeypatch.setattr(cache, "mkdtemp", lambda *words: held.append(cache._locked(tmp_path)) or make(*words))
    assert run(qf.map(slow) | qf.cache(tmp_path), [1]) == [1]
    assert held == [None]


def test_of_two_runs_at_once_the_first_that_ends_counts(tmp_path: Path) -> None:
    pipe = qf.map(slow) | qf.cache(tmp_path)
    first, second = pipe([1, 2], engine="serial"), pipe([1, 2], engine="serial")
    next(first)
    next(second)
    calls.clear()
    assert [*second] == [4]
    (made,) = [each for each in tmp_path.iterdir() if not each.name.startswith(".")]
    inode = made.stat().st_ino
    assert [*first] == [4]
    assert [each.stat().st_ino for each in tmp_path.iterdir()] == [inode]  # who reads it goes on reading


def test_a_relative_folder_is_where_the_run_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for engine in ("serial", "processes"):
        with qf.map(slow) | qf.cache(f"here-{engine}") | qf.pack(1) as pipe:
            for _ in pipe(range(3), engine=engine):
                os.chdir("/")
        os.chdir(tmp_path)
        assert len(caches(tmp_path / f"here-{engine}")) == 1


def test_a_run_that_is_closed_leaves_no_part_though_it_is_still_there(tmp_path: Path) -> None:
    started = (qf.map(slow) | qf.cache(tmp_path))([1, 2], engine="serial")
    next(started)
    assert len(caches(tmp_path)) == 1
    started.close()
    assert caches(tmp_path) == []


def test_a_run_that_read_one_cache_and_wrote_another_is_gone_on_from(tmp_path: Path) -> None:
    assert run(qf.map(slow) | qf.cache(tmp_path / "a"), range(6)) == [0, 1, 4, 9, 16, 25]
    pipe = qf.map(slow) | qf.cache(tmp_path / "a") | qf.map(scaled) | qf.cache(tmp_path / "b") | qf.pack(2)
    calls.clear()
    with pipe(range(6), engine="serial") as started:
        next(started)
        state = started.state_dict()
    assert run(pipe, range(6), resume=state) == [[40, 90], [160, 250]]
    assert calls == []


def fails(number: int) -> int:
    if number == 2:
        raise ValueError("two")
    return slow(number)


def test_a_run_that_fails_or_ends_early_leaves_nothing(tmp_path: Path) -> None:
    pipe = qf.map(fails) | qf.cache(tmp_path)
    with pytest.raises(ValueError, match="two"):
        run(pipe, range(4))
    assert caches(tmp_path) == []
    assert run(pipe, range(4), on_error="skip") == [0, 1, 9]
    assert caches(tmp_path) == []
    with pipe(range(2), engine="serial") as early:
        next(early)
    assert caches(tmp_path) == []
    assert run(pipe, range(2)) == [0, 1]
    assert len(caches(tmp_path)) == 1
    after = qf.map(slow) | qf.cache(tmp_path) | qf.map(fails)
    run(after, range(3), on_error="skip")  # what fails behind it is no matter
    assert len(caches(tmp_path)) == 2
    twice = qf.pack(1) | qf.map(sum) | qf.cache(tmp_path) | qf.pack(1) | qf.map(sum) | qf.map(fails) | qf.repeat(2)
    run(twice, range(4), on_error="skip")
    assert len(caches(tmp_path)) == 3


def apart(number: int) -> Any:
    return number if number == 2 else [number]


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_what_failed_within_a_chain_or_an_operator_is_missing_too(tmp_path: Path, engine: str) -> None:
    """Its failure has another name than a step of the flow."""
    for before in (qf.process(qf.map(abs) | qf.map(fails)), qf.map(apart) | qf.pool(abs), qf.map(apart) | qf.repack(1)):
        assert len(run(before | qf.cache(tmp_path), range(4), on_error="skip", engine=engine)) == 3
        assert caches(tmp_path) == []


def test_a_writer_that_dies_goes_on_where_it_was(tmp_path: Path) -> None:
    def victim(value: Any) -> Any:
        if value["name"] == "20" and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return value

    log = tmp_path / "log"
    step = qf.process(n=2)(functools.partial(noted, str(log)))
    with step | qf.cache(tmp_path / "c") | qf.process(victim) | qf.process(draws) as pipe:
        first = [*pipe(range(60), seed=0)]
        again = [*pipe(range(60), seed=0)]
    assert (tmp_path / "died").exists()
    assert [(value["name"], number) for value, number in first] == [(value["name"], number) for value, number in again]
    assert [value["name"] for value, _ in again] == [*map(str, range(60))]


def test_a_folder_of_a_run_that_was_killed_is_removed_and_one_at_work_is_not(tmp_path: Path) -> None:
    (tmp_path / ".part-dead").mkdir()
    pipe = qf.map(slow) | qf.cache(tmp_path)
    with pipe([1, 2], engine="serial") as first:
        next(first)
        at_work = caches(tmp_path)
        assert len(at_work) == 1
        assert at_work != [".part-dead"]
        assert run(pipe, [1, 2]) == [1, 4]
        assert at_work[0] in caches(tmp_path)
    assert len(caches(tmp_path)) == 1
    (made,) = tmp_path.iterdir()
    (made / "items").write_bytes(b"")  # what is cut off does not count
    assert run(pipe, [1, 2]) == run(pipe, [1, 2]) == [1, 4]


def test_resume_goes_on_with_what_the_run_before_read(tmp_path: Path) -> None:
    pipe = qf.map(slow) | qf.cache(tmp_path) | qf.map(draws) | qf.pack(3)

    def cut(after: int) -> dict[str, Any]:
        calls.clear()
        with pipe(range(10), engine="serial", seed=1) as started:
            for _ in range(after):
                next(started)
            return started.state_dict()

    before = cut(2)
    whole = run(pipe, range(10), seed=1)
    state = cut(1)
    assert run(pipe, range(10), resume=before) == whole[2:]
    assert calls  # without the cache, as it was begun
    assert run(pipe, range(10), resume=state) == whole[1:]
    assert calls == []
    with pytest.raises(qf.GraphError, match="of other steps, or of another source"):
        run(pipe, range(11), resume=state)
    shutil.rmtree(tmp_path)
    with pytest.raises(qf.GraphError, match="no longer there"):
        run(pipe, range(10), resume=state)


def test_what_a_cache_would_freeze_is_told(tmp_path: Path) -> None:
    for flow in (qf.map(draws) | qf.cache(tmp_path), qf.shuffle(3) | qf.cache(tmp_path), qf.repeat(2) | qf.cache(tmp_path)):
        with pytest.raises(qf.GraphError, match=r"`.*qf.cache"):
            run(flow, [1])
    for source in (qf.source([1, 2], shuffle=True, seed=1).source, qf.mix([1], [2])):
        with pytest.raises(qf.GraphError, match="differs from epoch to epoch"):
            run(qf.cache(tmp_path), source)
    with pytest.raises(qf.GraphError, match="takes a folder"):
        qf.cache(3)  # type: ignore[arg-type]
    with pytest.raises(qf.GraphError, match="`key` is a text"):
        qf.cache(tmp_path, key=3)  # type: ignore[arg-type]
