"""What a cache keeps, when it is made anew, and what is left of one that was not finished."""

from __future__ import annotations

import functools
import os
import signal
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
    import tempfile

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


# ---- nothing half done


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
    import shutil

    shutil.rmtree(tmp_path)
    with pytest.raises(qf.GraphError, match="no longer there"):
        run(pipe, range(10), resume=state)


def test_what_a_cache_would_freeze_is_told(tmp_path: Path) -> None:
    for flow in (qf.map(draws) | qf.cache(tmp_path), qf.shuffle(3) | qf.cache(tmp_path), qf.repeat(2) | qf.cache(tmp_path)):
        with pytest.raises(qf.GraphError, match=r"`.*qf.cache"):
            run(flow, [1])
    with pytest.raises(qf.GraphError, match="differs from epoch to epoch"):
        run(qf.cache(tmp_path), qf.source([1, 2], shuffle=True, seed=1).source)
    with pytest.raises(qf.GraphError, match="takes a folder"):
        qf.cache(3)  # type: ignore[arg-type]
    with pytest.raises(qf.GraphError, match="`key` is a text"):
        qf.cache(tmp_path, key=3)  # type: ignore[arg-type]
