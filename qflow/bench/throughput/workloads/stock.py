"""Stock: a few distinct arrays of a size, made once in each process, whose first and last number say which it is."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float32]]

_MOST = 17  # a prime, so that no chunking and no number of workers falls in step with it
_MANY, _PART = 37, 64 << 10  # the same of those that are so small: a value may hold 20 of them
_BYTES = 80 << 20


def variety(size: int) -> int:
    """How many arrays of a size there are in stock.

    >>> variety(64 << 10), variety(1 << 20), variety(16 << 20)
    (37, 17, 5)
    """
    return min(_MANY if size <= _PART else _MOST, _BYTES // size)


@cache
def stock(size: int) -> list[Array]:
    """``variety(size)`` arrays of ``size`` bytes: ``float32[size / 4]``; no two share memory."""
    import numpy as np

    return [np.arange(size // 4, dtype=np.float32) + number for number in range(variety(size))]


@cache
def ends(size: int) -> list[tuple[float, float]]:
    """The keys of these arrays."""
    return [(float(array[0]), float(array[-1])) for array in stock(size)]


def in_turn(values: list[Any], start: int, stop: int) -> list[Any]:
    """A list from ``start`` to ``stop``, as if it were repeated for ever.

    >>> in_turn([0, 1, 2], 2, 7)
    [2, 0, 1, 2, 0]
    """
    return [values[number % len(values)] for number in range(start, stop)]
