"""Stages: operators of flows over tables: slices of rows, what is linked with them, and what is appended.

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
from qflow.h5.block import ALIGNED, ROWS, Block, Linked, Made, Path, Slice, masked, rows_of
from qflow.h5.tables import Tables, fitted

PAIRS, SPREAD = "pairs", "1:n"
KINDS = (ALIGNED, SPREAD, PAIRS)
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
        words += [] if self.as_ == _short(self.table) else [f"name={self.as_!r}"]
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
    named = _table(table, "h5.rows")
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
    return Rows(named, _input(name or _short(named), named), number, first, last, of)


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
        return (_block(value, "need").with_names(self.paths),)

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


@final
class Append(Each[Carrier, Carrier]):
    """What a function gave becomes rows of a table; see `append`."""

    carries = True

    def __init__(self, table: str, name: str, refs: dict[str, str], dtype: Any, attrs: dict[str, Any]) -> None:
        self.table, self.as_, self.refs, self.dtype, self.attrs = table, name, refs, dtype, attrs
        self.gives = frozenset([name])

    @property
    def name(self) -> str:
        return f"append({self.table})"

    def outputs(self, value: Any) -> Iterable[Any]:
        block = _block(value, "append")
        if block.over:
            return (block,)
        return (block.with_made(self._made(block), self.as_),)

    def _made(self, block: Block) -> Made:
        given = block.value
        if given is ROWS:
            raise TypeError(f"`h5.append({self.table!r})` stands behind a function that gives its rows.")
        wanted = {other or block.slice.table: kind for other, kind in self.refs.items()}
        pairs: Any = {}
        if PAIRS in wanted.values():
            if not isinstance(given, Linked):
                raise TypeError(f'`refs="pairs"` of {self.table!r} wants `h5.linked(rows, pairs)`, but got {got(given)}.')
            pairs, given = given.pairs, given.rows
            if not isinstance(pairs, Mapping):
                pairs = dict.fromkeys([other for other, kind in wanted.items() if kind == PAIRS], pairs)
        elif isinstance(given, Linked):
            raise TypeError(
                f'The rows for {self.table!r} have pairs, but `h5.append` does not ask for them: write `refs="pairs"`.'
            )
        owners = None  # for each row the one of which it was made
        for other, kind in wanted.items():
            if kind == SPREAD:
                given, owners = self._spread(given, len(block.numbers(other)), other)
        rows = rows_of(given, f"The table {self.table!r}")
        if self.dtype is not None and not len(rows):
            rows = np.empty(rows.shape, self.dtype)
        elif self.dtype is not None:
            rows = fitted(rows, self.dtype, f"The rows of {self.table!r}")
        links = {}
        for other, kind in wanted.items():
            if kind == PAIRS:
                links[other] = self._pairs(pairs.get(other), other, len(rows), block)
            else:
                links[other] = self._links(owners if kind == SPREAD else None, other, len(rows), block)
        return Made(self.table, rows, links)

    def _spread(self, given: Any, there: int, other: str) -> tuple[Any, Any]:
        """Rows of several for each row there, and to which each belongs."""
        if isinstance(given, np.ma.MaskedArray) and given.ndim > 1:
            hidden, partly = masked(np.ma.getmaskarray(given), 2)
            if (partly & ~hidden).any():
                raise TypeError(
                    f"A row for {self.table!r} is masked in part. Say what stands for what is missing: `rows.filled(0)`."
                )
            parts, owners = given.data[~hidden], np.nonzero(~hidden)[0]
        elif isinstance(given, np.ndarray) and given.dtype.kind != "O" and given.ndim > 1:
            parts, owners = given.reshape(-1, *given.shape[2:]), np.repeat(np.arange(len(given)), given.shape[1])
        elif isinstance(given, list | tuple) or (isinstance(given, np.ndarray) and given.dtype.kind == "O"):
            each = [_present(np.ma.asarray(part) if isinstance(part, np.ma.MaskedArray) else np.asarray(part)) for part in given]
            for part in each:
                if not part.ndim:
                    raise TypeError(
                        f'`refs="1:n"` of {self.table!r} wants for each row an array of rows, but got {got(part.item())}.'
                    )
            some = [part for part in each if len(part)] or each[:1] or [np.empty(0, self.dtype)]
            parts, owners = np.concatenate(some), np.repeat(np.arange(len(each)), [len(part) for part in each])
        else:
            raise TypeError(
                f'`refs="1:n"` of {self.table!r} wants rows for each row: a masked array [rows, most] or a list of arrays, '
                f"but got {got(given)}."
            )
        if len(given) != there:
            raise ValueError(
                f'{len(given)} lists of rows for {self.table!r} were made of {there} rows of {other!r}, but `refs="1:n"` '
                "wants one for each. Give an empty one where there is nothing."
            )
        return parts, owners

    def _links(self, owners: Any, other: str, rows: int, block: Block) -> Any:
        """Each row with its own, or with the one to which it belongs."""
        there = block.numbers(other)
        if owners is not None:
            return np.stack([there[owners], np.arange(rows)], axis=1)
        if rows != len(there):
            raise ValueError(
                f'{rows} rows for {self.table!r} were made of {len(there)} rows of {other!r}, but `refs="1:1"` links each '
                'with its own. Give as many, or write `refs="1:n"` or `refs="pairs"`.'
            )
        return ALIGNED

    def _pairs(self, pairs: Any, other: str, rows: int, block: Block) -> Any:
        """Pairs that were given, without those that are masked."""
        if pairs is None:
            raise ValueError(f"`h5.linked` for {self.table!r} has no pairs with {other!r}.")
        found = np.ma.asarray(pairs) if isinstance(pairs, np.ma.MaskedArray) else np.asarray(pairs)
        found = found if found.size else np.empty((0, 2), np.int64)
        if found.ndim != 2 or found.shape[1] != 2 or found.dtype.kind not in "iu":
            raise TypeError(f"Pairs for {self.table!r} are integers [pairs, 2], but got {describe(found)}.")
        if isinstance(found, np.ma.MaskedArray):
            found = found.data[~np.ma.getmaskarray(found).any(axis=1)]
        first, last = block.length(other)
        for column, start, stop, where in (
            (0, first, last, f"of {other!r}"),
            (1, 0, rows, f"that this slice makes for {self.table!r}"),
        ):
            wrong = found[(found[:, column] < start) | (found[:, column] >= stop), column]
            if wrong.size:
                raise IndexError(f"A pair names row {wrong[0]} of rows {start} to {stop} {where}.")
        return found.astype(np.int64)

    def length(self, items: int) -> int:
        return items

    @property
    def _state(self) -> tuple[Any, ...]:
        return self.table, self.as_, self.refs, self.dtype, repr(self.attrs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Append) and self._state == other._state

    def __hash__(self) -> int:
        return hash((Append, self.table))

    def __repr__(self) -> str:
        words = [repr(self.table)]
        words += [] if self.as_ == _short(self.table) else [f"name={self.as_!r}"]
        plain = self.refs.get("") if self.refs.keys() == {""} else self.refs or None
        words += [] if plain is None else [f"refs={plain!r}"]
        words += [] if self.dtype is None else [f"dtype={self.dtype.descr if self.dtype.names else str(self.dtype)!r}"]
        words += [f"attrs={self.attrs!r}"] if self.attrs else []
        return f"h5.append({', '.join(words)})"


def append(
    table: str,
    *,
    refs: str | Mapping[str, str] | None = None,
    name: str | None = None,
    dtype: Any = None,
    attrs: Mapping[str, Any] | None = None,
) -> Append:
    """Append what the function before gave to a table, and link it with the rows of which it was made.

    >>> from qflow import h5
    >>> h5.append("calib", refs="1:1")
    h5.append('calib', refs='1:1')

    Rows are written in the order of the slices by one writer, whatever the number of workers; for functions behind they are an
    input by the table's name.

    Args:
        table: its name; it is made if it is not there.
        refs: how rows are linked with those of the slice's table, or a dict of that for several tables:

            - ``"1:1"``: as many, each with its own;
            - ``"1:n"``: for each row several: a masked array ``dtype[rows, most, ...]``, or a list of arrays;
            - ``"pairs"``: the function gives `linked`, rows with pairs;
            - None: not.
        name: of the input for functions behind; the last part of the table's when not given.
        dtype: of the rows; that of the first that come when not given.
        attrs: attributes of the table's group.
    Raises:
        GraphError: an argument is wrong; when it runs, the table is there with another type.
    """
    named = _table(table, "h5.append")
    wanted = {} if refs is None else {"": refs} if isinstance(refs, str) else refs
    if not isinstance(wanted, Mapping):
        raise GraphError(f"`refs` is one of {', '.join(map(repr, KINDS))}, or a dict of them by tables, but got {got(refs)}.")
    for each in wanted.values():
        if each not in KINDS:
            raise GraphError(f"`refs` is one of {', '.join(map(repr, KINDS))}, but got {got(each)}.")
    if [*wanted.values()].count(SPREAD) > 1:
        raise GraphError('`refs="1:n"` is for one table. Write "pairs" for the others.')
    try:
        kind = None if dtype is None else np.dtype(dtype)
    except TypeError as error:
        raise GraphError(f"`dtype` is a type of numpy, but got {got(dtype)}: {error}") from None
    tables = {other and _table(other, "refs"): kind for other, kind in wanted.items()}
    return Append(named, _input(name or _short(named), named), tables, kind, checked_attrs(attrs or {}, f"of {named!r}"))


def checked_attrs(attrs: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Attributes, or a GraphError for one that HDF5 can't hold."""
    for name, value in attrs.items():
        kind = None if isinstance(value, str | bytes) else np.asarray(value).dtype
        if kind is not None and (kind.hasobject or kind.kind in "mM"):
            raise GraphError(f"The attribute {name!r} {what} is a number, a text, or an array of these, but got {got(value)}.")
    return dict(attrs)


