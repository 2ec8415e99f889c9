"""Carrier: a value that carries the one on which functions work, with what they may ask for beside it.

A function behind an operator that gives carriers is called with what they carry, and gives a carrier again: on a stream of
carriers it means what it means on the stream of what they carry. Data, metadata and control of a file travel so in `qflow.files`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qflow.graph.function import Function


class Carrier(ABC):
    """A value that is carried; see the head of this module."""

    __slots__ = ()

    @abstractmethod
    def mapped(self, function: Function) -> Iterable[Any]:
        """What comes of it by a function."""

    @abstractmethod
    def filtered(self, predicate: Function) -> Iterable[Any]:
        """What is left of it by a predicate."""

    @abstractmethod
    def empty(self) -> Any:
        """What stands for it where a failure is told: nothing large."""


def reported(value: Any) -> Any:
    """What is told of a value that failed."""
    return value.empty() if isinstance(value, Carrier) else value
