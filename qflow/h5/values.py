"""Values: what the functions of a flow over tables give, to be iterated over, as for training."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, final

from qflow.errors import GraphError, got
from qflow.graph.carrier import Carrier
from qflow.graph.flow import Beginning, Each, Operator
from qflow.graph.function import is_iterable
from qflow.graph.options import RunOptions
from qflow.h5 import readers
from qflow.h5.block import at_work
from qflow.h5.checking import check
from qflow.h5.inputs import Rows
from qflow.h5.outputs import Append, Stage


@final
class Values(Each[Carrier, Any]):
    """Blocks become what functions gave; see `values`."""

    lands = True

    @property
    def name(self) -> str:
        return "values"

    def outputs(self, value: Any) -> Iterable[Any]:
        block = at_work(value, "values")
        return () if block.over else (block.given,)

    def length(self, items: int) -> None:
        return None

    def begins(self, before: tuple[Operator[Any, Any], ...], source: Any, options: RunOptions) -> Beginning:
        operators = [part for each in before for part in each.inside]
        first = next((place for place, each in enumerate(operators) if isinstance(each, Rows)), None)
        if first is None:
            raise GraphError('`h5.values()` stands behind `h5.rows`: `h5.rows("hits") | step | h5.values()`.')
        head: Rows = operators[first]  # type: ignore[assignment]
        if writes := next((each for each in operators if isinstance(each, Append | Stage) or (each is head and head.of)), None):
            raise GraphError(f"`{writes!r}` is for `h5.run`, which writes; a flow that ends with `h5.values()` reads only.")
        paths = [*source] if is_iterable(source) else []
        if len(paths) != 1 or not isinstance(paths[0], str | os.PathLike):
            raise GraphError(f'A flow over tables has a source of one file: `pipe(["events.h5"])`, but got {got(source)}.')
        path = os.path.abspath(paths[0])
        try:
            check(operators[first:], readers.tables(path), options.params)
            return Beginning(head.slices(path), (*before, self))
        finally:
            readers.close()  # nobody can write a file that is open for reading

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Values)

    def __hash__(self) -> int:
        return hash(Values)

    def __repr__(self) -> str:
        return "h5.values()"


def values() -> Values:
    """End a flow over tables that is iterated over: its results are what the last function gives, or the rows themselves.

    >>> import numpy as np, tempfile
    >>> from qflow import h5
    >>> def scaled(hits, tracks):
    ...     return hits + tracks[:, 0]
    >>> pipe = h5.rows("hits", size=2) | h5.need(tracks="hits -> tracks") | scaled | h5.values()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with h5.Tables(f"{folder}/events.h5", "w") as file:
    ...         _ = file.append("hits", np.arange(3.0))
    ...         _ = file.append("tracks", np.array([10.0, 20.0]))
    ...         _ = file.link("tracks", "hits", [[0, 0], [0, 1], [1, 2]])
    ...     [found.tolist() for found in pipe([f"{folder}/events.h5"], engine="serial")]
    [[10.0, 11.0], [22.0]]

    The source is one file; the items are its slices. Before `rows` stands what chooses among them (`qflow.shuffle`,
    `qflow.shard`), behind it what takes values: `qflow.repack`, a function that makes batches. A slice for which a function
    gives `qflow.SKIP` has no result. Order: of the slices. Holds: the values of the slices at work.

    Raises:
        GraphError: when a run starts: the flow writes (`append`, `stage`), or names what is not there.
    """
    return Values()
