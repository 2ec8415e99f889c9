"""How many values a worker takes at once, with a clock and a count of waits of the test's own."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from qflow.runtime.pace import CALM, SHARE, SLOW, Pace

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


def test_large_results_are_taken_alone() -> None:
    worker = Worker()
    assert worker.claims(10, 10, large=True) == [1] * 10


def test_a_new_run_begins_anew() -> None:
    worker = Worker()
    worker.claims(10, 10)
    worker.pace.restart()
    assert worker.claim(10) == 1
