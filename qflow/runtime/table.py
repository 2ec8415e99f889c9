"""Table: values of one structure in a cell, each leaf in a column (`template`).

    head | structure | index paths | ends of the odd leaves | column | column ... | odd leaves, one after another

Every column has room for the same number of rows, which stands in the head. How many of them there are
stands in the board (`grown`).
"""

from __future__ import annotations

import functools
import itertools
import pickle
import struct
import sys
from collections.abc import Callable, Container, Sequence
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from qflow.errors import InternalError
from qflow.graph.markers import CLOSE
from qflow.graph.plan import SMALL
from qflow.runtime.board import MOST_VALUES
from qflow.runtime.parts import Taken
from qflow.runtime.template import Column, Template, of_key

ALIGN = 64
TABLE = 0x71667462 << 32
# TABLE and the check, rows, words of a path << 32 | bytes of the structure, whether there is a CLOSE
HEAD = struct.Struct("=QQQQ")
CHECKED, CLOSES = 24, 3  # bytes of all but the last word, and its number
SIGN = (TABLE >> 32).to_bytes(4, sys.byteorder)
OVERWRITTEN = "the head of a cell was overwritten: its check word is wrong"
CLOSED = 1 << 63  # in an index path: the row is CLOSE
ODD = 32  # multiple of the bytes for which the odd leaves of a row are given room
Path = tuple[int, ...]


class Layout(NamedTuple):
    """Where things lie in a cell: rows, and the first byte of paths, ends, each column, and the odd leaves."""

    rows: int
    paths: int
    ends: int
    columns: tuple[int, ...]
    heap: int


@functools.lru_cache(maxsize=256)
def layout(template: Template, words: int, rows: int) -> Layout:
    """For so many rows with index paths of so many words."""
    paths = _aligned(HEAD.size + len(template.key))
    ends = _aligned(paths + 8 * words * rows)
    at = _aligned(ends + 8 * rows * template.odd)
    columns = []
    for column in template.columns:
        columns.append(at)
        at = _aligned(at + rows * column.nbytes)
    return Layout(rows, paths, ends, tuple(columns), at)


