"""Start: all that is checked and counted before an engine begins with a flow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, overload

from qflow.errors import GraphError
from qflow.graph.context import check_params
from qflow.graph.engine import Engine, engine_of
from qflow.graph.options import MARK_WORDS, RunOptions, options_of
from qflow.graph.run import UNKNOWN, ItemFailure, Run
from qflow.graph.sizes import budget
from qflow.graph.source import check_source, lifted, source_length

if TYPE_CHECKING:
    from qflow.graph.flow import Flow, Joins, Operator
    from qflow.graph.plan import Plan

A = TypeVar("A")
B = TypeVar("B")


def plan(flow: Flow[Any, Any], options: dict[str, Any]) -> Plan:
    """The flow's plan for this moment: sizes read, workers counted."""
    return _plan(flow.operators, options)


def _plan(operators: tuple[Operator[Any, Any], ...], options: dict[str, Any]) -> Plan:
    from qflow.graph.plan import make_plan

    defaults = {word: value for word, value in options.items() if word != "memory"}
    memory = budget(options.get("memory"), 'pipe(xs, memory="4GB")')
    return make_plan(operators, options_of(defaults, "pipe(xs, {})"), memory)


def length(flow: Flow[Any, Any], source: Any) -> int:
    """The number of results, or TypeError."""
    from qflow.graph.flow import row_length

    known = row_length(flow.operators, source_length(source))
    if known is None:
        raise TypeError(UNKNOWN)
    return known


def start(flow: Flow[Any, Any], source: Any, engine: str | Engine, given: dict[str, Any]) -> Run[Any]:
    """Check everything that can be checked, then let the engine begin."""
    from qflow.graph.flow import row_length

    check_source(source, explicit=True)
    source = lifted(source)
    own = {field.name for field in dataclasses.fields(RunOptions)}
    defaults = {word: value for word, value in given.items() if word not in own}
    unknown = next((word for word in defaults if word not in MARK_WORDS or word == "name"), None)
    if unknown is not None:
        words = ", ".join(f"`{word}=`" for word in ("engine", *sorted(own), *sorted(MARK_WORDS - {"name"})))
        raise GraphError(f"A run has no option `{unknown}`: there are {words}.")
    options = RunOptions(**{word: value for word, value in given.items() if word in own})
    chosen = engine_of(engine)
    check_flow_params(flow, options.params)
    marks = options_of(defaults, "pipe(xs, {})")
    begun = _begun(source, tuple(operator.filled(marks) for operator in flow.operators), options)
    source, operators, options = begun.source, begun.operators, begun.options
    planned = dataclasses.replace(_plan(operators, defaults | {"memory": options.memory}), notes=begun.notes)
    items = source_length(source)
    length = row_length(planned.operators, items)
    if options.resume is not None:
        from qflow.graph.resume import check_flow

        check_flow(planned, items, options.resume)
        length = None if length is None else max(0, length - options.resume.get("results", 0))
    run = chosen.start(flow, planned, source, length, options)
    if planned.last is not None:
        run = planned.last.follow(run)
    run._source_length = items
    run._endings += begun.endings
    run._report = begun.failed
    return run


def check_flow_params(flow: Flow[Any, Any], params: Mapping[str, Any]) -> None:
    """A GraphError for parameters of a run that no operator names, for names that have no value, and for carriers left adrift."""
    from qflow.graph.flow import differing

    row = [each for operator in flow.operators for each in operator.inside]
    names, needs, given, owned, adrift = {}, {}, {*chain.from_iterable(each.backs for each in row)}, set[str](), ""
    labels = differing(operator.name for operator in flow.operators)
    for label, operator in zip(labels, flow.operators, strict=True):
        names[label], needs[label] = set[str](), list[str]()
        for each in operator.inside:
            needs[label] += [name for function in each.functions for name in function.needs if name not in given]
            names[label] |= {name for function in each.functions for name in function.parameters} - owned | each.takes
            given = set() if each.lands else given | each.gives
            owned = set() if each.lands else owned | each.owns
            adrift = "" if each.lands else each.adrift or adrift
    if adrift:
        raise GraphError(adrift)
    check_params(params, names, needs)


class _Begun(NamedTuple):
    """How a run begins, where operators say it."""

    source: Any
    operators: tuple[Operator[Any, Any], ...]
    options: RunOptions
    endings: list[Any]
    notes: Mapping[str, Any]
    failed: Callable[[ItemFailure], Any] | None


def _begun(source: Any, given: tuple[Operator[Any, Any], ...], options: RunOptions) -> _Begun:
    from qflow.graph.flow import Queue

    operators, endings, failed, notes, whole = given, list[Any](), None, dict[str, Any](), False
    for number, operator in reversed([*enumerate(given)]):
        found = None if whole else operator.begins(given[:number], source, options)
        if found is not None:
            source, whole = found.source, found.whole
            operators = (*found.operators, *operators[number + 1 :])
            endings += [found.ended] if found.ended else []
            plain = all(isinstance(each, Queue) or each.last for each in given[number + 1 :])
            failed, notes = failed or (found.failed if plain else None), {**found.notes, **notes}
    if not whole and options.resume is not None and options.resume.get("stored") is not None:
        raise GraphError(
            "The state is of a run that read a cache of other steps, or of another source. "
            "Go on with those, or begin anew without `resume=`."
        )
    if options.on_error == "report" and failed is None:
        raise GraphError('`on_error="report"` is for flows that end with `qf.files.write`. Write "skip" or "collect".')
    on_error = options.on_error or ("report" if failed else "raise")
    return _Begun(source, operators, dataclasses.replace(options, on_error=on_error), endings, notes, failed)


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
