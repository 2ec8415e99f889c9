"""Inputs: what functions of a flow over tables are given: slices of rows, and what is linked with them.

    h5.rows("hits") | h5.need(tracks="hits -> tracks") | calibrate | h5.append("calib", refs="1:1")

Functions between them are plain ones; what they name is what they get; see `block`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from functools import partial
from typing import Any, final

import numpy as np

from qflow.errors import GraphError, describe, got
from qflow.graph.carrier import Carrier
from qflow.graph.flow import Each
from qflow.graph.function import Function, function_text, inputs_of, is_iterable
from qflow.graph.sizes import count
from qflow.h5 import readers
from qflow.h5.block import Block, Path, Slice, at_work
from qflow.h5.fitting import rows_of
from qflow.h5.naming import input_name, normal, short, table_name

BYTES = 1 << 20  # of a slice of a table that has no chunks


@final
class Rows(Each[Any, Carrier]):
    """Slices become blocks; see `rows`."""

    carries = True
    adrift = (
        "The slices of `h5.rows` come to no end: run the flow by `h5.run(flow, 'in.h5', 'out.h5')`, which writes, or let it end "
        "with `h5.values()`, to iterate over what its functions give."
    )
    places: Mapping[str, int] = {}
    """What a run says of the rows that a generator makes."""

    def __init__(self, table: str, name: str, size: int | None, start: int, stop: int | None, of: Any) -> None:
        self.table, self.as_, self.size, self.start, self.stop, self.of = table, name, size, start, stop, of
        self.gives = frozenset([name])

    @property
    def name(self) -> str:
        return "rows"

    def outputs(self, value: Any) -> Iterable[Any]:
        if not isinstance(value, Slice):
            raise TypeError(f"`h5.rows` takes slices of a file, but got {got(value)}. Before it only slices are chosen.")
        return (Block(value, {self.as_: (Path((self.table,)), 0)}),)

    def length(self, items: int) -> int:
        return items

    def between(self, start: int | None, stop: int | None) -> Rows:
        """Itself with other rows, where a run says which; a generator is told by its parameters."""
        found = copy(self)
        if self.of is None:
            found.start = self.start if start is None else _place(start, "start")
            found.stop = self.stop if stop is None else _place(stop, "stop")
            _check_places(found.start, found.stop)
        else:
            found.places = {word: value for word, value in (("start", start), ("stop", stop)) if value is not None}
        for word, value in found.places.items():
            if word not in (inputs_of(self.of).names if callable(self.of) else {}):
                raise GraphError(
                    f"`{word}={value!r}` is for what makes the rows, but `{_made_by(self.of)}` names no such parameter."
                )
        return found

    def slices(self, path: str | None) -> Slices:
        """The slices of a file; a GraphError for a start that isn't there."""
        if path is None:
            raise GraphError(f"`{self!r}` reads rows of an input file, but the run has none.")
        file = readers.tables(path)
        table = file[self.table]
        length = len(table)
        if self.start > length or (self.start == length and length):
            raise GraphError(f"`h5.rows` starts at row {self.start} of {self.table!r}, which has {length} rows, in {file.path}.")
        row = max(1, table.dtype.itemsize * int(np.prod(table.shape[1:])))
        size = self.size or (table.chunks[0] if table.chunks else max(1, BYTES // row))
        return Slices(file.path, self.table, self.start, length if self.stop is None else min(self.stop, length), size)

    @property
    def _state(self) -> tuple[Any, ...]:
        return self.table, self.as_, self.size, self.start, self.stop, id(self.of)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rows) and self._state == other._state

    def __hash__(self) -> int:
        return hash((Rows, self.table))

    def __repr__(self) -> str:
        plain = {"size": (self.size, None), "start": (self.start, 0), "stop": (self.stop, None)}
        words = [f"{word}={value!r}" for word, (value, default) in plain.items() if value != default]
        words += [] if self.as_ == short(self.table) else [f"name={self.as_!r}"]
        words += [] if self.of is None else [f"of={_made_by(self.of)}"]
        return f"h5.rows({', '.join([repr(self.table), *words])})"


class Slices(Sequence[Slice]):
    """The slices of a table, computed when they are asked for."""

    def __init__(self, path: str, table: str, start: int, stop: int, size: int, numbers: range | None = None) -> None:
        self.path, self.table, self.start, self.stop, self.size = path, table, start, stop, size
        self.numbers = range(-(-max(0, stop - start) // size)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Slices(self.path, self.table, self.start, self.stop, self.size, self.numbers[index])
        at = self.start + self.numbers[index] * self.size
        return Slice(self.path, self.table, at, min(at + self.size, self.stop))

    def __repr__(self) -> str:
        return f"<{len(self)} slices of {self.size} rows of {self.table!r}>"


class Generated:
    """The slices that a generator makes of a new table, from a row on; iterated once."""

    def __init__(self, path: str | None, table: str, arrays: Iterable[Any], first: int) -> None:
        self.path, self.table, self.arrays, self.first = path, table, arrays, first

    def __iter__(self) -> Iterator[Slice]:
        at = self.first
        for each in self.arrays:
            rows = rows_of(each, f"The table {self.table!r}").view()
            rows.flags.writeable = False
            yield Slice(self.path, self.table, at, at + len(rows), rows)
            at += len(rows)


def rows(
    table: str,
    *,
    size: int | None = None,
    start: int = 0,
    stop: int | None = None,
    name: str | None = None,
    of: Iterable[Any] | Callable[..., Iterable[Any]] | None = None,
) -> Rows:
    """Go through the rows of a table, slice after slice: the head of a flow over tables.

    >>> from qflow import h5
    >>> h5.rows("hits", stop=1000)
    h5.rows('hits', stop=1000)

    Each: a slice -> a block at work. Functions behind it are called with what they name: the rows of the slice, an array
    ``dtype[rows, ...]``, by the table's name; inputs of `need`; rows that were appended before; parameters of the run, and
    ``rng``. A first parameter of another name gets what the function before gave, at first the rows of the slice.
    Order: of the rows. Holds: the slice, and what is made of it.

    Args:
        table: its name, as ``"hits"`` or ``"reco/hits"``.
        size: rows of a slice; those of a chunk of the table when not given, or 1 MiB where it has no chunks.
        start, stop: which rows; all when not given.
        name: the name of the input; the last part of the table's when not given.
        of: makes the rows: an iterable of arrays, or a function that gives one, for each slice the new rows ``dtype[rows, ...]``,
            which are appended to the table. A function is given parameters of the run, and ``start`` and ``stop`` of `run`, that
            it names.
    Raises:
        GraphError: an argument is wrong; when it runs, there is no such table, or ``start`` is beyond its end.
    """
    named = table_name(table, "h5.rows")
    first = _place(start, "start")
    last = None if stop is None else _place(stop, "stop")
    _check_places(first, last)
    if of is not None and not callable(of) and (not is_iterable(of) or isinstance(of, Iterator)):
        raise GraphError(
            f"`of` makes rows: a list of arrays, or a function that gives an iterator of them for each run, but got {got(of)}."
        )
    if of is not None and (size is not None or first or last is not None):
        raise GraphError("`of` makes the slices, so `size`, `start` and `stop` mean nothing here. Let it make what is wanted.")
    number = None if size is None else count(size, "size", 'h5.rows("hits", size=1024)')
    return Rows(named, input_name(name or short(named), named), number, first, last, of)


@final
class Need(Each[Carrier, Carrier]):
    """Blocks get more inputs; see `need`."""

    carries = True

    def __init__(self, names: dict[str, Path]) -> None:
        self.paths = names
        self.gives = frozenset(names)

    @property
    def name(self) -> str:
        return "need"

    def outputs(self, value: Any) -> Iterable[Any]:
        return (at_work(value, "need").with_names(self.paths),)

    def length(self, items: int) -> int:
        return items

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Need) and self.paths == other.paths

    def __hash__(self) -> int:
        return hash((Need, *self.paths))

    def __repr__(self) -> str:
        return f"h5.need({', '.join(f'{name}={path}' for name, path in self.paths.items())})"


def need(**paths: str | tuple[str, str]) -> Need:
    """Name inputs for the functions behind: rows of other tables, that are linked with those of the slice.

    >>> from qflow import h5
    >>> h5.need(tracks="hits -> tracks", numbers=("hits -> tracks", "index"))
    h5.need(tracks='hits -> tracks', numbers=('hits -> tracks', 'index'))

    ``"hits -> tracks -> events"`` begins at the rows of the slice if that is its table, and follows the references from each
    table to the next: a masked array ``dtype[rows, most_1, ..., most_k, ...]`` as `dereference_chain` gives it. A table alone,
    ``"quality"``, and one at the beginning that is not the slice's, is aligned with it: it has as many rows, and its part is
    taken. Tables to which this flow has appended before can be named as well: what is found is what this slice has made.
    Inputs are read when a function names them.

    Args:
        paths: by the name of an input a path; ``(path, "index")`` for the numbers of the rows in place of these, counted as in
            the file, but for tables to which this flow appends: from the first row that the slice appends on.
    Raises:
        GraphError: a path is wrong; when it runs, it names a table, or a link, that is not there; the text lists those there are.
    """
    if not paths:
        raise GraphError('`h5.need` names inputs: write `h5.need(tracks="hits -> tracks")`.')
    return Need({name: _path(name, path) for name, path in paths.items()})


def _made_by(of: Any) -> str:
    """What makes rows, for people."""
    if isinstance(of, partial):
        words = [_made_by(of.func), *map(repr, of.args), *(f"{name}={value!r}" for name, value in of.keywords.items())]
        return f"partial({', '.join(words)})"
    return function_text(Function(of)) if callable(of) else describe(of)


def _place(row: Any, word: str) -> int:
    if isinstance(row, bool) or not hasattr(type(row), "__index__") or row.__index__() < 0:
        raise GraphError(f"`{word}` is the number of a row, 0 or more, but got {got(row)}.")
    return int(row.__index__())


def _check_places(start: int, stop: int | None) -> None:
    if stop is not None and stop < start:
        raise GraphError(f"`stop` is not before `start`, but got start={start}, stop={stop}.")


def _path(name: str, path: Any) -> Path:
    text, *more = path if isinstance(path, tuple | list) and path else (path,)
    tables = [normal(part.strip()) for part in text.split("->")] if isinstance(text, str) else []
    found = tuple(table for table in tables if table is not None)
    if len(found) < len(tables) or not found or more not in ([], ["index"]):
        raise GraphError(f'The path of {name!r} is "hits -> tracks", or ("hits -> tracks", "index"), but got {got(path)}.')
    return Path(found, bool(more))
