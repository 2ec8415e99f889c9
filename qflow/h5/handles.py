"""Handles: HDF5 files kept open for reading by one worker.

Opening a file takes 0.4 ms (h5py 3.16, local disk; far more on a network), so the files used last
stay open. Each worker builds a `Handles` of its own, which closes its files when it is collected.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple, final

from qflow.h5.files import Stamp, columns, opened, stamp

MOST_OPEN = 8


class Handle(NamedTuple):
    """An open file: its datasets by key, their number of rows, and the stamp of what was opened."""

    file: Any
    columns: Mapping[str, Any]
    rows: int
    stamp: Stamp


@final
class Handles:
    """The open files of one worker, by path; at most ``MOST_OPEN``, the least recently used closed first."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._keys = keys
        self._open: OrderedDict[str, Handle] = OrderedDict()
        self._process = os.getpid()

    def open(self, path: str) -> Handle:
        """The file, opened if it isn't or if it was written again."""
        if self._process != os.getpid():  # a fork: these share their position in the file with the parent's
            self._open, self._process = OrderedDict(), os.getpid()
        now = stamp(path)
        handle = self._open.pop(path, None)
        if handle is not None and handle.stamp != now:
            handle.file.close()
            handle = None
        while handle is None and len(self._open) >= MOST_OPEN:
            self._open.popitem(last=False)[1].file.close()
        self._open[path] = handle or self._new(path, now)
        return self._open[path]

    def _new(self, path: str, now: Stamp) -> Handle:
        file = opened(path)
        try:
            found = columns(file, self._keys)
        except BaseException:
            file.close()
            raise
        return Handle(file, found, len(next(iter(found.values()))), now)
