"""Outputs: what a run would do, without running it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from qflow.errors import GraphError
from qflow.files.names import check_apart
from qflow.files.reading import Read, Skipping
from qflow.files.writing import Write, check_folder, defaults_of
from qflow.graph.flow import Flow, Joins, Queue
from qflow.graph.source import check_source
from qflow.graph.start import check_flow_params


class Output(NamedTuple):
    """Where an input would be written.

    Attributes:
        input: the name, or the list of names of a group.
        output: the path, unless metadata says another; None: nothing is written.
        skipped: with ``skip_existing``: it is there, and not older.
    """

    input: Any
    output: str | None
    skipped: bool = False


def outputs(flow: Joins[Any, Any], names: Iterable[Any], *, params: Mapping[str, Any] | None = None) -> list[Output]:
    """The outputs that a flow would write: a dry run.

    >>> import qflow as qf
    >>> qf.files.outputs(qf.files.read() | qf.files.write(print, append="_r"), ["a.fits"])
    [Output(input='a.fits', output='a_r.fits', skipped=False)]

    Args:
        flow: with one `write`.
        names: the source.
        params: as the run's.
    Raises:
        GraphError: as a run says before it begins: two inputs have one output, an output is an input, there is no folder ...
    """
    inside = [each for operator in Flow(flow).operators for each in operator.inside]
    write = next((each for each in inside if isinstance(each, Write)), None)
    if write is None:
        raise GraphError("There is no `qf.files.write` in this flow, so it has no outputs.")
    check_source(names, explicit=True)
    check_flow_params(Flow(flow), params or {})
    place = next((place for place, each in enumerate(inside) if isinstance(each, Read)), 0)
    if any(not isinstance(each, Queue) for each in inside[:place]):
        raise GraphError("What stands before `qf.files.read` may make other items of the names, so the outputs are not known.")
    values = {**defaults_of(inside), **(params or {})}
    items, switches, naming = list(names), write.switches.over(values), write.naming.over(values)
    if write.function is None:
        return [Output(item, None) for item in items]
    check_apart(items, naming)
    check_folder(naming)
    skipping = Skipping.of(naming) if switches.skip_existing else None
    there = [None if skipping is None else skipping.there(item, item, None) for item in items]
    return [Output(item, path or naming.path(item), path is not None) for item, path in zip(items, there, strict=True)]
