"""Block: a slice of a table at work: the arrays that functions name, and what they have made for other tables.

    hits [2000, 3000)  --calibrate(hits, tracks)-->  the same slice, and 1000 rows for the table calib

A function behind `rows` is called with the inputs that it names: the rows of the slice, what `need` has named, what `append` has
named before it. Rows are counted as in the file; those of tables to which this flow appends, from the first that this slice
appends on, for where they will lie is known when they are written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple, final

import numpy as np

from qflow.errors import GraphError, got
from qflow.graph.carrier import Carrier
from qflow.graph.function import Function
from qflow.graph.markers import SKIP
from qflow.h5 import readers
from qflow.h5.references import dereference_chain

ALIGNED = "1:1"
ROWS = ...  # in place of what a step before gave: the rows of the slice


class Slice(NamedTuple):
    """Rows ``start`` to ``stop`` (not included) of a table of a file; ``rows``: themselves, where a generator made them."""

    path: str | None
    table: str
    start: int
    stop: int
    rows: Any = None

    def __repr__(self) -> str:
        return f"rows {self.start} to {self.stop} of {self.table!r}"


class Path(NamedTuple):
    """A way along references: tables, linked one with the next; ``numbers``: the rows' numbers, not these."""

    tables: tuple[str, ...]
    numbers: bool = False

    def __str__(self) -> str:
        text = " -> ".join(self.tables)
        return repr((text, "index")) if self.numbers else repr(text)


class Linked(NamedTuple):
    """What a function gives that makes rows and links them; see `qflow.h5.linked`."""

    rows: Any
    pairs: Any


class Made(NamedTuple):
    """What a slice has made for a table.

    Attributes:
        table: its name.
        rows: to append, ``dtype[rows, ...]``.
        links: by the name of another table `ALIGNED`, or pairs ``int64[pairs, 2]``: a row there, a row here.
    """

    table: str
    rows: Any
    links: Mapping[str, Any]


