"""A source that is read again and again: what stands before `repeat` sees runs of their own, what stands behind it one stream."""

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qflow as qf
from qflow.engines.simulated import Simulated


def jitter(value: Any, rng: Any) -> Any:
    return value, int(rng.integers(1000))


def several(value: Any) -> Iterator[Any]:
    yield from [value] * (len(str(value)) % 3)


def refuse(value: Any) -> Any:
    if sum(str(value).encode()) % 4 == 3:
        raise ValueError(value)
    return value


def breaks(value: Any) -> Iterator[Any]:
    """Fails when more than the first of its results is asked for."""
    yield value
    raise ValueError(value)


BEFORE = [
    lambda n: qf.process(n=n)(jitter),
    lambda n: qf.process(n=n)(several),
    lambda n: qf.map(jitter),
    lambda n: qf.pack(3),
    lambda n: qf.pack(2, drop_last=True),
    lambda n: qf.pack(2) | qf.pool(n=n)(several) | qf.repack(3),
    lambda n: qf.shuffle(5),
    lambda n: qf.take(7),
    lambda n: qf.queue(n),
    lambda n: qf.process(n=n)(refuse),
    lambda n: qf.process(n=n)(breaks),
    lambda n: qf.take(1),
]

steps = st.lists(st.integers(0, len(BEFORE) - 1), max_size=4)


def given_by(run: qf.Run[Any]) -> tuple[list[Any], list[Any]]:
    """Results and failures of a run."""
    return list(run), [(each.step, each.index, each.item) for each in run.failures]


def flow(chosen: list[int], n: int) -> qf.Flow[Any, Any]:
    pipe: qf.Flow[Any, Any] = qf.Flow()
    for step in chosen:
        pipe = pipe | BEFORE[step](n)
    return pipe


@settings(max_examples=150)
@given(steps, st.integers(0, 20), st.integers(1, 4), st.integers(0, 3), st.booleans())
def test_repetitions_are_runs_of_one_epoch_after_another(
    chosen: list[int], items: int, times: int, epoch: int, shuffle: bool
) -> None:
    pipe, source = flow(chosen, 1), qf.source([*range(items)], shuffle=shuffle, seed=7)
    runs = [(source | pipe)(engine="serial", seed=1, epoch=epoch + time, on_error="skip") for time in range(times)]
    expected = [value for run in runs for value in run]
    assert list((source | pipe | qf.repeat(times))(engine="serial", seed=1, epoch=epoch, on_error="skip")) == expected


@settings(max_examples=60)
@given(steps, steps, st.integers(0, 12), st.integers(1, 3), st.integers(0, 1 << 30), st.integers(0, 3))
def test_the_same_for_any_workers_and_when_some_die(
    before: list[int], after: list[int], items: int, n: int, chance: int, deaths: int
) -> None:
    def pipe(n: int) -> qf.Flow[Any, Any]:
        return flow(before, n) | qf.repeat(3) | flow(after, n)

    expected = given_by(pipe(1)(range(items), engine="serial", seed=1, on_error="skip"))
    assert given_by(pipe(n)(range(items), engine=Simulated(chance, deaths=deaths), seed=1, on_error="skip")) == expected


@pytest.mark.parametrize("n", [1, 3])
def test_in_processes(n: int) -> None:
    with flow([1, 3, 2, 6], n) | qf.repeat(3) | flow([2, 4, 0], n) as pipe:
        expected = list(pipe(range(40), engine="serial", seed=1))
        assert list(pipe(range(40), seed=1)) == expected
        assert len(expected) > 12


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_batches_run_across_the_seams_behind_repeat_only(engine: str) -> None:
    step = qf.process(n=2)(abs)
    assert list((range(3) | step | qf.pack(2) | qf.repeat(2))(engine=engine)) == [[0, 1], [2], [0, 1], [2]]
    assert list((range(3) | step | qf.repeat(2) | qf.pack(2))(engine=engine)) == [[0, 1], [2, 0], [1, 2]]


class Endless:
    def __iter__(self) -> Iterator[int]:
        return itertools.count()


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_for_ever(engine: str) -> None:
    pipe = qf.process(n=2)(abs) | qf.repeat() | qf.pack(4)
    with pipe(range(3), engine=engine) as run:
        assert list(itertools.islice(run, 3)) == [[0, 1, 2, 0], [1, 2, 0, 1], [2, 0, 1, 2]]
    assert list(itertools.islice((qf.source(Endless()) | qf.take(2) | qf.repeat())(engine=engine), 5)) == [0, 1, 0, 1, 0]
    with pytest.raises(TypeError):
        len(range(3) | pipe)
    assert len(range(3) | qf.pack(2) | qf.repeat(5)) == 10


def test_the_next_repetition_is_read_while_this_one_is_worked_on() -> None:
    """The source of the second is read before the first is over."""
    begun, second = 0, threading.Event()

    class Source:
        def __iter__(self) -> Iterator[int]:
            nonlocal begun
            begun += 1
            if begun == 2:
                second.set()
            return iter(range(4))

    with (qf.source(Source()) | qf.process(abs) | qf.queue(8) | qf.repeat(2))() as run:
        assert next(run) == 0
        assert second.wait(60)
        assert list(run) == [1, 2, 3, 0, 1, 2, 3]


def failing(value: int) -> int:
    if value == 2:
        raise ValueError(value)
    return value


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_a_failure_says_in_which_repetition(engine: str) -> None:
    with (range(3) | qf.process(n=2)(failing) | qf.repeat(2))(engine=engine, on_error="skip") as run:
        assert list(run) == [0, 1, 0, 1]
        assert [failure.index for failure in run.failures] == [(0, 2), (1, 2)]


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_what_can_not_be_repeated_is_told(engine: str) -> None:
    with pytest.raises(qf.GraphError, match=r"`qf.repeat` reads its source again, but this one is an iterator"):
        list((iter(range(3)) | qf.process(abs) | qf.repeat(2))(engine=engine))
    with pytest.raises(qf.GraphError, match=r"A flow has one `qf.repeat`, but this one has two. Multiply"):
        (range(3) | qf.repeat(2) | qf.repeat(2))(engine=engine)
    for nothing in (qf.source([]), [1] | qf.shard(1, 2)):
        with pytest.raises(qf.GraphError, match=r"`qf.repeat\(\)` reads its source for ever, but that has no items"):
            next((nothing | qf.process(abs) | qf.repeat())(engine=engine))
    with pytest.raises(qf.GraphError, match="times must be a whole number of at least 1"):
        qf.repeat(0)
    assert list((iter(range(3)) | qf.repeat(1))(engine=engine)) == [0, 1, 2]


def test_it_prints_as_it_was_written() -> None:
    for pipe in (qf.repeat() | qf.pack(2), qf.pack(2) | qf.repeat(3)):
        assert eval(repr(pipe), {"qf": qf}) == pipe
