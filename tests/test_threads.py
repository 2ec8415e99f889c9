"""Thread steps: neighbours share their threads and hand on the very objects, each with as many calls at once as it promises."""

import asyncio
import gc
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

import qflow as qf
from qflow.runtime.awaiting import Loop


class Handle:
    """What can't be sent to another process."""

    def __init__(self, value: int) -> None:
        self.value, self.lock, self.pid = value, threading.Lock(), os.getpid()


def open_(value: int) -> Handle:
    return Handle(value)


def close(handle: Handle) -> tuple[int, bool]:
    return 2 * handle.value, handle.pid == os.getpid()


def double(value: int) -> int:
    return 2 * value


def several(value: int) -> Iterator[int]:
    yield from [value] * (value % 3)


def listed(value: int) -> Any:
    """An iterator, from a function that is not written as a generator."""
    return iter([value] * (value % 3))


def test_neighbours_hand_on_the_very_objects() -> None:
    same, keep = qf.map(lambda handle: handle), qf.filter(lambda handle: handle.value != 5)
    pipe = qf.thread(n=3)(open_) | same | keep | qf.thread(n=2)(close)
    assert "open_+close  3 + 2 threads in 1 process" in str(pipe.plan())
    assert list(pipe(range(20))) == [(2 * value, True) for value in range(20) if value != 5]


@pytest.mark.parametrize("n", [1, 3])
def test_the_same_as_serial(n: int) -> None:
    mark = qf.thread(n=n)
    with mark(double) | mark(listed) | qf.map(double) | mark(double) | mark(several) | mark(double) | qf.pack(1) as pipe:
        expected = list(pipe(range(60), engine="serial"))
        assert list(pipe(range(60))) == expected
        assert sorted(pipe(range(60), ordered=False)) == sorted(expected)


class Meeting:
    """A step whose calls meet: each waits until as many as expected are at work at once, and writes a file if there are more.

    What the calls share is made in the worker, where the threads are.
    """

    shared: ClassVar[dict[str, tuple[threading.Barrier, list[int]]]] = {}
    lock = threading.Lock()

    def __init__(self, name: str, expected: int, folder: Path) -> None:
        self.name, self.expected, self.folder = name, expected, folder

    def step(self, value: int) -> int:
        with self.lock:
            barrier, at_work = self.shared.setdefault(self.name, (threading.Barrier(self.expected), []))
            at_work.append(value)
            if len(at_work) > self.expected:
                (self.folder / self.name).touch()
        barrier.wait(60)
        with self.lock:
            at_work.remove(value)
        return value


def test_each_step_has_as_many_calls_at_once_as_its_mark_promises(tmp_path: Path) -> None:
    """No fewer, else its calls would wait for each other for ever; no more."""
    pipe = qf.thread(n=3)(Meeting("first", 3, tmp_path).step) | qf.thread(n=2)(Meeting("second", 2, tmp_path).step)
    assert len(pipe.plan().groups) == 1
    assert list(pipe(range(60))) == [*range(60)]
    assert not list(tmp_path.iterdir())


def test_what_is_more_than_threads_is_a_step_of_its_own() -> None:
    first, names = qf.thread(n=2)(open_), []
    for second in (
        qf.thread(timeout=60)(close),
        qf.thread(max_items=5)(close),
        qf.thread(retry=(OSError, 2))(close),
        qf.thread(Scale)(2),
        qf.process(close),
        qf.queue(2) | qf.thread(close),
        qf.pack(2) | qf.thread(close),
    ):
        names.append(len((first | second).plan().groups))
    assert names == [2] * len(names)
    assert len((qf.thread(double) | qf.pack(2) | qf.thread(len)).plan().groups) == 2  # a stream has one worker
    assert len((qf.pack(2) | qf.thread(len) | qf.thread(double)).plan().groups) == 2
    assert len((qf.thread(several) | qf.thread(double)).plan().groups) == 2
    assert len((qf.thread(double) | qf.unpack() | qf.thread(double)).plan().groups) == 2


class Scale:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, value: int) -> int:
        return self.factor * value


def failing(value: int) -> int:
    if value == 6:
        raise ValueError(value)
    return value


