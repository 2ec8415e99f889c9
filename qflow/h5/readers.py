"""Readers: the files of tables that a thread has open for reading."""

from __future__ import annotations

import threading

from qflow.h5.kept import Kept
from qflow.h5.tables import Tables


class _Own(threading.local):
    """Of this thread."""

    def __init__(self) -> None:
        self.files = Kept(Tables)


_own = _Own()


def tables(path: str) -> Tables:
    """A file, opened if it isn't, or if it was written again."""
    return _own.files.open(path)


def close() -> None:
    """Close those of this thread."""
    _own.files.close()
