"""Packed: many small values in one cell, each of which can be read as soon as it is written.

A cell begins with a word that tells how its values lie. Plain numbers of one kind lie in two columns:

    numbers   format | ... | the first number of each index path ... | the values ...        64-bit words
    records   format | ... | record, record ...                  ... ends of the records, from the end of the cell back

A record is an item as `codec` writes it, aligned to 64 bytes, or, of a plain value, the pickle of its index path and
itself. How many there are stands in the board (`grown`), whose store is what makes a value count.
"""

from __future__ import annotations

import pickle
import sys
from array import array
from typing import Any, final
from zlib import crc32

from qflow.errors import InternalError
from qflow.graph.plan import SMALL
from qflow.runtime.codec import ALIGN, Body, Encoded, Path, decode, encode, path_of
from qflow.runtime.turn import LEAST, MORE, NUMBER, Parcel

INTS, FLOATS, RECORDS = 1, 2, 3
MAGIC = 0x71667061 << 32
WORDS = SMALL // 8
FIRST = ALIGN // 8  # word of the columns
NUMBERS = (WORDS - FIRST) // 2  # in a cell
MOST = 4096  # bytes of an item that shares a cell
TEXTS = 1024  # of one that is plain text
PLAIN = frozenset({int, float, bool, type(None), complex})
CONTAINERS = frozenset({tuple, list, dict})
KEYS = frozenset({str, int})
MANY = 8  # values in a container


@final
class Plain:
    """A plain value, and its index path; pickled when it has to be.

    Attributes:
        nbytes: that it takes in a cell, or nearly so.
    """

    __slots__ = ("_pickled", "nbytes", "path", "value")

    def __init__(self, value: Any, path: Path) -> None:
        self.value, self.path = value, path
        kind = type(value)
        if (kind is float or (kind is int and LEAST <= value < MORE)) and len(path) == 1:
            self._pickled, self.nbytes = b"", NUMBER
        else:
            self._pickled = pickle.dumps((path, value), 5)
            self.nbytes = len(self._pickled) + 8

    @property
    def pickled(self) -> bytes:
        """Of path and value."""
        if not self._pickled:
            self._pickled = pickle.dumps((self.path, self.value), 5)
        return self._pickled

    def digest(self, before: int = 0) -> int:
        """As of an item that is not plain."""
        return crc32(pickle.dumps(self.value, 5), before)


@final
class Numbers:
    """Plain numbers of one kind in a row, whose index paths are ``first``, ``first + 1`` and so on."""

    __slots__ = ("kind", "paths", "values")

    def __init__(self, values: list[Any], first: int) -> None:
        self.kind = type(values[0])
        self.values = memoryview(array("q" if self.kind is int else "d", values))
        self.paths = memoryview(array("Q", range(first, first + len(values))))


def small(value: Any, path: Path, most: int = sys.maxsize) -> Plain | Encoded:
    """An item to be sent, as `codec.encode` does, but for plain ones."""
    if is_plain(value) and (plain := Plain(value, path)).nbytes <= MOST:
        return plain
    return encode(value, path, most)


def is_plain(value: Any, depth: int = 4) -> bool:
    """Whether it is a number or short text, or a small container of such, which pickle needs no help with."""
    kind = type(value)
    if kind in PLAIN:
        return True
    if kind is str or kind is bytes:
        return len(value) < TEXTS
    if not depth or kind not in CONTAINERS or len(value) > MANY:
        return False
    if kind is dict:
        return all(type(key) in KEYS for key in value) and all(is_plain(each, depth - 1) for each in value.values())
    return all(is_plain(each, depth - 1) for each in value)


def packs(content: Plain | Encoded) -> bool:
    """Whether an item shares a cell with others."""
    return type(content) is Plain or content.nbytes <= MOST


@final
class Writer:
    """Writes one value behind another into a cell."""

    def __init__(self, region: memoryview, first: Plain | Encoded | Numbers) -> None:
        self.region = region[:SMALL]
        self.words = self.region.cast("Q")
        self.values: Any = self.region.cast("q")
        self._count, self._end = 0, ALIGN
        self.format = RECORDS
        self.kind: type | None = None  # of numbers
        if type(first) is Numbers or (type(first) is Plain and first.nbytes == NUMBER):
            self.kind = first.kind if type(first) is Numbers else type(first.value)
            self.format = INTS if self.kind is int else FLOATS
            if self.format == FLOATS:
                self.values = self.region.cast("d")
        self.words[0] = MAGIC | self.format
        self.add(first)

    @property
    def room(self) -> int:
        """How many more numbers it has room for."""
        return NUMBERS - self._count if self.kind else 0

    @property
    def columns(self) -> tuple[Any, Any, int]:
        """Where the next number is to be written: paths, values, and from where on."""
        return self.words[FIRST : FIRST + NUMBERS], self.values[FIRST + NUMBERS :], self._count

    def wrote(self, count: int) -> None:
        """So many numbers have been written to the columns."""
        self._count += count

    def add(self, content: Plain | Encoded | Numbers) -> bool:
        """Write a value -> whether it fits; it counts only when the board says so."""
        if type(content) is Numbers:
            return self._numbers(content)
        if self.format != RECORDS:
            return self._number(content)
        plain = type(content) is Plain
        start = self._end if plain else _aligned(self._end)
        end = start + (len(content.pickled) if type(content) is Plain else content.nbytes)
        if end > SMALL - 8 * (self._count + 1):
            return False
        if type(content) is Plain:
            self.region[start:end] = content.pickled
        else:
            content.fill(self.region[start:end])
        self._count += 1
        self.words[WORDS - self._count] = end << 1 | (not plain)
        self._end = end
        return True

    def _numbers(self, content: Numbers) -> bool:
        at, size = FIRST + self._count, len(content.values)
        if content.kind is not self.kind or self._count + size > NUMBERS:
            return False
        self.words[at : at + size] = content.paths
        self.values[at + NUMBERS : at + NUMBERS + size] = content.values
        self._count += size
        return True

    def _number(self, content: Plain | Encoded) -> bool:
        wanted = self.kind
        if type(content) is not Plain or content.nbytes != NUMBER or type(content.value) is not wanted or self._count == NUMBERS:
            return False
        at = FIRST + self._count
        self.words[at] = content.path[0]
        self.values[at + NUMBERS] = content.value
        self._count += 1
        return True


