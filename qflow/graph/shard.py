"""Shard: the part of a source that one of several equal processes reads.

    items      0 1 2 3 4 5 6 7 8 9      of three ranks, 0 reads 0 3 6 9, 1 reads 1 4 7, 2 reads 2 5 8
    "drop"                              0 reads 0 3 6, each as many as the others
    "pad"                               1 reads 1 4 7 0, 2 reads 2 5 8 1: the first ones again

Index paths have the items' numbers in the whole source, so that what is random for an item depends on no rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar, final

from qflow.errors import GraphError, got
from qflow.graph.flow import Operator
from qflow.graph.ranks import Rank, checked, rank

T = TypeVar("T")
EVEN = ("drop", "pad", None)


@final
class Shard(Operator[Any, Any]):
    """One of several parts of the source; see `shard`."""

    def __init__(self, index: int | None = None, count: int | None = None, even: str | None = None, said: str = "") -> None:
        if (index is None) != (count is None):
            raise GraphError(
                f"`qf.shard` takes the number of this part and how many there are, or neither, but got index={index!r}, "
                f"count={count!r}. Write `qf.shard(0, 4)`, or `qf.shard()` for what the launcher says."
            )
        if even not in EVEN:
            raise GraphError(f"`even` is 'drop', 'pad' or None, but got {got(even)}.")
        self.rank = None if index is None else checked(index, count, f"index={index!r}, count={count!r}", said)
        self.even = even

    @property
    def name(self) -> str:
        return f"shard({'' if self.rank is None else self.rank}{(self.even and f', {self.even}') or ''})"

    @property
    def now(self) -> Rank:
        """The rank, as it is now."""
        return self.rank or rank()

    def resolve(self) -> Shard:
        now = self.now
        return Shard(now.index, now.count, self.even, now.said)

    def numbers(self, items: int, start: int = 0) -> range:
        """The numbers of its items, of so many, from one on; those after the last are the first ones again."""
        index, count = self.now.pair
        whole = items // count * count if self.even == "drop" else -(-items // count) * count if self.even == "pad" else items
        return range(index, whole, count)[max(0, -((index - start) // count)) :]

    def of(self, items: Sequence[T]) -> list[T]:
        """Its part of a sequence, as of files that are yet to be cut into chunks.

        >>> import qflow as qf
        >>> qf.shard(1, 3).of(["a", "b", "c", "d", "e"])
        ['b', 'e']
        """
        return [items[number % len(items)] for number in self.numbers(len(items))]

    def transform(self, values: Iterator[Any]) -> Iterator[Any]:
        """Its part of values that come one after another."""
        for _, value in self.pick(enumerate(values), lambda: values):
            yield value

    def pick(self, numbered: Iterator[tuple[int, T]], again: Any) -> Iterator[tuple[int, T]]:
        """Its part of numbered items, of which it is not known how many there are; ``again`` gives the first ones."""
        index, count = self.now.pair
        kept: tuple[int, T] | None = None
        number = -1
        for number, value in numbered:
            if number % count == index:
                if self.even != "drop":
                    yield number, value
                else:
                    kept = number, value
            if kept is not None and number % count == count - 1:
                yield kept
                kept = None
        missing = index - (number + 1) % count
        if self.even == "pad" and number >= 0 and (number + 1) % count and missing >= 0:
            yield number + 1 + missing, next(islice(again(), missing % (number + 1), None))

    def length(self, items: int) -> int:
        return len(self.numbers(items))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shard) and (self.rank, self.even) == (other.rank, other.even)

    def __hash__(self) -> int:
        return hash((Shard, self.rank, self.even))

    def __repr__(self) -> str:
        numbers = [] if self.rank is None else map(str, self.rank.pair)
        return f"qf.shard({', '.join([*numbers, *([f'even={self.even!r}'] if self.even else [])])})"


def shard(index: int | None = None, count: int | None = None, *, even: str | None = None) -> Shard:
    """Read part ``index`` of ``count`` of the source: its items ``index``, ``index + count``, ...

    >>> import qflow as qf
    >>> list((range(10) | qf.shard(1, 3) | qf.pack(2))(engine="serial"))
    [[1, 4], [7]]

    Stands behind the source. The parts have nothing in common and together are the source; items of other parts are not read
    where that can be indexed. Without numbers they are those of torch.distributed, if it is initialised, of torchrun, Open
    MPI, PMI (MPICH, Intel MPI), or of a Slurm step; the plan prints which. A source that is shuffled needs a seed, for all
    ranks must shuffle it alike. Files are split before they are cut into chunks by ``h5.chunks(qf.shard().of(files), 1024)``.

    Args:
        index, count: which part of how many, from 0 on; or neither.
        even: ``"drop"``: all parts have as many items as the smallest, as training loops that wait for each other need it;
            ``"pad"``: as the largest, with the first items again; None: they differ by at most one.
    Raises:
        GraphError: the numbers are not those of a part; or it does not stand behind the source.
    """
    return Shard(index, count, even)
