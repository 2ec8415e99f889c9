"""qflow: mark functions, join them with ``|``, and run them as worker processes and bounded queues.

>>> import qflow as qf
>>> @qf.process(n=2)
... def read(chunk):
...     return [chunk, chunk + 1]
>>> @qf.pool(n=2)
... def transform(event):
...     return 10 * event
>>> @qf.process
... def collate(events):
...     return sum(events)
>>> pipe = read | transform | qf.repack(3) | collate | qf.queue(4)
>>> with pipe:
...     for batch in pipe([0, 2, 4]):
...         print(batch)
30
120
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from qflow import engines as engines
from qflow.errors import (
    GraphError,
    InternalError,
    NondeterministicStep,
    QFlowError,
    ResourceError,
    StepError,
    StepTimeout,
    TransportError,
    WorkerDied,
)
from qflow.graph.flow import Flow
from qflow.graph.markers import SKIP
from qflow.graph.marks import filter, map, pool, process, queue, thread
from qflow.graph.mix import mix
from qflow.graph.rebatch import rebatch
from qflow.graph.regroup import pack, repack, unpack
from qflow.graph.repeat import repeat
from qflow.graph.run import ItemFailure, Run
from qflow.graph.shard import shard
from qflow.graph.shuffle import shuffle
from qflow.graph.source import source
from qflow.graph.start import run
from qflow.graph.take import take

if TYPE_CHECKING:
    from qflow.runtime.outgoing import empty
    from qflow.runtime.shared import shared
    from qflow.train.cache import cache
    from qflow.train.device import to_device

__version__ = "0.1.0"

__all__ = [
    "SKIP",
    "Flow",
    "GraphError",
    "InternalError",
    "ItemFailure",
    "NondeterministicStep",
    "QFlowError",
    "ResourceError",
    "Run",
    "StepError",
    "StepTimeout",
    "TransportError",
    "WorkerDied",
    "cache",
    "empty",
    "engines",
    "filter",
    "map",
    "mix",
    "pack",
    "pool",
    "process",
    "queue",
    "rebatch",
    "repack",
    "repeat",
    "run",
    "shard",
    "shared",
    "shuffle",
    "source",
    "take",
    "thread",
    "to_device",
    "unpack",
]

_LATER = {
    "h5": "qflow.h5",
    "files": "qflow.files",
    "empty": "qflow.runtime.outgoing",
    "shared": "qflow.runtime.shared",
    "testing": "qflow.testing",
    "cache": "qflow.train.cache",
    "to_device": "qflow.train.device",
    "train": "qflow.train",
    "worker": "qflow.runtime.whereabouts",
} | dict.fromkeys(["Sequence", "ProcessStep", "PoolStep", "PackStep", "UnpackStep", "RepackStep"], "qflow.compat")


def __getattr__(name: str) -> Any:
    """Modules and names that load on first use."""
    if name not in _LATER:
        raise AttributeError(f"module 'qflow' has no attribute {name!r}")
    module = importlib.import_module(_LATER[name])
    return module if _LATER[name] == f"qflow.{name}" else getattr(module, name)
