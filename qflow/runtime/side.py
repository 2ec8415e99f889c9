"""Side: one end of an edge, what it hands over or has in hands, and how it waits for the other end.

Whoever waits leaves a mark, looks once more and sleeps; whoever makes it ready sees the mark and rings (`fence`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, NamedTuple

from qflow.runtime.board import Board, Edge, Words
from qflow.runtime.fence import Fence

Acting = Generator[Any, Any, Any]  # over the words of a board; yields what is to be done outside (`turn`)
ANY = (1 << 44) - 1  # in place of an item that a taker waits for: any entry will do
FREED, TURN = 1, 2  # what a producer waits for: that own cells are freed; or that, and the turn of item ``word - TURN``


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


def ring_everybody(board: Board) -> Acting:
    """Let all look again, whatever they wait for."""
    for who in range(board.shape.participants):
        yield ("ring", who)
