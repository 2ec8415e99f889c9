"""Rebatch: batches of any number of rows cut and joined to batches of one number of rows.

    rebatch(3)    {x: 1 2 3 4}  {x: 5 6}    ->    {x: 1 2 3}  {x: 4 5 6}

A batch is a dict or tuple of columns, or one column: numpy arrays or torch tensors with the same
first dimension. Rows are never touched one by one: a cut is a view, a join is one concatenation.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

from qflow.errors import GraphError, blame, got
from qflow.graph.accumulator import Accumulator
from qflow.graph.flow import ALL
from qflow.graph.regroup import Sized
from qflow.graph.sizes import Size, read_size


@dataclasses.dataclass(frozen=True)
class Batch:
    """Columns by key, and the type they are given back as: dict, a type of tuple, or object for one column."""

    kind: type
    columns: dict[Any, Any]
    rows: int

    def cut(self, start: int, stop: int) -> Batch:
        """Some of its rows, as views."""
        return Batch(self.kind, {key: column[start:stop] for key, column in self.columns.items()}, stop - start)

    def value(self) -> Any:
        """The item that it stands for."""
        columns = self.columns.values()
        if self.kind is object:
            return next(iter(columns))
        return self.columns if self.kind is dict else self.kind(*columns) if hasattr(self.kind, "_fields") else tuple(columns)

    def form(self) -> str:
        """What must be the same in every item: keys, libraries, and shapes of rows."""
        shown = (f"{_library(column)} {key!r} [rows, *{list(column.shape[1:])}]" for key, column in self.columns.items())
        return f"{'array' if self.kind is object else self.kind.__name__} of {', '.join(sorted(shown))}"


def batch_of(value: Any) -> Batch:
    """An item as columns, or a GraphError."""
    kind, columns = _taken_apart(value)
    wrong = [column for column in columns.values() if _library(column) is None or not len(column.shape)]
    if wrong or not columns:
        raise GraphError(
            "`rebatch` takes columns: a dict or tuple of numpy arrays or torch tensors with the same number of rows, "
            f"or one of them, but got {got(wrong[0] if wrong else value)}. "
            "For lists of rows write `qf.repack`; `h5.read(keys, rows=False)` gives columns."
        )
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise GraphError(f"`rebatch` takes columns with the same number of rows, but got {lengths}.")
    return Batch(kind, columns, next(iter(lengths.values())))


def _taken_apart(value: Any) -> tuple[type, dict[Any, Any]]:
    match value:
        case Mapping():
            return dict, dict(value)
        case tuple():
            return type(value), dict(enumerate(value))
        case _:
            return object, {"rows": value}


def _library(column: Any) -> str | None:
    """Which library joins a column; looked up, never imported: whoever made the column has imported it."""
    for library, name in (("numpy", "ndarray"), ("torch", "Tensor")):
        if library in sys.modules and isinstance(column, getattr(sys.modules[library], name)):
            return library
    return None


def _join(columns: Sequence[Any]) -> Any:
    if len(columns) == 1:
        return columns[0]
    if _library(columns[0]) == "torch":
        return sys.modules["torch"].cat(tuple(columns))
    numpy = sys.modules["numpy"]
    masked = any(isinstance(column, numpy.ma.MaskedArray) for column in columns)
    return (numpy.ma if masked else numpy).concatenate(columns)


def join(parts: Sequence[Batch]) -> Any:
    """The item that has all rows of some batches; the one batch itself needs no copy."""
    columns = {key: _join([part.columns[key] for part in parts]) for key in parts[0].columns}
    return dataclasses.replace(parts[0], columns=columns).value()


@final
class Rebatch(Sized[Any]):
    """Cuts and joins columns to one number of rows; see `rebatch`."""

    word = "rebatch"

    def accumulator(self, state: Any = None) -> Accumulator:
        return Rows(self, state)


@final
class Rows(Accumulator):
    """The rows of a batch that is not yet full, and the form that all items must have."""

    def __init__(self, operator: Rebatch, state: Any) -> None:
        self._size, self._drop_last = read_size(operator.size, "size", "qf.rebatch(64)"), operator.drop_last
        self._form: str | None
        self._form, values = state or (None, [])
        self._parts = [batch_of(value) for value in values]
        self._missing = self._size - sum(part.rows for part in self._parts)

    def add(self, value: Any) -> Iterator[Any]:
        batch = self._checked(value)
        del value  # not kept alive while the next one is waited for
        start, self.skip = min(self.skip, batch.rows), 0
        while start < batch.rows:
            stop = min(start + self._missing, batch.rows)
            self._parts.append(batch.cut(start, stop))
            start, self._missing = stop, self._missing - (stop - start)
            if not self._missing:
                self._missing, self.used = self._size, start
                yield self._joined()

    def finish(self) -> Iterator[Any]:
        self.used = ALL
        if self._parts and not self._drop_last:
            yield self._joined()

    @property
    def state(self) -> Any:
        return self._form and (self._form, [part.value() for part in self._parts])

    def _checked(self, value: Any) -> Batch:
        """The item as a batch, of the form that the first one had."""
        try:
            batch = batch_of(value)
            form = self._form = self._form or batch.form()
            if batch.form() != form:
                raise GraphError(f"`rebatch` joins items of one form: the first was {form}, but this one is {batch.form()}.")
        except GraphError as error:
            raise blame(error, "rebatch", value) from None
        return batch

    def _joined(self) -> Any:
        """The parts as one item; the list is emptied, so that they are not kept alive while the consumer works."""
        taken, self._parts = self._parts, []
        try:
            return join(taken)
        except Exception as error:  # what only the library can tell apart: devices, fields of structured types
            blame(error, "rebatch", taken[-1].value())
            raise


def rebatch(size: Size, *, drop_last: bool = False) -> Rebatch:
    """Cut and join batches of columns to batches of exactly ``size`` rows.

    >>> import numpy as np
    >>> import qflow as qf
    >>> batches = [{"x": np.arange(4)}, {"x": np.arange(4, 6)}]
    >>> for batch in qf.run(qf.rebatch(3), batches, engine="serial"):
    ...     print(batch)
    {'x': array([0, 1, 2])}
    {'x': array([3, 4, 5])}

    Stream: a dict of columns, a tuple of columns or one column, ``dtype[rows, ...]``, any number of rows -> the
    same with ``size`` rows; the last may have fewer. A column is a numpy array or a torch tensor; its rows have
    the same shape in every item. Order: kept. Rows inside one item come as views of it, rows of several items
    as one concatenation. Holds: fewer than ``size`` rows, as views, which keep at most two items whole in memory
    besides those used up: the one where the rows begin and the one read last. A batch that the consumer keeps
    keeps its item alive, too: copy it to keep a few rows of a large item. Runs in: a neighbour's worker, else
    one of its own.

    Args:
        size: rows per batch, as in `pack`.
        drop_last: drop a shorter last batch.
    Raises:
        GraphError: ``size`` is not a whole number of at least 1; or, when it comes, an item has no columns,
            columns of different lengths, or other keys, libraries or shapes of rows than the first item.
    """
    return Rebatch(size, drop_last)
