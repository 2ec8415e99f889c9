"""References: from rows of one table to those of another that are linked with them, and on from there.

    ref = [[0, 1], [0, 3], [2, 0]]       rows 0 and 2 of A are linked with rows 1, 3 and 0 of B

    A -> B     0: 1 3    1: --    2: 0            dereference([0, 1, 2], ref, b)
    B -> A     0: 2      1: 0     3: 0            dereference([0, 1, 3], ref, a, ref_direction=(1, 0))

All links between two tables lie in one array of pairs, in the order in which they were written. A region says for each row of a
table from where to where in it its links lie, others among them; only these parts are read, and of the linked table only the rows
that are linked, not what lies between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.ma as ma
from numpy.lib import recfunctions as rfn

from qflow.errors import GraphError, got
from qflow.h5.blocks import Rows, runs, take

Direction = tuple[int, int]
"""Which column of the pairs is selected, and which leads on: ``(0, 1)`` from the first table to the second, ``(1, 0)`` back."""

region_dtype = np.dtype([("start", "i8"), ("stop", "i8")])


def dereference(
    sel: Any,
    ref: Any,
    data: Any = None,
    region: Any = None,
    mask: Any = None,
    ref_direction: Direction = (0, 1),
    indices_only: bool = False,
    as_masked: bool = True,
) -> Any:
    """The rows of a table that are linked with selected rows of another.

    >>> from qflow import h5
    >>> ref, letters = [[0, 1], [0, 3], [2, 0]], ["a", "b", "c", "d"]
    >>> print(h5.dereference([0, 1, 2], ref, letters))
    [['b' 'd']
     [-- --]
     ['a' --]]
    >>> print(h5.dereference([3], ref, indices_only=True, ref_direction=(1, 0)))
    [[0]]
    >>> h5.dereference(slice(0, 3), ref, indices_only=True, as_masked=False)
    [array([1, 3]), array([], dtype=int64), array([0])]

    Reads, of datasets: the selected rows of ``region``, the parts of ``ref`` that these name (without a region all of it, in
    blocks), and the linked rows of ``data``; what lies between is left out where it is more than 64 KB and more than a chunk.
    Holds: these, and the result.

    Args:
        sel: rows: a number, a slice, a list or array of numbers in any order, also more than once; negative ones count from the
            end. Booleans select where they are true. Masked ones are masked. A slice without an end and negative numbers need
            the length of the table: that of ``region``, or what the attributes of ``ref`` lead to.
        ref: integers ``[pairs, 2]``, an array, list or `h5py.Dataset`.
        data: the linked table, ``dtype[rows, ...]``; may be left out with ``indices_only``.
        region: for each row of the selected table from where to where its pairs lie: ``start``, ``stop``; the same twice: none.
        mask: ``bool[selected]``: True: don't look this one up.
        ref_direction: which column is selected, and which leads on.
        indices_only: give row numbers, of the type of ``ref``, in place of rows.
        as_masked: False: a list of arrays.
    Returns:
        A masked array ``dtype[selected, most, ...]``; ``most``, at least 1, is the number of links of the row that has most;
        each row's links are ordered by row number, and what is linked twice is there twice. What is missing is masked, and 0.
        Or a list of an array for each selected row, ordered as in ``ref``.
    Raises:
        IndexError: a selected row, or one that is linked, is not there.
        GraphError: an argument is of another kind or shape.
    """
    pairs, here, there = _pairs(ref), *_direction(ref_direction)
    table = None if data is None else _table(data)
    if table is None and not indices_only:
        raise GraphError("`data` is the table whose rows are wanted; without it write `indices_only=True`.")
    region = None if region is None else _region(region)
    length = len(region) if region is not None else _length(ref, here)
    rows, hidden = selected(sel, length)
    hidden = hidden | _mask(mask, len(rows))
    found = _links(pairs, rows[~hidden], region, here)
    if table is not None and not indices_only:
        _check(found[:, there], len(table))
    look = _Look(rows, hidden, found[:, here], found[:, there], pairs.dtype if indices_only else None)
    return look.masked(table) if as_masked else look.listed(table)


class _Look:
    """What was looked up.

    Args:
        rows: that were selected, and which of them are hidden.
        parents, children: of each link of these that was found, in the order of ``ref``.
        dtype: of row numbers, if these are wanted.
    """

    def __init__(self, rows: Rows, hidden: Any, parents: Any, children: Any, dtype: Any) -> None:
        self.rows, self.hidden, self.parents, self.children, self.dtype = rows, hidden, parents, children, dtype

    def _values(self, children: Any, table: Any) -> Any:
        return children.astype(self.dtype) if self.dtype is not None else take(table, children)

    def _of_rows(self, parents: Any) -> tuple[Any, Any]:
        """For each selected row the first of its links, which are ordered by their parents, and how many there are."""
        first = np.searchsorted(parents, self.rows)
        return first, np.where(self.hidden, 0, np.searchsorted(parents, self.rows, side="right") - first)

    def masked(self, table: Any) -> Any:
        order = np.lexsort((self.children, self.parents))
        first, counts = self._of_rows(self.parents[order])
        most = max(1, int(counts.max(initial=1)))
        there = np.arange(most) < counts[:, None]
        links = (first[:, None] + np.arange(most))[there]
        values = self._values(self.children[order], table)
        found = np.zeros((len(self.rows), most, *values.shape[1:]), values.dtype)
        found[there] = values[links]
        missing = np.broadcast_to(~there.reshape(*there.shape, *(1 for _ in values.shape[1:])), found.shape)
        return ma.array(found, mask=missing, shrink=False)

    def listed(self, table: Any) -> list[Any]:
        order = np.argsort(self.parents, kind="stable")
        first, counts = self._of_rows(self.parents[order])
        values = self._values(self.children[order], table)
        return [values[start : start + count] for start, count in zip(first.tolist(), counts.tolist(), strict=True)]


def dereference_chain(
    sel: Any,
    refs: Sequence[Any],
    data: Any = None,
    regions: Sequence[Any] | None = None,
    mask: Any = None,
    ref_directions: Sequence[Direction] | None = None,
    indices_only: bool = False,
) -> Any:
    """The rows of a table that are linked with selected rows over tables between.

    >>> from qflow import h5
    >>> hits_of_events, tracks_of_hits = [[0, 0], [0, 1], [1, 2]], [[0, 5], [1, 5], [2, 7]]
    >>> print(h5.dereference_chain([0, 1], [hits_of_events, tracks_of_hits], indices_only=True))
    [[[5]
      [5]]
    <BLANKLINE>
     [[7]
      [--]]]

    Args:
        sel: of the first table, as in `dereference`.
        refs: the pairs of each step, at least one.
        data: the last table.
        regions: for each step the region of the table that it goes from, or None.
        mask: of the selected rows, as in `dereference`.
        ref_directions: of each step; ``(0, 1)`` when not given.
        indices_only: row numbers of the last table in place of its rows.
    Returns:
        A masked array ``dtype[selected, most_1, ..., most_k, ...]``.
    """
    steps = len(refs)
    if not steps:
        raise GraphError("`refs` is a list of the pairs of each step, but it is empty.")
    around = _of_steps(regions, steps, "regions", None)
    directions = _of_steps(ref_directions, steps, "ref_directions", (0, 1))
    found, shape = sel, None
    for number, (ref, region, direction) in enumerate(zip(refs, around, directions, strict=True), 1):
        last = number == steps
        found = dereference(
            found,
            ref,
            data if last else None,
            region,
            mask if shape is None else None,
            direction,
            indices_only if last else True,
        )
        shape = (*(shape or found.shape[:1]), found.shape[1])
        found = found.reshape(*shape, *found.shape[2:]) if last else found.ravel()
    return found


def selected(sel: Any, length: int | None) -> tuple[Rows, Any]:
    """The rows that a selection stands for, and which of them are masked.

    >>> selected(slice(None, None, 2), 5)[0], selected(-1, 5)[0]
    (array([0, 2, 4]), array([4]))

    Args:
        sel: as in `dereference`.
        length: of the table; None: not known.
    """
    hidden = np.ravel(ma.getmaskarray(sel)) if isinstance(sel, ma.MaskedArray) else None
    if isinstance(sel, slice):
        rows = _of_slice(sel, length)
    else:
        rows = np.ravel(np.asarray(sel))
        if rows.dtype == bool:
            if length is not None and len(rows) != length:
                raise IndexError(f"{len(rows)} booleans select of a table with {length} rows. Give one for each row.")
            rows, hidden = np.flatnonzero(rows), None
        if rows.size and rows.dtype.kind not in "iu":
            raise GraphError(f"`sel` is a number, a slice, or a list of numbers of rows, but got {got(sel)}.")
        rows = rows.astype(np.int64)
    hidden = np.zeros(len(rows), bool) if hidden is None else hidden
    rows = np.where(hidden, 0, rows)
    return _in_range(rows, hidden, length), hidden


def _of_slice(sel: slice, length: int | None) -> Rows:
    ends = [end for end in (sel.start, sel.stop) if end is not None]
    if length is None:
        if sel.stop is None or any(end < 0 for end in ends) or (sel.step or 1) < 0:
            raise GraphError(f"`sel` is {sel}, but how long the table is, is not known here. Give its ends, or `region`.")
        return np.arange(sel.start or 0, sel.stop, sel.step or 1, dtype=np.int64)
    return np.arange(*sel.indices(length), dtype=np.int64)


def _in_range(rows: Rows, hidden: Any, length: int | None) -> Rows:
    if length is None:
        if (rows < 0).any():
            raise GraphError(
                "`sel` has negative rows, but how long the table is, is not known here. Give `region`, or count from 0."
            )
        return rows
    wrong = rows[~hidden & ((rows < -length) | (rows >= length))]
    if wrong.size:
        raise IndexError(f"Row {wrong[0]} is selected of a table with {length} rows.")
    return np.where(rows < 0, rows + length, rows)


def _links(pairs: Any, rows: Rows, region: Any, here: int) -> Any:
    """The pairs of some rows, in the order of ``ref``."""
    wanted = np.unique(rows)
    if region is None:
        starts, stops = np.array([0]), np.array([len(pairs)])
    else:
        parts = take(region, wanted)
        starts, stops = parts["start"].astype(np.int64), np.minimum(parts["stop"].astype(np.int64), len(pairs))
    found = [np.empty((0, 2), np.int64)]
    for start, stop in runs(pairs, starts, stops) if wanted.size else ():
        block = pairs[start:stop]
        parents = block[:, here]
        inside = (parents >= wanted[0]) & (parents <= wanted[-1])
        if wanted[-1] - wanted[0] + 1 > len(wanted):
            near = np.minimum(np.searchsorted(wanted, parents), len(wanted) - 1)
            inside &= wanted[near] == parents
        found.append(block[inside].astype(np.int64))
    return np.concatenate(found)


def _check(children: Any, length: int) -> None:
    wrong = children[(children < 0) | (children >= length)]
    if wrong.size:
        raise IndexError(f"A reference leads to row {wrong[0]} of a table with {length} rows.")


def _is_dataset(value: Any) -> bool:
    return hasattr(value, "id") and hasattr(value, "chunks")


def _table(data: Any) -> Any:
    return data if _is_dataset(data) else np.asarray(data)


def _pairs(ref: Any) -> Any:
    pairs = ref if _is_dataset(ref) else np.asarray(ref)
    if not _is_dataset(ref) and not pairs.size:
        return np.empty((0, 2), pairs.dtype if pairs.dtype.kind in "iu" else np.int64)
    if len(pairs.shape) != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        raise GraphError(
            f"`ref` is an array of pairs of row numbers, integers [pairs, 2], but got {pairs.dtype}{list(pairs.shape)}."
        )
    return pairs


def _region(region: Any) -> Any:
    found = region if _is_dataset(region) else np.asarray(region)
    if not _is_dataset(region) and found.ndim == 2 and found.shape[1] == 2:
        found = rfn.unstructured_to_structured(found.astype(np.int64), region_dtype)
    if found.dtype.names != ("start", "stop"):
        raise GraphError(f"`region` is an array of `start` and `stop` for each row, but got {found.dtype}{list(found.shape)}.")
    return found


def _direction(direction: Any) -> Direction:
    if tuple(direction) not in ((0, 1), (1, 0)):
        raise GraphError(f"`ref_direction` is (0, 1), or (1, 0) for the way back, but got {got(direction)}.")
    here, there = direction
    return int(here), int(there)


def _mask(mask: Any, length: int) -> Any:
    if mask is None:
        return np.zeros(length, bool)
    found = np.ravel(np.asarray(mask))
    if found.dtype != bool or len(found) != length:
        raise GraphError(f"`mask` is a boolean for each of the {length} selected rows, but got {found.dtype}[{len(found)}].")
    return found


def _of_steps(values: Sequence[Any] | None, steps: int, word: str, default: Any) -> Sequence[Any]:
    if values is None:
        return [default] * steps
    if len(values) != steps:
        raise GraphError(f"`{word}` has one for each of the {steps} steps of `refs`, but got {len(values)}.")
    return values


def _length(ref: Any, here: int) -> int | None:
    """How long the selected table is, which the attributes of a dataset of references lead to; None: nobody knows."""
    name = getattr(ref, "attrs", {}).get(f"dset{here}")
    name = name.decode() if isinstance(name, bytes) else name
    return len(ref.file[name]) if isinstance(name, str) and name in ref.file else None
