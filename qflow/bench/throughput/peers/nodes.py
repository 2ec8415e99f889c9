"""torchdata.nodes: a chain of parallel mappers, of processes or of threads."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from qflow.bench.throughput.peer import Epoch, Peer, Setting
from qflow.bench.throughput.workload import Job, Workload


@contextmanager
def run(job: Job, *, method: str, prebatch: int | None = None) -> Iterator[Epoch]:
    """``prebatch``: so many items are sent at once."""
    import torch
    from torchdata import nodes

    torch.set_num_threads(1)
    yield lambda count: nodes.Loader(_chain(nodes, job, count, method, prebatch))


def _chain(nodes: Any, job: Job, count: int, method: str, prebatch: int | None) -> Any:
    node = nodes.IterableWrapper(job.items(count))
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
    return node


def grid(workload: Workload) -> Sequence[Setting] | str:
    cells: list[Setting] = [{}, *({"prebatch": chunk} for chunk in workload.chunks if chunk > 1)]
    return cells[-1:] + cells[:-1]


PEER = Peer("torchdata.nodes, processes", partial(run, method="process"), grid, "torchdata", quick=False)
THREADS = Peer("torchdata.nodes, threads", partial(run, method="thread"), grid, "torchdata", crosses=False, quick=False)