@functools.lru_cache(maxsize=256)
def rows_for(template: Template, words: int, odd: int) -> int:
    """How many rows a cell has room for, when the odd leaves of each take so many bytes."""
    room = SMALL - _aligned(HEAD.size + len(template.key)) - ALIGN * (len(template.columns) + 3) - template.most_odd
    return max(1, min(MOST_VALUES, room // max(1, 8 * words + template.row + (8 + odd) * template.odd)))


def is_table(region: memoryview) -> bool:
    """Whether a cell holds a table."""
    return region[4:8] == SIGN


@functools.lru_cache(maxsize=256)
def _head(template: Template, words: int, rows: int) -> bytes:
    """What a table begins with."""
    rest = rows, words << 32 | len(template.key)
    check = crc32(template.key, crc32(HEAD.pack(0, *rest, 0)))
    return HEAD.pack(TABLE | check, *rest, 0) + template.key


@functools.lru_cache(maxsize=256)
def _known(head: bytes, key: bytes) -> tuple[Template, int, Layout]:
    """What the first words of a table, and the structure behind them, say; InternalError if the check word is not theirs."""
    check, rows, sizes = struct.unpack("=QQQ", head)
    if check != TABLE | crc32(key, crc32(HEAD.pack(0, rows, sizes, 0))):
        raise InternalError(OVERWRITTEN)
    template, words = of_key(key), sizes >> 32
    return template, words, layout(template, words, rows)


def _aligned(size: int) -> int:
    return (size + ALIGN - 1) & -ALIGN


def views(region: memoryview, columns: Sequence[Column], plan: Layout) -> list[Any]:
    """The columns as they lie in a region: memory views for numbers, arrays for others."""
    found: list[Any] = []
    for column, at in zip(columns, plan.columns, strict=True):
        part = region[at : at + plan.rows * column.nbytes]
        found.append(part.cast(column.dtype) if column.plain else np.ndarray((plan.rows, *column.shape), column.dtype, part))  # type: ignore[call-overload]
    return found


class Writer:
    """Writes rows into a cell.

    Attributes:
        template: of their values.
        rows: how many there are.
        store: stores a value in a row -> whether it could.
        words: of an index path.
        paths: the words of all, row after row.
        columns: as they lie in the cell.
    """

    def __init__(self, region: memoryview, template: Template, words: int, rows: int) -> None:
        self.region, self.template, self.words, self.rows = region, template, words, 0
        self._layout = layout(template, words, rows)
        head = _head(template, words, rows)
        region[: len(head)] = head
        self._words = region.cast("Q")
        self.paths = self._words[self._layout.paths // 8 :]
        self._ends = self._words[self._layout.ends // 8 :]
        self._heap = self._layout.heap
        self.columns = views(region, template.columns, self._layout)
        self.store: Callable[[int, Any], bool] = template.storer(self.columns, self.put_odd)

    @property
    def room(self) -> int:
        """For how many more rows there is room, if their odd leaves are not too long."""
        return self._layout.rows - self.rows

    def put_odd(self, row: int, pickled: bytes) -> bool:
        """Write the pickle of a row's odd leaves -> whether there is room."""
        start = self._ends[row - 1] if row else self._layout.heap
        end = start + len(pickled)
        if end > len(self.region):
            return False
        self.region[start:end] = pickled
        self._ends[row] = end
        return True

    def add(self, value: Any, path: Path) -> bool:
        """Write a value -> whether it could; it counts only when the board says so."""
        row = self.rows
        if not self.room or len(path) != self.words:
            return False
        if value is CLOSE:
            if self.template.odd and not self.put_odd(row, b""):
                return False
            self.put_path(row, path, CLOSED)
            self._words[CLOSES] = 1
        else:
            if not self.store(row, value):
                return False
            self.put_path(row, path)
        self.rows += 1
        return True

    def add_numbers(self, values: memoryview, paths: memoryview) -> bool:
        """Write numbers with index paths of one word -> whether there is room for all."""
        start, end = self.rows, self.rows + len(values)
        if end > self._layout.rows or self.words != 1:
            return False
        self.paths[start:end] = paths
        self.columns[0][start:end] = values
        self.rows = end
        return True

    def put_paths(self, row: int, count: int, path: Path) -> None:
        """Write the index paths of so many rows, whose last words go up by one from that of the first."""
        found = np.empty((count, self.words), np.uint64)
        found[:] = path
        found[:, -1] += np.arange(count, dtype=np.uint64)
        self.paths[row * self.words : (row + count) * self.words] = memoryview(found).cast("B").cast("Q")  # type: ignore[arg-type]

    def put_path(self, row: int, path: Path, flag: int = 0) -> None:
        """Write an index path."""
        at = row * self.words
        if path:
            self.paths[at] = path[0] | flag
        for number in range(1, self.words):
            self.paths[at + number] = path[number]


class Single:
    """A large value that has a cell of its own, and its index path: a table of one row, ready to be copied into a cell."""

    __slots__ = ("leaves", "nbytes", "path", "template")

    def __init__(self, leaves: tuple[Any, ...], path: Path, template: Template) -> None:
        self.leaves, self.path, self.template = leaves, path, template
        self.nbytes = self.size(template, len(path))

    @staticmethod
    def size(template: Template, words: int) -> int:
        """Bytes of a value in its cell."""
        return layout(template, words, 1).heap + template.most_odd

    def fill(self, region: memoryview) -> None:
        """Copy it into a cell."""
        self.template.alone.fill(region, self.leaves, *self._begin(region).columns)

    def fill_around(self, region: memoryview, there: Container[int]) -> None:
        """The same, but for those of its leaves that are there."""
        plan, (*leaves, _) = self._begin(region), self.leaves
        for number, (leaf, column, at) in enumerate(zip(leaves, self.template.columns, plan.columns, strict=True)):
            if number in there:
                continue
            if column.plain:
                struct.pack_into(column.dtype, region, at, leaf)
            else:
                np.ndarray(column.shape, column.dtype, region, at)[...] = leaf

    def _begin(self, region: memoryview) -> Layout:
        """Write all but the columns -> where these lie."""
        template, words = self.template, len(self.path)
        plan, head = layout(template, words, 1), _head(template, words, 1)
        region[: len(head)] = head
        region[plan.paths : plan.paths + 8 * words] = struct.pack(f"={words}Q", *self.path)
        if template.odd:
            pickled = pickle.dumps(self.leaves[-1], 5)
            region[plan.heap : plan.heap + len(pickled)] = pickled
            struct.pack_into("=Q", region, plan.ends, plan.heap + len(pickled))
        return plan


class Alike:
    """Several values that look alike, as one table, ready to be copied into memory."""

    __slots__ = ("_template", "_values", "nbytes")

    def __init__(self, values: Sequence[Any], template: Template) -> None:
        self._values, self._template = values, template
        odd = sum(len(pickle.dumps(template.leaves(value)[-1], 5)) for value in values) if template.odd else 0
        self.nbytes = _aligned(layout(template, 0, len(values)).heap + odd)

    def fill(self, region: memoryview) -> None:
        """Copy them."""
        writer = Writer(region, self._template, 0, len(self._values))
        fits = all(writer.add(value, ()) for value in self._values)
        assert fits, "they were checked"


class Part:
    """Rows of a table as they lie there, as a table of their own, ready to be copied into memory."""

    __slots__ = ("_count", "_reader", "_start", "nbytes")

    def __init__(self, reader: Reader, start: int, count: int) -> None:
        self._reader, self._start, self._count = reader, start, count
        self.nbytes = _aligned(layout(reader.template, 0, count).heap)

    def fill(self, region: memoryview) -> None:
        """Copy them."""
        template = self._reader.template
        head, plan = _head(template, 0, self._count), layout(template, 0, self._count)
        region[: len(head)] = head
        for column, at, rows in zip(template.columns, plan.columns, self._reader.rows(self._start, self._count), strict=True):
            region[at : at + self._count * column.nbytes] = rows


def whole(region: memoryview) -> Reader:
    """All rows that a table has room for."""
    return Reader(region, 0, HEAD.unpack_from(region)[1])


class Reader:
    """Rows ``offset`` to ``offset + count`` of a cell, or of a copy of it.

    Attributes:
        template: of their values.
        words: of an index path.
        closing: whether CLOSE may be among them.
    """

    def __init__(self, region: memoryview, offset: int, count: int) -> None:
        self.region, self.offset, self.count = region, offset, count
        size = min(int.from_bytes(region[16:20], sys.byteorder), SMALL)
        self.template, self.words, self._layout = _known(bytes(region[:CHECKED]), bytes(region[HEAD.size : HEAD.size + size]))
        if not 0 <= offset < offset + count <= self._layout.rows:
            raise InternalError(OVERWRITTEN)
        self.closing = any(region[CHECKED : HEAD.size])

    @property
    def paths(self) -> memoryview:
        """The words of their index paths, row after row."""
        at = self._layout.paths + 8 * self.words * self.offset
        return self.region[at : at + 8 * self.words * self.count].cast("Q")

    def rows(self, start: int, count: int) -> list[memoryview]:
        """The bytes of some of them in each column."""
        first, last = self.offset + start, self.offset + start + count
        each = zip(self.template.columns, self._layout.columns, strict=True)
        return [self.region[at + first * column.nbytes : at + last * column.nbytes] for column, at in each]

    def part(self, start: int, count: int) -> Part | None:
        """Some of them, none of which is CLOSE, to be copied as they are, or None if they can't be."""
        return None if self.template.odd else Part(self, start, count)

    def copy(self, region: memoryview) -> None:
        """To the same places of another one."""
        plan, start, end = self._layout, self.offset, self.offset + self.count
        sizes = [column.nbytes for column in self.template.columns]
        parts = [
            (0, HEAD.size + len(self.template.key)),
            (plan.paths + 8 * self.words * start, plan.paths + 8 * self.words * end),
        ]
        parts += [(at + start * size, at + end * size) for at, size in zip(plan.columns, sizes, strict=True)]
        if self.template.odd:
            parts += [(plan.ends + 8 * max(0, start - 1), plan.ends + 8 * end), (self._heap(start - 1), self._heap(end - 1))]
        for first, last in parts:
            region[first:last] = self.region[first:last]

    def _heap(self, row: int) -> int:
        """Where the odd leaves of a row end."""
        at = self._layout.ends + 8 * row
        found: int = self.region[at : at + 8].cast("Q")[0] if row >= 0 else self._layout.heap
        if not self._layout.heap <= found <= len(self.region):
            raise InternalError(f"a row points outside of its cell of {len(self.region)} bytes")
        return found

    def values(self, *, read_only: bool) -> list[Any]:
        """All of them: arrays ``read_only`` or each with memory of its own; tensors with their own, too."""
        columns = [self._column(*each, read_only) for each in zip(self.template.columns, self._layout.columns, strict=True)]
        found = self.template.values(columns, self._odd(), self.count)
        if self.closing:
            for row, word in enumerate(self.paths[:: self.words]):
                if word & CLOSED:
                    found[row] = CLOSE
        return found

    def one(self, cells: Any, cell: int, *, read_only: bool, views: bool) -> tuple[Any, Path, bool]:
        """The single value of a cell, as of `codec.decode`."""
        path, plan = struct.unpack_from(f"={self.words}Q", self.region, self._layout.paths), self._layout
        view = self.template.alone.views[read_only] if views else None
        if view is None:
            return self.values(read_only=read_only)[0], path, False
        lease = cells.lease(cell, 0, plan.heap)
        if read_only:
            lease.flags.writeable = False
        odd = self._odd()[0] if self.template.odd else ()
        return view(self.region, odd, lease, *plan.columns), path, True

    @property
    def nbytes(self) -> int:
        """Of a table of one row."""
        return self._heap(0) if self.template.odd else self._layout.heap

    def _column(self, column: Column, start: int, read_only: bool) -> list[Any]:
        """The values of a column."""
        part = self.region[start + self.offset * column.nbytes : start + (self.offset + self.count) * column.nbytes]
        if column.plain:
            return part.cast(column.dtype).tolist()  # type: ignore[call-overload, no-any-return]
        shape = self.count, *column.shape
        if column.word == "scalar":
            return [*np.ndarray(shape, column.dtype, part)]
        if column.word == "tensor":
            import torch  # only where a tensor is met

            return [torch.from_numpy(row.copy()) for row in np.ndarray(shape, column.dtype, part)]
        if read_only:
            return [*np.ndarray(shape, column.dtype, Taken.of(part))]
        return [row.copy() for row in np.ndarray(shape, column.dtype, part)]

    def _odd(self) -> list[tuple[Any, ...]]:
        """The odd leaves of each, if there are any."""
        if not self.template.odd:
            return []
        ends = [self._heap(row) for row in range(self.offset - 1, self.offset + self.count)]
        pickled = [self.region[start:end] for start, end in itertools.pairwise(ends)]
        return [pickle.loads(each) if each else self.template.no_odd for each in pickled]

    def load(self, k: int, *, read_only: bool) -> tuple[Any, Path]:
        """Value and index path of one of them."""
        return Reader(self.region, self.offset + k, 1).values(read_only=read_only)[0], self.path(k)

    def path(self, k: int) -> Path:
        """The index path of one of them."""
        return _path(self.paths, self.words, k)

    def paths_kept(self) -> Callable[[int], Path]:
        """What gives the index path of each, also when the cell is used for others."""
        paths, words = memoryview(bytes(self.paths)).cast("Q"), self.words
        return lambda k: _path(paths, words, k)


def _path(paths: memoryview, words: int, k: int) -> Path:
    first, *rest = paths[k * words : (k + 1) * words]
    return first & ~CLOSED, *rest
