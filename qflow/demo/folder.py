"""Folder: the events as HDF5 files, written once and used again.

A file is written under another name and renamed when it is whole; its attribute ``recipe`` says what
is in it. A file that is missing, damaged or of another recipe is written again, the others are kept.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import h5py  # type: ignore[import-untyped]

from qflow.demo import bytesizes
from qflow.demo.events import EVENT_BYTES, TILE, Block, blocks
from qflow.demo.pictures import CREDITS, Side, material

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

    >>> plan = layout(Path("data"), 150_000_000)
    >>> [part.path.name for part in plan.parts]
    ['train-150MB-0.h5', 'train-150MB-1.h5', 'train-150MB-2.h5', 'train-150MB-3.h5', 'heldout-150MB-0.h5']
    >>> events(plan.train), events(plan.heldout)
    (10661, 1522)
    """
    total = size // EVENT_BYTES
    heldout = min(total // 8, MOST_HELD_OUT)
    files = max(LEAST_FILES, -(-(total - heldout) * EVENT_BYTES // FILE_BYTES))
    return Layout(tuple(_parts(folder, "train", size, total - heldout, files)), tuple(_parts(folder, "heldout", size, heldout, 1)))


def _parts(folder: Path, side: Side, size: int, total: int, files: int) -> Iterator[Part]:
    bounds = [number * total // files for number in range(files + 1)]
    for number, (start, stop) in enumerate(pairwise(bounds)):
        yield Part(folder / f"{side}-{bytesizes.show(size)}-{number}.h5", side, start, stop)


def events(parts: Iterable[Part]) -> int:
    """How many events some files hold."""
    return sum(part.stop - part.start for part in parts)


def default_folder() -> Path:
    """Where the files go unless said otherwise: ``$XDG_CACHE_HOME/qflow/demo``, else below ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qflow" / "demo"


def write(parts: Iterable[Part], progress: Callable[[int], object]) -> None:
    """Write files, block by block; `progress` is told the events of each block.

    Memory: one block of 3 MB, and the pictures of one side, 12 MB.

    Raises:
        OSError: there is no room, or the folder can't be written.
    """
    missing = list(parts)
    for folder in {part.path.parent for part in missing}:
        folder.mkdir(parents=True, exist_ok=True)
        _check_room(folder, events(missing) * EVENT_BYTES)
    for side in dict.fromkeys(part.side for part in missing):
        source = material(side)
        for part in missing:
            if part.side == side:
                _write(part, source.names, blocks(source, part.start, part.stop, SEED), progress)


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(f"{folder} has {bytesizes.show(free)} free, but the data take {bytesizes.show(needed)}. Choose another --folder, or a smaller --size.")


def _write(part: Part, names: tuple[str, ...], made: Iterable[Block], progress: Callable[[int], object]) -> None:
    """Write a file under another name, then rename it."""
    for left in part.path.parent.glob(f"{part.path.name}.*.part"):
        if not Path("/proc", left.suffixes[-2][1:]).exists():  # its writer was killed
            left.unlink(missing_ok=True)
    temporary = part.path.with_name(f"{part.path.name}.{os.getpid()}.part")
    try:
        with h5py.File(temporary, "w") as file:
            _fill(file, part.stop - part.start, made, progress)
            file.attrs["pictures"], file.attrs["credits"] = list(names), CREDITS
            file.attrs["recipe"] = part.recipe
        temporary.replace(part.path)
    finally:
        temporary.unlink(missing_ok=True)


def _fill(file: h5py.File, total: int, made: Iterable[Block], progress: Callable[[int], object]) -> None:
    file.create_dataset("image", (total, TILE, TILE, 3), "u1")
    for key in ("label", "digit", "picture"):
        file.create_dataset(key, (total,), "i8")
    start = 0
    for block in made:
        stop = start + len(block.label)
        for field in dataclasses.fields(block):
            file[field.name][start:stop] = getattr(block, field.name)
        progress(stop - start)
        start = stop
