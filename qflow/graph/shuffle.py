"""Shuffle: the values of a stream in a random order, as far as a buffer reaches.

Value ``i`` is given the key ``i + u * buffer``, where ``u`` is random, from 0 to 1, and depends on seed, epoch and ``i`` alone.
Results come in the order of the keys:

    i     0    1    2    3    4  ...        a result is given as soon as no value to come can be before it:
    key  2.1  1.7  5.9  3.0  6.6            after value 1 none, after 2: 1 and 0, after 3: 3, ...

A value moves by less than ``buffer`` places forward or back against another one, at most ``buffer - 1`` wait, half of that on
average, and the first result comes soon. No state of a generator has to be kept: from any value on that no earlier one waits
behind, the order can be had again (`Shuffled.origin`).

Source of the random numbers: as in `context`, blocks of 1024 at once.
"""

from __future__ import annotations

import functools
import heapq
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, final

from qflow.graph.accumulator import Accumulator
from qflow.graph.context import PLAIN, Context, generator
from qflow.graph.flow import Stream
from qflow.graph.sizes import count, whole

BLOCK, BITS = 1024, 32
Waiting = tuple[int, int, tuple[int, ...], Any]  # key, number, index path and value


@final
class Shuffle(Stream[Any, Any]):
    """Shuffles a stream; see `shuffle`."""

    feeds = True
    words = 3

    def __init__(self, buffer: int, seed: int | None = None) -> None:
        self.buffer = count(buffer, "buffer", "qf.shuffle(1000)")
        self.seed = None if seed is None else whole(seed, "seed", "qf.shuffle(1000, seed=0)")

    @property
    def name(self) -> str:
        return f"shuffle({self.buffer})"

    def depends(self, context: Context) -> bool:
        return True

    def accumulator(self, state: Any = None) -> Accumulator:
        context, label = (PLAIN, self.name) if self.setting is None else (self.setting.context, self.setting.label)
        if self.seed is not None:
            context, label = Context(self.seed, context.epoch), "shuffle"
        return Shuffled(self.buffer, functools.partial(context.key, label), state)

    def length(self, items: int) -> int:
        return items

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shuffle) and (self.buffer, self.seed) == (other.buffer, other.seed)

    def __hash__(self) -> int:
        return hash((Shuffle, self.buffer, self.seed))

    def __repr__(self) -> str:
        return f"qf.shuffle({self.buffer}{'' if self.seed is None else f', seed={self.seed}'})"


@final
class Shuffled(Accumulator):
    """The values that wait for their turn."""

    whole = True
    wants_paths = True

    def __init__(self, buffer: int, key: Callable[[int], int], state: Any) -> None:
        self._buffer, self._key = buffer, key
        self._block = -1
        self._numbers: list[int] = []  # random, of a block
        self._next: int
        self._given: int
        self._known: int
        self._heap: list[Waiting]
        self._next, self._given, self._known, waiting = state or (0, 0, 0, ())
        self._heap = [*waiting]
        heapq.heapify(self._heap)
        self._came = deque(sorted((number, path) for _, number, path, _ in self._heap))  # also some that are given
        self._held = {number for number, _ in self._came}

    def add(self, value: Any) -> Iterator[Any]:
        number = self._next
        self._next += 1
        if self.skip:
            self.skip = 0
            return
        heapq.heappush(self._heap, (self._place(number), number, self.path, value))
        self._came.append((number, self.path))
        self._held.add(number)
        del value
        yield from self._ready(self._next << BITS)

    def finish(self) -> Iterator[Any]:
        yield from self._ready(None)

    def _ready(self, limit: int | None) -> Iterator[Any]:
        while self._heap and (limit is None or self._heap[0][0] < limit):
            _, number, _, value = heapq.heappop(self._heap)
            self._held.remove(number)
            if self._known:
                self._known -= 1
            else:
                self._given += 1
                yield value
            del value  # not kept alive while the next one is waited for

    def _place(self, number: int) -> int:
        """The key of a value."""
        block, at = divmod(number, BLOCK)
        if block != self._block:
            self._block = block
            self._numbers = generator(self._key(block)).integers(1 << BITS, size=BLOCK).tolist()
        return (number << BITS) + self._numbers[at] * self._buffer

    def origin(self, path: tuple[int, ...]) -> tuple[int, ...]:
        came = self._came
        while came and came[0][0] not in self._held:
            came.popleft()
        number, oldest = came[0] if came else (self._next - 1, path)
        return (*oldest, 0 if came else 1, number, self._given)

    def again(self, words: tuple[int, ...]) -> None:
        self.skip, self._next, self._given = words
        self._known = self._given - self._next - self.skip  # of those to come, as many were given before

    @property
    def state(self) -> Any:
        return self._next, self._given, self._known, list(self._heap)


def shuffle(buffer: int, *, seed: int | None = None) -> Shuffle:
    """Give items in a random order, which moves each by less than ``buffer`` places.

    >>> import qflow as qf
    >>> list(qf.run(qf.shuffle(4), range(8), engine="serial", seed=3))
    [1, 0, 2, 5, 6, 4, 3, 7]

    Stream: T -> T. The order depends on the seed and the run's epoch alone: the same for any ``n``, another one in each epoch.
    Holds: fewer than ``buffer`` items, half of that on average; the first result comes before the buffer is full. Runs in: the
    thread that reads the source, where it stands behind the source; else a neighbour's worker, or one of its own.
    A list is shuffled as a whole by ``qf.source(xs, shuffle=True)``, which holds only its indices.

    Args:
        buffer: items, at least 1, which changes nothing.
        seed: of the order; the run's when not given.
    Raises:
        GraphError: ``buffer`` or ``seed`` is no such number.
    """
    return Shuffle(buffer, seed)
