"""Regroup: pack, unpack and repack, the operators that change how items lie in lists.

pack(2)     1 2 3            ->  [1, 2] [3]
unpack()    [1, 2] [3]       ->  1 2 3
repack(2)   [1] [2, 3] [4]   ->  [1, 2] [3, 4]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar, final

from qflow.errors import GraphError, blame, got
from qflow.graph.accumulator import Accumulator
from qflow.graph.flow import ALL, Each, Operator, Stream
from qflow.graph.sizes import Size, read_size, show_size, size
from qflow.graph.source import is_grouped

A = TypeVar("A", contravariant=True)


def grouped(value: Any, word: str) -> Iterable[Any]:
    """The elements of a list-like item, or a GraphError that names the item."""
    if not is_grouped(value):
        hint = f"Return a list from the step before, or leave `{word}` out."
        raise blame(GraphError(f"`{word}` takes lists of elements, but got {got(value)}. {hint}"), word, value)
    return value  # type: ignore[no-any-return]


class Sized(Stream[A, Any]):
    """What pack and repack share: a size, read when a run starts, and the rule for the last group."""

    word: str

    def __init__(self, size_: Size, drop_last: bool) -> None:
        self.size, self.drop_last = size(size_, "size", f"qf.{self.word}(64)"), drop_last

    @property
    def name(self) -> str:
        return f"{self.word}({show_size(self.size)})"

    def resolve(self) -> Operator[Any, Any]:
        return type(self)(read_size(self.size, "size", f"qf.{self.word}(64)"), self.drop_last)

    def __eq__(self, other: object) -> bool:
        return (
            type(self) is type(other)
            and isinstance(other, Sized)
            and (self.size, self.drop_last) == (other.size, other.drop_last)
        )

    def __hash__(self) -> int:
        return hash((type(self), self.drop_last))

    def __repr__(self) -> str:
        return f"qf.{self.word}({show_size(self.size)}{', drop_last=True' if self.drop_last else ''})"


@final
class Group(Accumulator):
    """The elements of a group that is not yet full."""

    def __init__(self, regroup: Sized[Any], state: Any, elements: Callable[[Any], Iterable[Any]] | None = None) -> None:
        self._size, self._drop_last = read_size(regroup.size, "size", f"qf.{regroup.word}(64)"), regroup.drop_last
        self._elements, self.whole = elements, elements is None
        self._group: list[Any] = list(state or ())

    def add(self, value: Any) -> Iterator[Any]:
        skipped = self.skip
        # Not toolz.partition_all: it reads one group ahead, which delays each list and loses one at an error.
        elements = (value,) if self._elements is None else self._elements(value)
        if self.skip:
            elements, self.skip = islice(elements, self.skip, None), 0
        for used, element in enumerate(elements, skipped + 1):
            self._group.append(element)
            if len(self._group) == self._size:
                self.used = used
                yield self._emptied()
            del element  # not kept alive while the next one is made

    def take(self, values: list[Any]) -> int:
        taken = values[: self._size - 1 - len(self._group)] if self._elements is None else []
        self._group += taken
        return len(taken)

    @property
    def missing(self) -> int:
        return 0 if self._elements else self._size - len(self._group)

    def finish(self) -> Iterator[Any]:
        self.used = ALL
        if self._group and not self._drop_last:
            yield self._emptied()

    def _emptied(self) -> list[Any]:
        group, self._group = self._group, []
        return group

    @property
    def state(self) -> Any:
        return self._group or None


@final
class Pack(Sized[Any]):
    """Groups items into lists; see `pack`."""

    word = "pack"

    def accumulator(self, state: Any = None) -> Accumulator:
        return Group(self, state)

    def length(self, items: int) -> int | None:
        number = read_size(self.size, "size", "qf.pack(64)")
        return items // number if self.drop_last else -(-items // number)


@final
class Repack(Sized[Iterable[Any]]):
    """Regroups lists into lists of one length; see `repack`."""

    word = "repack"

    def accumulator(self, state: Any = None) -> Accumulator:
        return Group(self, state, lambda value: grouped(value, "repack"))


@final
class Unpack(Each[Iterable[Any], Any]):
    """Flattens lists; see `unpack`."""

    expands = feeds = True
    name = "unpack"

    def outputs(self, value: Any) -> Iterable[Any]:
        return iter(grouped(value, "unpack"))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unpack)

    def __hash__(self) -> int:
        return hash(Unpack)

    def __repr__(self) -> str:
        return "qf.unpack()"


def pack(size: Size, *, drop_last: bool = False) -> Pack:
    """Group ``size`` items into a list.

    >>> import qflow as qf
    >>> list(qf.run(qf.pack(2), [1, 2, 3], engine="serial"))
    [[1, 2], [3]]

    Stream: T -> lists of T, length ``size``; the last may be shorter. Order: kept.
    Holds: fewer than ``size`` items. Runs in: a neighbour's worker, else one of its own.

    Args:
        size: items per list, at least 1: an int, or a function without arguments or a
            `multiprocessing.Value`, read in this process when a run starts.
        drop_last: drop a shorter last list.
    Raises:
        GraphError: ``size`` is not a whole number of at least 1.
    """
    return Pack(size, drop_last)


def unpack() -> Unpack:
    """Emit the elements of each list one by one.

    >>> import qflow as qf
    >>> list(qf.run(qf.unpack(), [[1], [], [2, 3]], engine="serial"))
    [1, 2, 3]

    Each: an iterable of T (not a str, bytes or mapping) -> T. Order: kept. Holds: one list.
    Runs in: the worker before it, else where the source is read.

    Raises:
        GraphError: at the item that is not such an iterable, when it comes.
    """
    return Unpack()


def repack(size: Size, *, drop_last: bool = False) -> Repack:
    """Regroup lists of any length into lists of ``size`` elements.

    >>> import qflow as qf
    >>> list(qf.run(qf.repack(2), [[1, 2, 3], [4]], engine="serial"))
    [[1, 2], [3, 4]]

    Stream: iterables of T, any length -> lists of T, length ``size``; the last may be shorter.
    Order: kept. Holds: fewer than ``size`` elements and one list. Runs in: a neighbour's worker, else one of its own.

    Args:
        size: elements per list, as in `pack`.
        drop_last: drop a shorter last list.
    Raises:
        GraphError: ``size`` is not a whole number of at least 1; or, when it comes, an item is not a list.
    Source: toolz.partition_all, the same law for one iterable.
    """
    return Repack(size, drop_last)
