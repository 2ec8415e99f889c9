"""Putter: the end of an edge that puts results into it: fills own cells, and publishes them in the lanes of its items.

    fill the cell -> its tag -> entry, grown, mark -> head      a new entry: the store of ``head`` commits it
    write behind what is in the cell -> grown                   the last entry grows: that store commits

Whoever dies before the store has published nothing, and who replaces it finds the cell by its tag, and frees it.
"""

from __future__ import annotations

from typing import final

from qflow.runtime.allocator import Allocator
from qflow.runtime.board import (
    CLOSED,
    COUNT,
    DATA,
    DONE,
    ENDED,
    ERROR,
    GIVEN,
    KINDS,
    LOW,
    PACKED,
    PARTS,
    RESULTS,
    SHIFT,
    Board,
    Edge,
)
from qflow.runtime.side import ANY, FREED, Acting, Parcel, ring_everybody


@final
class Putter(Allocator):
    """Puts results into an edge: the cells of one producer, and the lanes of its items."""

    def __init__(self, board: Board, edge: Edge, producer: int) -> None:
        super().__init__(board, edge, producer)
        self.growing = -1  # the item whose last entry may grow
        self.growing_cell = 0  # of that entry
        self.rung = 0  # for which of the taker's waits

    def _may_grow(self, nbytes: int) -> bool:
        """Whether the bounds let the last entry grow by one value."""
        shape = self.edge.shape
        in_cell, values = self._held.get(self.growing_cell, (0, shape.most))
        if values >= shape.most:
            return False
        if not shape.extra:
            return self._values < self.packed
        return self._bytes + nbytes <= shape.small and self._values < self.packed and in_cell + nbytes <= shape.small // PARTS

    def room(self, nbytes: int) -> int:
        """How many more rows of so many bytes the growing entry may hold."""
        shape = self.edge.shape
        in_cell, values = self._held[self.growing_cell]
        if not shape.extra:
            return min(shape.most - values, self.packed - self._values)
        free = min(shape.small - self._bytes, shape.small // PARTS - in_cell) // nbytes
        return min(shape.most - values, free, self.packed - self._values)

    def lane_free(self, item: int) -> Acting:
        """Wait until the lane of an item may be reused."""
        edge = self.edge
        if item >= edge.taken[0] + edge.window:
            enough = item - edge.window + 1 + edge.shape.slack
            yield from self.until(lambda: edge.taken[0] >= enough, edge.lane_wait, 0, enough << 20 | self.me + 1)

    def last(self, item: int) -> int | None:
        """Where the words of the last entry of an item lie; None when it has none."""
        edge, lane = self.edge, item % self.edge.window
        head = edge.head[lane]
        if head >> SHIFT != item or not head & LOW:
            return None
        return lane * edge.depth + (head - 1 & LOW) % edge.depth

    def wake(self, item: int) -> Acting:
        """Ring the taker, if it waits for what has just been stored and was not yet rung."""
        self.fence()
        wait = self.edge.taker_wait
        if not wait[0]:
            return
        count = self.edge.taker_waits[0]
        if self.board.watched:
            yield "waking"
        waits = wait[0]  # after the count: else another one's wait could count as rung
        if waits and waits >> 20 in (item, ANY) and self.rung != count:
            self.rung = count
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
            self.hold(cell, parcel.nbytes, parcel.values)
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
            yield from self.wake(item)

    def put(self, item: int, parcel: Parcel, progress: int, flags: int = 0, mark: int = 0) -> Acting:
        """Publish a result: the last entry grows by it, or it gets a new one. ``progress``, ``flags``: for ``grown``."""
        if parcel.packs and parcel.values and (yield from self.grow(item, parcel, progress | flags, mark)):
            return
        if self.growing == item:
            yield from self.close(item)
        cell = yield from self._reserve(item, parcel)
        yield ("fill", cell, parcel)
        if self.board.watched:
            yield "filled"
        may_grow = parcel.packs and self.edge.shape.most > 1
        yield from self.publish(item, parcel, cell, progress | (flags if may_grow else flags or CLOSED) | parcel.values, mark)
        if may_grow and not flags:
            self.growing, self.growing_cell = item, cell

    def grow(self, item: int, parcel: Parcel, more: int, mark: int = 0) -> Acting:
        """Put a result behind those of the item's last entry -> whether it could be."""
        if self.growing != item or not self._may_grow(parcel.nbytes) or not (yield ("add", self.growing_cell, parcel)):
            return False
        edge, slot = self.edge, self.last(item)
        assert slot is not None
        if self.board.watched:
            yield "added"
        self.hold(self.growing_cell, parcel.nbytes, parcel.values)
        if mark:
            edge.mark[slot] = mark
        edge.grown[slot] = more | (edge.grown[slot] & COUNT) + parcel.values
        if self.board.watched:
            yield "grown"
        if more & (ENDED | CLOSED):
            self.growing = -1
        yield from self.wake(item)
        return True

    def spilled(self, item: int, values: int, nbytes: int, progress: int, mark: int) -> None:
        """So many results were written behind those of the item's growing entry: one store commits them."""
        edge, slot = self.edge, self.last(item)
        assert slot is not None
        self.hold(self.growing_cell, nbytes, values)
        edge.mark[slot] = mark
        edge.grown[slot] = progress | (edge.grown[slot] & COUNT) + values

    def close(self, item: int) -> Acting:
        """Let the last entry of an item grow no more: who waits for more of it must free its cell."""
        slot = self.last(item)
        self.growing = -1
        if slot is not None and not self.edge.grown[slot] & (ENDED | CLOSED):
            self.edge.grown[slot] |= CLOSED
            if self.board.watched:
                yield "closed"
            yield from self.wake(item)

    def finish(self, item: int) -> Acting:
        """The item has no more results."""
        slot = self.last(item)
        self.growing = -1
        if slot is None:
            yield from self.publish(item, None, 0, ENDED)
        else:
            self.edge.grown[slot] |= ENDED
            if self.board.watched:
                yield "finished"
            yield from self.wake(item)

    def published(self, item: int) -> tuple[bool, int, int]:
        """What a predecessor has published for an item: whether all, of how many values all, and how many results of the next."""
        slot = self.last(item)
        grown = 0 if slot is None else self.edge.grown[slot]
        if self.edge.head[item % self.edge.window] >> SHIFT > item:  # looked at after the entry: the lane is another item's
            return True, 0, 0
        return bool(grown & ENDED), grown >> DONE & COUNT, grown >> GIVEN & RESULTS

    def differs(self, item: int, given: int, parcel: Parcel) -> bool:
        """Whether a result of an item is known not to be what a predecessor has published as the ``given``-th of its value."""
        slot = self.last(item)
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
