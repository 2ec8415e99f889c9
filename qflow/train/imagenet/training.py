"""Training: epoch after epoch, until there were enough steps."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, final

import torch

from qflow.errors import GraphError
from qflow.graph.run import Run
from qflow.train.imagenet.flow import Batch
from qflow.train.imagenet.model import Learner
from qflow.train.imagenet.rates import Rates
from qflow.train.imagenet.trace import Trace
from qflow.train.imagenet.world import World
from qflow.train.loader import Loader


@dataclasses.dataclass(frozen=True)
class Passed:
    """What one rank saw of an epoch: ``int64[images]`` numbers of images, steps, and items that were skipped."""

    numbers: torch.Tensor
    steps: int
    skipped: int


@final
@dataclasses.dataclass(frozen=True)
class Training:
    """A loader, who learns from it, and when it is enough.

    Attributes:
        images: how many there are, for all ranks together.
        steps: exactly so many, over the ends of epochs; None: no limit.
        epochs: at most so many; None: no limit.
        interval: steps after which the rate is printed.
        trace: of the profiler, if there is one.
    """

    loader: Loader[Batch]
    learner: Learner
    world: World
    images: int
    steps: int | None
    epochs: int | None
    interval: int
    trace: Trace | None = None

    def run(self) -> Rates:
        """All steps, the same number on each rank unless images are skipped; the rates of this rank's.

        Raises:
            GraphError: an epoch had no batch.
        """
        rates, done = Rates(self.interval), 0
        for epoch in itertools.count() if self.epochs is None else range(self.epochs):
            left = None if self.steps is None else self.steps - done
            if left == 0:
                break
            done += self._epoch(epoch, left, rates)
        return rates

    def _epoch(self, epoch: int, left: int | None, rates: Rates) -> int:
        """At most ``left`` steps; the most that a rank has done."""
        start, numbers, losses, skipped = time.perf_counter(), [], [], 0
        with self.learner.joined():
            rates.restart()
            for run, batch in itertools.islice(self._batches(), left):
                losses.append(self.learner.learn(batch))
                numbers.append(batch.numbers.clone())  # the batch's memory is used again
                self._stepped(run, len(batch), rates)
            skipped = len(run.failures) if losses else 0  # those behind the last batch, too
        each = self.world.gather(Passed(torch.cat(numbers or [torch.empty(0, dtype=torch.int64)]).cpu(), len(losses), skipped))
        self._report(epoch, each, losses, time.perf_counter() - start)
        return max(passed.steps for passed in each)

    def _batches(self) -> Iterator[tuple[Run[Batch], Batch]]:
        """The batches of an epoch, each with the run that it is of."""
        batches, run = iter(self.loader), self.loader.run
        assert run is not None
        while True:
            with self.trace.waiting() if self.trace else nullcontext():
                batch = next(batches, None)
            if batch is None:
                return
            yield run, batch

    def _stepped(self, run: Run[Any], images: int, rates: Rates) -> None:
        profiled = self.trace is not None and self.trace.profiling
        text = rates.step(images, counts=not profiled)
        if text:
            self.world.say(text)
        if self.trace:
            self.trace.step(run)
            rates.restart()

    def _report(self, epoch: int, each: list[Passed], losses: list[float], seconds: float) -> None:
        """What all ranks saw of an epoch; a GraphError when that is nothing."""
        numbers = [number for passed in each for number in passed.numbers.tolist()]
        if not numbers:
            raise GraphError(f"Epoch {epoch} had no batch: all images failed, or there are more ranks than images.")
        ranks = " + ".join(str(len(passed.numbers)) for passed in each)
        self.world.say(
            f"epoch {epoch}: {len(numbers)} images, {len(set(numbers))} different, of {self.images}; {ranks} by rank, "
            f"{sum(passed.skipped for passed in each)} skipped; loss {sum(losses) / max(1, len(losses)):.3f}, {seconds:.1f} s"
        )
