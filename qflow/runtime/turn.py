"""Take in turn: how values are taken, worked on and handed on, in order, by any number of workers.

Order is decided when a value is *taken*. A step has one cursor: "what comes next begins at this position
of the input edge, and is item q of the output edge". The worker that holds it claims the values it will
work on, hands the cursor to the next idle worker at once, and publishes its results to output lane q, its
own until the item is finished. The next step reads the lanes in order, so a slow item holds nobody's turn
and nothing is stashed.

    cursor   1. take it (a blocking read straight into the own ``hand``, one system call)
    window   2. wait until output lane q may be reused, and until the input has something
    claim    3. copy small values out of their cell; write ``job``; the store of its number is the claim; hand the cursor on
    run      4. run the step; for each result: grow the last entry, or find a free cell of the own, fill it, publish
    commit      an entry, then ``head``, or ``grown``: one store is the commit, and says how far the worker is
    release  5. free the input's cell, unless somebody keeps a view; ``job`` says finished

A cell keeps the pages of the largest value that it ever held, for warm memory costs nothing. `Putter` notes them, and
gives them back when it has put nothing as large for long, or when the edge's bytes are bounded (`EdgeShape.share`) and
it needs them. A value that is larger than its producer's share passes when all before it are taken, and no other such
value of the edge is in use: one at a time, and the head of the order never waits for what comes after it.

Small values share cells, and a worker takes as many of them at once as it will do in a moment (`pace`). A result can be
taken as soon as it is written, so nobody ever waits for a message to be full.

The functions here are generators over the words of a `Board`: pure but for those words. They yield
what is to be done outside, and are resumed with its outcome:

    ("wait",)                block until somebody rings the own bell
    ("ring", who)            ring a participant's bell
    ("cursor",)              read the step's cursor into the own hand, blocking
    ("pass", q + 1, place, offset)   write the cursor
    ("passed?",)             whether a cursor lies in the pipe (a replacement asks)
    ("share", n)             of n small values that lie there -> how many to claim
    ("copy", claim)          copy the claimed small values out of their cell, to memory that outlives the worker
    ("putter", putter)       what puts the results, before the first of them
    ("dash", claim, k)       let `dash` do as many values as it can, from k on -> the first that it could not
    ("begin", claim, k, skip)   load value k of the claim, of which ``skip`` results are published, and start the step on it
                             -> the parcel of its only result; or one without values, if `dash` could go on in a cell
                             that is begun with it; or None: ask for its results
    ("result",)              -> the next parcel of the value at work, or None after the last
    ("spill", claim, k, given)   put results of value k that are there already into the open table -> how many are given
    ("fewer", now, before)   -> the parcel of an error: a predecessor had more results of this value
    ("other",)               -> the same: a predecessor had other results of this value
    ("fill", cell, parcel)   copy the parcel into the cell
    ("add", cell, parcel)    copy the parcel behind those in the cell -> whether it has room, and is of a kind with them
    ("punch", cell, keep)    give the pages of an own free cell back but for those of its first bytes
    ("give back", cell, keep)   the same of an input cell, which is about to be freed
    ("release", claim)       the claim is finished -> whether a view on its cell is kept
    "name"                   nothing: a point between two stores, where tests kill; only if the board is ``watched``

A participant that starts on words left by a dead predecessor goes on where that one was (`work`
looks at hand and job first), which is the whole of recovery. Source: the prototype and its proofs
of liveness are in the project's protocol notes; a test explores every interleaving and every death.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from qflow.graph.plan import SMALL
from qflow.runtime.board import (
    CLOSED,
    COUNT,
    DATA,
    DONE,
    END,
    ENDED,
    ERROR,
    GIVEN,
    KEPT,
    KINDS,
    LOW,
    PACKED,
    PARTS,
    POISON,
    RESULTS,
    SHIFT,
    Board,
    Edge,
    Words,
    in_pages,
)
from qflow.runtime.fence import Fence

Acting = Generator[Any, Any, Any]
SWEPT = 256  # cells looked at in one sweep
ANY = (1 << 44) - 1  # in place of an item: any entry will do
NUMBER = 16  # bytes of a number and its index path in a cell
NOTHING, NEXT_ENTRY, NEXT_ITEM, OVER = 0, -1, -2, -3  # what a taker finds at a position, when not values
FREED, TURN = 1, 2  # what a producer waits for: that own cells are freed; or that, and the turn of item ``word - TURN``
# A free cell may have pages for twice the largest of so many large values. To give pages back costs 0.16 ms a MB, and to have
# fresh ones 0.68 ms, where a copy into warm ones takes 0.02 to 0.04 (2 shared cores, Linux 6.18): not to be done often.
RECENT = 256
LEAST_SHRUNK = 1 << 20  # bytes; smaller cells never are


class Cancelled(BaseException):
    """The run is being stopped; the participant goes to rest."""


class Parcel(NamedTuple):
    """A result ready to be copied into a cell.

    ``kind``: DATA or ERROR; with END when it is known to be its value's last.
    ``mark`` is a digest of it, in 32 bits; two can be compared if their last bits are the same; 0: nobody asks. ``other``: when
    it may have been published before, the one with the other last bit.
    ``cell``: in which it lies already.
    ``packs``: whether it may share a cell. ``values``: of a feed's numbers, how many there are; of a blank, none.
    """

    kind: int
    nbytes: int
    content: Any = None
    mark: int = 0
    packs: bool = False
    values: int = 1
    cell: int = -1
    other: int = 0


class Claim(NamedTuple):
    """Values in somebody's hands: the item's number, the entry's place, the first one's offset, how many, its kind and cell."""

    number: int
    place: int
    offset: int
    values: int
    kind: int
    cell: int

    def has(self, place: int, offset: int) -> bool:
        """Whether a value is one of them."""
        return place == self.place and self.offset <= offset < self.offset + self.values


class Side:
    """One who puts into an edge or takes from it, and may have to wait for the other side."""

    def __init__(self, board: Board, edge: Edge, me: int) -> None:
        self.board, self.edge, self.me = board, edge, me
        fence = Fence()
        self.fenced, self.fence, self._fence_all = fence.needed, fence.own, fence.all

    def until(self, ready: Callable[[], Any], word: Words, at: int, mark: int, waits: Words | None = None) -> Acting:
        """Wait until ``ready()`` -> what it gave: leave a mark, look once more, sleep. Whoever makes it ready sees the mark.

        ``waits`` counts, so that nobody need ring twice for one sleep.
        """
        while not (found := ready()):
            if self.board.watched:
                yield "not ready"
            if waits is not None:
                waits[0] += 1
            word[at] = mark
            if self.board.watched:
                yield "marked"
            self.fence()
            if self.edge.quick[0]:
                self._fence_all()
            if self.board.cancelled[0]:
                raise Cancelled
            if found := ready():
                break
            yield ("wait",)
        if word[at]:
            word[at] = 0
        return found


class Taker(Side):
    """Takes the values of an edge, one after another, in order. A position: an entry's place, and an offset in it."""

    def __init__(self, board: Board, edge: Edge, me: int) -> None:
        super().__init__(board, edge, me)
        self._head, self._grown, self._window, self._depth = edge.head, edge.grown, edge.window, edge.depth

    def slot(self, place: int) -> int:
        """Where the words of an entry lie."""
        return (place >> SHIFT) % self._window * self._depth + (place & LOW) % self._depth

    def found(self, place: int, offset: int) -> int:
        """How many values lie at a position; or that it goes on with `NEXT_ENTRY` or `NEXT_ITEM`; or `NOTHING` yet."""
        item = place >> SHIFT
        head = self._head[item % self._window]
        if head > place:  # before the entry grows: what follows another one is whole
            if head >> SHIFT != item:
                return NOTHING
            grown = self._grown[item % self._window * self._depth + (place & LOW) % self._depth]
            more = (grown & COUNT) - offset
            if more > 0:
                return more
            if head > place + 1:
                return NEXT_ENTRY
            return NEXT_ITEM if grown & ENDED else NEXT_ENTRY if grown & CLOSED else NOTHING
        if head == place and place & LOW and self._grown[self.slot(place - 1)] & ENDED:
            return NEXT_ITEM
        return NOTHING

    def looked(self, place: int, offset: int) -> int:
        """The same; or `OVER`, if nothing will ever be there."""
        total = self.edge.total
        return self.found(place, offset) or (OVER if total[0] and place >> SHIFT >= total[0] - 1 else NOTHING)

    def after(self, place: int, offset: int) -> tuple[int, int]:
        """The position that comes next: this one, or where the next entry will be."""
        found = self.found(place, offset)
        if found == NEXT_ENTRY:
            return place + 1, 0
        return ((place >> SHIFT) + 1 << SHIFT, 0) if found == NEXT_ITEM else (place, offset)

    def seen(self, item: int) -> Acting:
        """Lanes below ``item`` are wholly taken and may be reused."""
        edge = self.edge
        if item > edge.taken[0]:
            edge.taken[0] = item
            self.fence()
            waits = edge.lane_wait[0]
            if waits and item >= waits >> 20:
                yield ("ring", (waits & 0xFFFFF) - 1)
            if edge.share:
                yield from self._turns()

    def _turns(self) -> Acting:
        """Wake the producer whose turn it is, if it waits for that."""
        for producer, wait in enumerate(self.edge.cell_wait):
            if TURN <= wait <= self.edge.taken[0] + TURN:
                yield ("ring", self.edge.first + producer)

    def next_values(self, place: int, offset: int, save: Callable[[int], Acting]) -> Acting:
        """The next values, from a position on -> a Claim of all that lie there in one entry, or None at the end of the edge.

        ``save`` notes the place of an entry of which nothing is taken, before what is over may be reused.
        """
        edge = self.edge
        while True:
            found = self.found(place, offset)
            item = place >> SHIFT
            if found == NOTHING:
                look = partial(self.looked, place, offset)
                found = yield from self.until(look, edge.taker_wait, 0, item << 20 | self.me + 1, edge.taker_waits)
                if found == OVER:
                    return None
            if found > 0:
                entry = edge.entry[self.slot(place)]
                return Claim(item, place, offset, found, entry & (1 << KINDS) - 1, entry >> KINDS)
            over, (place, offset) = place, self.after(place, offset)
            yield from save(place)
            yield from self.forget(over, place)

    def forget(self, place: int, after: int, *, holding: bool = True) -> Acting:
        """An entry is over, and whoever takes it is noted to be after it: free its cell if it was a packed one.

        ``holding`` the cursor: also the lanes before are.
        """
        if place != after and self.edge.head[(place >> SHIFT) % self.edge.window] > place:
            entry = self.edge.entry[self.slot(place)]
            if entry & PACKED:
                yield from self.free(entry >> KINDS, place)
        if holding:
            yield from self.seen(after >> SHIFT)

    def free(self, cell: int, place: int, kept: bool = False) -> Acting:
        """The cell is no longer needed, if it still holds the entry of that place; or a view on it is kept."""
        return self.change(cell, place + 1, KEPT | self.me if kept else 0)

    def holds(self, claim: Claim) -> bool:
        """Whether the cell still holds the claimed entry; a predecessor may have freed it."""
        return self.edge.cell[claim.cell] == claim.place + 1

    def unkeep(self, cell: int) -> Acting:
        """The last view on a kept cell is gone."""
        return self.change(cell, KEPT | self.me, 0)

    def inherit(self) -> Acting:
        """Free the cells that a predecessor kept views on; they went with it."""
        for cell in range(self.edge.shape.all_cells):
            yield from self.unkeep(cell)

    def change(self, cell: int, old: int, new: int) -> Acting:
        """Change a cell's word, if it is still the old one; its producer may wait for that."""
        edge = self.edge
        if edge.cell[cell] == old:
            large = edge.share and edge.pages[cell] > edge.share
            if large and not new and edge.shape.producers > 1:  # its producer may be at work for long
                yield ("give back", cell, edge.share)
                edge.pages[cell] = edge.share
            edge.cell[cell] = new
            self.fence()
            if large:
                yield from self._turns()
            producer = cell // edge.cells_each
            if edge.cell_wait[producer]:
                yield ("ring", edge.first + producer)