def linked(rows: Any, pairs: Any) -> Linked:
    """What a function gives for ``h5.append(table, refs="pairs")``: rows, and with which others they are linked.

    >>> from qflow import h5
    >>> h5.linked([10.0, 20.0], [[1000, 0], [1001, 0], [1001, 1]]).pairs
    [[1000, 0], [1001, 0], [1001, 1]]

    Args:
        rows: to append, ``dtype[rows, ...]``.
        pairs: integers ``[pairs, 2]``: a row of the other table, counted as `need` counts with ``"index"``, and one of these,
            from 0 on. A dict of them by tables, if `append` names several.
    """
    return Linked(rows, pairs)


@final
class Stage(Each[Carrier, Carrier]):
    """One stage with state; see `stage`."""

    carries = user_code = True
    ready = False

    def __init__(self, what: Any) -> None:
        self.what = what

    @property
    def name(self) -> str:
        return str(getattr(self.what, "__name__", type(self.what).__name__))

    @property
    def functions(self) -> tuple[Function, ...]:
        return (self._function,)

    @property
    def _function(self) -> Function:
        """What is called; of a class what its instances are called with."""
        what = self.what
        made = isinstance(what, partial) and isinstance(what.func, type)
        return Function(what.func if made else what)

    def begun(self, file: Tables) -> Stage:
        """A copy at work, for one run."""
        what = self.what() if self._function.builds else self.what
        if not callable(what):
            raise GraphError(f"`{self!r}` made {got(what)}, which can't be called with a slice's inputs. Give it `__call__`.")
        ready = copy(self)
        ready.what, ready.ready = what, True
        if hasattr(what, "begin"):
            what.begin(file)
        return ready

    def ended(self, file: Tables) -> None:
        """There are no more slices."""
        if hasattr(self.what, "end"):
            self.what.end(file)

    def outputs(self, value: Any) -> Iterable[Any]:
        if not self.ready:
            raise GraphError(f"`{self!r}` works in the process that writes. Run the flow with `h5.run(flow, input, output)`.")
        function = self._function if self.setting is None else self._function.within(self.setting)
        return _block(value, "stage").mapped(function)

    def length(self, items: int) -> int:
        return items

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stage) and self.what == other.what

    def __hash__(self) -> int:
        return hash(Stage)

    def __repr__(self) -> str:
        return f"h5.stage({getattr(self.what, '__name__', None) or repr(self.what)})"


