"""Board: the shared words by which the feeder, the workers and the consumer of a run coordinate.

Every word is a native-aligned 64-bit number with one writer at a time. The words of edge ``e``
(between its producers and the takers of the next step):

    head[lane]          item << SHIFT | entries published for it; the store is the commit
    entry[lane, k]      mark << CELL_BITS + 3 | cell << 3 | kind
    cell[c]             0: free; the tag of the entry it holds; KEPT | w: taker w keeps a view on it
    cell_wait[a]        producer a waits for a cell
    taken               lanes below this are wholly taken
    total               number of items of the edge + 1, once it is known
    taker_wait          who waits for an entry, and of which item
    lane_wait           who waits for ``taken`` to grow

Words of participant ``w``: its hand (the cursor it took), its job (the item it works on), and what it is `at`
(the user code that runs). They outlive a worker, and its replacement goes on from them.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import MutableSequence
from itertools import accumulate
from typing import Any

from qflow.graph.plan import SMALL, Plan

SHIFT = 28  # 2**36 items of a step, 2**28 results of an item
LOW = (1 << SHIFT) - 1
DATA, END, ERROR = 1, 2, 4
CELL_BITS = 37
CELL = (1 << CELL_BITS) - 1
MARK = (1 << 61 - CELL_BITS) - 1
KEPT = 1 << 63
POISON = (1 << 64) - 1

SMALL_ITEMS = 64  # of an unwritten queue at most, together below plan.SMALL bytes
MOST_WAITING = 4096  # cells of a channel for waiting items; a larger queue holds no more than these
MOST_DEPTH = 64  # entries of a lane that are not yet taken
VIEWS = 3  # cells of one producer that one taker may keep views on; beyond, values are copies

Words = MutableSequence[int]


class Phase(enum.IntEnum):
    """What a worker does with user data when it dies, and so what the death is charged to."""

    IDLE = 0
    LOAD = 1  # building the item; the step that made it is to blame
    RUN = 2
    SEND = 3  # encoding a result, and copying it into its cell
    OPEN = 4  # building the user's classes


@dataclasses.dataclass(frozen=True)
class EdgeShape:
    """The numbers of one edge.

    Attributes:
        producers, takers: how many sides put and take.
        window: items that may be claimed by the producers and are not wholly taken.
        base: cells of each producer for items of any size.
        extra: more cells of each, for small items of an unwritten queue.
        small: bytes of small items that each producer may let wait.
        slack: lanes that must be free before a producer that waited goes on, so that it is woken
            once for many small items.
    """

    producers: int
    takers: int
    window: int
    base: tuple[int, ...]
    extra: int
    small: int
    slack: int = 0

    @property
    def large(self) -> int:
        """Cells of each producer for items of any size: those that wait, and those that takers keep views on."""
        return max(self.base) + VIEWS * self.takers

    @property
    def cells(self) -> int:
        """Cells of each producer: the large ones, then the small ones."""
        return self.large + self.extra

    @property
    def all_cells(self) -> int:
        """Cells of all producers together."""
        return self.producers * self.cells

    @property
    def depth(self) -> int:
        """Entries of a lane that may lie there untaken."""
        return min(self.cells + 2, MOST_DEPTH)


def edge_shape(bound: int | None, producers: int, takers: int, *, ordered: bool) -> EdgeShape:
    """An edge for a queue bound: items of the producers' hands and the queue, one cell for each taker at work.

    Claims are limited by the window, so that a step which gives one result an item never has more than
    ``bound`` of them waiting beside one in each producer's hands. Unordered, the window is wider. A step that
    gives several results an item is limited by its cells, of which each of its workers has at least one.
    """
    waiting = 1 if bound is None else min(bound, MOST_WAITING)
    cells = waiting + takers
    base = tuple(max(1, cells // producers + (a < cells % producers)) for a in range(producers))
    window = producers + (SMALL_ITEMS if bound is None else waiting)
    window = window if ordered else max(window, SMALL_ITEMS + producers)
    if bound is not None:
        return EdgeShape(producers, takers, window, base, 0, 0)
    return EdgeShape(producers, takers, window, base, 2 * SMALL_ITEMS, SMALL // producers, SMALL_ITEMS // 2)


@dataclasses.dataclass(frozen=True)
class Shape:
    """The numbers of a whole run: what board and memory are cut to. Participants: feeder 0, workers, consumer last."""

    edges: tuple[EdgeShape, ...]

    @property
    def first(self) -> tuple[int, ...]:
        """The first participant that puts into each edge."""
        return tuple(accumulate((edge.producers for edge in self.edges), initial=0))

    @property
    def participants(self) -> int:
        """The feeder, all workers and the consumer."""
        return self.first[-1] + 1


def shape_of(plan: Plan, *, ordered: bool = True) -> Shape:
    """The shape for a plan; only the last edge can be taken out of order."""
    takers = (*plan.workers[1:], 1)
    last = len(takers) - 1
    return Shape(
        tuple(
            edge_shape(bound, producers, taking, ordered=ordered or e < last)
            for e, (bound, producers, taking) in enumerate(zip(plan.bounds, plan.workers, takers, strict=True))
        )
    )


class Edge:
    """The words of one edge."""

    def __init__(self, shape: EdgeShape, first: int, cut: Any) -> None:
        self.shape, self.first = shape, first
        self.window, self.depth, self.cells_each = shape.window, shape.depth, shape.cells
        self.head: Words = cut(shape.window)
        self.entry: Words = cut(shape.window * shape.depth)
        self.cell: Words = cut(shape.producers * shape.cells)
        self.cell_wait: Words = cut(shape.producers)
        self.taken: Words = cut(1)
        self.total: Words = cut(1)
        self.taker_wait: Words = cut(1)
        self.lane_wait: Words = cut(1)


class Board:
    """All words of a run, cut out of one row of them; `words_needed` says how long it must be.

    ``job`` of a worker: 0 the item it claimed + 1, 1 the entry's place, 2 the place after it, 3 the entry,
    4 the item it finished + 1; of a stream: see `streaming`.
    ``at``: 0 the phase of its work on user data (`Phase`), and above its three bits how many calls of user
    code the item has had; 1 the entry's place + 1; 2 nanoseconds of the monotonic clock when this result began.
    ``counts``: 0 nanoseconds in the step's code, 1 values taken, 2 results given, 3 tries after the first.
    """

    HAND, JOB, AT, COUNTS = 2, 11, 3, 4
    watched = False  # whether whoever acts on it stops at the failpoints

    def __init__(self, shape: Shape, words: Any) -> None:
        self.shape, self._words, self._at = shape, words, 0
        self.cancelled: Words = self._cut(1)
        self.edges = [Edge(edge, first, self._cut) for edge, first in zip(shape.edges, shape.first, strict=False)]
        self.hand: list[Any] = [self._cut(self.HAND) for _ in range(shape.participants)]
        self.job = [self._cut(self.JOB) for _ in range(shape.participants)]
        self.at = [self._cut(self.AT) for _ in range(shape.participants)]
        self.counts = [self._cut(self.COUNTS) for _ in range(shape.participants)]

    def _cut(self, count: int) -> Any:
        self._at += count
        return self._words[self._at - count : self._at]


def words_needed(shape: Shape) -> int:
    """How many words a board of this shape has."""
    per_edge = (edge.window * (1 + edge.depth) + edge.producers * (edge.cells + 1) + 4 for edge in shape.edges)
    return 1 + sum(per_edge) + shape.participants * (Board.HAND + Board.JOB + Board.AT + Board.COUNTS)
