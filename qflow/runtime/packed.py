"""Packed: many small values in one cell, each of which can be read as soon as it is written.

Values that look alike lie in a `table`. Others lie one behind another:

    records   format | ... | record, record ...                  ... ends of the records, from the end of the cell back

A record is an item as `codec` writes it, aligned to 64 bytes, or, of a plain value, the pickle of its index path and
itself. How many there are stands in the board (`grown`), whose store is what makes a value count.
"""

from __future__ import annotations

import pickle
import sys
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, final
from zlib import crc32

import numpy as np

from qflow.errors import InternalError
from qflow.graph.markers import CLOSE
from qflow.graph.plan import SMALL
from qflow.runtime import table
from qflow.runtime.board import DATA
from qflow.runtime.codec import ALIGN, Body, Encoded, Path, decode, encode, path_of
from qflow.runtime.side import Parcel
from qflow.runtime.table import ODD, Alike, Part, Single
from qflow.runtime.template import FLOAT, INT, Template, describe, of_key, of_spec
from qflow.runtime.template import digest as template_mark

MAGIC = 0x71667061 << 32
RECORDS = MAGIC | 3
WORDS = SMALL // 8
MOST = 4096  # bytes of an item that shares a cell with others that do not look alike
TEXTS = 1024  # of one that is plain text
ALIKE = 3  # values in a row after which others like them are expected
PAUSE = 256  # values at most, after which to look again whether values look alike
PLAIN = frozenset({int, float, bool, type(None), complex})
CONTAINERS = frozenset({tuple, list, dict})
KEYS = frozenset({str, int})
MANY = 8  # values in a container


@final
class Plain:
    """A plain value, and its index path.

    Attributes:
        nbytes: that it takes in a cell, or nearly so.
    """

    __slots__ = ("nbytes", "path", "pickled", "value")

    def __init__(self, value: Any, path: Path) -> None:
        self.value, self.path = value, path
        self.pickled = pickle.dumps((path, value), 5)
        self.nbytes = len(self.pickled) + 8

    def digest(self, before: int = 0) -> int:
        """As of an item that is not plain."""
        return crc32(pickle.dumps(self.value, 5), before)


@final
class Row:
    """A value for a table, and its index path; ``nbytes`` in a cell, and those of its ``odd`` leaves, nearly."""

    __slots__ = ("nbytes", "odd", "path", "template", "value", "words")

    def __init__(self, value: Any, path: Path, template: Template, odd: int) -> None:
        self.value, self.path, self.template, self.words, self.odd = value, path, template, len(path), odd
        self.nbytes = template.row + 8 * len(path) + odd

    def write(self, into: table.Writer) -> bool:
        """Write it into a table of its structure -> whether there is room."""
        return into.add(self.value, self.path)


@final
class Blank:
    """The structure of the rows that are to come, whose index paths have so many words."""

    __slots__ = ("odd", "template", "words")

    def __init__(self, template: Template, words: int, odd: int) -> None:
        self.template, self.words, self.odd = template, words, odd

    def write(self, into: table.Writer) -> bool:
        """There is nothing to write yet."""
        return True


@final
class Numbers:
    """Plain numbers of one kind in a row, whose index paths are ``first``, ``first + 1`` and so on."""

    __slots__ = ("paths", "template", "values")
    words, odd = 1, 0

    def __init__(self, template: Template, values: Any, first: int) -> None:
        self.template, self.values = template, memoryview(values)
        self.paths = memoryview(np.arange(first, first + len(values), dtype=np.uint64)).cast("B").cast("Q")  # type: ignore[arg-type]

    @classmethod
    def of(cls, values: list[Any], first: int) -> Numbers | None:
        """Values as numbers in a row, or None if they aren't."""
        kind, *others = {*map(type, values)}
        if others or kind not in (int, float):
            return None
        try:
            return cls(of_key(INT), array("q", values), first) if kind is int else cls(of_key(FLOAT), array("d", values), first)
        except OverflowError:
            return None

    def write(self, into: table.Writer) -> bool:
        """Write them into a table of such numbers -> whether there is room for all."""
        return into.add_numbers(self.values, self.paths)


ROWS = frozenset({Row, Blank, Numbers})


