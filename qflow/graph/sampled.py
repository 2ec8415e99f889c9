"""Sampled: a sampler of PyTorch as a source, which follows the run.

In a DataLoader the loop around it must call ``set_epoch``, and what it draws hangs on how often the global generator was used
before. As a source it is a pure function of the run's seed and epoch, so that a run can go on in its midst.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from copy import copy
from itertools import islice
from typing import Any, final

from qflow.graph.context import Context
from qflow.graph.source import Source


def follows(value: Any) -> bool:
    """Whether it is a sampler whose order can follow a run."""
    return any(hasattr(each, "set_epoch") or hasattr(each, "generator") for each in _nested(value))


def _nested(value: Any) -> Iterator[Any]:
    """A sampler and those that it takes its indices from; nothing for anything else."""
    kind = getattr(sys.modules.get("torch.utils.data"), "Sampler", ())
    while isinstance(value, kind):
        yield value
        value = getattr(value, "sampler", None)


@final
class Sampled(Source[Any]):
    """The indices of a sampler, or its batches of them; the sampler itself stays as it is.

    One that draws gets a generator for the run's seed and epoch; one that has a generator already, for the seed with which that
    was made. One that has ``set_epoch`` counts the run's epochs from its own on.
    """

    varies = True

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def depends(self, context: Context) -> bool:
        return any(getattr(each, "generator", self) is None and not hasattr(each, "set_epoch") for each in _nested(self.sampler))

    def read(self, context: Context, start: int = 0) -> Iterator[Any]:
        return islice(iter(_following(self.sampler, context)), start, None)

    def __len__(self) -> int:
        return len(self.sampler)

    def __repr__(self) -> str:
        return type(self.sampler).__name__


def _following(sampler: Any, context: Context) -> Any:
    """A copy that gives the order of a run."""
    found = copy(sampler)
    if hasattr(found, "generator"):
        seed = context.seed if found.generator is None else found.generator.initial_seed()
        generator = sys.modules["torch"].Generator()
        found.generator = generator.manual_seed(Context(seed, context.epoch).key("sampler") >> 65)
    if hasattr(found, "set_epoch"):
        found.set_epoch(getattr(found, "epoch", 0) + context.epoch)
    if [*_nested(getattr(found, "sampler", None))]:
        found.sampler = _following(found.sampler, context)
    return found
