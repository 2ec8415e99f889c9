"""What a training loop needs around a flow.

loader = qf.train.Loader(source | pipe, seed=0)
for epoch in range(3):
    for batch in loader: ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qflow.train.loader import Loader as Loader

if TYPE_CHECKING:
    from qflow.train.iterable import dataset as dataset

__all__ = ["Loader", "dataset"]


def __getattr__(name: str) -> Any:
    """What needs torch loads on first use."""
    if name != "dataset":
        raise AttributeError(f"module 'qflow.train' has no attribute {name!r}")
    from qflow.train.iterable import dataset

    return dataset
