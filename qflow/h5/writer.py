"""Writer: what slices have made becomes rows and references of a file, in the order of the slices.

Numbers of rows that a slice has made become those of the file here, where all that lies before is known. Slices are written
together until there are `BYTES` of them: a call of HDF5 costs as much as 100 KB.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import numpy as np

from qflow.errors import GraphError
from qflow.h5.block import Block, Made
from qflow.h5.tables import Tables

BYTES = 1 << 22


@final
class Writer:
    """Writes to a file; `flush` before it is looked at."""

    def __init__(self, file: Tables) -> None:
        self.file = file
        self.rows: dict[str, int] = {}  # appended so far, by tables
        self._waiting: list[Block] = []
        self._bytes = 0

    def add(self, block: Block) -> None:
        """Write what a slice has made, behind all slices before."""
        if block.slice.rows is not None:
            block = block.with_source()
        if block.made:
            self._waiting.append(block)
            self._bytes += sum(each.rows.nbytes for each in block.made)
        if self._bytes >= BYTES or len(self._waiting) >= 1000:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        names = dict.fromkeys(each.table for block in waiting for each in block.made)
        bases: list[dict[str, int]] = [{} for _ in waiting]  # of each slice by tables: the row with which its own begin
        for name in names:
            parts = [(number, made) for number, block in enumerate(waiting) for made in block.made if made.table == name]
            at = self._append(name, [made for _, made in parts])
            for number, made in parts:
                if made.source and at != waiting[number].slice.start:
                    raise GraphError(f"Rows {at} on were made for {name!r} where {waiting[number].slice!r} were announced.")
                bases[number][name] = at
                at += len(made.rows)
        links: dict[tuple[str, str], list[Any]] = {}
        for block, base in zip(waiting, bases, strict=True):
            for made in block.made:
                for other in made.links:
                    links.setdefault((other, made.table), []).append(_pairs(block, made, other, base))
        for (other, name), pairs in links.items():
            self.file.link(other, name, np.concatenate(pairs))

    def _append(self, name: str, parts: Sequence[Made]) -> int:
        """Append rows of several slices -> the first one's place."""
        rows = parts[0].rows if len(parts) == 1 else np.concatenate([made.rows for made in parts])
        place = self.file.append(name, rows)
        self.rows[name] = self.rows.get(name, 0) + len(rows)
        return int(place.start)


def _pairs(block: Block, made: Made, other: str, base: dict[str, int]) -> Any:
    """Pairs of the file's rows: of another table, and of what was made."""
    pairs = made.links[other]
    if isinstance(pairs, str):
        there = block.numbers(other) + base.get(other, 0) * (not block.is_source(other))
        return np.stack([there, np.arange(base[made.table], base[made.table] + len(made.rows))], axis=1)
    shift = 0 if block.is_source(other) else base.get(other, 0)
    return pairs + np.array([shift, base[made.table]])
