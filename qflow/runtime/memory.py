"""Memory: cells of shared memory without a name, reused for item after item, and the views on them.

A channel's cells lie in one sparse ``memfd``: each has a huge fixed stride of addresses and takes
pages only as it is written, so that any item fits one cell and no memory is mapped per item (fresh
pages cost 1.4 GB/s, warm ones 20 to 50, design notes section 5). Nothing is in /dev/shm, nothing has
a name, and the pages go with the last process. The size is sealed, so nobody can cut a page away. A cell keeps its pages
until holes are punched: when bytes are bounded, after a rare giant (`allocator`), or between runs (`channels`).

Where the kernel has no ``memfd``, a file without a name takes its place. Its folder may be full, and a write
to a page that it can't have ends the process (SIGBUS): there, pages are allocated before they are written.

A consumer's array is a view on the cell, held by a `Lease`; when the last view is collected, the
lease notes its cell in a queue, and the taker gives the cell back at its next step.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import mmap
import os
import resource
from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np

from qflow.errors import ResourceError
from qflow.graph.plan import SMALL
from qflow.runtime.board import EdgeShape, in_pages
from qflow.runtime.environment import lacking
from qflow.runtime.locks import Locks

MOST_STRIDE = 1 << 36  # bytes of addresses per cell: an item may have 64 GiB
MOST_SPACE = 1 << 41  # bytes of addresses per crew, of the 2**47 that a process has: 64 crews may live
PAGE = mmap.PAGESIZE


def anonymous(name: str, size: int, *, sealed: bool = True) -> int:
    """A descriptor of sparse shared memory: without a name, mode 0600, sealed in size where that can be."""
    fd = None
    try:
        fd = _file() if "memfd" in lacking() else os.memfd_create(f"qflow-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, size)
        if sealed and "memfd" not in lacking():
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except OSError as error:
        if fd is not None:
            os.close(fd)
        raise ResourceError(f"{size} bytes of shared addresses for {name} were refused: {error}") from error
    return fd


def _file() -> int:
    """An open file without a name."""
    try:
        return os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        import tempfile  # it loads compressors, too

        fd, name = tempfile.mkstemp("", "qflow-")
        os.unlink(name)
        return fd


def stride_for(cells: int) -> int:
    """Bytes of addresses for each of so many large cells, less where the process may have few."""
    space = MOST_SPACE
    for limit, part in ((resource.RLIMIT_AS, 16), (resource.RLIMIT_FSIZE, 2)):
        soft, _ = resource.getrlimit(limit)
        space = space if soft == resource.RLIM_INFINITY else min(space, soft // part)
    return max(PAGE, min(MOST_STRIDE, space // max(1, cells)) // PAGE * PAGE)


def bytes_needed(shape: EdgeShape, stride: int) -> int:
    """Bytes of addresses for all cells of an edge, and for what its takers copy out of them."""
    return shape.producers * (shape.large * stride + shape.extra * SMALL) + shape.takers * SMALL


def words_of(fd: int, count: int) -> memoryview:
    """The 64-bit words that lie in a descriptor's memory."""
    memory = mapped(fd, count * 8)
    memory.reserve(0, count * 8)
    return memoryview(memory).cast("Q")


class Memory(mmap.mmap):
    """The mapped memory behind a descriptor."""

    _fd: int | None = None  # where pages must be allocated before they are written
    locks: Locks | None = None

    def reserve(self, start: int, size: int) -> None:
        """Make sure that these bytes can be written; ResourceError if there is no room for them."""
        if self._fd is None:
            return
        try:
            os.posix_fallocate(self._fd, start, size)
        except OSError as error:
            raise ResourceError(f"{size} bytes of shared memory were refused: {error}") from error

    def __del__(self) -> None:
        if self.locks is not None:
            self.locks.release()
        if self._fd is not None:
            os.close(self._fd)


def mapped(fd: int, size: int) -> Memory:
    """The memory behind a descriptor, which may be closed afterwards."""
    try:
        memory = Memory(fd, size)
    except OSError as error:
        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        limit = "" if soft == resource.RLIM_INFINITY else f"; this process may have {soft} (RLIMIT_AS)"
        raise ResourceError(f"{size} bytes of addresses were refused{limit}: {error}") from error
    if "memfd" in lacking():
        memory._fd = os.dup(fd)
    return memory


