"""Kept: HDF5 files that stay open for reading, the ones used last.

Opening a file takes 0.4 ms (h5py 3.16, local disk; far more on a network).
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar, final

from qflow.h5.files import Stamp, stamp

MOST_OPEN = 8


class Open(Protocol):
    """An open file."""

    def close(self) -> None:
        """Close it."""


F = TypeVar("F", bound=Open)


@final
class Kept(Generic[F]):
    """Open files by path; at most ``MOST_OPEN``, the least recently used closed first. A fork opens its own.

    Args:
        opened: opens a file.
    """

    def __init__(self, opened: Callable[[str], F]) -> None:
        self._opened = opened
        self._files: OrderedDict[str, tuple[Stamp, F]] = OrderedDict()
        self._process = os.getpid()

    def open(self, path: str) -> F:
        """The file, opened if it isn't or if it was written again."""
        if self._process != os.getpid():  # these share their position in the file with the parent's
            self._files, self._process = OrderedDict(), os.getpid()
        now = stamp(path)
        known = self._files.pop(path, None)
        if known is not None and known[0] != now:
            known[1].close()
            known = None
        while known is None and len(self._files) >= MOST_OPEN:
            self._files.popitem(last=False)[1][1].close()
        self._files[path] = known = known or (now, self._opened(path))
        return known[1]

    def close(self) -> None:
        """Close all of this process."""
        while self._process == os.getpid() and self._files:
            self._files.popitem()[1][1].close()
