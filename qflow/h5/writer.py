"""Writer: what slices have made becomes rows and references of a file, in the order of the slices.

Numbers of rows that a slice has made become those of the file here, where all that lies before is known. Slices are written
together until there are `BYTES` of them: a call of HDF5 costs as much as 100 KB.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, final

import numpy as np

from qflow.errors import GraphError, InternalError
from qflow.h5.block import Block, Made, Slice
from qflow.h5.fitting import fitted
from qflow.h5.tables import Tables

BYTES = 1 << 24  # 10 M rows of 4 bytes, linked, took 1.3 s; with 1 << 20 2.0 s, for the C library gave memory back each time
MOST = 1000  # slices
PAIR = 16  # bytes


class _Part(NamedTuple):
    """What waits of a slice: copies, for whoever made them may use their memory again."""

    slice: Slice
    made: tuple[Made, ...]


@final
class Writer:
    """Writes to a file; `finish` before it is looked at.

    The type of a table's rows is that of the first there are, whatever empty slices say.
    """

    def __init__(self, file: Tables) -> None:
        self.file = file
        self.rows: dict[str, int] = {}  # appended so far, by tables
        self._empty: dict[str, Any] = {}  # tables of which no rows came yet: what they would be like
        self._linked: dict[tuple[str, str], None] = {}
        self._waiting: list[_Part] = []
        self._bytes = 0

    def expect(self, table: str, dtype: Any) -> None:
        """A table is there at the end, also if no rows came."""
        self._empty.setdefault(table, np.empty(0, dtype))

    def add(self, block: Block) -> None:
        """Write what a slice has made, behind all slices before."""
        at, made = block.slice._replace(rows=None), made_by(block.slice, block.made)
        if made:
            self._waiting.append(_Part(at, tuple(each._replace(rows=np.array(each.rows)) for each in made)))
            self._bytes += sum(map(_bytes, made))
        if self._bytes >= BYTES or len(self._waiting) >= MOST:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        bases: list[dict[str, int]] = [{} for _ in waiting]  # of each slice by tables: the row with which its own begin
        for name in dict.fromkeys(each.table for part in waiting for each in part.made):
            found = [(number, each.rows) for number, part in enumerate(waiting) for each in part.made if each.table == name]
            at = self._append(name, [rows for _, rows in found])
            for number, rows in found:
                bases[number][name] = at
                if name == waiting[number].slice.table and at != waiting[number].slice.start:
                    raise InternalError(f"{waiting[number].slice!r} begin at {at}.")
                at += len(rows)
        links: dict[tuple[str, str], list[Any]] = {}
        for part, base in zip(waiting, bases, strict=True):
            for link, pairs in pairs_of(part.slice, part.made, base):
                links.setdefault(link, []).append(pairs)
        for (other, name), found in links.items():
            self._linked[other, name] = None
            if name in self.file and other in self.file:
                self.file.link(other, name, np.concatenate(found))

    def finish(self) -> None:
        """Write the rest; tables of which no rows came are there, too."""
        self.flush()
        for name, rows in self._empty.items():
            if name not in self.file:
                self.file.create(name, rows.dtype, rows.shape[1:])
        for other, name in self._linked:
            self.file.link(other, name, [])

    def _append(self, name: str, parts: list[Any]) -> int:
        """Append rows of several slices -> the first one's place."""
        some = [rows for rows in parts if len(rows)]
        self.rows[name] = self.rows.get(name, 0) + sum(map(len, some))
        if not some:
            self._empty.setdefault(name, parts[0])
            return len(self.file[name]) if name in self.file else 0
        dtype = self.file[name].dtype if name in self.file else canonical(some[0].dtype)
        shape = self.file[name].shape[1:] if name in self.file else some[0].shape[1:]
        if other := next((rows.shape[1:] for rows in some if rows.shape[1:] != shape), None):
            raise GraphError(f"The rows of {name!r} are of shape {shape}, but a slice has made some of shape {other}.")
        same = [fitted(rows, dtype, f"The rows of {name!r}") for rows in some]
        return int(self.file.append(name, same[0] if len(same) == 1 else np.concatenate(same)).start)


def canonical(dtype: Any) -> Any:
    """The type of a new table: a row's, in this machine's order of bytes and without gaps.

    >>> canonical(np.dtype(">i2")), canonical(np.zeros(1, "i4, f8, f4")[["f0", "f2"]].dtype).itemsize
    (dtype('int16'), 8)
    """
    return np.result_type(dtype)


def made_by(slice: Slice, made: tuple[Made, ...]) -> tuple[Made, ...]:
    """All that a slice has made: its own rows, too, where a generator made them."""
    return made if slice.rows is None else (Made(slice.table, slice.rows, {}), *made)


def pairs_of(slice: Slice, made: tuple[Made, ...], base: Mapping[str, int]) -> Iterator[tuple[tuple[str, str], Any]]:
    """For linked tables pairs of the file's rows: there, and of what was made.

    A table is that of the slice if it was made before; one that is made later is the file's where it is linked.

    Args:
        slice, made: all that it has made, in order.
        base: by tables the row of the file with which its own begin.
    """
    before: dict[str, int] = {}  # where the slice's own rows begin
    for each in made:
        for other, pairs in each.links.items():
            own = other in before and other != slice.table
            if isinstance(pairs, str):
                start, here = before[other] if own else slice.start, np.arange(len(each.rows))
                found = np.stack([start + here, base[each.table] + here], axis=1)
            else:
                found = pairs + np.array([before[other] if own else 0, base[each.table]])
            yield (other, each.table), found
        before[each.table] = base[each.table]


def _bytes(made: Made) -> int:
    """Of its rows and pairs, also of those that `pairs_of` will make."""
    pairs = sum(PAIR * (len(made.rows) if isinstance(each, str) else len(each)) for each in made.links.values())
    return int(made.rows.nbytes) + pairs
