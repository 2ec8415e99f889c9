"""Heap: memory that a step frees stays with its worker, for the next array of its size.

The C library gives freed memory of 128 KiB and more back to the system, and a step that makes a batch for each item gets
all its pages anew each time: 1.4 GB/s, where warm ones are written at 20 and more (design notes, section 5). glibc
learns to keep blocks of up to 32 MiB, as large as the largest that was freed, and maps larger ones each time (mallopt(3)); a
worker begins with what it would learn, and keeps larger ones, too. In a pipeline of batches of 256 KB that is 1.5 brk(2)
less per batch, and their page faults; to read, double and write a file of 64 MB takes 46 ms in place of 56.

In a heap what is freed in the midst is of use for what is no larger. Where that would be much, in a worker that has grown
beyond `MOST`, large blocks are mapped again, each by itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import resource
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX
_LARGEST = 32 << 20  # DEFAULT_MMAP_THRESHOLD_MAX of 64-bit systems
_MAPPED = 65536  # DEFAULT_MMAP_MAX
MOST = 512 << 20  # bytes of a process


class _Heap:
    """Of this process.

    Attributes:
        libc: while large blocks are kept; None: they are not, or it is not glibc.
    """

    libc: Any = None


_heap = _Heap()


def keep() -> None:
    """Keep freed memory for what comes; elsewhere than on glibc nothing."""
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.malloc_trim  # noqa: B018  a C library that has it is glibc
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
        libc.mallopt(_TRIM_THRESHOLD, MOST)
        libc.mallopt(_MMAP_MAX, 0)
        _heap.libc = libc


def trim() -> None:
    """Give back what is free now."""
    if _heap.libc is not None:
        _heap.libc.malloc_trim(0)


def look() -> None:
    """Keep no large blocks any more, if this process has grown large."""
    libc = _heap.libc
    if libc is None or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < MOST or _peak() < MOST:
        return
    _heap.libc = None
    libc.mallopt(_MMAP_MAX, _MAPPED)
    libc.mallopt(_TRIM_THRESHOLD, _LARGEST)
    libc.malloc_trim(0)


def _peak() -> int:
    """The most bytes that this program has held; ``ru_maxrss`` may be of the program from which it was started (getrusage(2))."""
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/self/status") as file:
        return int(file.read().partition("VmHWM:")[2].split()[0]) * 1024
    return MOST
