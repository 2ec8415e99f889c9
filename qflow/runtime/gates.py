"""Gates: the steps that share the threads of one process, each with as many calls at once as its mark promises.

Neighbouring thread steps are one group (`graph.plan`): an item goes through all of them in one thread, which hands on the very
objects. There are as many threads as the marks have together, so that each step may have all of its calls at work
while others wait; what each thread counts of a step stands in words of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from qflow.graph.plan import Part
from qflow.runtime.board import Words

BUSY, TAKEN, GIVEN = range(3)


def gates_of(parts: Sequence[Part]) -> list[threading.Semaphore]:
    """For each step of a group that several share, what lets as many threads in as it has."""
    return [threading.Semaphore(part.n) for part in parts]


class Gate:
    """A step, as one thread calls it.

    Args:
        open_: lets a thread in.
        counts: nanoseconds in the step's code, values taken, results given.
        now: a clock, in nanoseconds.
        waited: is told how long it took to get in.
    """

    def __init__(self, open_: threading.Semaphore, counts: Words, now: Callable[[], int], waited: Callable[[int], None]) -> None:
        self._open, self._counts, self._now, self._waited = open_, counts, now, waited

    def call(self, function: Callable[[Any], Any], value: Any) -> Any:
        """Call a function of the step, or the next of an iterator that it gave."""
        asked, first = self._now(), function is not next
        with self._open:
            begun = self._now()
            self._waited(begun - asked)
            self._counts[TAKEN] += first
            try:
                result = function(value)
            finally:
                self._counts[BUSY] += self._now() - begun
        self._counts[GIVEN] += 1 if not first else len(result) if type(result) is tuple else 0
        return result