def test_errors_and_statistics_are_those_of_each_step() -> None:
    pipe = qf.thread(n=2)(double) | qf.thread(n=2)(failing) | qf.thread(several)
    with pipe(range(6), on_error="skip") as run:
        results = list(run)
        (failure,) = run.failures
    assert results == list(pipe(range(6), engine="serial", on_error="skip"))
    assert (failure.step, failure.index, failure.item) == ("failing", (3,), "6")
    stats = {each.name: each for each in run.stats()}
    assert [(each.n, each.items, each.results, each.failed) for each in stats.values()] == [
        (2, 6, 6, 0),
        (2, 6, 5, 1),
        (1, 5, len(results), 0),
    ]


def dying(value: int) -> int:
    if value == 8 and qf.worker().attempt == 1:  # type: ignore[attr-defined]
        os._exit(1)
    return value


def test_a_death_in_one_of_them_repeats_what_all_had_in_hand() -> None:
    pipe = qf.thread(n=3)(double) | qf.thread(n=3)(dying)
    with pipe(range(30)) as run:
        assert list(run) == [2 * value for value in range(30)]
        assert sum(each.died for each in run.stats()[:1]) >= 1


# ---- async


async def fetch(value: int) -> int:
    await asyncio.sleep(0.001 * (value % 3))
    return 2 * value


async def stream(value: int) -> AsyncIterator[int]:
    for number in range(value % 3):
        await asyncio.sleep(0)
        yield 10 * value + number


class Client:
    async def __call__(self, value: int) -> Any:
        await asyncio.sleep(0)
        return qf.SKIP if value == 3 else value


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_a_step_may_be_async(engine: str) -> None:
    pipe = qf.thread(n=4)(fetch) | qf.thread(n=2)(stream) | qf.thread(Client)()
    assert list(pipe(range(20), engine=engine)) == [
        each for value in range(20) for each in (20 * value + number for number in range(2 * value % 3)) if each != 3
    ]
    assert len(range(3) | qf.thread(fetch)) == 3
    with pytest.raises(TypeError):
        len(range(3) | qf.thread(stream))


async def together(value: int) -> int:
    """Returns when three of its calls are at work at once."""
    global _there, _all
    if value % 3 == 0 or _all is None:
        _all = _all or asyncio.Event()
    _there += 1
    if _there % 3 == 0:
        _all.set()
        _all = None
    else:
        await asyncio.wait_for(_all.wait(), 60)
    return value


_there, _all = 0, None


def test_n_calls_of_an_async_step_wait_at_once_on_one_loop() -> None:
    assert list(qf.run(qf.thread(n=3)(together), range(9))) == [*range(9)]


async def broken(value: int) -> int:
    await asyncio.sleep(0)
    raise KeyError(value)


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_an_async_step_fails_as_others_do(engine: str) -> None:
    with pytest.raises(KeyError, match="0") as caught:
        list(qf.run(qf.thread(n=2)(broken), range(3), engine=engine))
    assert "in step 'broken', item 0 (0)" in "".join(caught.value.__notes__)


async def endless(value: int) -> int:
    await asyncio.sleep(3600)
    return value


def test_a_run_with_an_async_step_is_closed_at_once() -> None:
    with qf.thread(n=2)(endless) | qf.queue(2) as pipe:
        run = pipe(range(3))
        begun = time.monotonic()
        run.close()
        assert time.monotonic() - begun < 5


def test_an_async_generator_that_is_collected_by_the_loop_is_closed_there() -> None:
    """Garbage is collected by whatever thread allocates; that of the loop can't wait for the loop."""
    loop, closed, collected = Loop(), threading.Event(), threading.Event()
    begun: list[Any] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            closed.set()

    async def collect() -> None:
        begun.pop()
        gc.collect()
        collected.set()

    values = loop.wait(numbers())
    assert next(values) == 1
    begun.append([values])
    begun[0].append(begun[0])
    del values
    threading.Thread(target=loop.wait, args=(collect(),), daemon=True).start()
    assert collected.wait(10)
    assert closed.wait(10)
    loop.close()


@pytest.mark.parametrize("mark", [qf.process, qf.pool, qf.map, qf.filter])
def test_async_steps_are_for_threads(mark: Any) -> None:
    with pytest.raises(qf.GraphError, match=r"takes a plain function, but `fetch` is written with `async def`. Write `qf.thread"):
        mark(fetch)
    with pytest.raises(qf.GraphError, match=r"`qf.map` takes a plain function, but `stream` is written with `async def`"):
        qf.Flow() | stream
