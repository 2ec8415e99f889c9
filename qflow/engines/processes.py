"""Processes: a flow as worker processes and bounded channels; the default engine.

    source -> feeder thread -> channel -> workers -> channel -> ... -> consumer's thread
              (this process)              (crew)                       (this process)

`start` pickles the steps, takes the flow's warm crew or makes one, and lets the feeder begin; `next`
takes from the last channel. When a run ends its crew goes back to the flow, for the next run.

The first run of a process is the slow one: this process and the nursery load much the same modules, 0.1 s each.
They do it at the same time: the nursery is started first, and only then what a run needs here is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, final

from qflow.errors import GraphError, got
from qflow.graph.engine import Engine
from qflow.graph.run import Run
from qflow.graph.sizes import count
from qflow.runtime import nursery

if TYPE_CHECKING:
    from qflow.graph.flow import Flow
    from qflow.graph.options import RunOptions
    from qflow.graph.plan import Plan


@final
class Processes(Engine):
    """Worker processes; no ``if __name__ == "__main__"`` is needed.

    >>> import qflow as qf
    >>> list(qf.run(abs, [-1, -2], engine=qf.engines.Processes(start="spawn")))
    [1, 2]

    Args:
        start: "forkserver", copies of a preloaded process of our own; "spawn", fresh interpreters, 1 s each where
            torch is loaded; or "fork", copies of this process, which must have no other threads and not use CUDA.
        attempts: how many workers may die of an item before it fails with `WorkerDied`, at least 1.
    Raises:
        GraphError: an argument is none of these.
    """

    def __init__(self, *, start: str = "forkserver", attempts: int = 2) -> None:
        if start not in nursery.STARTS:
            raise GraphError(f"`start` is one of {', '.join(map(repr, nursery.STARTS))}, but got {got(start)}.")
        self._start = start
        self.attempts = count(attempts, "attempts", "qf.engines.Processes(attempts=2)")

    def start(self, flow: Flow[Any, Any], plan: Plan, source: Iterable[Any], length: int | None, options: RunOptions) -> Run[Any]:
        with nursery.ahead(self._start):
            from qflow.engines.session import begin

            return begin(flow, plan, source, length, options, start=self._start, attempts=self.attempts)

    def release(self, flow: Flow[Any, Any]) -> None:
        warm = sys.modules.get("qflow.engines.warm")  # not loaded, there was no run
        if warm is not None:
            warm.release(flow)


engine = Processes()
