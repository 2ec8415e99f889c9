"""Blocks: rows of a dataset that may lie far apart, read without what lies between.

    rows      3 4 5            9000 9001     12
    blocks   |3 . . . . . . 12|       |9000 9001|       two reads

A read has its price, and so has each byte of a chunk that HDF5 has to unpack: rows are read together where what lies between is
less than `GAP` bytes, or than one of the dataset's chunks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

GAP = 1 << 16  # bytes: a read of h5py costs 50 us, for which memory gives 64 KB at 1.3 GB/s
MOST = 1 << 25  # bytes read at once, of which only some rows may be wanted

Rows = np.ndarray[Any, np.dtype[np.int64]]


def take(data: Any, rows: Rows) -> Any:
    """Rows of an array or dataset, in any order, some more than once: ``dtype[len(rows), ...]``.

    >>> take(np.arange(0, 100, 10), np.array([7, 2, 2]))
    array([70, 20, 20])
    """
    if isinstance(data, np.ndarray):
        return data[rows]
    wanted, places = np.unique(rows, return_inverse=True)
    found = np.empty((len(wanted), *data.shape[1:]), data.dtype)
    at = 0
    for start, stop in runs(data, wanted, wanted + 1):
        after = np.searchsorted(wanted, stop)
        found[at:after] = data[start:stop][wanted[at:after] - start]
        at = int(after)
    return found[places]


def runs(data: Any, starts: Rows, stops: Rows) -> Iterator[tuple[int, int]]:
    """The reads by which rows from some places to others come: disjoint, in order, each of at most `MOST` bytes.

    Args:
        data: an array or a dataset.
        starts: rows, in any order.
        stops: for each of them the row after the last.
    """
    some = starts < stops
    order = np.argsort(starts[some], kind="stable")
    starts, stops = starts[some][order], np.maximum.accumulate(stops[some][order]) if some.any() else stops[some]
    row = max(1, data.dtype.itemsize * int(np.prod(data.shape[1:])))
    gap = max(GAP // row, data.chunks[0] if getattr(data, "chunks", None) else 0)
    apart = np.flatnonzero(starts[1:] - stops[:-1] > gap) + 1
    most = max(1, MOST // row)
    for first, last in itertools.pairwise([0, *apart.tolist(), len(starts)]):
        if first < last:
            begin, end = int(starts[first]), int(stops[last - 1])
            yield from ((at, min(at + most, end)) for at in range(begin, end, most))
