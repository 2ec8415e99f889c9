"""Heap: memory that a step frees stays with its worker, for the next array of its size.

The C library gives freed memory of 128 KiB and more back to the system, and a step that makes a batch for each item gets
all its pages anew each time: 1.4 GB/s, where warm ones are written at 20 and more (design notes, section 5). glibc
learns to keep blocks as large as the largest that was freed (mallopt(3)); a worker begins with the most that it would
learn. In a pipeline of batches of 256 KB that is 1.5 brk(2) less per batch, and their page faults.
"""

from __future__ import annotations

import contextlib
import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
_LARGEST = 32 << 20  # DEFAULT_MMAP_THRESHOLD_MAX of 64-bit systems


def keep() -> None:
    """Keep up to 32 MiB of freed memory at the end of this process's heap; elsewhere than on glibc nothing."""
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, _LARGEST)
