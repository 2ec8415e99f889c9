"""Chain: maps and filters that one worker calls one after another, as one function."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from operator import is_
from typing import Any, cast, final

from qflow.graph.context import Setting
from qflow.graph.flow import Each, Operator, differing, row_length, through
from qflow.graph.function import Composite, Function


@final
class Chain(Composite):
    """A chain of maps and filters as one function: ``process(n=4)(qf.map(f) | g)``."""

    def __init__(self, operators: tuple[Operator[Any, Any], ...]) -> None:
        self.operators = operators
        self.__name__ = "+".join(operator.name for operator in operators)

    def __call__(self, value: Any) -> Any:
        """Its one result, or an iterator of none or several."""
        operators = self._ready.operators
        for number, operator in enumerate(operators, 1):
            outputs = cast("Each[Any, Any]", operator).called(value)
            if type(outputs) is not tuple:
                return through(operators[number:], iter(outputs))
            if not outputs:
                return iter(())
            (value,) = outputs  # what it was is not kept alive while the next one works
        return iter((value,)) if isinstance(value, Iterator) else value

    @functools.cached_property
    def _ready(self) -> Chain:
        return self.opened()

    def opened(self) -> Chain:
        ready = tuple(operator.opened() for operator in self.operators)
        return self if all(map(is_, ready, self.operators)) else Chain(ready)

    def length(self, items: int) -> int | None:
        return row_length(self.operators, items)

    @property
    def functions(self) -> tuple[Function, ...]:
        return tuple(function for operator in self.operators for function in operator.functions)

    def within(self, setting: Setting) -> Chain:
        labels = differing(f"{setting.label}.{operator.name}" for operator in self.operators)
        return Chain(
            tuple(
                operator.within(Setting(setting.context, label)) for operator, label in zip(self.operators, labels, strict=True)
            )
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return Chain, (self.operators,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chain) and self.operators == other.operators

    def __hash__(self) -> int:
        return hash(self.operators)

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.operators))
