"""Repeat: the source again and again, as one stream.

What stands before `repeat` sees one repetition after another, as if each were a run of its own: its streams give out what they
keep at the end of each, and begin anew. What stands behind it sees one stream, whose batches run across the seams:

    xs | qf.pack(4) | qf.repeat(2)     0123 45 | 0123 45
    xs | qf.repeat(2) | qf.pack(4)     0123 4501 2345

An engine reads the source again; nothing is kept of it. Index paths begin with the number of the repetition, by which a
stream before `repeat` knows that another one has begun (`Times`); for random numbers, repetition ``r`` of epoch ``e`` is
epoch ``e + r``. The next repetition is read while the last items of this one are worked on.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, final

from qflow.graph.accumulator import Accumulator
from qflow.graph.context import Context, Setting
from qflow.graph.flow import Operator, Stream
from qflow.graph.sizes import count


@final
class Repeat(Operator[Any, Any]):
    """Where a flow's repetitions become one stream; see `repeat`."""

    def __init__(self, times: int | None = None) -> None:
        self.times = None if times is None else count(times, "times", "qf.repeat(10)")

    @property
    def name(self) -> str:
        return f"repeat({'' if self.times is None else self.times})"

    def transform(self, values: Iterator[Any]) -> Iterator[Any]:
        """The values that came, again and again: what a source gives that gives the same each time."""
        kept = [*values]
        return itertools.chain.from_iterable(itertools.repeat(kept) if self.times is None else itertools.repeat(kept, self.times))

    def length(self, items: int) -> int | None:
        return None if self.times is None else items * self.times

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Repeat) and self.times == other.times

    def __hash__(self) -> int:
        return hash((Repeat, self.times))

    def __repr__(self) -> str:
        return f"qf.{self.name}"


@final
class EachTime(Stream[Any, Any]):
    """A stream before a `Repeat`."""

    def __init__(self, stream: Stream[Any, Any]) -> None:
        self.stream = stream
        self.feeds, self.words = stream.feeds, stream.words  # type: ignore[misc]

    @property
    def name(self) -> str:
        return self.stream.name

    @property
    def meaning(self) -> str:
        return self.stream.meaning

    def depends(self, context: Context) -> bool:
        return self.stream.depends(context)

    def within(self, setting: Setting) -> EachTime:
        found = EachTime(self.stream)
        found.setting = setting
        return found

    def at(self, time: int) -> Stream[Any, Any]:
        """The stream of one repetition."""
        if self.setting is None:
            return self.stream
        context = dataclasses.replace(self.setting.context, epoch=self.setting.context.epoch + time)
        return self.stream.within(Setting(context, self.setting.label))  # type: ignore[return-value]

    def accumulator(self, state: Any = None) -> Accumulator:
        return Times(self, state)

    def __repr__(self) -> str:
        return repr(self.stream)


@final
class Times(Accumulator):
    """A stream that begins anew with each repetition."""

    wants_paths = True

    def __init__(self, each: EachTime, state: Any) -> None:
        self._each, self.ends = each, each.stream.accumulator().ends
        self._kept: Accumulator | None = None
        self._words: tuple[int, ...] = ()  # with which the first value begins
        self._time = 0
        self._last: tuple[int, ...] = ()
        if state is not None:
            self._time, self._last, kept = state
            self._kept = each.at(self._time).accumulator(kept)

    def add(self, value: Any) -> Iterator[Any]:
        time = self.path[0]
        if self._kept is not None and time != self._time:
            yield from self._kept.finish()
            self._kept = None
        if self._kept is None:
            self._time, self._kept = time, self._each.at(time).accumulator()
            if self._words:
                self._kept.again(self._words)
                self._words = ()
        if not self._kept.done:
            self._last = self._kept.path = self.path
            yield from self._kept.add(value)

    def finish(self) -> Iterator[Any]:
        if self._kept is not None:
            yield from self._kept.finish()

    def cut(self) -> None:
        if self._kept is not None:
            self._kept.cut()

    def over(self, head: tuple[int, ...]) -> bool:
        return self._kept is not None and self._kept.done and head == (self._time,)

    def head(self, path: tuple[int, ...]) -> tuple[int, ...]:
        return (self._time,)

    def origin(self, path: tuple[int, ...]) -> tuple[int, ...]:
        assert self._kept is not None
        return self._kept.origin(self._last)

    def again(self, words: tuple[int, ...]) -> None:
        self._words = words

    @property
    def state(self) -> Any:
        return None if self._kept is None else (self._time, self._last, self._kept.state)


def repeat(times: int | None = None) -> Repeat:
    """Read the source ``times`` times, or for ever, as one stream.

    >>> import qflow as qf
    >>> list((range(3) | qf.pack(2) | qf.repeat(2))(engine="serial"))
    [[0, 1], [2], [0, 1], [2]]
    >>> list((range(3) | qf.repeat(2) | qf.pack(2))(engine="serial"))
    [[0, 1], [2, 0], [1, 2]]

    Stream: T -> T. Order: kept. Holds: nothing; the source is read again, while the steps work on the end of what came
    before. In repetition ``r`` of a run of epoch ``e``, what is random is that of epoch ``e + r``. The index paths of failures
    begin with the repetition. Where a `take` between steps ends a repetition, the source is read to its end; right behind
    the source it is not.

    Args:
        times: at least 1; None: for ever.
    Raises:
        GraphError: ``times`` is no such number; a flow has two of them; the source is an iterator, which can be read once; or
            it has no items, and is to be read for ever.
    """
    return Repeat(times)
