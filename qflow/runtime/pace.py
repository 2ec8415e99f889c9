"""Pace: how many small values are taken at once, by a worker, and by whoever has to wait for them.

A worker takes as many as it will do in a moment, by its own measure:

    quick values    as many as take `SHARE`
    slow ones       the same, but no more than are left for each of the other workers, nor than may wait behind this one;
                    and alone while user code waits, for it may wait for another value (one that reads a file waits for
                    the disk, and for others in the file system)
    large results   alone: each has a cell of its own, and the others have theirs meanwhile

Whether user code waits is told by the kernel: how often the thread has given its core away by itself, without what the worker
has waited for others. It misses one now and then (a timer that is over before the thread sleeps), so it takes several claims
in a row without a wait until values are taken together, and after each wait twice as many.

If each 0.1 ms of computing is taken alone, too, the bench's "hdf5-heavy" makes 84 batches/s in place of 106 (2 shared cores).

Who has taken all that lies there sleeps a little where values come quickly, so that several come unheard (`Nap`).
"""

from __future__ import annotations

import resource
from collections.abc import Callable

SHARE = 2_000_000  # nanoseconds of work at once
SLOW = 25_000  # nanoseconds: values that take as long are slow
CALM = 3  # claims in a row without a wait until slow values are taken together
DOUBT = 1 << 20  # the same at most
# A worker that is woken for each value of 0.1 ms spends 50 us on that, and who wakes it 25 (2 shared cores, Linux 6.18, virtual):
# the bench's "hdf5-heavy" makes 115 batches/s with naps, 97 without; a step of 0.2 ms costs 230 us in place of 270.
NAP, SEVERAL = 2_000_000, 4  # nanoseconds at most in which values may come unheard, and how many have to be expected


def _given_away() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


class Pace:
    """Of one worker.

    Args:
        workers: how many take from where it does.
        given_away: how often its thread has given its core away by itself.
    Attributes:
        large: a result of the claim has a cell of its own.
    """

    def __init__(self, workers: int, given_away: Callable[[], int] = _given_away) -> None:
        self._workers, self._given_away = workers, given_away
        self.restart()

    def restart(self, *, files: bool = False) -> None:
        """A run begins; ``files``: its values are read from files."""
        self.large = self._slow = False
        self._files = files
        self._most, self._calm, self._doubt = 1, 0, CALM
        self._busy = self._own = 0  # nanoseconds when the claim began; switches that were waits for others
        self._before: int | None = None  # the other switches when the claim began, if anybody asked

    def take(self, available: int) -> int:
        """How many of the values that lie there to take."""
        return min(-(-available // self._workers) if self._slow else available, self._most)

    def begin(self, busy: int) -> None:
        """A claim begins; ``busy``: nanoseconds in the step's code so far."""
        self._busy, self.large = busy, False
        self._before = self._switches() - self._own if self._slow else None

    def waiting(self, wait: Callable[[], object]) -> None:
        """Wait for others, which is not user code."""
        before = self._switches()
        wait()
        self._own += self._switches() - before

    def end(self, busy: int, values: int, room: Callable[[], int]) -> None:
        """A claim of so many values is done; ``room``: how many results may wait behind this worker."""
        cost = (busy - self._busy) // values
        if self._before is not None:
            if self._switches() - self._own > self._before:
                self._calm, self._doubt = 0, min(2 * self._doubt, DOUBT)
            else:
                self._calm += 1
        self._slow = cost >= SLOW
        enough = SHARE // (cost + 1)
        if self.large or (self._slow and self._calm < self._doubt and not self._files):
            enough = 1
        elif self._slow:
            enough = max(1, min(enough, room()))
        self._most = min(2 * self._most, enough)

    def _switches(self) -> int:
        """How often the thread has waited; 0 while nobody asks."""
        return self._given_away() if self._slow and not self._files else 0


class Nap:
    """Of one taker: how long it may sleep when nothing more lies there."""

    def __init__(self) -> None:
        self._looked = self._taken = 0

    def seconds(self, now: int, taken: int, most: Callable[[], int]) -> float:
        """Until so many values should have come as may, at the rate of those that came since it was asked last; else 0.

        Args:
            now: nanoseconds.
            taken: values so far.
            most: values that may come meanwhile.
        """
        before, came = self._looked, taken - self._taken
        self._looked, self._taken = now, taken
        if came <= 0:
            return 0
        each = (now - before) // came
        pause = min(most() * each, NAP)
        return pause / 1e9 if pause > SEVERAL * each else 0
