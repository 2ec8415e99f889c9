"""Readers: files of tables that a thread has open for reading, the ones used last."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict

from qflow.h5.files import Stamp, stamp
from qflow.h5.tables import Tables

MOST_OPEN = 8


class _Open(threading.local):
    """Of this thread, by process, for a fork has its place in a file together with its parent."""

    def __init__(self) -> None:
        self.files: OrderedDict[tuple[int, str], tuple[Stamp, Tables]] = OrderedDict()


_open = _Open()


def tables(path: str) -> Tables:
    """A file, opened if it isn't, or if it was written again."""
    files, key, now = _open.files, (os.getpid(), path), stamp(path)
    known = files.get(key)
    if known is not None and known[0] != now:
        known[1].close()
        known = None
    if known is None:
        while len(files) >= MOST_OPEN:
            (process, _), (_, oldest) = files.popitem(last=False)
            if process == os.getpid():
                oldest.close()
        known = files[key] = now, Tables(path)
    files.move_to_end(key)
    return known[1]


def close() -> None:
    """Close those of this thread."""
    for (process, _), (_, file) in _open.files.items():
        if process == os.getpid():
            file.close()
    _open.files.clear()
