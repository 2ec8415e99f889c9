"""Board: the shared words by which the feeder, the workers and the consumer of a run coordinate.

Every word is a native-aligned 64-bit number with one writer at a time. The words of edge ``e``
(between its producers and the takers of the next step):

    head[lane]          item << SHIFT | entries published for it; the store publishes an entry
    entry[lane, k]      cell << 4 | kind
    grown[lane, k]      ENDED, CLOSED | given << 32 | done << 16 | count; the store commits a value
    mark[lane, k]       of an iterator: the last result's digest << 32 | given; of a stream or feed: values in earlier lanes
    cell[c]             0: free; the tag of the entry it holds; KEPT | w: taker w keeps a view on it
    cell_wait[a]        producer a waits for a cell
    taken               lanes below this are wholly taken
    total               number of items of the edge + 1, once it is known
    taker_wait          who waits for an entry, or for one to grow, and of which item
    taker_waits         how often somebody has
    lane_wait           who waits for ``taken`` to grow
    quick               1: producers leave out the fence between what they store and their look at who waits
    pages[c]            bytes that cell ``c`` has pages for, at most: its producer stores more before it writes, less after
                        it gave some back. It outlives the run, as the pages do

An entry is a cell with one value, or with ``count`` small ones (PACKED), which grow until it is CLOSED, or another
entry follows, or the item is ENDED. ``done`` says of how many input values of its claim the producer has given all
results, ``given`` how many of the next one: with the store that commits a value goes how far its producer is.

Words of participant ``w``: its hand (the cursor it took), its job (the values it works on), and what it is `at`
(the user code that runs; in a `dash.Dash` only that it dashes, see `Board.state`). They outlive a worker, and
its replacement goes on from them.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import mmap
from collections.abc import MutableSequence
from itertools import accumulate
from typing import Any

from qflow.graph.plan import MANY, SHARING, WAITING, Plan

SHIFT = 28  # 2**36 items of a step, 2**28 results of an item
LOW = (1 << SHIFT) - 1
DATA, END, ERROR, PACKED = 1, 2, 4, 8
KINDS = 4  # bits
KEPT = 1 << 63
ENDED, CLOSED = 1 << 63, 1 << 62
DONE, GIVEN = 16, 32  # where these numbers begin in a word of ``grown``
COUNT = (1 << DONE) - 1
RESULTS = (1 << 62 - GIVEN) - 1  # of one value at most
POISON = (1 << 64) - 1

LANES = 1024  # items of an unwritten queue whose results may wait for those of a slow one
SLACK = 32  # lanes that must be free before a producer that waited goes on
SMALL_CELLS = 128  # of a producer of an unwritten queue
SPARE = 3  # large cells of the same beyond those for the items that may always wait
PARTS = 4  # of the small items' bytes, each in a cell of its own, so that some are free while others are taken
MOST_VALUES = 4096  # of one entry, and of one claim
MOST_WAITING = 4096  # cells of a channel for waiting items; a larger queue holds no more than these
MOST_DEPTH = 64  # entries of a lane that are not yet taken
SMALL_DEPTH = 16  # the same where small ones wait only as far as they fit
VIEWS = 3  # cells of one producer that one taker may keep views on; beyond, values are copies

LINE = 8  # words of a cache line
OFFSET, CALLS = 35, 3  # where an offset in an entry, and the calls of user code, begin in a word of ``at``

Words = MutableSequence[int]


def in_pages(size: int) -> int:
    """The bytes of the pages that so many bytes lie in."""
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


class Phase(enum.IntEnum):
    """What a worker does with user data when it dies, and so what the death is charged to."""

    IDLE = 0
    LOAD = 1  # building the item; the step that made it is to blame
    RUN = 2
    SEND = 3  # encoding a result, and copying it into its cell
    OPEN = 4  # building the user's classes
    DASH = 5  # RUN, of the value that follows those that are done: see `Board.state`


@dataclasses.dataclass(frozen=True)
class EdgeShape:
    """The numbers of one edge.

    Attributes:
        producers, takers: how many sides put and take.
        window: items that may be claimed by the producers and are not wholly taken.
        base: cells of each producer for items of any size.
        extra, spare: more cells of each in an unwritten queue, for small items, and for those of any size.
        small: bytes that each producer may let wait in these.
        most: values of one entry, and of one claim.
        packed: small values that each producer may let wait.
        share: bytes of pages that the large cells of each producer may have together; 0: any number. A larger
            value passes in its turn, when no other such value of the edge is in use.
        slack: lanes that must be free before a producer that waited goes on, so that it is woken
            once for many small items.
        locked: a device reads its cells where they lie; their pages are never given back.
    """

    producers: int
    takers: int
    window: int
    base: tuple[int, ...]
    extra: int
    small: int
    slack: int = 0
    most: int = 1
    packed: tuple[int, ...] = ()
    share: int = 0
    spare: int = 0
    locked: bool = False

    @functools.cached_property
    def large(self) -> int:
        """Cells of each producer for items of any size: those that wait, one that is filled, those that takers keep views on."""
        return self.lent + 1 + VIEWS * self.takers

    @property
    def lent(self) -> int:
        """Of these, how many a producer's own step may keep arrays in: there is always one for its results."""
        return max(self.base) + self.spare

    @functools.cached_property
    def cells(self) -> int:
        """Cells of each producer: the large ones, then the small ones."""
        return self.large + self.extra

    @property
    def all_cells(self) -> int:
        """Cells of all producers together."""
        return self.producers * self.cells

    def waiting(self, producer: int, nbytes: int) -> int:
        """How many small values of so many bytes a producer may let wait."""
        return min(self.packed[producer], self.small // max(nbytes, 1)) if self.extra else self.packed[producer]

    def unheard(self, nbytes: int) -> int:
        """How many of so many bytes may come while their taker sleeps; 0: their size is not known.

        An eighth of those that may wait: producers that are faster than they seem must not stand still meanwhile. (With 16 that
        may wait, and half of them, two producers of 20 us made 9 k/s in place of 15 k/s.)
        """
        if self.share or not nbytes:
            return 0
        return sum(self.waiting(producer, nbytes) for producer in range(self.producers)) // 8

    @property
    def depth(self) -> int:
        """Entries of a lane that may lie there untaken."""
        return min(self.cells + 2, SMALL_DEPTH if self.extra else MOST_DEPTH)


def edge_shape(bound: int | None, producers: int, takers: int, *, ordered: bool, memory: int | None = None) -> EdgeShape:
    """An edge for a queue bound: items of the producers' hands and the queue, one cell for each taker at work.

    Claims are limited by the window, so that a step which gives one result an item never has more than
    ``bound`` of them waiting beside one in each producer's hands. Unordered, the window is wider. A step that
    gives several results an item is limited by its cells, of which each of its workers has at least one.
    What takers of a large written queue hold of it beside one value each, less of it may wait. ``memory``: bytes
    of the edge, split evenly over its producers, so that none need ask another one.
    """
    waiting = 1 if bound is None else min(bound, MOST_WAITING)
    share = 0 if memory is None else in_pages(max(1, memory // producers - mmap.PAGESIZE + 1))
    base = _shares(waiting + takers, producers)
    window = producers + (LANES if bound is None else waiting)
    window = window if ordered else max(window, LANES + producers)
    if bound is not None:
        most = max(1, waiting // (8 * max(producers, takers)))
        packed = _shares(waiting + takers - takers * most, producers)
        return EdgeShape(producers, takers, window, base, 0, 0, 0, most, packed, share)
    packed = _shares(MANY, producers)
    return EdgeShape(producers, takers, window, base, SMALL_CELLS, WAITING // producers, SLACK, MOST_VALUES, packed, share, SPARE)


def _shares(values: int, producers: int) -> tuple[int, ...]:
    """Of each producer, at least one."""
    return tuple(max(1, values // producers + (a < values % producers)) for a in range(producers))


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
    edges = [
        edge_shape(bound, producers, taking, ordered=ordered or e < last, memory=memory)
        for e, (bound, memory, producers, taking) in enumerate(zip(plan.bounds, plan.budgets, plan.workers, takers, strict=True))
    ]
    if plan.last is not None and plan.last.locks and not edges[last].share:
        edges[last] = dataclasses.replace(edges[last], locked=True)
    return Shape(tuple(edges))


class Edge:
    """The words of one edge."""

    def __init__(self, shape: EdgeShape, first: int, cut: Any) -> None:
        self.shape, self.first, self.share = shape, first, shape.share
        self.window, self.depth, self.cells_each = shape.window, shape.depth, shape.cells
        self.head: Words = cut(shape.window)
        self.entry: Words = cut(shape.window * shape.depth)
        self.grown: Words = cut(shape.window * shape.depth)
        self.mark: Words = cut(shape.window * shape.depth)
        self.cell: Words = cut(shape.producers * shape.cells)
        self.cell_wait: Words = cut(shape.producers)
        self.taken: Words = cut(1)
        self.total: Words = cut(1)
        self.taker_wait: Words = cut(1)
        self.taker_waits: Words = cut(1)
        self.lane_wait: Words = cut(1)
        self.quick: Words = cut(1)
        self.pages: Words = []  # cut when all else is


class Board:
    """All words of a run, cut out of one row of them; `words_needed` says how long it must be.

    ``hand``: the number of an item + 1, and the position where it begins: the entry's place, and the offset in it.
    ``job`` of a worker: 0 the item it claimed + 1, 1 the entry's place, 2 the first value's offset in it, 3 how many
    values, 4 and 5 the position after them, 6 the entry, 7 the item it finished + 1, 8 how many
    of its claim's values are done, beside its number; while they are done the quick way: 9 and 11 values taken
    and results given before the claim's first, 10 its number + 1; of a stream: see `streaming`.
    ``at``: 0 what it does on user data: the phase (`Phase`), how many calls of user code the value has had, and
    its offset; 1 the entry's place + 1; 2 nanoseconds of the monotonic clock when this result began.
    ``counts``: 0 nanoseconds in the step's code, 1 values taken, 2 results given, 3 tries after the first; then 0 to 2
    for each of several steps that share the worker.

    Attributes:
        of_run: how many of the words are of one run; those behind them last as long as the cells.
    """

    HAND, JOB, AT, COUNTS, OF_PART = 3, 15, 3, 4, 3
    watched = False  # whether whoever acts on it stops at the failpoints

    def __init__(self, shape: Shape, words: Any) -> None:
        self.shape, self._words, self._at = shape, words, 0
        self.cancelled: Words = self._cut(1)
        self.edges = [Edge(edge, first, self._cut) for edge, first in zip(shape.edges, shape.first, strict=False)]
        self.hand: list[Any] = [self._cut(self.HAND) for _ in range(shape.participants)]
        self.job = [self._cut(self.JOB) for _ in range(shape.participants)]
        self.at = [self._cut(self.AT) for _ in range(shape.participants)]
        self.counts = [self._cut(self.COUNTS + SHARING * self.OF_PART) for _ in range(shape.participants)]
        self.of_run = self._at
        for edge in self.edges:
            edge.pages = self._cut(edge.shape.all_cells)

    def state(self, who: int) -> int:
        """The first word of ``at`` of a worker, which on the quick way is not written for each value: what is committed tells."""
        state: int = self.at[who][0]
        if state & 7 != Phase.DASH:
            return state
        edge = next(edge for edge in self.edges if edge.first <= who < edge.first + edge.shape.producers)
        lane = (self.job[who][0] - 1) % edge.window
        done: int = edge.grown[lane * edge.depth + (edge.head[lane] - 1 & LOW) % edge.depth] >> DONE & COUNT
        return state - Phase.DASH + Phase.RUN + (done << OFFSET)

    def _cut(self, count: int) -> Any:
        """So many words in cache lines of their own: what one writes does not slow down those who use others."""
        start, self._at = self._at, self._at + -(-count // LINE) * LINE
        return self._words[start : start + count]


def words_needed(shape: Shape) -> int:
    """How many words a board of this shape has."""
    return Board(shape, range(1 << 60))._at
