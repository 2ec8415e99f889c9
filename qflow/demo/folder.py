"""Folder: the events as HDF5 files, written once and used again.

A file gets its name when it is whole (`qflow.demo.writing`), and its attribute ``recipe`` says what is
in it. A file that is missing, damaged or of another recipe is written again, the others are kept.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import h5py  # type: ignore[import-untyped]

from qflow.demo.events import EVENT_BYTES
from qflow.demo.split import Side
from qflow.graph import bytesizes

RECIPE = 1  # counts changes of what is written
SEED = 2
FILE_BYTES = 500_000_000
LEAST_FILES = 4  # so that chunks span files in the smallest data too
MOST_HELD_OUT = 2880  # each held-out digit 8 times


@dataclasses.dataclass(frozen=True)
class Part:
    """One file: where it is, and which events of a side it has."""

    path: Path
    side: Side
    start: int
    stop: int

    @property
    def recipe(self) -> str:
        """What the file says about itself once it is whole."""
        return json.dumps({"version": RECIPE, "seed": SEED, "side": self.side, "start": self.start, "stop": self.stop})

    @property
    def complete(self) -> bool:
        """Whether the file is there and whole, of this recipe."""
        try:
            with h5py.File(self.path, "r") as file:
                return bool(file.attrs.get("recipe") == self.recipe)
        except OSError:
            return False


@dataclasses.dataclass(frozen=True)
class Layout:
    """The files of both sides for one size of data."""

    train: tuple[Part, ...]
    heldout: tuple[Part, ...]

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.train + self.heldout


def layout(folder: Path, size: int) -> Layout:
    """Which files hold ``size`` bytes of events, an eighth of them held out, but at most 2880.

    >>> plan = layout(Path("data"), 200_000_000)
    >>> [part.path.name for part in plan.parts]
    ['train-200MB-0.h5', 'train-200MB-1.h5', 'train-200MB-2.h5', 'train-200MB-3.h5', 'heldout-200MB-0.h5']
    >>> events(plan.train), events(plan.heldout)
    (6324, 903)
    """
    total = size // EVENT_BYTES
    heldout = min(total // 8, MOST_HELD_OUT)
    files = max(LEAST_FILES, -(-(total - heldout) * EVENT_BYTES // FILE_BYTES))
    named = bytesizes.show(size)
    return Layout(_parts(folder, "train", named, total - heldout, files), _parts(folder, "heldout", named, heldout, 1))


def _parts(folder: Path, side: Side, named: str, total: int, files: int) -> tuple[Part, ...]:
    bounds = (number * total // files for number in range(files + 1))
    return tuple(Part(folder / f"{side}-{named}-{number}.h5", side, *span) for number, span in enumerate(pairwise(bounds)))


def events(parts: Iterable[Part]) -> int:
    """How many events some files hold."""
    return sum(part.stop - part.start for part in parts)


def default_folder() -> Path:
    """Where the files go unless said otherwise: ``$XDG_CACHE_HOME/qflow/demo``, else below ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qflow" / "demo"


def incomplete(wanted: Layout) -> list[Part]:
    """The files that have to be written; their folder is made, and has room for them.

    Raises:
        OSError: there is no room, or the folder can't be made.
    """
    missing = [part for part in wanted.parts if not part.complete]
    for folder in {part.path.parent for part in missing}:
        _check_room(folder, events(missing) * EVENT_BYTES)
    return missing


def _check_room(folder: Path, needed: int) -> None:
    """Make the folder; an OSError if that fails, or if it has too little room."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"The folder {folder} can't be made: {error.strerror}. Choose another --folder.") from error
    free = shutil.disk_usage(folder).free
    if needed > free:
        what = f"{folder} has {bytesizes.show(free)} free, but the data take {bytesizes.show(needed)}"
        raise OSError(f"{what}. Choose another --folder, or a smaller --size.")
