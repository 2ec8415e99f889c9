"""Permuted: a source whose items come in another order in each epoch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast, final

from qflow.errors import GraphError, got
from qflow.graph.context import Context, permutation
from qflow.graph.sizes import whole
from qflow.graph.source import Source, is_table

CHUNK = 4096  # indices that are made Python's at once


@final
class Permuted(Source[Any]):
    """The items of a sequence or map-style data set, in the order of a permutation; see `source.source`."""

    varies = True

    def __init__(self, values: Iterable[Any], seed: int | None = None) -> None:
        if not (hasattr(type(values), "__getitem__") and hasattr(type(values), "__len__")) or is_table(values):
            raise GraphError(
                f"`shuffle=True` needs items by index and their number, as a list has them, but got {got(values)}. "
                "Write `... | qf.shuffle(1000)` to shuffle a stream as far as a buffer reaches."
            )
        self.values = cast("Sequence[Any]", values)
        self.seed = None if seed is None else whole(seed, "seed", "qf.source(xs, shuffle=True, seed=0)")

    def depends(self, context: Context) -> bool:
        return self.seed is None

    def read(self, context: Context, start: int = 0) -> Iterator[Any]:
        return self.pick(context, range(start, len(self.values)))

    def pick(self, context: Context, numbers: range) -> Iterator[Any]:
        if self.seed is not None:
            context = Context(self.seed, context.epoch)
        order = permutation(context.key("source"), len(self.values))
        for first in range(0, len(numbers), CHUNK):
            places = [number % len(self.values) for number in numbers[first : first + CHUNK]]
            for index in order[places].tolist():
                yield self.values[index]

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        return f"{type(self.values).__name__}, shuffle=True{'' if self.seed is None else f', seed={self.seed}'}"
