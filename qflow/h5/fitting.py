"""Fitting: rows of one type as those of another, if nothing is lost that matters.

A program appends to a table that has a type already, often a narrower one. NumPy would assign anything: 256 becomes 0 in a
byte, 2**53 + 1 becomes 2**53 as a float, b"abc" loses its end.
"""

from __future__ import annotations

from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np

from qflow.errors import GraphError, describe, got

NUMBERS = "biufc"  # kinds


def fitted(rows: Any, dtype: Any, what: str) -> Any:
    """Rows as those of another type, if no number becomes another one and no text is cut.

    >>> fitted(np.array([1, 2]), np.dtype("u1"), "These")
    array([1, 2], dtype=uint8)
    >>> fitted(np.array([1, 256]), np.dtype("u1"), "These")
    Traceback (most recent call last):
    qflow.errors.GraphError: These are uint8, in which 256 does not fit.

    From floats to floats digits may be lost, but none becomes infinite.
    """
    if rows.dtype == dtype:
        return rows
    if not _castable(rows.dtype, dtype):
        raise GraphError(f"{what} are {type_text(dtype, ())}, but got {type_text(rows.dtype, ())}.")
    with np.errstate(over="ignore", invalid="ignore"):  # what is told by that is told below
        found = rows.astype(dtype)
    _check_same(rows, found, what)
    return found


def _castable(one: Any, other: Any) -> bool:
    """Whether values of a type can be those of another one; of records field by field, by their names."""
    if one.names or other.names:
        return one.names == other.names and all(_castable(one[name], other[name]) for name in one.names)
    if one.shape or other.shape:
        return one.shape == other.shape and _castable(one.base, other.base)
    if one.kind in "iu" and other.kind in "iu":
        return True
    kinds = one.kind + other.kind
    return (kinds in ("SS", "UU") or kinds[1] == "O" or {*kinds} <= {*NUMBERS}) and np.can_cast(one, other, "same_kind")


def _check_same(rows: Any, found: Any, what: str) -> None:
    if found.dtype.names:
        for one, other in zip(rows.dtype.names, found.dtype.names, strict=True):
            _check_same(rows[one], found[other], what)
        return
    whole = rows.dtype.kind in "iu" and found.dtype.kind in "fc"
    if np.can_cast(rows.dtype, found.dtype, "safe") and not (whole and rows.dtype.itemsize == 8):  # which NumPy calls safe
        return
    if whole:
        wrong = _rounded(rows, found.real)
    elif found.dtype.kind in "fc":
        wrong = np.isfinite(rows) & ~np.isfinite(found)
    else:
        wrong = found != rows
    if wrong.any():
        rounded = f" If it may be rounded, write `rows.astype({str(found.dtype)!r})`." if whole else ""
        raise GraphError(f"{what} are {found.dtype}, in which {rows[wrong].ravel()[0]} does not fit.{rounded}")


def _rounded(rows: Any, found: Any) -> Any:
    """Which integers are others as floats."""
    exact = 2 << np.finfo(found.dtype).nmant  # up to there all are there
    if not rows.size or (-exact <= int(rows.min()) and int(rows.max()) <= exact):
        return np.False_
    wide = found.astype(np.result_type(found, np.float64))
    fits = np.isfinite(wide) & (wide < 2.0 ** np.iinfo(rows.dtype).bits / (2 if rows.dtype.kind == "i" else 1))
    return np.where(fits, wide, 0).astype(rows.dtype) != rows


def type_text(dtype: Any, shape: tuple[int, ...]) -> str:
    """A type, and the shape of a row, as people read it."""
    inside = ", ".join(f"{name} {type_text(*_base(dtype[name]))}" for name in dtype.names) if dtype.names else str(dtype)
    return f"{inside}{list(shape) if shape else ''}"


def _base(dtype: Any) -> tuple[Any, tuple[int, ...]]:
    return dtype.base, dtype.shape


def masked(mask: Any, keep: int = 1) -> tuple[Any, Any]:
    """Of a mask, also of records: where all of it is True, and where some is, over its first ``keep`` dimensions."""
    if mask.dtype.names:
        parts = [masked(mask[name], keep) for name in mask.dtype.names]
        return np.all([each for each, _ in parts], axis=0), np.any([each for _, each in parts], axis=0)
    axes = tuple(range(keep, mask.ndim))
    return mask.all(axis=axes), mask.any(axis=axes)


def array_of(value: Any) -> Any:
    """An array; a masked one, if it was, or is made of such."""
    parts = value if isinstance(value, list | tuple) else (value,)
    return (np.ma.asarray if any(isinstance(part, np.ma.MaskedArray) for part in parts) else np.asarray)(value)


def bare(value: Any, what: str) -> Any:
    """Rows as an array, or a TypeError if some are masked."""
    rows = array_of(value)
    if isinstance(rows, np.ma.MaskedArray):
        if masked(np.ma.getmaskarray(rows), 0)[1].any():
            raise TypeError(f"{what} gets rows without a mask. Say what stands for what is missing: `rows.filled(0)`.")
        return rows.data
    return rows


def as_pairs(value: Any, what: str) -> Any:
    """Pairs as integers ``[pairs, 2]``, without those that are masked, or a TypeError."""
    found = array_of(value)
    if not found.size:
        return np.empty((0, 2), np.int64)
    if found.ndim != 2 or found.shape[1] != 2 or found.dtype.kind not in "iu":
        raise TypeError(f"{what} are integers [pairs, 2], but got {describe(found)}.")
    return found.data[~np.ma.getmaskarray(found).any(axis=1)] if isinstance(found, np.ma.MaskedArray) else found


def rows_of(value: Any, what: str) -> Any:
    """Rows as an array of a type that a file can have, and a journal, or a TypeError."""
    rows = bare(value, what)
    if not rows.ndim or rows.dtype.hasobject or not storable(rows.dtype):
        text = describe(value) if rows.ndim else got(value)
        raise TypeError(f"{what} gets rows, an array of a type that HDF5 has, of fixed size, but got {text}.{hint(rows.dtype)}")
    return rows


def storable(dtype: Any) -> bool:
    """Whether HDF5 has a type. (Nothing is kept of those seen before: types that are equal may differ in their metadata.)"""
    if dtype.kind in NUMBERS:
        return True
    try:
        h5py.h5t.py_create(dtype, logical=True)
    except TypeError:
        return False
    return True


def hint(dtype: Any) -> str:
    """What to write in place of rows of a type that HDF5 does not have, if that is known."""
    if dtype.kind in "mM":
        return " For times write numbers, `rows.astype('i8')`."
    return " For texts write bytes, `np.char.encode(rows)`." if dtype.kind == "U" else ""
