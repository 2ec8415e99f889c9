"""Reading: the ready step from a chunk to its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast, overload

from qflow.errors import GraphError, got
from qflow.graph.sizes import count
from qflow.graph.step import Step
from qflow.h5 import worker
from qflow.h5.planning import Chunk, keys_of

Row = dict[str, Any]
Columns = dict[str, Any]


@overload
def read(
    keys: str | Sequence[str], *, rows: Literal[True] = ..., n: int | None = ..., name: str | None = ...
) -> Step[Chunk, list[Row], [Chunk], list[Row]]: ...
@overload
def read(
    keys: str | Sequence[str], *, rows: Literal[False], n: int | None = ..., name: str | None = ...
) -> Step[Chunk, Columns, [Chunk], Columns]: ...
def read(keys: Any, *, rows: Any = True, n: Any = None, name: Any = None) -> Any:
    """A step that reads chunks of HDF5 files: ``h5.read(["image", "label"], n=4)``.

    >>> import h5py, tempfile
    >>> from qflow import h5
    >>> h5.read(["x", "y"], n=2)
    read(('x', 'y')).using(n=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in "ab":
    ...         with h5py.File(f"{folder}/{name}.h5", "w") as file:
    ...             file["x"] = range(5)
    ...     plan = h5.chunks(f"{folder}/*.h5", 3)
    ...     read, columns = h5.read("x"), h5.read("x", rows=False)
    ...     [len(rows) for rows in (plan | read)(engine="serial")]
    ...     columns(plan[1])
    [3, 3, 3, 1]
    {'x': array([3, 4, 0])}

    Each: a chunk -> a list of dicts, one a row: ``{key: row}``, a numpy scalar or an array of the dataset's
    shape without its first dimension; or, with ``rows=False``, a dict of arrays ``dtype[rows, ...]``. Types are
    h5py's: text comes as bytes, rows of varying length as arrays in an object array. Where a chunk spans files
    of different types, numpy's common type. Order: of the chunk. Holds: the chunk's rows once; a row kept from
    the list keeps its chunk's arrays alive. Runs in: ``n`` processes, each with up to 8 files open until the pipe
    is closed, a file that was written again opened again. HDF5 lets nobody write a file that is open for reading.

    Args:
        keys: a dataset, as ``"x"`` or ``"group/x"``, or a list of them with the same number of rows.
        rows: True: a list of rows. False: a dict of arrays, for `qflow.rebatch` and work on whole columns.
        n, name: as in `qflow.process`.
    Raises:
        GraphError: ``keys``, ``rows`` or ``n`` is wrong; or, when it comes, an item is not a chunk.
        KeyError: when a file is opened that lacks a key; the text lists those there are.
        ValueError: keys of a file have different lengths, or the file is shorter than the chunk says.
        OSError: a file is missing or damaged; with its path.
    """
    if not isinstance(rows, bool):
        raise GraphError(f"`rows` is True for a list of rows or False for a dict of arrays, but got {got(rows)}.")
    number = None if n is None else count(n, "n", "h5.read(keys, n=2)")
    options = {} if rows else {"rows": False}
    return cast("Step[Any, Any, Any, Any]", worker.read(keys_of(keys), **options)).using(n=number, name=name)
