"""Run: the seam between a flow and the engines.

`Flow` calls `start`; engines register here by name and are loaded on first use. An engine has
two methods, and a run is an iterator that can be closed.
"""

from __future__ import annotations

import dataclasses
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from qflow.errors import GraphError, got
from qflow.graph.source import check_source, source_length

if TYPE_CHECKING:
    from qflow.graph.flow import Flow, Joins
    from qflow.graph.plan import Plan

_UNKNOWN = (
    "The number of results is not known before they came: the source, a generator step, `qf.filter`, `qf.unpack` "
    "or `qf.repack` decides it."
)

A = TypeVar("A")
B = TypeVar("B")


class Run(ABC, Iterator[B], Generic[B]):
    """The results of one run, one by one, in order; closes itself at the end, on an error and when dropped.

    As a context manager it is closed when the block is left. ``len(run)`` is the number of results
    where it can be known before they came (a step is taken to give one result an item unless it is
    written as a generator), else TypeError. Iterating an exhausted run is a GraphError.
    """

    def __init__(self, length: int | None) -> None:
        self._length = length
        self._over = False

    @abstractmethod
    def _next(self) -> B:
        """The next result, or StopIteration at the end."""

    @abstractmethod
    def close(self) -> None:
        """Stop early: the workers go to rest, within a second. Closing twice does nothing."""

    def stats(self) -> list[StepStats]:
        """What each step did so far; empty where the engine does not count."""
        return []

    def __iter__(self) -> Run[B]:
        if self._over:
            raise GraphError("This run is exhausted. Start another one: `for x in pipe(source): ...`.")
        return self

    def __next__(self) -> B:
        if self._over:
            raise StopIteration
        try:
            return self._next()
        except BaseException:
            self._over = True
            self.close()
            raise

    def __len__(self) -> int:
        if self._length is None:
            raise TypeError(_UNKNOWN)
        return self._length

    def __bool__(self) -> bool:
        return True

    def __enter__(self) -> Run[B]:
        return self

    def __exit__(self, *exception: object) -> None:
        self._over = True
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("A run can't be copied or pickled; it holds workers. Pickle the flow instead.")


@dataclasses.dataclass(frozen=True)
class StepStats:
    """Counts of one step in one run.

    Attributes:
        name: the step's name in the plan.
        n: its workers.
        items: values taken so far.
        results: values given so far.
        busy: seconds its workers spent in the step's code, summed.
        share: ``busy`` per worker over the run's seconds so far, 0 to 1: near 1 is the bottleneck.
    """

    name: str
    n: int
    items: int
    results: int
    busy: float
    share: float


class Engine(ABC):
    """A way to run a plan."""

    @abstractmethod
    def start(self, flow: Flow[Any, Any], plan: Plan, source: Iterable[Any], length: int | None, ordered: bool) -> Run[Any]:
        """Check the source and start to fill; the flow owns what is kept warm."""

    def release(self, flow: Flow[Any, Any]) -> None:  # noqa: B027  most engines keep nothing
        """End what is kept warm for a flow."""


_engines: dict[str, str | Engine] = {}


def register(name: str, where: str) -> None:
    """Make an engine known: a name, and the module that has it as ``engine``."""
    _engines[name] = where


def engine_of(wanted: str | Engine) -> Engine:
    """The engine of a name, loaded on first use."""
    if isinstance(wanted, Engine):
        return wanted
    found = _engines.get(wanted) if isinstance(wanted, str) else None
    if found is None:
        raise GraphError(
            f"`engine` is one of {', '.join(map(repr, _engines))}, or an engine of qf.engines, but got {got(wanted)}."
        )
    if isinstance(found, str):
        found = _engines[wanted] = importlib.import_module(found).engine
    return found


def plan(flow: Flow[Any, Any], n: int) -> Plan:
    """The flow's plan for this moment: sizes read, workers counted."""
    from qflow.graph.plan import make_plan

    return make_plan(flow.operators, n)


def length(flow: Flow[Any, Any], source: Any) -> int:
    """The number of results, or TypeError."""
    from qflow.graph.flow import row_length

    known = row_length(flow.operators, source_length(source))
    if known is None:
        raise TypeError(_UNKNOWN)
    return known


def start(flow: Flow[Any, Any], source: Any, engine: str | Engine, ordered: bool, options: dict[str, Any]) -> Run[Any]:
    """Check everything that can be checked, then let the engine begin."""
    from qflow.graph.flow import row_length
    from qflow.graph.sizes import count

    check_source(source, explicit=True)
    n = options.pop("n", 1)
    if options:
        raise GraphError(f"A run has no option `{next(iter(options))}`: there are `engine=`, `ordered=` and `n=`.")
    if not isinstance(ordered, bool):
        raise GraphError(f"`ordered` is True or False, but got {got(ordered)}.")
    chosen = engine_of(engine)
    planned = plan(flow, count(n, "n", "pipe(xs, n=2)"))
    return chosen.start(flow, planned, source, row_length(planned.operators, source_length(source)), ordered)


def release(flow: Flow[Any, Any]) -> None:
    """End what any loaded engine keeps warm for a flow."""
    for engine in _engines.values():
        if isinstance(engine, Engine):
            engine.release(flow)


@overload
def run(step_or_flow: Joins[A, B], source: Iterable[A], **options: Any) -> Run[B]: ...
@overload
def run(step_or_flow: Callable[[A], Iterator[B]], source: Iterable[A], **options: Any) -> Run[B]: ...
@overload
def run(step_or_flow: Callable[[A], B], source: Iterable[A], **options: Any) -> Run[B]: ...
def run(step_or_flow: Any, source: Iterable[Any], **options: Any) -> Run[Any]:
    """Run one step or flow over a source.

    >>> import qflow as qf
    >>> list(qf.run(qf.pack(2), "a b c".split(), engine="serial"))
    [['a', 'b'], ['c']]

    Args:
        step_or_flow: an operator, flow or plain function.
        source, options: as in ``flow(source, ...)``.
    """
    from qflow.graph.flow import Flow

    return Flow(step_or_flow)(source, **options)


def picture(flow: Flow[Any, Any]) -> dict[str, str]:
    """How a notebook shows a flow."""
    from qflow.graph.draw import svg

    return {"text/plain": repr(flow), "text/html": svg(flow), "image/svg+xml": svg(flow, literal=True)}
