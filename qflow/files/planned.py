"""Outputs: what a run would do, without running it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from qflow.errors import GraphError
from qflow.files.names import check_apart
from qflow.files.reading import is_newer
from qflow.files.writing import Write
from qflow.graph.flow import Flow, Joins
from qflow.graph.source import check_source


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
        GraphError: two inputs have one output, an output is an input, or there is no `write`.
    """
    inside = [each for operator in Flow(flow).operators for each in operator.inside]
    write = next((each for each in inside if isinstance(each, Write)), None)
    if write is None:
        raise GraphError("There is no `qf.files.write` in this flow, so it has no outputs.")
    check_source(names, explicit=True)
    items, switches = list(names), write.switches.over(params or {})
    naming = write.naming.over(write.said(inside, params or {}))
    if write.function is None:
        return [Output(item, None) for item in items]
    check_apart(items, naming)
    paths = [(item, naming.path(item)) for item in items]
    return [Output(item, path, switches.skip_existing and is_newer(path, item)) for item, path in paths]
