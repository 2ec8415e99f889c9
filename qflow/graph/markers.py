"""Markers: two objects that are one object after any round trip."""

from __future__ import annotations

from typing import Any, Final, NamedTuple, final


@final
class Marker:
    """A value that is known by its name, and compared by identity."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return f"qf.{self._name}"

    def __reduce__(self) -> str:
        return self._name


SKIP: Final[Any] = Marker("SKIP")
"""A function that returns it drops its item. Typed Any: `-> int` stays the type of what is not dropped."""

CLOSE: Final = Marker("CLOSE")
"""Ends a list on its way through the workers of a pool; never seen by user code."""


@final
class Quoted(NamedTuple):
    """An element of such a list that would be taken for a marker of ours."""

    value: Any


MARKS = frozenset({Marker, Quoted})
"""The types of values that no function is called with as they are."""
