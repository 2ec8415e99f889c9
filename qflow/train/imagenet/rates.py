"""Rates: images a second, of each step and of every few steps."""

from __future__ import annotations

import statistics
import time
from typing import final

WARM = 5  # first steps, which wait for the workers to start


@final
class Rates:
    """The rates of one rank's steps, as a clock sees them.

    Attributes:
        steps: images a second of each step that counts, in order.
    """

    def __init__(self, interval: int) -> None:
        self.steps: list[float] = []
        self._interval = interval
        self._number = self._images = 0
        self._seconds = 0.0
        self.restart()

    def restart(self) -> None:
        """What was since the last step belongs to none."""
        self._start = time.perf_counter()

    def step(self, images: int, *, counts: bool = True) -> str | None:
        """A step is done, since the last one or `restart`; every ``interval`` steps, what there is to say.

        Args:
            images: how many it took.
            counts: False for a step that was watched by a profiler, and slower for it.
        """
        now = time.perf_counter()
        seconds, self._start = now - self._start, now
        self._number += 1
        if counts:
            self._images, self._seconds = self._images + images, self._seconds + seconds
            if self._number > WARM:
                self.steps.append(images / seconds)
        if self._number % self._interval:
            return None
        rate = f"{self._images / self._seconds:.1f} images/s" if self._images else "profiled"
        self._images, self._seconds = 0, 0.0
        return f"step {self._number}: {rate}"

    def average(self) -> str:
        """Mean and deviation over the steps after the first ones."""
        return average(self.steps)


def average(rates: list[float]) -> str:
    """Mean and deviation of rates, in words; the deviation is that of a population, and 0 for one rate.

    >>> average([100.0, 110.0])
    'Average image rate: mean: 105.00, stddev: 5.00'
    """
    if not rates:
        return f"Average image rate: none, no step counts after the first {WARM}"
    return f"Average image rate: mean: {statistics.fmean(rates):.2f}, stddev: {statistics.pstdev(rates):.2f}"