class Putter(Side):
    """Puts results into an edge: the cells of one producer, and the lanes of its items."""

    def __init__(self, board: Board, edge: Edge, producer: int) -> None:
        super().__init__(board, edge, edge.first + producer)
        self.producer = producer
        shape = edge.shape
        self.base, self.first_cell = shape.base[producer], producer * edge.cells_each
        self.packed = shape.packed[producer] if shape.packed else 0
        self.first_small = self.first_cell + shape.large
        self._free = list(range(self.first_small - 1, self.first_cell - 1, -1))
        self._free_small = list(range(self.first_cell + edge.cells_each - 1, self.first_small - 1, -1))
        # Of published cells that are not known to be free, oldest first: bytes and values.
        self._held: dict[int, tuple[int, int]] = {}
        self._bytes = self._values = 0  # held
        self._pages = list(edge.pages[self.first_cell : self.first_small])  # as far as is known here
        self._all_pages, self._used_pages = sum(self._pages), 0  # of all cells, and of those that are not free
        self._largest = self._puts = 0  # of the values in large cells since they were last looked through
        self._most_kept = sys.maxsize  # bytes that a free cell may have pages for
        self.share, self._most_pages = edge.share, edge.share or sys.maxsize
        self._kept: set[int] = set()  # published cells on which a taker keeps views
        self._open = -1  # the item whose last entry may grow
        self._cell = 0  # of that entry
        self._rung = 0  # for which of the taker's waits
        self._inherit()

    def _inherit(self) -> None:
        """Free the cells that a predecessor chose but did not publish; the published and the kept ones are not free."""
        edge = self.edge
        for cell in range(self.first_cell, self.first_cell + edge.cells_each):
            tag = edge.cell[cell]
            if 0 < tag < KEPT and edge.head[(tag - 1 >> SHIFT) % edge.window] < tag:
                edge.cell[cell] = tag = 0
            if tag:
                (self._free if cell < self.first_small else self._free_small).remove(cell)
                if cell < self.first_small:
                    self._used_pages += self._pages[cell - self.first_cell]
            if tag >= KEPT:
                self._kept.add(cell)
            elif tag:
                item, number = tag - 1 >> SHIFT, tag - 1 & LOW
                slot = item % edge.window * edge.depth + number % edge.depth
                self._hold(cell, 0, edge.grown[slot] & COUNT)

    def inherit(self) -> Acting:
        """Give back what a predecessor had pages for in its turn and did not publish; others may have theirs now."""
        for cell in self._free:
            if 0 < self.share < self._pages[cell - self.first_cell]:
                yield from self._punch(cell, 0)

    def _hold(self, cell: int, nbytes: int, values: int = 1) -> None:
        """More lies in a cell."""
        bytes_before, values_before = self._held.get(cell, (0, 0))
        self._held[cell] = bytes_before + nbytes, values_before + values
        self._bytes += nbytes
        self._values += values

    def _room(self, item: int, parcel: Parcel) -> list[int] | None:
        """The free cells from which a result of an item may take one now."""
        shape, waiting = self.edge.shape, len(self._held)
        if not shape.extra:
            fits = self._values < (self.packed if parcel.packs else self.base) and self._affords(item, parcel)
            return self._free if self._free and fits else None
        fits = self._bytes + parcel.nbytes <= shape.small and self._values < self.packed
        if parcel.nbytes <= SMALL and self._free_small and (waiting < self.base or (fits and waiting < self.base + shape.extra)):
            return self._free_small
        may = waiting < self.base or (fits and waiting < self.base + shape.spare)
        return self._free if self._free and may and self._affords(item, parcel) else None

    def _affords(self, item: int, parcel: Parcel) -> bool:
        """Whether the share has room for a result, or it is its turn to pass without."""
        if not self.share or self._used_pages + _pages_of(parcel) <= self.share:
            return True
        return not self._held and self._has_turn(item)

    def _has_turn(self, item: int) -> bool:
        """Whether all items before this one are taken, and no value that passed so is in use, but by views."""
        edge = self.edge
        if edge.shape.producers == 1:
            return True
        large = (cell for cell, pages in enumerate(edge.pages) if pages > edge.share)
        return edge.taken[0] >= item and not any(0 < edge.cell[cell] < KEPT for cell in large)

    def _fit(self, cell: int, size: int) -> Acting:
        """Note the pages of a free cell that is to be filled, and give back what is too much."""
        if self._puts > RECENT:
            yield from self._look_through()
        before = self._pages[cell - self.first_cell]
        most = min(self._most_kept, self._most_pages - self._used_pages)
        if before > most and before > size:
            yield from self._punch(cell, max(most, size))
        elif before < size:
            if self.share:  # its taker may have given some back
                yield ("punch", cell, before)
            self._note(cell, size)
        for other in self._free:  # the coldest first
            if self._all_pages <= self._most_pages:
                break
            if self._pages[other - self.first_cell]:
                yield from self._punch(other, 0)

    def _look_through(self) -> Acting:
        """Give back what free cells have and recent values did not need."""
        largest, self._largest, self._puts = in_pages(self._largest), 0, 0
        self._most_kept = max(2 * largest, LEAST_SHRUNK)
        for cell in self._free:
            if self._pages[cell - self.first_cell] > self._most_kept:
                yield from self._punch(cell, largest)

    def _punch(self, cell: int, keep: int) -> Acting:
        """Give pages of a free cell back."""
        yield ("punch", cell, keep)
        self._note(cell, keep)

    def _note(self, cell: int, pages: int) -> None:
        """Note the bytes of a cell's pages."""
        number = cell - self.first_cell
        self._all_pages += pages - self._pages[number]
        self.edge.pages[cell] = self._pages[number] = pages

    def _may_grow(self, nbytes: int) -> bool:
        """Whether the bounds let the open entry grow by one value."""
        shape = self.edge.shape
        in_cell, values = self._held.get(self._cell, (0, shape.most))
        if values >= shape.most:
            return False
        if not shape.extra:
            return self._values < self.packed
        return self._bytes + nbytes <= shape.small and self._values < self.packed and in_cell + nbytes <= shape.small // PARTS

    def room(self, nbytes: int) -> int:
        """How many more rows of so many bytes the open entry may hold."""
        shape = self.edge.shape
        in_cell, values = self._held[self._cell]
        if not shape.extra:
            return min(shape.most - values, self.packed - self._values)
        free = min(shape.small - self._bytes, shape.small // PARTS - in_cell) // nbytes
        return min(shape.most - values, free, self.packed - self._values)

    def _sweep(self, *, wholly: bool) -> None:
        """Find the cells that the takers have freed, among the oldest; ``wholly``: also behind one that is in use."""
        words = self.edge.cell
        freed = []
        for cell in islice(self._held, None if self.share else SWEPT):  # who waits for bytes may need all of them
            if not 0 < words[cell] < KEPT:
                freed.append(cell)
            elif not wholly:
                break
        for cell in freed:
            nbytes, values = self._held.pop(cell)
            self._bytes -= nbytes
            self._values -= values
        self._kept.update(freed)
        for cell in [cell for cell in self._kept if words[cell] == 0]:
            self._kept.discard(cell)
            if self.share and cell < self.first_small:
                self._used_pages -= self._pages[cell - self.first_cell]
                self._note(cell, self.edge.pages[cell])  # its taker may have given them back
            (self._free if cell < self.first_small else self._free_small).append(cell)

    def _reserve(self, item: int, parcel: Parcel) -> Acting:
        """Wait for a free cell of the own -> its number. Recently freed cells come first: their memory is warm."""
        pressed = 0 < self.share < self._used_pages + _pages_of(parcel)
        if pressed or len(self._held) >= self.base:
            self._sweep(wholly=pressed)
        room = self._room(item, parcel)
        if room is None:

            def ready() -> list[int] | None:
                self._sweep(wholly=True)
                return self._room(item, parcel)

            room = yield from self.until(ready, self.edge.cell_wait, self.producer, item + TURN if self.share else FREED)
        if parcel.cell < 0:
            cell = room.pop()
        else:
            cell = parcel.cell
            room.remove(cell)
        if cell < self.first_small:
            size, pages = SMALL if parcel.packs else parcel.nbytes, self._pages[cell - self.first_cell]
            self._puts += 1
            if size > self._largest:
                self._largest = size
            if not size <= pages <= self._most_kept or self._puts > RECENT or self._all_pages > self._most_pages:
                yield from self._fit(cell, in_pages(size))
            self._used_pages += self._pages[cell - self.first_cell]
        return cell

    def take_free(self, nbytes: int) -> int | None:
        """A free cell for so many bytes that will be the next result's, or None."""
        free = self._free_small if nbytes <= SMALL and self.edge.shape.extra else self._free
        if not free:
            return None
        cell = free[-1]
        if cell < self.first_small:
            if self._pages[cell - self.first_cell] < nbytes:
                if self.share:  # it may not be able to afford more
                    return None
                self._note(cell, in_pages(nbytes))
            self._used_pages += self._pages[cell - self.first_cell]
        return free.pop()

    def give_back(self, cell: int) -> None:
        """A cell that was taken, or withheld, is free."""
        if cell < self.first_small:
            self._used_pages -= self._pages[cell - self.first_cell]
        (self._free if cell < self.first_small else self._free_small).append(cell)

    def withhold(self, cell: int) -> None:
        """A cell must not be used until it is given back."""
        if cell < self.first_small:
            self._used_pages += self._pages[cell - self.first_cell]
        (self._free if cell < self.first_small else self._free_small).remove(cell)

    def lane_free(self, item: int) -> Acting:
        """Wait until the lane of an item may be reused."""
        edge = self.edge
        if item >= edge.taken[0] + edge.window:
            enough = item - edge.window + 1 + edge.shape.slack
            yield from self.until(lambda: edge.taken[0] >= enough, edge.lane_wait, 0, enough << 20 | self.me + 1)

    def _last(self, item: int) -> int | None:
        """Where the words of the last entry of an item lie; None when it has none."""
        edge, lane = self.edge, item % self.edge.window
        head = edge.head[lane]
        if head >> SHIFT != item or not head & LOW:
            return None
        return lane * edge.depth + (head - 1 & LOW) % edge.depth

    def _wake(self, item: int) -> Acting:
        """Ring the taker, if it waits for what has just been stored and was not yet rung."""
        self.fence()
        wait = self.edge.taker_wait
        if not wait[0]:
            return
        count = self.edge.taker_waits[0]
        if self.board.watched:
            yield "waking"
        waits = wait[0]  # after the count: else another one's wait could count as rung
        if waits and waits >> 20 in (item, ANY) and self._rung != count:
            self._rung = count
            yield ("ring", (waits & 0xFFFFF) - 1)

    def publish(self, item: int, parcel: Parcel | None, cell: int, grown: int, mark: int = 0) -> Acting:
        """Add an entry to the item's lane, without a cell if there is no parcel. The store of ``head`` commits it."""
        edge, lane = self.edge, item % self.edge.window
        place = edge.head[lane]
        if place >> SHIFT != item:  # a replacement may still look at what the lane held before
            edge.head[lane] = place = item << SHIFT
            if self.board.watched:
                yield "opened"
        slot = lane * edge.depth + (place & LOW) % edge.depth
        if place & LOW >= edge.depth:  # the entry that lies there now must have been taken: its cell no longer bears its tag
            old, mine = place - edge.depth + 1, range(self.first_cell, self.first_cell + edge.cells_each)
            yield from self.until(lambda: all(edge.cell[each] != old for each in mine), edge.cell_wait, self.producer, FREED)
        if parcel is None:
            edge.entry[slot] = 0
        else:
            edge.cell[cell] = place + 1
            self._hold(cell, parcel.nbytes, parcel.values)
            if self.board.watched:
                yield "tagged"
            kind = parcel.kind & (DATA | ERROR) | (PACKED if parcel.packs else 0)
            edge.entry[slot] = cell << KINDS | kind
        edge.grown[slot], edge.mark[slot] = grown, mark
        if self.board.watched:
            yield "written"
        edge.head[lane] = place + 1
        if self.board.watched:
            yield "committed"
        if parcel is None or parcel.values:
            yield from self._wake(item)

    def put(self, item: int, parcel: Parcel, progress: int, flags: int = 0, mark: int = 0) -> Acting:
        """Publish a result: the last entry grows by it, or it gets a new one. ``progress``, ``flags``: for ``grown``."""
        if parcel.packs and parcel.values and (yield from self.grow(item, parcel, progress | flags, mark)):
            return
        if self._open == item:
            yield from self.close(item)
        cell = yield from self._reserve(item, parcel)
        yield ("fill", cell, parcel)
        if self.board.watched:
            yield "filled"
        may_grow = parcel.packs and self.edge.shape.most > 1
        yield from self.publish(item, parcel, cell, progress | (flags if may_grow else flags or CLOSED) | parcel.values, mark)
        if may_grow and not flags:
            self._open, self._cell = item, cell

    def grow(self, item: int, parcel: Parcel, more: int, mark: int = 0) -> Acting:
        """Put a result behind those of the item's last entry -> whether it could be."""
        if self._open != item or not self._may_grow(parcel.nbytes) or not (yield ("add", self._cell, parcel)):
            return False
        edge, slot = self.edge, self._last(item)
        assert slot is not None
        if self.board.watched:
            yield "added"
        self._hold(self._cell, parcel.nbytes, parcel.values)
        if mark:
            edge.mark[slot] = mark
        edge.grown[slot] = more | (edge.grown[slot] & COUNT) + parcel.values
        if self.board.watched:
            yield "grown"
        if more & (ENDED | CLOSED):
            self._open = -1
        yield from self._wake(item)
        return True

    def spilled(self, item: int, values: int, nbytes: int, progress: int, mark: int) -> None:
        """So many results were written behind those of the item's open entry: one store commits them."""
        edge, slot = self.edge, self._last(item)
        assert slot is not None
        self._hold(self._cell, nbytes, values)
        edge.mark[slot] = mark
        edge.grown[slot] = progress | (edge.grown[slot] & COUNT) + values

    def close(self, item: int) -> Acting:
        """Let the last entry of an item grow no more: who waits for more of it must free its cell."""
        slot = self._last(item)
        self._open = -1
        if slot is not None and not self.edge.grown[slot] & (ENDED | CLOSED):
            self.edge.grown[slot] |= CLOSED
            if self.board.watched:
                yield "closed"
            yield from self._wake(item)

    def finish(self, item: int) -> Acting:
        """The item has no more results."""
        slot = self._last(item)
        self._open = -1
        if slot is None:
            yield from self.publish(item, None, 0, ENDED)
        else:
            self.edge.grown[slot] |= ENDED
            if self.board.watched:
                yield "finished"
            yield from self._wake(item)

    def published(self, item: int) -> tuple[bool, int, int]:
        """What a predecessor has published for an item: whether all, of how many values all, and how many results of the next."""
        slot = self._last(item)
        grown = 0 if slot is None else self.edge.grown[slot]
        if self.edge.head[item % self.edge.window] >> SHIFT > item:  # looked at after the entry: the lane is another item's
            return True, 0, 0
        return bool(grown & ENDED), grown >> DONE & COUNT, grown >> GIVEN & RESULTS

    def differs(self, item: int, given: int, parcel: Parcel) -> bool:
        """Whether a result of an item is known not to be what a predecessor has published as the ``given``-th of its value."""
        slot = self._last(item)
        if not parcel.mark or slot is None:
            return False
        digest, number = divmod(self.edge.mark[slot], 1 << GIVEN)
        mark = parcel.other if (digest ^ parcel.mark) & 1 else parcel.mark
        return number == given and mark != 0 and digest not in (0, mark)

    def end(self, items: int) -> Acting:
        """Say how many items the edge has, and wake everybody who may wait for that."""
        self.edge.total[0] = items + 1
        self.fence()
        if self.board.watched:
            yield "ended"
        yield from ring_everybody(self.board)


def _pages_of(parcel: Parcel) -> int:
    """The bytes of the pages that a result takes in a large cell; small ones may share them."""
    return SMALL if parcel.packs else in_pages(parcel.nbytes)


class Numbered:
    """Puts results that number the items of an edge themselves, as a feed or a stream does: an item is an entry.

    Attributes:
        given: how many results it has put.
    """

    def __init__(self, putter: Putter) -> None:
        self.putter, edge = putter, putter.edge
        self.given = 0
        last = max((head for head in edge.head if head & LOW), default=0)
        self.item = last >> SHIFT
        if last:  # a predecessor's
            slot = self.item % edge.window * edge.depth
            self.given = edge.mark[slot] + (edge.grown[slot] & COUNT)

    def ready(self) -> Acting:
        """Wait until there is a lane for another result."""
        if self.putter._open != self.item:
            if self.putter.published(self.item)[0]:
                self.item += 1
            elif self.putter._last(self.item) is not None:
                yield from self._turn()
            yield from self.putter.lane_free(self.item)

    def give(self, parcel: Parcel) -> Acting:
        """Put a result."""
        putter = self.putter
        if putter._open == self.item:
            if parcel.packs and (yield from putter.grow(self.item, parcel, 0)):
                self.given += parcel.values
                return
            yield from self._turn()
            yield from putter.lane_free(self.item)
        growing = parcel.packs and putter.edge.shape.most > 1
        yield from putter.put(self.item, parcel, 0, 0 if growing else ENDED, self.given)
        self.given += parcel.values

    def _turn(self) -> Acting:
        """The item has no more results; the next one begins."""
        yield from self.putter.finish(self.item)
        self.item += 1

    def end(self) -> Acting:
        """There are no more results."""
        if self.putter._last(self.item) is not None:
            if not self.putter.published(self.item)[0]:
                yield from self.putter.finish(self.item)
            self.item += 1
        yield from self.putter.end(self.item)


def ring_everybody(board: Board) -> Acting:
    """Let all look again, whatever they wait for."""
    for who in range(board.shape.participants):
        yield ("ring", who)


def work(board: Board, edge: int, me: int) -> Acting:
    """A worker of a step that works value by value: takes from ``edge``, puts into ``edge + 1``, until the end of its input.

    Raises Cancelled when the run is stopped. Starts where a predecessor on these words has stopped.
    """
    taker = Taker(board, board.edges[edge], me)
    out = board.edges[edge + 1]
    putter = Putter(board, out, me - out.first)
    yield ("putter", putter)
    hand, job = board.hand[me], board.job[me]
    alone = out.shape.producers == 1
    inherited = bool(hand[0])  # from a predecessor that died; its neighbours may wait for a ring it owed
    if inherited:
        yield from ring_everybody(board)
        yield from taker.inherit()
        yield from putter.inherit()
    while True:
        if hand[0] == job[0] == job[7]:
            if alone:
                hand[1], hand[2] = job[4], offset_word(job[4], job[5])
                hand[0] = job[0] + 1
            else:
                yield ("cursor",)
            inherited = False
        if hand[0] == POISON or board.cancelled[0]:
            raise Cancelled
        if job[0] != hand[0]:  # the cursor is in hand and nothing is claimed with it
            if inherited:
                yield from _tidy(taker, hand[1])
            if not (yield from _claim(taker, putter, hand, job)):
                yield from putter.end(hand[0] - 1)
                if not alone:
                    yield ("pass", *hand)
                return
            inherited = False
        claim = claim_of(job)
        if inherited and not alone and (yield from _handed_on(board, out, hand[0])):
            yield from taker.forget(claim.place, job[4], holding=False)
        else:
            yield from taker.forget(claim.place, job[4])
            if not alone:
                yield ("pass", claim.number + 2, job[4], offset_word(job[4], job[5]))
                if board.watched:
                    yield "passed"
        finished, done, given = (yield from _left(putter, claim, job, board.counts[me])) if inherited else (False, 0, 0)
        inherited = False
        if not finished:
            yield from _run(claim, putter, done, given, job)
        kept = yield ("release", claim)
        if not claim.kind & PACKED:
            yield from taker.free(claim.cell, claim.place, kept)
        if board.watched:
            yield "released"
        job[7] = claim.number + 1


def _left(putter: Putter, claim: Claim, job: Words, counts: Words) -> Acting:
    """What a predecessor has left of a claim -> whether nothing, or how many values are done, and results of the next one."""
    finished, done, given = putter.published(claim.number)
    if job[10] == claim.number + 1:  # it went the quick way, and died before it could count
        before = claim.values if finished else done
        counts[1], counts[2] = max(counts[1], job[9] + before), max(counts[2], job[11] + before)
        job[10] = 0
    if not finished:
        yield from putter.close(claim.number)
        if job[8] >> DONE == claim.number + 1 and job[8] & COUNT > done:
            done, given = job[8] & COUNT, 0
    return finished, done, given


def offset_word(place: int, offset: int) -> int:
    """An offset as it is noted beside its entry's place; beside another one it means nothing, for both can't change at once."""
    return offset << 32 | place & 0xFFFFFFFF


def offset_of(place: int, word: int) -> int:
    """The offset that a word notes for an entry."""
    return word >> 32 if word & 0xFFFFFFFF == place & 0xFFFFFFFF else 0


def claim_of(job: Words) -> Claim:
    """The claim that stands in a worker's words."""
    return Claim(job[0] - 1, job[1], job[2], job[3], job[6] & (1 << KINDS) - 1, job[6] >> KINDS)


def _tidy(taker: Taker, place: int) -> Acting:
    """Forget the entry before a place, which a predecessor may have died before it could."""
    edge, item = taker.edge, place >> SHIFT
    before = place - 1 if place & LOW else edge.head[(item - 1) % edge.window] - 1 if item else -1
    if before >= 0 and before >> SHIFT in (item, item - 1):
        yield from taker.forget(before, place)


def _claim(taker: Taker, putter: Putter, hand: Words, job: Words) -> Acting:
    """Claim values that the cursor in hand stands for -> whether there are any."""
    watched = taker.board.watched

    def save(place: int) -> Acting:
        hand[1] = place
        if watched:
            yield "half skipped"
        hand[2] = offset_word(place, 0)
        if watched:
            yield "skipped"

    if watched:
        yield "holding"
    yield from taker.seen(hand[1] >> SHIFT)
    yield from putter.lane_free(hand[0] - 1)
    found = yield from taker.next_values(hand[1], offset_of(hand[1], hand[2]), save)
    if found is None:
        return False
    count = 1
    if found.kind & PACKED:
        count = yield ("share", found.values)
        yield ("copy", found._replace(values=count))
    job[1], job[2], job[3], job[6] = found.place, found.offset, count, found.cell << KINDS | found.kind
    job[4], job[5] = taker.after(found.place, found.offset + count)
    if watched:
        yield "jotted"
    job[0] = hand[0]
    if watched:
        yield "claimed"
    return True


def _handed_on(board: Board, out: Edge, held: int) -> Acting:
    """Whether a predecessor has handed the cursor on that it held: it lies in the pipe, or somebody has had it since."""
    others = (board.hand[who][0] for who in range(out.first, out.first + out.shape.producers))
    return (yield ("passed?",)) or any(other > held and other != POISON for other in others)


def _run(claim: Claim, putter: Putter, done: int, skip: int, job: Words) -> Acting:
    """Run the step on the claimed values and publish its results.

    A predecessor has published all of the first ``done`` values, and ``skip`` of the next one. When of that fewer
    come, or others, what ends the value is an error instead: the results would be a mix.
    """
    number, ended, k = claim.number, False, done
    while k < claim.values:
        if putter.board.cancelled[0]:
            raise Cancelled
        if not skip and putter._open == number and not putter.board.watched:
            k = yield ("dash", claim, k)
            if k == claim.values:
                break
        parcel = yield ("begin", claim, k, skip)
        if parcel is not None and not parcel.values:
            yield from putter.put(number, parcel, k << DONE)
            continue
        given, last = 0, False
        while not last:
            if given > skip and putter._open == number and not putter.board.watched:
                given = yield ("spill", claim, k, given)
            if parcel is None:
                parcel = yield ("result",)
            if given < skip and (parcel is None or parcel.kind & (END | ERROR) == END):
                parcel = yield ("fewer", given, skip)
            elif given < skip and not parcel.kind & END:
                given += 1
                if not putter.differs(number, given, parcel):
                    parcel = None
                    continue
                parcel = yield ("other",)
            if parcel is None:
                job[8] = number + 1 << DONE | k + 1
                if putter.board.watched:
                    yield "done"
                break
            given += 1
            last = bool(parcel.kind & END)
            ended = last and k + 1 == claim.values
            progress = k + 1 << DONE if last else k << DONE | given << GIVEN
            mark = parcel.mark << GIVEN | given
            yield from putter.put(number, parcel, progress, ENDED if ended else 0, mark)
            parcel = None  # its memory is not needed any more
        skip = 0
        k += 1
    if not ended:
        yield from putter.finish(number)


def feed(board: Board, me: int = 0) -> Acting:
    """The feeder: every parcel it is given, all of them with END, becomes the next value of the first edge."""
    numbered = Numbered(Putter(board, board.edges[0], me))
    while True:
        yield from numbered.ready()
        parcel = yield ("result",)
        if parcel is None:
            return (yield from numbered.end())
        yield from numbered.give(parcel)
        del parcel  # it may be large, and the next one may be long in coming
