"""Engine: a way to run a plan; engines register here by name and are loaded on first use."""

from __future__ import annotations

import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from qflow.errors import GraphError, got

if TYPE_CHECKING:
    from qflow.graph.flow import Flow
    from qflow.graph.options import RunOptions
    from qflow.graph.plan import Plan
    from qflow.graph.run import Run


class Engine(ABC):
    """A way to run a plan."""

    @abstractmethod
    def start(self, flow: Flow[Any, Any], plan: Plan, source: Iterable[Any], length: int | None, options: RunOptions) -> Run[Any]:
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


def release(flow: Flow[Any, Any]) -> None:
    """End what any loaded engine keeps warm for a flow."""
    for known in _engines.values():  # also one whose module was imported, and never asked for by its name
        engine = getattr(sys.modules.get(known), "engine", None) if isinstance(known, str) else known
        if engine is not None:
            engine.release(flow)
