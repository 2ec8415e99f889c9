"""Taker: the end of an edge that takes its values, in order, and frees the cells in which they lay.

Where it is lies not in it but in words: a position, an entry's place and an offset in it. What lies there is read from
``head`` and ``grown`` alone, so that any taker finds the same, also one that replaces a dead one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import final

from qflow.runtime.board import CLOSED, COUNT, ENDED, KEPT, KINDS, LOW, PACKED, SHIFT, Board, Edge
from qflow.runtime.side import TURN, Acting, Claim, Side

NOTHING, NEXT_ENTRY, NEXT_ITEM, OVER = 0, -1, -2, -3  # what a taker finds at a position, when not values


@final
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
