"""Marks: what happened in a cell, told by files, so that it is known when any of its processes is dead.

A mark is an empty file in the cell's folder, made once; its time is when it happened.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

FOLDER = "QFLOW_BENCH_FOLDER"  # the environment variable that names the cell's folder
TAG = "QFLOW_BENCH_TAG"  # the environment variable that every process of a cell carries


def folder() -> Path:
    """The folder of the cell that this process belongs to."""
    return Path(os.environ[FOLDER])


def mark(name: str) -> bool:
    """Mark that something happens now; whether it is the first time."""
    try:
        os.close(os.open(folder() / name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def wait(name: str, *, patience: float) -> bool:
    """Wait until something was marked, at most so many seconds; whether it was."""
    end = time.monotonic() + patience
    while not (folder() / name).exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def times(where: Path) -> dict[str, float]:
    """What was marked in a folder so far: name -> seconds since the epoch."""
    return dict(_times(where))


def _times(where: Path) -> Iterator[tuple[str, float]]:
    for path in where.iterdir():
        with suppress(FileNotFoundError):  # renamed meanwhile
            yield path.name, path.stat().st_mtime
