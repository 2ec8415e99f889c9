"""Disk: what was written is there also after the power has failed."""

from __future__ import annotations

import os


def sync(path: str) -> None:
    """Wait until a file, or what a folder lists, is on the disk."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
