"""Engines: the ways to run a plan; each is one file, loaded on first use.

>>> import qflow as qf
>>> list(qf.run(qf.process(n=3)(abs), [-1, 2], engine=qf.engines.Simulated(seed=7)))
[1, 2]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from qflow.graph.engine import register

if TYPE_CHECKING:
    from qflow.engines.processes import Processes
    from qflow.engines.serial import Serial
    from qflow.engines.simulated import Simulated

__all__ = ["Processes", "Serial", "Simulated"]

register("processes", "qflow.engines.processes")
register("serial", "qflow.engines.serial")


def __getattr__(name: str) -> Any:
    """Engines load on first use."""
    if name not in __all__:
        raise AttributeError(f"module 'qflow.engines' has no attribute {name!r}")
    return getattr(importlib.import_module(f"qflow.engines.{name.lower()}"), name)