def stage(what: Any) -> Stage:
    """A stage with state: one object that sees slice after slice, in order, in the process that writes the output.

    >>> from qflow import h5
    >>> class Count:
    ...     def begin(self, file):
    ...         self.hits = 0
    ...     def __call__(self, hits):
    ...         self.hits += len(hits)
    ...     def end(self, file):
    ...         file.attrs("hits")["number"] = self.hits
    >>> h5.stage(Count)
    h5.stage(Count)

    It is called as a function between stages is; what it gives can be appended behind it. ``begin(file)`` and ``end(file)``, if
    it has them, are called before the first slice and behind the last, with the output, a `Tables`. Everything behind it works
    in the same process; let what takes long stand before it, in workers. When a run is resumed it sees all slices again.

    Args:
        what: a class, of which one is made for each run, a `functools.partial` of a class, or an object or function that is
            called as it is.
    """
    if not callable(what):
        raise GraphError(f"`h5.stage` takes a class whose instances can be called with a slice's inputs, but got {got(what)}.")
    return Stage(what)


def _present(rows: Any) -> Any:
    """Those of one row that are not masked."""
    return rows.compressed() if isinstance(rows, np.ma.MaskedArray) else rows


# ---- arguments


def _block(value: Any, word: str) -> Block:
    if not isinstance(value, Block):
        raise TypeError(f'`h5.{word}` stands behind `h5.rows`, but got {got(value)}. Write `h5.rows("hits") | h5.{word}(...)`.')
    return value


