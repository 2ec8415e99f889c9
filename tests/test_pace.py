"""How many values a worker takes at once, and how long a stream sleeps, with a clock and counts of the test's own."""

from __future__ import annotations

import resource
import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import qflow as qf
from qflow.runtime import stream_desk
from qflow.runtime.board import shape_of
from qflow.runtime.pace import CALM, NAP, SEVERAL, SHARE, SLOW, Nap, Pace

MANY = 1 << 12


class Worker:
    """Claims, one after another."""

    def __init__(self, workers: int = 1) -> None:
        self.busy = self.given_away = 0
        self.pace = Pace(workers, lambda: self.given_away)

    def claim(
        self,
        cost: int,
        *,
        waits: int = 0,
        own: int = 0,
        available: int = MANY,
        room: int = MANY,
        large: bool = False,
    ) -> int:
        """Take values that cost so much each, with so many waits of user code, and of the worker -> how many."""
        taken = self.pace.take(available)
        self.pace.begin(self.busy)
        self.busy += cost * taken
        self.given_away += waits
        for _ in range(own):
            self.pace.waiting(self.give_away)
        self.pace.large |= large
        self.pace.end(self.busy, taken, lambda: room)
        return taken

    def give_away(self) -> None:
        self.given_away += 1

    def claims(self, count: int, cost: int, **options: Any) -> list[int]:
        return [self.claim(cost, **options) for _ in range(count)]


@given(st.integers(0, SLOW - 1), st.integers(1, MANY), st.integers(1, 8))
def test_quick_values_are_taken_for_a_moment(cost: int, available: int, workers: int) -> None:
    worker = Worker(workers)
    taken = worker.claims(20, cost, available=available, waits=1)
    assert taken[0] == 1
    assert taken[-1] == min(available, SHARE // (cost + 1), 1 << 19)


@given(st.integers(SLOW, 2 * SHARE), st.integers(1, MANY), st.integers(1, 8), st.integers(0, 50), st.integers(0, 3))
def test_slow_values_that_compute_are_shared_and_never_more_than_may_wait(
    cost: int, available: int, workers: int, room: int, own: int
) -> None:
    worker = Worker(workers)
    taken = worker.claims(20, cost, available=available, room=room, own=own)
    assert taken[: CALM + 1] == [1] * (CALM + 1)
    assert taken[-1] == min(-(-available // workers), max(1, min(SHARE // (cost + 1), room)))


def test_values_that_wait_are_taken_alone_and_each_wait_counts_twice() -> None:
    worker = Worker()
    assert worker.claims(20, SLOW, waits=1) == [1] * 20
    worker = Worker()
    assert max(worker.claims(10, SLOW)) > 1
    for calm in (2 * CALM, 4 * CALM):
        worker.claim(SLOW, waits=1)
        assert worker.claims(calm + 1, SLOW)[:-1] == [1] * calm
        assert worker.claim(SLOW) > 1


def test_who_reads_files_waits_for_the_disk_and_takes_several_all_the_same() -> None:
    worker = Worker()
    worker.pace.restart(files=True)
    assert worker.claims(20, SLOW, waits=1)[-1] == SHARE // (SLOW + 1)
    worker.pace.restart()
    assert worker.claims(20, SLOW, waits=1) == [1] * 20


def test_large_results_are_taken_alone() -> None:
    worker = Worker()
    assert worker.claims(10, 10, large=True) == [1] * 10


def test_a_new_run_begins_anew() -> None:
    worker = Worker()
    worker.claims(10, 10)
    worker.pace.restart()
    assert worker.claim(10) == 1


def naps(monkeypatch: Any, row_bytes: int, missing: int = 64, each: int = 100_000) -> list[float]:
    """How long a stream sleeps that has taken ten values of so many bytes, one in so many nanoseconds, and misses some."""
    slept: list[float] = []
    monkeypatch.setattr(stream_desk.time, "sleep", slept.append)
    desk: Any = object.__new__(stream_desk.StreamDesk)
    (edge, *_) = shape_of((qf.process(n=2)(abs) | qf.pack(64)).plan()).edges[1:]
    desk.board, desk.number = SimpleNamespace(edges=[SimpleNamespace(shape=edge)]), 0
    desk._row, desk._row_bytes = SimpleNamespace(missing=missing), row_bytes
    desk._naps, desk.counts, desk.now = Nap(), [0, 10], lambda: 10 * each
    desk._nap()
    return slept


def test_a_stream_sleeps_until_half_of_what_it_misses_should_have_come(monkeypatch: Any) -> None:
    assert naps(monkeypatch, 100, missing=12) == [pytest.approx(0.0006)]
    assert naps(monkeypatch, 100) == [NAP / 1e9]
    assert naps(monkeypatch, 100, missing=6) == []  # for fewer than several it does not


def test_it_does_not_sleep_for_more_than_may_wait_nor_where_that_is_not_known(monkeypatch: Any) -> None:
    assert naps(monkeypatch, 100_000) == [pytest.approx(0.0005)]  # 20 of each of the two producers, and of those an eighth
    assert naps(monkeypatch, 200_000) == []
    assert naps(monkeypatch, 0) == []


@given(st.lists(st.tuples(st.integers(1, 10**9), st.integers(0, 50), st.integers(0, 64)), min_size=1))
def test_a_nap_is_for_several_values_and_for_no_more_than_may_come_nor_longer_than_is_noticed(looks: list[Any]) -> None:
    nap, now, taken = Nap(), 0, 0
    for passed, came, most in looks:
        now, taken = now + passed, taken + came
        pause = nap.seconds(now, taken, lambda most=most: most) * 1e9  # type: ignore[misc]
        each = passed // came if came else 0
        assert pause == 0 or SEVERAL * each < round(pause) <= min(NAP, most * each)
        assert pause or not came or min(NAP, most * each) <= SEVERAL * each


def test_a_consumer_of_quick_results_is_woken_for_several_at_once() -> None:
    with qf.Flow(qf.process(spun)) as pipe:
        list(pipe(range(100)))
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        assert list(pipe(range(1000))) == [*range(1000)]
        assert resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before < 700


def spun(value: int) -> int:
    """Takes 0.1 ms."""
    end = time.monotonic_ns() + 100_000
    while time.monotonic_ns() < end:
        pass
    return value
