"""Take: the first values of a stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar, final

from qflow.graph.accumulator import Accumulator
from qflow.graph.flow import Stream
from qflow.graph.sizes import whole

T = TypeVar("T")


@final
class Take(Stream[Any, Any]):
    """Ends a stream after some values; see `take`."""

    feeds = True
    words = 2

    def __init__(self, n: int) -> None:
        self.n = whole(n, "n", "qf.take(100)")

    @property
    def name(self) -> str:
        return f"take({self.n})"

    def accumulator(self, state: Any = None) -> Accumulator:
        return Taken(self.n, state or 0)

    def length(self, items: int) -> int:
        return min(items, self.n)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Take) and self.n == other.n

    def __hash__(self) -> int:
        return hash((Take, self.n))

    def __repr__(self) -> str:
        return f"qf.take({self.n})"


@final
class Taken(Accumulator):
    """How many values have passed."""

    whole = ends = True

    def __init__(self, n: int, given: int) -> None:
        self._n, self._given = n, given

    @property
    def done(self) -> bool:  # type: ignore[override]
        return self._given >= self._n

    def add(self, value: Any) -> Iterator[Any]:
        if self.skip:
            self.skip = 0
        elif not self.done:
            self._given += 1
            yield value

    def origin(self, path: tuple[int, ...]) -> tuple[int, ...]:
        return (*path, 1, self._given)

    def again(self, words: tuple[int, ...]) -> None:
        self.skip, self._given = words

    @property
    def state(self) -> Any:
        return self._given


def take(n: int) -> Take:
    """Let the first ``n`` items pass, and end there.

    >>> import itertools
    >>> import qflow as qf
    >>> list(qf.run(qf.take(3), itertools.count(), engine="serial"))
    [0, 1, 2]

    Stream: T -> T. Order: kept. Holds: nothing. Runs in: the thread that reads the source, which then reads no further,
    where it stands behind the source; else a neighbour's worker, or one of its own.

    Args:
        n: items, at least 0.
    Raises:
        GraphError: ``n`` is no such number.
    """
    return Take(n)