def _table(name: Any, word: str) -> str:
    if not isinstance(name, str) or not name.strip("/ ") or "->" in name or "ref" in name.split("/"):
        raise GraphError(f"`{word}` takes the name of a table, as 'hits' or 'reco/hits', but got {got(name)}.")
    return name.strip("/ ")


def _short(table: str) -> str:
    return table.rpartition("/")[2]


def _made_by(of: Any) -> str:
    """What makes rows, for people."""
    if isinstance(of, partial):
        words = [_made_by(of.func), *map(repr, of.args), *(f"{name}={value!r}" for name, value in of.keywords.items())]
        return f"partial({', '.join(words)})"
    return function_text(Function(of)) if callable(of) else describe(of)


def _input(name: Any, table: str) -> str:
    if not isinstance(name, str) or not name.isidentifier():
        raise GraphError(
            f"The input of table {table!r} needs a name that a parameter can have, but got {got(name)}. Write `name=...`."
        )
    return name


def _place(row: Any, word: str) -> int:
    if isinstance(row, bool) or not hasattr(type(row), "__index__") or row.__index__() < 0:
        raise GraphError(f"`{word}` is the number of a row, 0 or more, but got {got(row)}.")
    return int(row.__index__())


def _check_places(start: int, stop: int | None) -> None:
    if stop is not None and stop < start:
        raise GraphError(f"`stop` is not before `start`, but got start={start}, stop={stop}.")


def _path(name: str, path: Any) -> Path:
    text, *more = path if isinstance(path, tuple | list) and path else (path,)
    tables = tuple(part.strip().strip("/") for part in text.split("->")) if isinstance(text, str) else ()
    if not all(tables) or not tables or more not in ([], ["index"]):
        raise GraphError(f'The path of {name!r} is "hits -> tracks", or ("hits -> tracks", "index"), but got {got(path)}.')
    return Path(tables, bool(more))
