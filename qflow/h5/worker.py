"""Worker: what `qflow.h5.read` runs: the rows of a chunk, out of files that stay open.

A marked class: each worker builds its own instance, so no handle is ever sent, shared or forked,
and the files are closed when the worker's instance is collected.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from errno import EIO
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from qflow.graph.marks import process
from qflow.h5.files import columns, opened
from qflow.h5.kept import Kept
from qflow.h5.planning import Chunk, Part, parts_of


class Handle(NamedTuple):
    """An open file: its datasets by key, and their number of rows."""

    file: Any
    columns: Mapping[str, Any]
    rows: int

    def close(self) -> None:
        """Close it."""
        self.file.close()


def handle_of(path: str, keys: tuple[str, ...]) -> Handle:
    """Open a file."""
    file = opened(path)
    try:
        found = columns(file, keys)
    except BaseException:
        file.close()
        raise
    return Handle(file, found, len(next(iter(found.values()))))


@process
class read:
    """Reads chunks; see `qflow.h5.read`. Named like that function, since a step prints as its class."""

    def __init__(self, keys: tuple[str, ...], *, rows: bool = True) -> None:
        self._keys, self._rows, self._files = keys, rows, Kept(partial(handle_of, keys=keys))

    def __call__(self, chunk: Chunk) -> Any:
        columns = self._columns(parts_of(chunk))
        if not self._rows:
            return columns
        keys = self._keys
        return [dict(zip(keys, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _columns(self, parts: Chunk) -> dict[str, Any]:
        if len(parts) == 1:  # a slice has 4 us to begin with, a direct read 48 us (h5py 3.16)
            return {key: _slice(dataset, parts[0]) for key, dataset in self._open(parts[0]).columns.items()}
        total, at = sum(stop - start for _, start, stop in parts), 0
        columns: dict[str, Any] = {}
        for part in parts:
            for key, dataset in self._open(part).columns.items():
                if key not in columns:
                    columns[key] = np.empty((total, *dataset.shape[1:]), dataset.dtype)
                columns[key] = _fill(columns[key], at, dataset, part)
            at += part[2] - part[1]
        return columns

    def _open(self, part: Part) -> Handle:
        file, start, stop = part
        found = self._files.open(file)
        if stop > found.rows:
            raise ValueError(
                f"{file} has {found.rows} rows, but the chunk asks for rows {start} to {stop}. "
                "Was the file written again? Then plan again with `h5.chunks`."
            )
        return found


def _slice(dataset: Any, part: Part) -> Any:
    """Rows as an array of their own."""
    with _named(dataset, part):
        return dataset[part[1] : part[2]]


def _fill(rows: Any, at: int, dataset: Any, part: Part) -> Any:
    """Put the rows of a part where they belong, without a copy between when the types are the same."""
    file, start, stop = part
    to = slice(at, at + stop - start)
    if rows.shape[1:] != dataset.shape[1:]:
        raise ValueError(
            f"{dataset.name!r} has rows of shape {dataset.shape[1:]} in {file}, but {rows.shape[1:]} in the file before."
        )
    if (rows.dtype, rows.dtype.metadata) == (dataset.dtype, dataset.dtype.metadata):
        with _named(dataset, part):
            dataset.read_direct(rows, np.s_[start:stop], to)
        return rows
    common = np.empty(rows.shape, _common(rows.dtype, dataset, file))
    common[:at], common[to] = rows[:at], _slice(dataset, part)
    return common


@contextlib.contextmanager
def _named(dataset: Any, part: Part) -> Iterator[None]:
    """An error of HDF5 says in which file."""
    file, start, stop = part
    try:
        yield
    except OSError as error:
        text = f"Can't read rows {start} to {stop} of {dataset.name!r}; is the file damaged? HDF5 says: {error}"
        raise OSError(error.errno or EIO, text, file) from error


def _common(dtype: Any, dataset: Any, file: str) -> Any:
    """The type that holds the rows of two files: of two numbers numpy's, which never makes text of them."""
    kinds = {dtype.kind, dataset.dtype.kind}
    with contextlib.suppress(TypeError):
        if len(kinds) == 1 or kinds <= set("biufc"):
            return np.result_type(dtype, dataset.dtype)
    raise ValueError(f"{dataset.name!r} is {dataset.dtype} in {file}, but {dtype} in the file before.")