@final
class Block(Carrier):
    """A slice at work; see the head of this module.

    Attributes:
        slice: which.
        names: by the name of an input the path to it, and how much was made when it was named: a table that is appended to later
            is that of the file.
        made: for which tables what was made, in order.
        value: what the step before gave; at first the rows of the slice.
        over: a step gave SKIP: nothing more is made of it.
        arrays: inputs that were asked for.
    """

    __slots__ = ("arrays", "made", "names", "over", "slice", "value")

    def __init__(
        self,
        slice: Slice,
        names: Mapping[str, tuple[Path, int]],
        made: tuple[Made, ...] = (),
        value: Any = ROWS,
        over: bool = False,
        arrays: dict[str, Any] | None = None,
    ) -> None:
        self.slice, self.names, self.made, self.value, self.over = slice, names, made, value, over
        self.arrays = {} if arrays is None else arrays

    def with_names(self, paths: Mapping[str, Path]) -> Block:
        """Itself with more inputs."""
        arrays = {name: array for name, array in self.arrays.items() if name not in paths}
        names = {**self.names, **{name: (path, len(self.made)) for name, path in paths.items()}}
        return Block(self.slice, names, self.made, self.value, self.over, arrays)

    def with_made(self, made: Made, name: str) -> Block:
        """Itself with rows for a table, which are an input from now on, and what the step before gave."""
        made = made._replace(rows=_kept(made.rows))
        with_rows = Block(self.slice, self.names, (*self.made, made), made.rows, self.over, self.arrays)
        return with_rows.with_names({name: Path((made.table,))})

    # ---- what functions do

    def mapped(self, function: Function) -> Iterable[Any]:
        if self.over:
            return (self,)
        result = self._called(function)
        if isinstance(result, Iterator):
            raise TypeError(
                f"{function.name!r} gives an iterator, but of a slice one array of rows is made. "
                "Collect what it yields: `np.array([...])`."
            )
        over = result is SKIP
        return (Block(self.slice, self.names, self.made, None if over else result, over, self.arrays),)

    def filtered(self, predicate: Function) -> Iterable[Any]:
        if self.over or self._called(predicate):
            return (self,)
        return (Block(self.slice, self.names, self.made, None, True, self.arrays),)

    def empty(self) -> Any:
        return self.slice

    def _called(self, function: Function) -> Any:
        names, first, _ = function.inputs
        given = {name: self.input(name) for name in names if name in self.names}
        if first is None or first in given:
            return function(**given)
        return function(self.given, **given)

    # ---- inputs

    @property
    def given(self) -> Any:
        """What the step before gave; at first the rows of the slice."""
        return self._along(Path((self.slice.table,)), 0) if self.value is ROWS else self.value

    def input(self, name: str) -> Any:
        """The array of a name, which nobody changes: others may be given it, too."""
        if name not in self.arrays:
            self.arrays[name] = self._along(*self.names[name])
        return self.arrays[name]

    def numbers(self, table: str) -> Any:
        """The rows of a table that go with the slice, ``int64[rows]``."""
        return self._numbers(table, len(self.made))

    def length(self, table: str) -> tuple[int, int]:
        """From which row of a table to which (not included) something can be linked."""
        made = self._of_slice(table, len(self.made))
        if made is None:
            return 0, len(self._file[table])
        return self._offset(table), self._offset(table) + len(made.rows)

    def is_source(self, table: str) -> bool:
        """Whether the slice is of this table."""
        return table == self.slice.table

    def _along(self, path: Path, known: int) -> Any:
        first, last = path.tables[0], path.tables[-1]
        if len(path.tables) == 1:
            return _kept(self._numbers(first, known) if path.numbers else self._rows(first, known))
        steps = [self._step(*pair, known) for pair in pairwise(path.tables)]
        refs, regions, directions = zip(*steps, strict=True)
        made = self._of_slice(last, known)
        data = None if path.numbers else self._file[last] if made is None else made.rows
        sel = self._numbers(first, known) - self._offset(first)
        found = dereference_chain(sel, refs, data, regions, None, directions, path.numbers)
        if path.numbers and self._offset(last):
            found = found + found.dtype.type(self._offset(last))
        return _kept(found)

    def _numbers(self, table: str, known: int) -> Any:
        made = None if self.is_source(table) else self._of_slice(table, known)
        return np.arange(self.slice.start, self.slice.stop) if made is None else np.arange(len(made.rows))

    def _rows(self, table: str, known: int) -> Any:
        made = self._of_slice(table, known)
        if made is not None:
            return made.rows
        found = self._file[table][self.slice.start : self.slice.stop]
        if len(found) != self.slice.stop - self.slice.start:
            raise ValueError(
                f"{table!r} has {len(self._file[table])} rows, so it is not aligned with {self.slice!r}. "
                f'If they are linked, write the path: "{self.slice.table} -> {table}".'
            )
        return found

    def _of_slice(self, table: str, known: int) -> Made | None:
        """A table of which the slice has its own rows: among so many that were made, or its source, if that is made."""
        if self.is_source(table):
            return None if self.slice.rows is None else Made(table, self.slice.rows, {})
        return next((each for each in self.made[:known] if each.table == table), None)

    def _offset(self, table: str) -> int:
        """What is taken from numbers of rows where they are looked up: of a generator the rows of the slice are there."""
        return self.slice.start if self.is_source(table) and self.slice.rows is not None else 0

    def _step(self, one: str, other: str, known: int) -> tuple[Any, Any, tuple[int, int]]:
        """References, region and direction from a table to the next."""
        found = [self._of_slice(one, known), self._of_slice(other, known)]
        if found == [None, None]:
            ref, direction = self._file.ref(one, other)
            return ref, self._file.region(one, other), direction
        for made, there, way in ((found[1], one, (0, 1)), (found[0], other, (1, 0))):
            if made is not None and there in made.links:
                return self._pairs(made, there, known), None, way
        raise GraphError(f"This flow has not linked {one!r} with {other!r} where it has made their rows.")

    def _pairs(self, made: Made, there: str, known: int) -> Any:
        """Pairs with a table, in the numbers by which rows are looked up here."""
        pairs, offset = made.links[there], self._offset(there)
        if isinstance(pairs, str):
            return np.stack([self._numbers(there, known) - offset, np.arange(len(made.rows))], axis=1)
        return pairs - np.array([offset, 0])

    @property
    def _file(self) -> Any:
        if self.slice.path is None:
            raise GraphError(f"There is no input file, and {self.slice.table!r} is made by the flow itself.")
        return readers.tables(self.slice.path)

    def __reduce__(self) -> Any:
        return Block, (self.slice, self.names, self.made, self.value, self.over)

    def __repr__(self) -> str:
        return f"Block({self.slice!r})"


def _kept(array: Any) -> Any:
    """An array that can't be changed by those who are given it."""
    found = array.view()
    found.flags.writeable = False
    mask: Any = getattr(found, "_mask", None)
    if isinstance(mask, np.ndarray) and mask.ndim:
        vars(found)["_mask"] = mask.view()
        vars(found)["_mask"].flags.writeable = False
    return found


def at_work(value: Any, word: str) -> Block:
    """A block, or a TypeError that says where ``h5.<word>`` stands."""
    if not isinstance(value, Block):
        raise TypeError(f'`h5.{word}` stands behind `h5.rows`, but got {got(value)}. Write `h5.rows("hits") | h5.{word}(...)`.')
    return value
