"""Pool: a step on the elements of lists, which travel one by one, so that those of several lists are worked on at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import Any, ParamSpec, TypeVar, final

from qflow.graph.accumulator import Accumulator
from qflow.graph.context import Context
from qflow.graph.flow import Each, Operator, Stream, results
from qflow.graph.markers import CLOSE, Quoted
from qflow.graph.regroup import grouped
from qflow.graph.step import Step

A = TypeVar("A", contravariant=True)
B = TypeVar("B", covariant=True)
P = ParamSpec("P")
R = TypeVar("R")


@final
class Pool(Step[A, B, P, R]):
    """A function applied to the elements of lists; see `qf.pool`.

    An engine runs it as scatter | elements | gather: the elements travel one by one, a CLOSE
    after each list, so that the lists of several items are worked on at the same time.
    """

    word = "pool"
    placement = "process"

    def plain(self, context: Context) -> None:
        return None

    def outputs(self, value: Any) -> Iterable[Any]:
        return ([result for element in grouped(value, "pool") for result in results(self.function(element))],)

    def length(self, items: int) -> int | None:
        return items

    def lower(self) -> tuple[Operator[Any, Any], ...]:
        return Scatter(), Elements(self.function, dataclasses.replace(self.options, name=self.name)), Gather()


@final
class Scatter(Each[Any, Any]):
    """The elements of a list one by one, then CLOSE."""

    expands = feeds = True
    name = "scatter"

    def outputs(self, value: Any) -> Iterable[Any]:
        # The whole list first: what fails in the middle must not leave a list without its CLOSE.
        return iter([*(_quoted(element) for element in grouped(value, "pool")), CLOSE])


def _quoted(element: Any) -> Any:
    return Quoted(element) if element is CLOSE or type(element) is Quoted else element


@final
class Elements(Step[Any, Any, Any, Any]):
    """A pool's function on single elements; CLOSE passes through."""

    word = "pool"
    placement = "process"

    def outputs(self, value: Any) -> Iterable[Any]:
        if value is CLOSE:
            return (CLOSE,)
        return self.given(self.function(value.value if type(value) is Quoted else value))

    def given(self, result: Any) -> Iterable[Any]:
        outputs = results(result)
        quoted = (_quoted(output) for output in outputs)
        return tuple(quoted) if type(outputs) is tuple else quoted


@final
class Gather(Stream[Any, Any]):
    """The lists again, each ended by its CLOSE."""

    name = "gather"
    spans = False

    def accumulator(self, state: Any = None) -> Accumulator:
        return Gathered(state)


@final
class Gathered(Accumulator):
    """The elements of a list that is not yet closed."""

    whole = True

    def __init__(self, state: Any) -> None:
        self._list: list[Any] = list(state or ())
        self._usual = 0  # elements of the list before

    @property
    def missing(self) -> int:
        return max(0, self._usual - len(self._list))

    def add(self, value: Any) -> Iterator[Any]:
        if self.skip:
            self.skip = 0
        elif value is CLOSE:
            gathered, self._list, self._usual = self._list, [], len(self._list)
            yield gathered
        else:
            self._list.append(value.value if type(value) is Quoted else value)

    def take(self, values: list[Any]) -> int:
        taken = [*takewhile(lambda value: value is not CLOSE and type(value) is not Quoted, values)]
        self._list += taken
        return len(taken)

    @property
    def state(self) -> Any:
        return self._list or None
