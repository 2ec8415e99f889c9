"""Sizes: the counts a user may write, checked where they are written."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from qflow.errors import GraphError, got
from qflow.graph import bytesizes

LEAST_BUDGET = 512 * 1024  # bytes

Size = int | Callable[[], int] | Any  # the last: a multiprocessing.Value


def count(value: object, word: str, example: str) -> int:
    """A whole number of at least 1, or a GraphError that names `word`.

    >>> count(3, "n", "qf.process(n=2)")
    3
    """
    return whole(value, word, example, 1)


def whole(value: object, word: str, example: str, least: int = 0) -> int:
    """A whole number of at least ``least``, or a GraphError that names `word`."""
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if number < least:
        raise GraphError(
            f"{word} must be a whole number of at least {least}, but got {got(value)}. Write for example `{example}`."
        )
    return number


def nbytes(value: object, word: str, example: str) -> int:
    """A number of bytes, at least 1, or a GraphError that names `word`.

    >>> nbytes("2GB", "max_memory", 'qf.process(max_memory="2GB")'), nbytes(3e9, "process_size", "qf.files.workers()")
    (2000000000, 3000000000)
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    try:
        return bytesizes.parse(value) if isinstance(value, str) else count(value, word, example)
    except ValueError as error:
        raise GraphError(f"`{word}` is a number of bytes or a text: {error}.") from None


def budget(value: object, example: str) -> int | None:
    """Bytes that ``memory=`` lets a channel or a run take, as `nbytes`; None: any number."""
    size = None if value is None else nbytes(value, "memory", example)
    if size is not None and size < LEAST_BUDGET:
        raise GraphError(
            f"`memory` is a number of bytes, or a text with a unit, of at least 512 KiB, which a message of small values "
            f"takes; but got {got(value)}. Write for example `{example}`."
        )
    return size


def size(value: Size, word: str, example: str) -> Size:
    """A size as written: a count now, or something to ask for one when a run starts."""
    if not isinstance(value, type) and (callable(value) or hasattr(value, "value")):
        return value
    return count(value, word, example)


def read_size(value: Size, word: str, example: str) -> int:
    """The count that a size stands for at this moment."""
    if callable(value):
        value = value()
    return count(getattr(value, "value", value), word, example)


def show_size(value: Size) -> str:
    """A size as the source has it."""
    return str(value) if isinstance(value, int) else f"<{getattr(value, '__name__', type(value).__name__)}>"
