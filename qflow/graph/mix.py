"""Mix: several sources as one, drawn from at random.

Each draw picks one of the sources that are left, by their weights; a pick of one that is used up takes it out, and counts as no
item. So where every source knows its length, it is known without reading how far each is after any number of items.

Source of the random numbers: as in `context`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from math import inf
from typing import Any, TypeVar, final

from qflow.errors import GraphError
from qflow.graph.context import Context, generator
from qflow.graph.sizes import whole
from qflow.graph.source import Source, check_source, lifted, source_length, use

T = TypeVar("T")
BLOCK = 4096  # draws at once


@final
class Mix(Source[T]):
    """Sources drawn from at random; see `mix`."""

    varies = True

    def __init__(self, sources: tuple[Iterable[T], ...], weights: list[float], seed: int) -> None:
        self.sources, self.weights, self.seed = sources, weights, seed

    def depends(self, context: Context) -> bool:
        return any(isinstance(each, Source) and each.depends(context) for each in self.sources)

    def read(self, context: Context, start: int = 0) -> Iterator[T]:
        lengths = [source_length(each) for each in self.sources]
        draws = _Draws(self.weights, Context(self.seed, context.epoch).key("mix"))
        taken = [0] * len(lengths)
        if start and None not in lengths:
            taken = draws.skip(start, [length or 0 for length in lengths])
            start = 0
        contexts = (dataclasses.replace(context, seed=context.key("mix", number)) for number in range(len(lengths)))
        iterators = [use(*each) for each in zip(self.sources, contexts, taken, strict=True)]
        while draws.left:
            number = draws.next()
            try:
                value = next(iterators[number])
            except StopIteration:
                draws.out(number)
                continue
            if start:
                start -= 1
                continue
            yield value
            del value  # not kept alive while the next one is waited for

    def __iter__(self) -> Iterator[T]:
        return self.read(Context())

    def __len__(self) -> int:
        lengths = [source_length(each) for each in self.sources]
        if None in lengths:
            raise TypeError("The number of items is not known before they came: a source of `qf.mix` does not say it.")
        return sum(length or 0 for length in lengths)

    def __repr__(self) -> str:
        return f"qf.mix of {len(self.sources)} sources"


class _Draws:
    """Which source is drawn next.

    Attributes:
        left: the numbers of those that are not known to be used up.
    """

    def __init__(self, weights: Sequence[float], key: int) -> None:
        self._weights = weights
        self.left: list[int] = [*range(len(weights))]
        self._random = generator(key)
        self._block = self._picks = self._random.random(0)  # random numbers, and places among those that are left
        self._at = 0

    def next(self) -> int:
        """The number of a source."""
        if self._at == len(self._picks):
            self._fill()
        self._at += 1
        place: int = self._picks[self._at - 1]
        return self.left[place]

    def out(self, number: int) -> None:
        """A source that was drawn is used up."""
        self.left.remove(number)
        self._pick()

    def skip(self, items: int, lengths: Sequence[int]) -> list[int]:
        """Draw so many items -> how many of each source."""
        taken = [0] * len(lengths)
        while items and self.left:
            if self._at == len(self._picks):
                self._fill()
                if items >= BLOCK and all(taken[each] + BLOCK <= lengths[each] for each in self.left):  # none runs out
                    for place, number in enumerate(self.left):
                        taken[number] += int((self._picks == place).sum())
                    self._at, items = BLOCK, items - BLOCK
                    continue
            number = self.next()
            if taken[number] == lengths[number]:
                self.out(number)
            else:
                taken[number] += 1
                items -= 1
        return taken

    def _fill(self) -> None:
        self._block, self._at = self._random.random(BLOCK), 0
        self._pick()

    def _pick(self) -> None:
        edges = [*accumulate(self._weights[number] for number in self.left)]
        self._picks = sum((self._block >= edge / edges[-1] for edge in edges[:-1]), (self._block * 0).astype(int))


def _bare(source: Any) -> Any:
    """A source as it stands before its first `|`; with steps it is a flow, whose runs are not those of the mix."""
    from qflow.graph.flow import Sourced

    if not isinstance(source, Sourced):
        return source
    if source.operators:
        raise GraphError(f"`qf.mix` takes sources, but got {source!r}, which has steps. Mix before them: `qf.mix(a, b) | step`.")
    return source.source


def mix(*sources: Iterable[T], weights: Sequence[float] | None = None, seed: int = 0) -> Mix[T]:
    """Several sources as one, drawn at random until all are used up.

    >>> import qflow as qf
    >>> sorted(qf.mix([1, 2], [3]))
    [1, 2, 3]

    The order depends on ``seed`` and the run's epoch alone. A run that goes on from a state begins each source where it was, if
    all know their lengths; else they are read up to there.

    Args:
        sources: iterables; each keeps its own order.
        weights: how often to draw from each, relative to each other; equal when not given.
        seed: of the random numbers.
    Raises:
        GraphError: a source can't be iterated, or is a flow with steps; or ``weights`` has another length, or a weight that is
            not above 0.
    """
    for each in sources:
        check_source(each, explicit=True)
    chosen = [1.0] * len(sources) if weights is None else [float(weight) for weight in weights]
    if len(chosen) != len(sources) or not all(0 < weight < inf for weight in chosen):
        raise GraphError(f"`weights` needs one number above 0 for each of {len(sources)} sources, but got {weights!r}.")
    return Mix(tuple(lifted(_bare(each)) for each in sources), chosen, whole(seed, "seed", "qf.mix(a, b, seed=0)"))
