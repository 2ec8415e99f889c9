"""Planning: chunks of exactly ``size`` rows over many files, as values.

    a.h5  |0 1 2 3 4|
    b.h5            |0 1 2 3 4|
    size 3|-----|-----|-----|-|     ((a, 0, 3),)   ((a, 3, 5), (b, 0, 1))   ((b, 1, 4),)   ((b, 4, 5),)

Only the planner touches files, and only their lengths; a plan is arithmetic on those.
"""

from __future__ import annotations

import dataclasses
import operator
import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, final, overload

from qflow.errors import GraphError, got
from qflow.graph.sizes import count
from qflow.h5.files import Paths, find, length

Part = tuple[str, int, int]
"""Rows ``start`` to ``stop`` (not included) of a file."""
Chunk = tuple[Part, ...]
"""Parts in a row: what one call of a reader reads."""


@final
@dataclasses.dataclass(frozen=True, repr=False)
class Chunks(Sequence[Chunk]):
    """A plan of chunks: an immutable sequence that computes each chunk when it is asked for.

    >>> from qflow import h5
    >>> plan = h5.Chunks.of({"a": 5, "b": 5}, 3)
    >>> list(plan)
    [(('a', 0, 3),), (('a', 3, 5), ('b', 0, 1)), (('b', 1, 4),), (('b', 4, 5),)]
    >>> plan[:2], plan == h5.Chunks.of({"a": 5, "b": 5}, 3)
    (<2 chunks of 3 rows, 2 files>, True)

    A slice is a plan again. To shuffle: ``random.sample(chunks, len(chunks))`` gives a list in random order.
    Memory: about 100 bytes a file, however many chunks.

    Attributes:
        files: the files, in order.
        bounds: before which row of all rows each file begins, then the number of all rows.
        size: rows per chunk.
        numbers: which chunks of the whole plan these are.
    """

    files: tuple[str, ...]
    bounds: tuple[int, ...]
    size: int
    numbers: range

    @staticmethod
    def of(lengths: Mapping[str, int], size: int, *, drop_last: bool = False) -> Chunks:
        """The plan for files of known lengths, rows each; see `chunks`."""
        number = count(size, "size", "h5.chunks(files, 1024)")
        bounds = tuple(accumulate(lengths.values(), initial=0))
        whole = bounds[-1] // number if drop_last else -(-bounds[-1] // number)
        return Chunks(tuple(lengths), bounds, number, range(whole))

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Chunk: ...
    @overload
    def __getitem__(self, index: slice) -> Chunks: ...
    def __getitem__(self, index: int | slice) -> Chunk | Chunks:
        if isinstance(index, slice):
            return dataclasses.replace(self, numbers=self.numbers[index])
        start = self.numbers[index] * self.size
        return tuple(self._parts(start, min(start + self.size, self.bounds[-1])))

    def _parts(self, start: int, stop: int) -> Iterator[Part]:
        for at in range(bisect_right(self.bounds, start) - 1, len(self.files)):
            before, after = self.bounds[at : at + 2]
            if before >= stop:
                return
            if before < after:
                yield self.files[at], max(start, before) - before, min(stop, after) - before

    def __repr__(self) -> str:
        return f"<{len(self)} chunks of {self.size} rows, {len(self.files)} files>"


def chunks(files: Paths, size: int, *, key: str | Sequence[str] | None = None, drop_last: bool = False) -> Chunks:
    """Plan chunks of exactly ``size`` rows, which may span files.

    >>> import h5py, pathlib, tempfile
    >>> from qflow import h5
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in "ab":
    ...         with h5py.File(f"{folder}/{name}.h5", "w") as file:
    ...             file["x"] = range(5)
    ...     plan = h5.chunks(f"{folder}/*.h5", 3)
    >>> plan
    <4 chunks of 3 rows, 2 files>
    >>> [(pathlib.Path(file).name, start, stop) for file, start, stop in plan[1]]
    [('a.h5', 3, 5), ('b.h5', 0, 1)]

    Each file is opened once, and its length is kept in this process until its size or time of change
    differs. A chunk is a tuple of parts ``(file, start, stop)``; an empty file gives no part.
    Order: of the files. Memory: about 100 bytes a file.

    Args:
        files: a pattern (``**`` for folders in folders; its matches are sorted), a path, or paths in the order wanted.
        size: rows per chunk, at least 1; the last one has the rest.
        key: the dataset whose rows count, or several which must have the same number of rows. Not given: all
            datasets with rows at the top of each file, which must have the same number.
        drop_last: drop a shorter last chunk.
    Raises:
        GraphError: ``size`` or ``files`` is wrong, a file is named twice, a key is unknown (the text lists those
            there are), or keys have different lengths.
        FileNotFoundError: a file is missing, or no file matches.
        OSError: a file can't be read as HDF5: truncated, being written, or of another format.
    """
    number, keys = count(size, "size", "h5.chunks(files, 1024)"), () if key is None else keys_of(key)
    return Chunks.of({path: _length(path, keys) for path in find(files)}, number, drop_last=drop_last)


def _length(path: str, keys: tuple[str, ...]) -> int:
    try:
        return length(path, keys)
    except (KeyError, ValueError) as error:
        hint = "" if keys else " Say which one counts: `h5.chunks(files, size, key=...)`."
        raise GraphError(error.args[0] + hint) from None


def keys_of(keys: Any) -> tuple[str, ...]:
    """One key or several as a tuple, or a GraphError."""
    listed = (keys,) if isinstance(keys, str) else tuple(keys) if isinstance(keys, list | tuple) else ()
    if not listed or not all(isinstance(key, str) and key for key in listed):
        raise GraphError(f"Keys are the name of a dataset, as 'x' or 'group/x', or a list of names, but got {got(keys)}.")
    if len(set(listed)) < len(listed):
        raise GraphError(f"Each key stands once in the list of keys, but got {list(listed)}.")
    return listed


def parts_of(chunk: Any) -> Chunk:
    """The parts of a chunk, or a GraphError."""
    try:
        parts = tuple((os.fspath(file), operator.index(start), operator.index(stop)) for file, start, stop in chunk)
    except (TypeError, ValueError):
        parts = ()
    if not parts or not all(0 <= start <= stop for _, start, stop in parts):
        raise GraphError(
            f"A chunk is a tuple of parts (file, start, stop), as `h5.chunks(files, 1024)` plans them, but got {got(chunk)}."
        )
    return parts
