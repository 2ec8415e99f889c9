"""Memory: cells of shared memory without a name, reused for item after item, and the views on them.

A channel's cells lie in one sparse ``memfd``: each has a huge fixed stride of addresses and takes
pages only as it is written, so that any item fits one cell and no memory is mapped per item (fresh
pages cost 1.4 GB/s, warm ones 20 to 50, design notes section 5). Nothing is in /dev/shm, nothing has
a name, and the pages go with the last process. The size is sealed, so nobody can cut a page away.

A consumer's array is a view on the cell, held by a `Lease`; when the last view is collected, the
lease notes its cell in a queue, and the taker gives the cell back at its next step.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import resource
from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np

from qflow.errors import ResourceError
from qflow.graph.plan import SMALL
from qflow.runtime.board import EdgeShape

MOST_STRIDE = 1 << 36  # bytes of addresses per cell: an item may have 64 GiB
MOST_SPACE = 1 << 41  # bytes of addresses per crew, of the 2**47 that a process has: 64 crews may live
PAGE = mmap.PAGESIZE


def anonymous(name: str, size: int) -> int:
    """A descriptor of sparse shared memory: sealed in size, mode 0600."""
    fd = os.memfd_create(f"qflow-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except OSError as error:
        os.close(fd)
        raise ResourceError(f"{size} bytes of shared addresses for {name} were refused: {error}") from error
    return fd


def stride_for(cells: int) -> int:
    """Bytes of addresses for each of so many large cells, less where the process may have few."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    space = MOST_SPACE if soft == resource.RLIM_INFINITY else max(PAGE, soft // 16)
    return max(PAGE, min(MOST_STRIDE, space // max(1, cells)) // PAGE * PAGE)


def bytes_needed(shape: EdgeShape, stride: int) -> int:
    """Bytes of addresses for all cells of an edge."""
    return shape.producers * (shape.large * stride + shape.extra * SMALL)


def words_of(fd: int, count: int) -> memoryview:
    """The 64-bit words that lie in a descriptor's memory."""
    return memoryview(mmap.mmap(fd, count * 8)).cast("Q")


class Lease(np.ndarray[Any, Any]):
    """Bytes of a cell; notes the cell when the last array on it is gone."""

    _note: tuple[deque[int], int, int] | None = None

    def __del__(self) -> None:
        note = self._note
        if note is not None and note[2] == os.getpid():  # a forked copy owns nothing
            note[0].append(note[1])


class Cells:
    """The mapped cells of one edge; several may share one mapping.

    Each producer has its large cells of ``stride`` bytes, then its small ones of `SMALL` bytes.
    """

    def __init__(self, shape: EdgeShape, stride: int, memory: mmap.mmap) -> None:
        self.shape, self.stride = shape, stride
        self._map = memory
        self._bytes = memoryview(memory)
        self.returned: deque[int] = deque()

    def _start(self, cell: int) -> int:
        producer, number = divmod(cell, self.shape.cells)
        large = self.shape.large
        start = producer * (large * self.stride + self.shape.extra * SMALL)
        return start + (number * self.stride if number < large else large * self.stride + (number - large) * SMALL)

    def region(self, cell: int) -> memoryview:
        """The bytes of a cell."""
        start = self._start(cell)
        return self._bytes[start : start + (self.stride if cell % self.shape.cells < self.shape.large else SMALL)]

    def lease(self, cell: int, start: int, end: int) -> Lease:
        """A view on bytes of a cell, which notes the cell in ``returned`` when it is gone."""
        # Straight over the mapping: over an ndarray, numpy would let the views on it hold that, not the lease.
        lease = Lease((end - start,), np.uint8, self._map, self._start(cell) + start)
        lease._note = (self.returned, cell, os.getpid())
        return lease

    def give_back(self, kept: Iterable[int]) -> None:
        """Return the pages of all large cells to the system but for those on which views are kept."""
        for cell in {*range(self.shape.all_cells)} - {*kept}:
            if cell % self.shape.cells < self.shape.large:
                self._map.madvise(mmap.MADV_REMOVE, self._start(cell), self.stride)


def mapped(fd: int, size: int) -> mmap.mmap:
    """The memory behind a descriptor, which may be closed afterwards."""
    return mmap.mmap(fd, size)
