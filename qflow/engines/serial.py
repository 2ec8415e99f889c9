"""Serial: a flow in the caller's thread, one value at a time; it defines what a flow means.

The run is ``toolz.pipe`` over the operators' transforms, so ``print`` and ``pdb`` work in every step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, final

from qflow.errors import annotate, blamed
from qflow.graph.flow import Flow, through
from qflow.graph.plan import Plan
from qflow.graph.run import Engine, Run
from qflow.graph.source import use


@final
class Serial(Engine):
    """Runs everything in the calling thread; the source is read in ``next``."""

    def start(self, flow: Flow[Any, Any], plan: Plan, source: Iterable[Any], length: int | None, ordered: bool) -> Run[Any]:
        return SerialRun(plan.operators, source, length)


@final
class SerialRun(Run[Any]):
    """The transforms, piped over the source."""

    def __init__(self, operators: Iterable[Any], source: Iterable[Any], length: int | None) -> None:
        super().__init__(length)
        self._taken = 0
        self._values = through(operators, self._feed(use(source)))

    def _feed(self, values: Iterator[Any]) -> Iterator[Any]:
        for value in values:
            yield value
            del value  # not kept alive while the next one is waited for
            self._taken += 1

    def _next(self) -> Any:
        try:
            return next(self._values)
        except Exception as error:
            where = blamed(error)
            if where is not None:
                annotate(error, where[0], (self._taken,), where[1])
            elif not isinstance(error, StopIteration):
                annotate(error, "source", (self._taken,), None)
            raise

    def close(self) -> None:
        self._over = True
        close = getattr(self._values, "close", None)
        if close is not None:
            close()


engine = Serial()