def small(value: Any, path: Path, most: int = sys.maxsize) -> Plain | Encoded:
    """An item to be sent, as `codec.encode` does, but for plain ones."""
    if is_plain(value) and (plain := Plain(value, path)).nbytes <= MOST:
        return plain
    return encode(value, path, most)


class Packer:
    """Items to be sent, one after another: rows as long as they look alike.

    Where they don't, it looks again after twice as many of them, for it costs time.

    Attributes:
        template: of the last ones, if they looked alike.
        words: of their index paths.
    """

    def __init__(self) -> None:
        self.template: Template | None = None
        self.words = 1
        self._spec: Any = None  # of the last values
        self._alike = self._wait = self._pause = self._odd = 0

    def pack(self, value: Any, path: Path, most: int = sys.maxsize) -> Plain | Encoded | Row | Single:
        """An item; one that can't be sent is a TransportError."""
        found = self._row(value, path)
        if found is None and value is not CLOSE:
            if self._wait:
                self._wait -= 1
            elif self._look(value):
                found = self._row(value, path)
        if found is None or (type(found) is Single and found.nbytes > most):
            return small(value, path, most)
        return found

    def _row(self, value: Any, path: Path) -> Row | Single | None:
        """A value of the template, or None if it is not."""
        template = self.template
        if template is None:
            return None
        if template.large:
            return self.single(value, path)
        if not template.check(value) and value is not CLOSE:
            return None
        self.words = len(path)
        return Row(value, path, template, self._odd)

    @property
    def large(self) -> bool:
        """Whether values that have cells of their own are expected."""
        return self.template is not None and self.template.large

    def single(self, value: Any, path: Path) -> Single | None:
        """A value that has a cell of its own, if it looks like the last ones and those had, too."""
        template = self.template
        if template is None or not template.large or not (leaves := template.leaves(value)):
            return None
        self.words = len(path)
        return Single(leaves, path, template)

    def blank(self, words: int) -> Parcel | None:
        """A parcel to begin a cell with, for rows like the last ones, if they were alike."""
        if self.template is None or self.template.large:
            return None
        nbytes = self.row_bytes(self.template, words)
        return Parcel(DATA, nbytes, Blank(self.template, words, self._odd), packs=True, values=0)

    def row_bytes(self, template: Template, words: int) -> int:
        """Of a row like the last ones, nearly."""
        return template.row + 8 * words + (self._odd if template is self.template else template.most_odd)

    def _look(self, value: Any) -> bool:
        """Look at a value that is not like those before -> whether there is a template for it now."""
        if self.template is not None:  # they were alike for a while
            self.template, self._pause = None, 2 * self._pause + 1
            self._wait = min(self._pause, PAUSE)
            return False
        spec = describe(value)
        if spec is None or spec != self._spec:
            self._spec, self._alike = spec, 0
            self._pause = 2 * self._pause + 1
            self._wait = 0 if self._pause < ALIKE else min(self._pause, PAUSE)
        self._alike += 1
        if spec is None or self._alike < (1 if spec in NUMBERS else ALIKE):
            return False
        template = of_spec(spec)
        if not template.check(value):
            self._wait = PAUSE
            return False
        self._odd = len(pickle.dumps(template.leaves(value)[-1], 5)) + ODD - 1 & -ODD if template.odd else 0
        self.template = template
        return True


NUMBERS = frozenset({"int", "float"})


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


def packs(content: Plain | Encoded | Row | Single) -> bool:
    """Whether an item shares a cell with others."""
    return type(content) is Row or (type(content) is not Single and content.nbytes <= MOST)


def contents(values: Sequence[Any]) -> Iterator[Encoded | Alike | Part]:
    """Values to be written down, in tables where several in a row look alike; one that can't be sent is a TransportError.

    What is part of a table already stays as it is.
    """
    start = 0
    while start < len(values):
        if type(values[start]) is Part:
            yield values[start]
            start += 1
            continue
        spec, end = describe(values[start]), start
        if spec is not None:
            template = of_spec(spec)
            while end < len(values) and template.check(values[end]):
                end += 1
            if end - start >= ALIKE:
                yield Alike(values[start:end], template)
                start = end
                continue
        yield encode(values[start])
        start += 1


