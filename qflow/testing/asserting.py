"""Asserting: a step or flow does what qflow asks of it, so that every engine and every replay gives one result."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from qflow.engines.simulated import Simulated
from qflow.errors import GraphError
from qflow.graph.flow import Each, Flow, Joins, Operator, Sourced
from qflow.graph.source import check_source, use
from qflow.testing.comparing import difference
from qflow.testing.sent import Sent
from qflow.testing.trials import tried

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

DEATHS = 3  # of a simulated run


def assert_step(
    step: Joins[Any, Any] | Callable[..., Any],
    values: Iterable[Any] | SearchStrategy[Any],
    *,
    seeds: Iterable[int] = range(3),
) -> None:
    """Assert that a step, or each step of a flow, does what qflow asks of it.

    >>> import qflow as qf
    >>> qf.testing.assert_step(qf.process(n=2)(abs), [-1, 0, 2.5])
    >>> seen = []
    >>> def running_total(x):
    ...     seen.append(x)
    ...     return sum(seen)
    >>> qf.testing.assert_step(running_total, [1, 2])           # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    AssertionError: Step 'running_total' gives different results for the same item, 1: result was 1, then 6. ...

    Checked for each function of the flow on the values that reach it:

    1. The values, and every result, can be sent to another process, and come back equal: type, dtype, shape,
       elements. A lambda or an open file does not, nor does an iterator in a container.
    2. The item is as it was after the call, which gets a copy that it could change.
    3. A result that was given never changes later: no buffer that is used again.
    4. The same item gives the same results when it is called again, whatever comes before it (the values in
       their order, then backwards), in an instance that is built anew, in no worker, and in another worker at
       its second try.

    Then, for the whole flow:

    5. `qflow.engines.Simulated` gives what the serial engine gives, for each of the seeds: the steps are sent to
       workers, which work in some order, get read-only arrays, and up to 3 of them die, so that items are replayed.

    An exception of the step itself is raised as it is. Not looked at is what the step does elsewhere, as files that
    it writes. Simulated workers share this process, so what a module or class keeps is shared by them, but not by
    real workers; and what goes wrong only now and then may be missed.

    Args:
        step: a function, class, operator or flow without source.
        values: what it is called with: a finite iterable, at least one; or a Hypothesis strategy for one value, of
            which lists are tried under your settings and shrunk. Inside ``@given`` pass ``[value]``.
        seeds: of the simulated runs.
    Raises:
        AssertionError: one of these does not hold; the text says what differs and what to write instead.
        GraphError: ``step`` is none, or there are no values.
    """
    __tracebackhide__ = True
    flow, seeds = _flow_of(step), tuple(seeds)
    strategies = sys.modules.get("hypothesis.strategies")  # loaded by whoever has made a strategy
    if strategies is not None and isinstance(values, strategies.SearchStrategy):
        from qflow.testing.drawing import check_drawn

        check_drawn(flow, values, lambda drawn: _assert_flow(flow, drawn, seeds))
        return
    check_source(values, explicit=True)
    examples = list(use(values))
    if not examples:
        raise GraphError("`assert_step` needs at least one value to call the step with, but `values` is empty.")
    _assert_flow(flow, examples, seeds)


def _flow_of(step: Any) -> Flow[Any, Any]:
    """What is tested, as a flow."""
    if isinstance(step, Sourced):
        raise GraphError(f"`assert_step` takes a flow without source, but got {step!r}. Give the source's items as `values`.")
    flow: Flow[Any, Any] = Flow(step)
    if not flow.operators:
        raise GraphError("`assert_step` takes a step or flow, but got the empty flow.")
    return flow


def _assert_flow(flow: Flow[Any, Any], values: Sequence[Any], seeds: Iterable[int]) -> None:
    """The checks for some values."""
    __tracebackhide__ = True
    sent = items = [Sent(value, "A value", "value") for value in values]
    for operator in flow.plan().row:
        items = tried(operator, items) if isinstance(operator, Each) else _streamed(operator, items)
    expected = list(flow([value.fresh() for value in sent], engine="serial"))
    for seed in seeds:
        _assert_simulated(flow, [value.fresh() for value in sent], seed, expected)


def _streamed(operator: Operator[Any, Any], items: Sequence[Sent]) -> list[Sent]:
    """What a stream gives; it is none of the user's."""
    results = operator.transform(item.fresh() for item in items)
    return [Sent(result, f"A result of {operator!r}", "result") for result in results]


def _assert_simulated(flow: Flow[Any, Any], values: list[Any], seed: int, expected: list[Any]) -> None:
    __tracebackhide__ = True
    where = f"with engine=qf.engines.Simulated({seed})"
    try:
        results = list(flow(values, engine=Simulated(seed, deaths=DEATHS, attempts=DEATHS + 2), n=2))
    except Exception as error:
        raise AssertionError(
            f"{flow!r} runs in the serial engine, but {where} it raises {type(error).__name__}: {error}"
        ) from error
    if len(results) != len(expected):
        raise AssertionError(f"{flow!r} gives {len(expected)} results in the serial engine, but {where} {len(results)}.")
    found = difference(expected, results)
    if found:
        raise AssertionError(
            f"{flow!r} gives other results {where} than in the serial engine: {found.told('results')}. "
            "Workers have instances of their own, and replay items when one dies: does the step keep or share something?"
        )
