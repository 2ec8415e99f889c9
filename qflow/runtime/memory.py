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
from typing import Any

import numpy as np

from qflow.errors import ResourceError

MOST_STRIDE = 1 << 36  # bytes of addresses per cell: an item may have 64 GiB
MOST_SPACE = 1 << 43  # bytes of addresses per channel, of the 2**47 that a process has
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
    """Bytes of addresses for each of so many cells, less where the process may have few."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    space = MOST_SPACE if soft == resource.RLIM_INFINITY else max(PAGE, soft // 16)
    return max(PAGE, min(MOST_STRIDE, space // max(1, cells)) // PAGE * PAGE)


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
    """The mapped cells of one edge."""

    def __init__(self, fd: int, count: int, stride: int) -> None:
        self.stride = stride
        self._map = mmap.mmap(fd, count * stride)
        self.bytes = memoryview(self._map)
        self.returned: deque[int] = deque()

    def region(self, cell: int) -> memoryview:
        """The bytes of a cell."""
        return self.bytes[cell * self.stride : (cell + 1) * self.stride]

    def lease(self, cell: int, start: int, end: int) -> Lease:
        """A view on bytes of a cell that notes the cell in ``returned`` when it is gone."""
        # Straight over the mapping: over an ndarray, numpy would let the views on it hold that, not the lease.
        return Lease((end - start,), np.uint8, self._map, cell * self.stride + start)

    def noted(self, lease: Lease, cell: int) -> Lease:
        """Let this lease speak for the cell."""
        lease._note = (self.returned, cell, os.getpid())
        return lease