def mark_of(content: Plain | Encoded | Row | Single) -> int:
    """A digest of an item, to see whether another one is the same: 32 bits, of which the last tells how it was made, never 0."""
    if type(content) is Row:
        return mark_of_row(content.template, content.value)
    if type(content) is Single:
        return mark_of_leaves(content.leaves)
    assert not isinstance(content, Row | Single)
    return content.digest() | 1


def other_mark(content: Plain | Encoded | Row | Single, value: Any) -> int:
    """The digest that it has when it is made the other way, as a predecessor may have done; 0: it can't be."""
    if isinstance(content, Row | Single):
        return mark_of(small(value, content.path))
    spec = describe(value)
    if spec is None:
        return 0
    template = of_spec(spec)
    return mark_of_row(template, value) if template.check(value) else 0


def mark_of_row(template: Template, value: Any) -> int:
    """The same for a value of a template."""
    return 2 if value is CLOSE else mark_of_leaves(template.leaves(value))


def mark_of_leaves(leaves: tuple[Any, ...]) -> int:
    """The same of what it stores."""
    return template_mark(leaves) & ~1 or 2


class Records:
    """Writes one record behind another into a cell."""

    def __init__(self, region: memoryview) -> None:
        self.region = region
        self._words = region.cast("Q")
        self._words[0] = RECORDS
        self._count, self._end = 0, ALIGN

    def add(self, content: Plain | Encoded) -> bool:
        """Write a value -> whether it fits; it counts only when the board says so."""
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
        self._words[WORDS - self._count] = end << 1 | (not plain)
        self._end = end
        return True


def _aligned(size: int) -> int:
    return (size + ALIGN - 1) & -ALIGN


class RecordReader:
    """Values ``offset`` to ``offset + count`` of a cell of records, or of a copy of it."""

    def __init__(self, region: memoryview, offset: int, count: int) -> None:
        self.region, self.offset, self.count = region, offset, count
        self.words = region.cast("Q")
        if self.words[0] != RECORDS or not 0 <= offset < offset + count <= WORDS - ALIGN // 8:
            raise InternalError("the head of a cell was overwritten: its check word is wrong")

    def copy(self, region: memoryview) -> None:
        """To the same places of another one."""
        region[:8] = self.region[:8]
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

    def load(self, k: int, *, read_only: bool) -> tuple[Any, Path]:
        """Value and index path of one of them; what can't be rebuilt is a TransportError."""
        start, end, encoded = self._place(k)
        if encoded:
            return decode(Body(self.region[start:end]), 0, read_only=read_only, views=False)[:2]
        path, value = pickle.loads(self.region[start:end])
        return value, path

    def path(self, k: int) -> Path:
        """The index path of one of them, also when it can't be rebuilt."""
        start, end, encoded = self._place(k)
        part = self.region[start:end]
        path: Path = path_of(Body(part), 0) if encoded else pickle.loads(part)[0]
        return path


def read(region: memoryview, offset: int, count: int) -> table.Reader | RecordReader:
    """Values ``offset`` to ``offset + count`` of a cell, or of a copy of it."""
    region = region[:SMALL]
    return (table.Reader if table.is_table(region) else RecordReader)(region, offset, count)


class Filling:
    """The effects that write into the cells of one producer."""

    def __init__(self, cells: Any) -> None:
        self._cells = cells
        self.table: table.Writer | None = None  # the cell that was begun last, if it is one
        self._records: Records | None = None  # the same, if it has those

    def fill(self, cell: int, parcel: Parcel) -> None:
        """Copy a parcel into a cell."""
        if not parcel.packs:
            parcel.content.fill(self._cells.region(cell, parcel.nbytes))
            return
        region, content = self._cells.region(cell, SMALL)[:SMALL], parcel.content
        self.table = self._records = None
        if type(content) in ROWS:
            rows = table.rows_for(content.template, content.words, content.odd)
            self.table = table.Writer(region, content.template, content.words, rows)
        else:
            self._records = Records(region)
        fits = self.add(cell, parcel)
        assert fits, "an empty cell has room"

    def add(self, cell: int, parcel: Parcel) -> bool:
        """Copy a parcel behind those that the cell has which was begun last -> whether it fits."""
        content, into = parcel.content, self.table
        if type(content) in ROWS:
            return into is not None and into.template is content.template and bool(content.write(into))
        return self._records is not None and self._records.add(content)
