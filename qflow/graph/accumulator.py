"""Accumulator: a stream at work, value by value, so that an engine can write down what it keeps and begin it anywhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any


class Accumulator(ABC):
    """A stream at work: takes values, gives results, and keeps what it has not yet given."""

    done = False
    """It needs no more values."""
    ends = False
    """It may come to that before they end."""
    whole = False
    """It takes no value apart."""
    skip = 0
    """How many elements of the next value were used before; 1 of a value that is not taken apart."""
    used = 1
    """How many elements of the value at work are used, those that were skipped, too."""

    wants_paths = False
    """It looks at ``path``, the index path of the value at work."""
    path: tuple[int, ...] = ()

    @abstractmethod
    def add(self, value: Any) -> Iterator[Any]:
        """The results that a value brings."""

    def take(self, values: list[Any]) -> int:
        """Take the first of several values, none of which brings a result -> how many; a quicker way for many."""
        return 0

    @property
    def missing(self) -> int:
        """How many more values it expects to take before its next result; 0: it can't tell."""
        return 0

    def finish(self) -> Iterator[Any]:
        """The results that come when there are no more values."""
        return iter(())

    def cut(self) -> None:  # noqa: B027  most have nothing to do
        """There may be more values, but a later stream needs none."""

    def origin(self, path: tuple[int, ...]) -> tuple[int, ...]:
        """After a result, from where the next one comes: the index path of a value, which was at work, or came before, and
        what `again` needs to know."""
        return (*path, self.used)

    def over(self, head: tuple[int, ...]) -> bool:
        """Whether it needs no more values of a repetition of the source."""
        return self.done

    def head(self, path: tuple[int, ...]) -> tuple[int, ...]:
        """Where the source is repeated, the repetition to which a result belongs that comes at a value."""
        return path[:1]

    def again(self, words: tuple[int, ...]) -> None:
        """Begin in the midst of a run: the first value is that of an `origin`, with its words."""
        (self.skip,) = words

    @property
    @abstractmethod
    def state(self) -> Any:
        """What must be known to go on from here, in values that can be sent; None: nothing."""
