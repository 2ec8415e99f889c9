"""torchdata.nodes: a chain of parallel mappers, of processes or of threads."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal

from qflow.bench.throughput.peer import Epoch, Peer, Setting
from qflow.bench.throughput.workload import Job, Workload


@contextmanager
def run(job: Job, *, method: Literal["process", "thread"], prebatch: int | None = None) -> Iterator[Epoch]:
    """``prebatch``: so many items are sent at once."""
    import torch
    from torchdata import nodes

    torch.set_num_threads(1)
    node: nodes.BaseNode[object] = nodes.IterableWrapper(job.items)
    for step in job.steps:
        node = nodes.ParallelMapper(
            node,
            step,
            num_workers=job.n,
            in_order=job.ordered,
            method=method,
            snapshot_frequency=sys.maxsize,  # no checkpoints, which cost time for each item
            prebatch=prebatch,
        )
    loader = nodes.Loader(node)
    yield lambda: loader


def grid(workload: Workload, method: str) -> Sequence[Setting] | str:
    cells: list[Setting] = [
        {"method": method},
        *({"method": method, "prebatch": chunk} for chunk in workload.chunks if chunk > 1),
    ]
    return cells[-1:] + cells[:-1]


PEER = Peer("torchdata.nodes, processes", run, partial(grid, method="process"), "torchdata")
THREADS = Peer("torchdata.nodes, threads", run, partial(grid, method="thread"), "torchdata", crosses=False, quick=False)
