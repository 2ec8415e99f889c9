"""Fitting: rows of one type as those of another, if nothing is lost that matters."""

from __future__ import annotations

from typing import Any

import numpy as np

from qflow.errors import GraphError


def fitted(rows: Any, dtype: Any, what: str) -> Any:
    """Rows as those of another type, if no number becomes another one and no text is cut.

    >>> fitted(np.array([1, 2]), np.dtype("u1"), "These")
    array([1, 2], dtype=uint8)
    >>> fitted(np.array([1, 256]), np.dtype("u1"), "These")
    Traceback (most recent call last):
    qflow.errors.GraphError: These are uint8, in which 256 does not fit.

    Floats may lose digits.
    """
    if rows.dtype == dtype:
        return rows
    if not _castable(rows.dtype, dtype):
        raise GraphError(f"{what} are {type_text(dtype, ())}, but got {type_text(rows.dtype, ())}.")
    found = rows.astype(dtype)
    _check_same(rows, found, what)
    return found


def _castable(one: Any, other: Any) -> bool:
    """Whether values of a type can be those of another one; of records field by field, by their names."""
    if one.names or other.names:
        return one.names == other.names and all(_castable(one[name], other[name]) for name in one.names)
    if one.shape or other.shape:
        return one.shape == other.shape and _castable(one.base, other.base)
    return np.can_cast(one, other, "same_kind") or (one.kind in "iu" and other.kind in "iu")


def _check_same(rows: Any, found: Any, what: str) -> None:
    if found.dtype.names:
        for one, other in zip(rows.dtype.names, found.dtype.names, strict=True):
            _check_same(rows[one], found[other], what)
    elif found.dtype.kind in "iuSU" and not np.can_cast(rows.dtype, found.dtype, "safe"):
        wrong = rows[found != rows]
        if wrong.size:
            raise GraphError(f"{what} are {found.dtype}, in which {wrong.ravel()[0]} does not fit.")


def type_text(dtype: Any, shape: tuple[int, ...]) -> str:
    """A type, and the shape of a row, as people read it."""
    inside = ", ".join(f"{name} {type_text(*_base(dtype[name]))}" for name in dtype.names) if dtype.names else str(dtype)
    return f"{inside}{list(shape) if shape else ''}"


def _base(dtype: Any) -> tuple[Any, tuple[int, ...]]:
    return dtype.base, dtype.shape
