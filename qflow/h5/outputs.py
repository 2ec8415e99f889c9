"""Outputs: what functions of a flow over tables give is appended and linked, or seen by one object that sees all slices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy
from functools import partial
from typing import Any, final

import numpy as np

from qflow.errors import GraphError, got
from qflow.graph.carrier import Carrier
from qflow.graph.flow import Each
from qflow.graph.function import Function
from qflow.h5.block import ALIGNED, ROWS, Block, Linked, Made, at_work
from qflow.h5.fitting import as_pairs, fitted, masked, rows_of
from qflow.h5.naming import input_name, short, table_name
from qflow.h5.tables import Tables

PAIRS, SPREAD = "pairs", "1:n"
KINDS = (ALIGNED, SPREAD, PAIRS)


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
        block = at_work(value, "append")
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
        found = as_pairs(pairs, f"Pairs for {self.table!r}")
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
        words += [] if self.as_ == short(self.table) else [f"name={self.as_!r}"]
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
    named = table_name(table, "h5.append")
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
    tables = {other and table_name(other, "refs"): kind for other, kind in wanted.items()}
    return Append(named, input_name(name or short(named), named), tables, kind, checked_attrs(attrs or {}, f"of {named!r}"))


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
        return at_work(value, "stage").mapped(function)

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