def _aligned(size: int) -> int:
    return (size + ALIGN - 1) & -ALIGN


class Reader:
    """Values ``offset`` to ``offset + count`` of a cell, or of a copy of it."""

    def __init__(self, region: memoryview, offset: int, count: int) -> None:
        self.region, self.offset, self.count = region[:SMALL], offset, count
        self.words = self.region.cast("Q")
        self.format = self.words[0] ^ MAGIC
        if self.format not in (INTS, FLOATS, RECORDS) or not 0 <= offset < offset + count <= WORDS - FIRST:
            raise InternalError("the head of a cell was overwritten: its check word is wrong")

    def copy(self, region: memoryview) -> None:
        """To the same places of another one."""
        region[:8] = self.region[:8]
        if self.format != RECORDS:
            for column in (FIRST, FIRST + NUMBERS):
                start = 8 * (column + self.offset)
                end = start + 8 * self.count
                region[start:end] = self.region[start:end]
            return
        for start, end in ((self._place(0)[0], self._place(self.count - 1)[1]), self._ends()):
            region[start:end] = self.region[start:end]

    def _ends(self) -> tuple[int, int]:
        """Where the words of these records, and of the one before them, lie."""
        return SMALL - 8 * (self.offset + self.count), SMALL - 8 * max(0, self.offset - 1)

    def _place(self, k: int) -> tuple[int, int, bool]:
        """Of a record: where it begins and ends, and whether it is an encoded item."""
        number = self.offset + k
        start = self.words[WORDS - number] >> 1 if number else ALIGN
        end = self.words[WORDS - 1 - number]
        encoded = bool(end & 1)
        start, end = _aligned(start) if encoded else start, end >> 1
        if not ALIGN <= start < end <= SMALL:
            raise InternalError(f"a record points outside of its cell of {SMALL} bytes")
        return start, end, encoded

    def numbers(self) -> tuple[list[int], list[Any]] | None:
        """The first numbers of the paths, and the values; None if they are records."""
        if self.format == RECORDS:
            return None
        at = FIRST + self.offset
        values = self.region.cast("q" if self.format == INTS else "d")[at + NUMBERS : at + NUMBERS + self.count]
        return self.words[at : at + self.count].tolist(), values.tolist()

    def load(self, k: int, *, read_only: bool) -> tuple[Any, Path]:
        """Value and index path of one of them; what can't be rebuilt is a TransportError."""
        if self.format != RECORDS:
            at = FIRST + self.offset + k
            return self.region.cast("q" if self.format == INTS else "d")[at + NUMBERS], (self.words[at],)
        start, end, encoded = self._place(k)
        if encoded:
            return decode(Body(self.region[start:end]), 0, read_only=read_only, views=False)[:2]
        path, value = pickle.loads(self.region[start:end])
        return value, path

    def path(self, k: int) -> Path:
        """The index path of one of them, also when it can't be rebuilt."""
        if self.format != RECORDS:
            return (self.words[FIRST + self.offset + k],)
        start, end, encoded = self._place(k)
        part = self.region[start:end]
        path: Path = path_of(Body(part), 0) if encoded else pickle.loads(part)[0]
        return path


class Filling:
    """The effects that write into the cells of one producer."""

    def __init__(self, cells: Any) -> None:
        self._cells = cells
        self.writer: Writer | None = None  # of the cell that was begun last

    def fill(self, cell: int, parcel: Parcel) -> None:
        """Copy a parcel into a cell."""
        if parcel.packs:
            self.writer = Writer(self._cells.region(cell, SMALL), parcel.content)
        else:
            parcel.content.fill(self._cells.region(cell, parcel.nbytes))

    def add(self, cell: int, parcel: Parcel) -> bool:
        """Copy a parcel behind those that the cell has which was begun last -> whether it fits."""
        assert self.writer is not None
        return self.writer.add(parcel.content)