class Lease(np.ndarray[Any, Any]):
    """Bytes of a cell; notes the cell when the last array on it is gone."""

    _note: tuple[deque[int], int, object] | None = None

    def note(self, returned: deque[int], cell: int) -> None:
        """Where to note which cell."""
        self._note = returned, cell, _process

    def __del__(self) -> None:
        note = self._note
        if note is not None and note[2] is _process:  # a forked copy owns nothing
            note[0].append(note[1])


_process = object()  # another one in a forked copy


def _forked() -> None:
    global _process
    _process = object()


os.register_at_fork(after_in_child=_forked)


class Cells:
    """The mapped cells of one edge; several may share one mapping.

    Each producer has its large cells of ``stride`` bytes, then its small ones of `SMALL` bytes.
    """

    def __init__(self, shape: EdgeShape, stride: int, memory: Memory) -> None:
        self.shape, self.stride = shape, stride
        self._map = memory
        self._bytes = memoryview(memory)
        self.returned: deque[int] = deque()
        self._reserved: dict[int, int] = {}
        self._regions: dict[int, memoryview] = {}  # those that were asked for

    def _start(self, cell: int) -> int:
        producer, number = divmod(cell, self.shape.cells)
        large = self.shape.large
        start = producer * (large * self.stride + self.shape.extra * SMALL)
        return start + (number * self.stride if number < large else large * self.stride + (number - large) * SMALL)

    def region(self, cell: int, size: int = 0) -> memoryview:
        """The bytes of a cell, of which so many can be written."""
        if size and size > self._reserved.get(cell, 0):
            self._map.reserve(self._start(cell), size)
            self._reserved[cell] = size
        found = self._regions.get(cell)
        if found is None:
            start = self._start(cell)
            size = self.stride if cell % self.shape.cells < self.shape.large else SMALL
            found = self._regions[cell] = self._bytes[start : start + size]
        return found

    def inbox(self, taker: int) -> memoryview:
        """Where one of the edge's takers keeps the small values that it works on."""
        start = self._start(self.shape.all_cells) + taker * SMALL
        self._map.reserve(start, SMALL)
        return self._bytes[start : start + SMALL]

    def lease(self, cell: int, start: int, end: int) -> Lease:
        """A view on bytes of a cell, which notes the cell in ``returned`` when it is gone."""
        # Straight over the mapping: over an ndarray, numpy would let the views on it hold that, not the lease.
        lease = Lease((end - start,), np.uint8, self._map, self._start(cell) + start)
        lease.note(self.returned, cell)
        return lease

    def give_back(self, kept: Iterable[int]) -> None:
        """Return the pages of all large cells to the system but for those on which views are kept."""
        for cell in {*range(self.shape.all_cells)} - {*kept}:
            if cell % self.shape.cells < self.shape.large:
                self.punch(cell)

    def forget(self) -> None:
        """Between runs others may have given pages back."""
        self._reserved.clear()

    def lock(self, places: Iterable[tuple[int, int]], locks: Locks) -> set[int]:
        """Let a device read these where they lie, which begin and end at addresses, as far as they are in cells.

        Returns:
            The addresses at which those begin that are locked; ``locks`` are kept for the next time.
        """
        if self._map.locks is None:
            self._map.locks = locks
        found: dict[int, int] = {}  # ends, by the cell's address
        starts: dict[int, set[int]] = {}
        for start, end in places:
            cell = self._cell_at(start - self._base)
            if cell is not None:
                at = self._base + self._start(cell)
                found[at] = max(end, found.get(at, 0))
                starts.setdefault(at, set()).add(start)
        return {start for at, end in found.items() if self._map.locks.cover(at, end) for start in starts[at]}

    @functools.cached_property
    def _base(self) -> int:
        """The address of the mapping."""
        return int(np.frombuffer(self._bytes, np.uint8, 1).ctypes.data)

    def _cell_at(self, offset: int) -> int | None:
        """The cell in which a byte of the mapping lies."""
        large = self.shape.large * self.stride
        producer, within = divmod(offset, large + self.shape.extra * SMALL)
        if not 0 <= producer < self.shape.producers:
            return None
        number = within // self.stride if within < large else self.shape.large + (within - large) // SMALL
        return producer * self.shape.cells + number

    def punch(self, cell: int, keep: int = 0) -> None:
        """Return the pages of a large cell to the system but for those of its first ``keep`` bytes."""
        if self.shape.locked:
            return
        self._reserved.pop(cell, None)
        keep = in_pages(keep)
        if keep < self.stride:
            with contextlib.suppress(OSError):  # few file systems can
                self._map.madvise(mmap.MADV_REMOVE, self._start(cell) + keep, self.stride - keep)
