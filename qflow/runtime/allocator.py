"""Allocator: which cells of one producer of an edge are free, and what each has pages for.

A cell keeps the pages of the largest value that it ever held, for warm memory costs nothing. They are noted, and given
back when its producer has put nothing as large for long, or when the edge's bytes are bounded (`EdgeShape.share`) and it
needs them for other cells. A value that is larger than its producer's share passes when all before it are taken, and no
other such value of the edge is in use: one at a time, and the head of the order never waits for what comes after it.
"""

from __future__ import annotations

import sys
from itertools import islice

from qflow.graph.plan import SMALL
from qflow.runtime.board import COUNT, KEPT, LOW, SHIFT, Board, Edge, in_pages
from qflow.runtime.side import FREED, TURN, Acting, Parcel, Side

SWEPT = 256  # cells looked at in one sweep
# A free cell may have pages for twice the largest of so many large values. To give pages back costs 0.16 ms a MB, and to have
# fresh ones 0.68 ms, where a copy into warm ones takes 0.02 to 0.04 (2 shared cores, Linux 6.18): not to be done often.
RECENT = 256
LEAST_SHRUNK = 1 << 20  # bytes; smaller cells never are


class Allocator(Side):
    """Gives out the cells of one producer. Those that were published are held until their taker has freed them."""

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
                self.hold(cell, 0, edge.grown[slot] & COUNT)

    def inherit(self) -> Acting:
        """Give back what a predecessor had pages for in its turn and did not publish; others may have theirs now."""
        for cell in self._free:
            if 0 < self.share < self._pages[cell - self.first_cell]:
                yield from self._punch(cell, 0)

    def hold(self, cell: int, nbytes: int, values: int = 1) -> None:
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
        if not self.share or self._used_pages + pages_of(parcel) <= self.share:
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
        pressed = 0 < self.share < self._used_pages + pages_of(parcel)
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


def pages_of(parcel: Parcel) -> int:
    """The bytes of the pages that a result takes in a large cell; small ones may share them."""
    return SMALL if parcel.packs else in_pages(parcel.nbytes)
