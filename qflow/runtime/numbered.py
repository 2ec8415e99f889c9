"""Numbered: results that number the items of an edge themselves, as those of a feed or a stream do.

A worker's results belong to the item that it has taken; here nothing was, and each entry is an item.
"""

from __future__ import annotations

from typing import final

from qflow.runtime.board import COUNT, ENDED, LOW, SHIFT
from qflow.runtime.putter import Putter
from qflow.runtime.side import Acting, Parcel


@final
class Numbered:
    """Puts them, and goes on where a predecessor was.

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
        if self.putter.growing != self.item:
            if self.putter.published(self.item)[0]:
                self.item += 1
            elif self.putter.last(self.item) is not None:
                yield from self._turn()
            yield from self.putter.lane_free(self.item)

    def give(self, parcel: Parcel) -> Acting:
        """Put a result."""
        putter = self.putter
        if putter.growing == self.item:
            if parcel.packs and (yield from putter.grow(self.item, parcel, 0)):
                self.given += parcel.values
                return
            yield from self._turn()
            yield from putter.lane_free(self.item)
        may_grow = parcel.packs and putter.edge.shape.most > 1
        yield from putter.put(self.item, parcel, 0, 0 if may_grow else ENDED, self.given)
        self.given += parcel.values

    def _turn(self) -> Acting:
        """The item has no more results; the next one begins."""
        yield from self.putter.finish(self.item)
        self.item += 1

    def end(self) -> Acting:
        """There are no more results."""
        if self.putter.last(self.item) is not None:
            if not self.putter.published(self.item)[0]:
                yield from self.putter.finish(self.item)
            self.item += 1
        yield from self.putter.end(self.item)
