"""Writing: the step that makes one file of events."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import h5py  # type: ignore[import-untyped]

import qflow as qf
from qflow.demo.events import TILE, Block, blocks
from qflow.demo.folder import SEED, Part
from qflow.demo.split import CREDITS, PICTURES


@qf.process
def write(part: Part) -> Iterator[int]:
    """Write a file under another name and rename it when it is whole; after each block, how many events it had.

    Memory: a block of 3.5 MB, and the pictures of one side, 12 MB.
    """
    from qflow.demo.pictures import material  # here, so that only processes that write load its libraries

    made = blocks(material(part.side), part.start, part.stop, SEED)
    temporary = part.path.with_name(f"{part.path.name}.{os.getpid()}.part")
    _tidy(part.path)
    try:
        with h5py.File(temporary, "w") as file:
            yield from _fill(file, part.stop - part.start, made)
            file.attrs["pictures"], file.attrs["credits"] = list(PICTURES[part.side]), CREDITS
            file.attrs["recipe"] = part.recipe
        temporary.replace(part.path)
    finally:
        temporary.unlink(missing_ok=True)


def _tidy(path: Path) -> None:
    """Remove what writers of this file have left that were killed."""
    for left in path.parent.glob(f"{path.name}.*.part"):
        if not Path("/proc", left.suffixes[-2][1:]).exists():
            left.unlink(missing_ok=True)


def _fill(file: h5py.File, total: int, made: Iterable[Block]) -> Iterator[int]:
    file.create_dataset("image", (total, TILE, TILE, 3), "u1")
    for key in ("label", "digit", "picture"):
        file.create_dataset(key, (total,), "i8")
    start = 0
    for block in made:
        stop = start + len(block.label)
        for field in dataclasses.fields(block):
            file[field.name][start:stop] = getattr(block, field.name)
        yield stop - start
        start = stop
