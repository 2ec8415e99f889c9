"""Checking: a flow over tables against the file that it reads, before anything runs.

Each error names what is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from qflow.errors import GraphError, listed, near
from qflow.graph.context import RNG
from qflow.graph.flow import Operator, Queue, Stream
from qflow.graph.function import Function, inputs_of
from qflow.h5.block import Path
from qflow.h5.inputs import Need, Rows
from qflow.h5.naming import normal
from qflow.h5.outputs import PAIRS, Append
from qflow.h5.tables import Tables, within


def check(
    operators: Iterable[Operator[Any, Any]], file: Tables | None, params: Mapping[str, Any], drop: Iterable[str] = ()
) -> None:
    """A GraphError for the first of some operators that can't work.

    Args:
        operators: all, in order; `Rows` first.
        file: that is read, if there is one.
        params: of the run.
        drop: tables, or groups of them.
    """
    head, *others = operators
    assert isinstance(head, Rows)
    with _at(head):
        seen = _Seen(head, file, params)
    for each in others:
        with _at(each):
            _checked(each, seen, params)
    for name in drop:
        group = normal(name)
        if group is None or not any(within(table, [group]) for table in seen.tables()):
            raise GraphError(f"`drop` has no table {name!r}{near(str(name), seen.tables())}: there are {listed(seen.tables())}.")


@contextmanager
def _at(operator: Operator[Any, Any]) -> Iterator[None]:
    """An error says where an operator was written, if it knows that: in a file of YAML."""
    try:
        yield
    except GraphError as error:
        where = getattr(operator, "where", None)
        raise error if where is None else GraphError(f"{where}: {error}") from None


class _Seen:
    """What functions can name at a point of the flow, and which tables and links there are."""

    def __init__(self, rows: Rows, file: Tables | None, params: Mapping[str, Any]) -> None:
        self.file, self.source = file, rows.table
        self.names: dict[str, Path] = {rows.as_: Path((rows.table,))}
        self.made: dict[str, None] = {rows.table: None} if rows.of is not None else {}
        self.links: set[tuple[str, str]] = set()
        if rows.of is None:
            self.there(rows.table)
        elif callable(rows.of):
            params = {**params, **rows.places}
            for name, default in inputs_of(rows.of).names.items():
                if not default and name not in params:
                    raise GraphError(
                        f"`{rows!r}` is made by a function that needs `{name}`. Give it to the run: "
                        + (f"`{name}=...`." if name in ("start", "stop") else f"`params={{{name!r}: ...}}`.")
                    )

    def tables(self) -> list[str]:
        return sorted({*self.made, *(self.file or ())})

    def there(self, table: str) -> None:
        """A GraphError for a table that is not there."""
        if table not in self.tables():
            meant = near(table, self.tables())
            where = "" if self.file is None else f" in {self.file.path}"
            raise GraphError(f"There is no table {table!r}{where}{meant}: there are {listed(self.tables())}.")

    def linked(self, one: str, other: str) -> None:
        """A GraphError for tables that are not linked."""
        there = {*self.links, *(self.file.links() if self.file is not None else ())}
        if {one, other} & self.made.keys():  # what the file has of these is not about the slice's rows
            there = self.links
        if (one, other) not in there and (other, one) not in there:
            text = ", ".join(sorted(f"{first!r} -> {second!r}" for first, second in there)) or "none"
            raise GraphError(f"There are no references between {one!r} and {other!r}: there are {text}.")

    def aligned(self, table: str) -> None:
        """A GraphError for a table of another number of rows than the slices' table."""
        if table in self.made or table == self.source or self.file is None:
            return
        if self.source in self.made:
            raise GraphError(
                f"The rows of {self.source!r} are made by the flow, so {table!r} of the file is not aligned with them."
            )
        here, there = len(self.file[self.source]), len(self.file[table])
        if here != there:
            raise GraphError(
                f"{table!r} has {there} rows and {self.source!r} has {here}, so they are not aligned. "
                f'If they are linked, write the path: "{self.source} -> {table}".'
            )


def _checked(operator: Operator[Any, Any], seen: _Seen, params: Mapping[str, Any]) -> None:
    match operator:
        case Rows():
            raise GraphError("A flow over tables has one `h5.rows`, at its head.")
        case Need():
            for name, path in operator.paths.items():
                for table in path.tables:
                    seen.there(table)
                seen.aligned(path.tables[0])
                for pair in pairwise(path.tables):
                    seen.linked(*pair)
                seen.names[name] = path
        case Append():
            _check_append(operator, seen)
        case Queue():
            pass
        case _ if operator.lands:
            raise GraphError(f"`{operator!r}` ends a flow that is iterated over; `h5.run` writes what `h5.append` says.")
        case _:
            if any(isinstance(part, Stream) for part in operator.lower()) or operator.awaits:
                raise GraphError(f"`{operator!r}` works on streams, but each slice of a flow over tables is by itself.")
            for function in operator.functions:
                _check_inputs(function.name, function, seen, params)


def _check_append(operator: Append, seen: _Seen) -> None:
    table = operator.table
    if table == seen.source:
        raise GraphError(f"`{operator!r}` appends to the table whose rows the flow goes through. Choose another one.")
    if table in seen.made:
        raise GraphError(f"The flow appends to {table!r} twice. Choose another table, or put the rows together before.")
    if operator.as_ in seen.names:
        raise GraphError(f"`{operator.as_}` is an input already, so the rows of {table!r} need another name: write `name=...`.")
    seen.links = {link for link in seen.links if table not in link}  # those are of the file's rows
    for other, kind in operator.refs.items():
        seen.there(other or seen.source)
        if other and kind != PAIRS:
            seen.aligned(other)
        seen.links.add((other or seen.source, table))
    seen.made[table] = None
    seen.names[operator.as_] = Path((table,))


def _check_inputs(step: str, function: Function, seen: _Seen, params: Mapping[str, Any]) -> None:
    """A GraphError for a parameter of which nobody knows what it should be given."""
    names, first, placed = function.inputs
    if placed or (first == "" and any(name in seen.names for name in names)):
        what = placed[0] if placed else "its first parameter"
        raise GraphError(
            f"Step {step!r} takes {what} by its place only, but inputs are given by name. Name it, without `/` or `*args`."
        )
    if RNG in names and next(iter(names)) == RNG:
        raise GraphError(f"`{RNG}`, the first parameter of step {step!r}, is given by its name. Let an input stand first.")
    if first and first in params and first not in seen.names:
        raise GraphError(
            f"`{first}`, the first parameter of step {step!r}, is given what the function before gave, but `params` has it. "
            "Let an input stand first."
        )
    for name, default in names.items():
        if not default and name not in (first, RNG) and name not in seen.names and name not in params:
            raise GraphError(
                f"Step {step!r} names `{name}`{near(name, seen.names)}, but its inputs are {listed(seen.names)}. "
                f'Name it before: `h5.need({name}="{seen.source} -> ...")`, or give it to the run: `params={{{name!r}: ...}}`.'
            )
