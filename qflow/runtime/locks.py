"""Locks: the parts of a mapping that a device reads where they lie.

A copy to a device is done by the device itself only from pages that stay where they are. To lock pages takes about as long as to
copy them, so a cell is locked when it is first used, and stays so. Whoever would give pages of it back would leave the device
with the old ones: cells of such a channel keep theirs (`board.EdgeShape.locked`), and are unlocked before they are unmapped.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from qflow.runtime.board import in_pages


class Locks:
    """What is locked of one mapping, by the address at which it begins.

    Args:
        lock: lock so many bytes from an address on -> whether that was done.
        unlock: undo it, by the address.
    """

    def __init__(self, lock: Callable[[int, int], bool], unlock: Callable[[int], object]) -> None:
        self._lock, self._unlock = lock, unlock
        self._locked: dict[int, int] = {}  # bytes
        self._refused = False
        self._process = os.getpid()

    def cover(self, start: int, end: int) -> bool:
        """Lock the pages from an address to another, unless they are -> whether they are now."""
        if end - start <= self._locked.get(start, 0):
            return True
        if self._refused:
            return False
        if self._locked.pop(start, 0):
            self._unlock(start)
        size = in_pages(end - start)
        self._refused = not self._lock(start, size)
        if not self._refused:
            self._locked[start] = size
        return not self._refused

    def release(self) -> None:
        """Undo all of it; in a forked copy nothing is locked."""
        while self._locked:
            start, _ = self._locked.popitem()
            if self._process == os.getpid():
                self._unlock(start)
