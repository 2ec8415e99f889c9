"""Block: a slice of a table at work: the arrays that functions name, and what they have made for other tables.

    hits [2000, 3000)  --calibrate(hits, tracks)-->  the same slice, and 1000 rows for the table calib

A function behind `rows` is called with the inputs that it names: the rows of the slice, what `need` has named, what `append` has
named before it. Rows are counted as in the file; those of tables to which this flow appends, from the first that this slice
appends on, for where they will lie is known when they are written.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple, final

import numpy as np

from qflow.errors import GraphError, describe, got
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
        source: it is the table of the slice itself.
    """

    table: str
    rows: Any
    links: Mapping[str, Any]
    source: bool = False


@final
class Block(Carrier):
    """A slice at work; see the head of this module.

    Attributes:
        slice: which.
        value: what the step before gave; at first the rows of the slice.
        names: by the name of an input the path to it.
        made: for which tables what was made, in order.
        arrays: inputs that were asked for.
        over: a step gave SKIP: nothing more is made of it.
    """

    __slots__ = ("arrays", "made", "names", "over", "slice", "value")

    def __init__(
        self,
        slice: Slice,
        names: Mapping[str, Path],
        made: tuple[Made, ...] = (),
        value: Any = ROWS,
        over: bool = False,
        arrays: dict[str, Any] | None = None,
    ) -> None:
        self.slice, self.names, self.made, self.value, self.over = slice, names, made, value, over
        self.arrays = {} if arrays is None else arrays

    def with_names(self, names: Mapping[str, Path]) -> Block:
        """Itself with more inputs."""
        arrays = {name: array for name, array in self.arrays.items() if name not in names}
        return Block(self.slice, {**self.names, **names}, self.made, self.value, self.over, arrays)

    def with_made(self, made: Made, name: str) -> Block:
        """Itself with rows for a table, which are an input from now on."""
        more = self.with_names({name: Path((made.table,))})
        return Block(self.slice, more.names, (*self.made, made), self.value, self.over, {**more.arrays, name: made.rows})

    def with_source(self) -> Block:
        """Itself with the rows of a generator among those that it has made."""
        source = Made(self.slice.table, self.slice.rows, {}, True)
        return Block(self.slice, self.names, (source, *self.made), self.value, self.over, self.arrays)

    def is_source(self, table: str) -> bool:
        """Whether the slice is of this table."""
        return table == self.slice.table

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
        inputs = inputs_of(function)
        given = {name: self.input(name) for name in inputs if name in self.names and name not in dict(function.bound)}
        first = next(iter(inputs), None)
        if first is None or first in given or first in dict(function.bound):
            return function(**given)
        return function(self.rows if self.value is ROWS else self.value, **given)

    # ---- inputs

    @property
    def rows(self) -> Any:
        """The rows of the slice."""
        return self._along(Path((self.slice.table,)))

    def input(self, name: str) -> Any:
        """The array of a name."""
        if name not in self.arrays:
            self.arrays[name] = self._along(self.names[name])
        return self.arrays[name]

    def _along(self, path: Path) -> Any:
        first, last = path.tables[0], path.tables[-1]
        if len(path.tables) == 1:
            return self.numbers(first) if path.numbers else self._rows(first)
        steps = [self._step(*pair) for pair in pairwise(path.tables)]
        refs, regions, directions = zip(*steps, strict=True)
        data, sel = None if path.numbers else self._all(last), self.numbers(first) - self._offset(first)
        found = dereference_chain(sel, refs, data, regions, None, directions, path.numbers)
        return found + found.dtype.type(self._offset(last)) if path.numbers and self._offset(last) else found

    def numbers(self, table: str) -> Any:
        """The rows of a table that go with the slice, ``int64[rows]``."""
        made = None if self.is_source(table) else self._made(table)
        return np.arange(self.slice.start, self.slice.stop) if made is None else np.arange(len(made.rows))

    def _made(self, table: str) -> Made | None:
        if self.is_source(table):
            return None if self.slice.rows is None else Made(table, self.slice.rows, {}, True)
        return next((each for each in reversed(self.made) if each.table == table), None)

    def _offset(self, table: str) -> int:
        """What is taken from numbers of rows where they are looked up: of a generator the rows of the slice are there."""
        return self.slice.start if self.is_source(table) and self.slice.rows is not None else 0

    def _rows(self, table: str) -> Any:
        made = self._made(table)
        return self._file[table][self.slice.start : self.slice.stop] if made is None else made.rows

    def _all(self, table: str) -> Any:
        """A table, for rows that are linked."""
        made = self._made(table)
        return self._file[table] if made is None else made.rows

    def _step(self, one: str, other: str) -> tuple[Any, Any, tuple[int, int]]:
        """References, region and direction from a table to the next."""
        for here, there, direction in ((other, one, (0, 1)), (one, other, (1, 0))):
            made = self._made(here)
            if made is not None and there in made.links:
                return self._pairs(made, there), None, direction
        ref, direction = self._file.ref(one, other)
        return ref, self._file.region(one, other), direction

    def _pairs(self, made: Made, there: str) -> Any:
        """Pairs with a table, in the numbers by which rows are looked up here."""
        pairs, offset = made.links[there], self._offset(there)
        if isinstance(pairs, str):
            return np.stack([self.numbers(there) - offset, np.arange(len(made.rows))], axis=1)
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


@lru_cache(maxsize=64)
def inputs_of(function: Function) -> Mapping[str, bool]:
    """The parameters of a function by name, and whether they have a default; the first one, too."""
    call: Any = function.call
    try:
        named = inspect.signature(call.__call__ if function.builds else call).parameters
    except (TypeError, ValueError):
        return {"value": False}  # of C: it is called with the value
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = {name: each.default is not each.empty for name, each in named.items() if each.kind in kinds}
    if function.builds:
        found.pop(next(iter(found)), None)  # self
    alone = any(each.kind is each.POSITIONAL_ONLY for each in named.values())
    return {"": False, **found} if alone else found


def rows_of(value: Any, what: str) -> Any:
    """Rows as an array of a type that a file can have, or a TypeError."""
    rows = np.asarray(value)
    if rows.dtype.kind == "O" or not rows.ndim:
        text = describe(value) if rows.ndim else got(value)
        raise TypeError(f"{what} gets rows, an array with a type of fixed size, but got {text}.")
    return rows
