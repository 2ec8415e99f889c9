"""qflow: its defaults and nothing else; where a workload may be written in several ways, each of them."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from qflow.bench.throughput.peer import Epoch, Peer, Setting
from qflow.bench.throughput.workload import Job, Workload


@contextmanager
def run(job: Job, *, flow: str = "") -> Iterator[Epoch]:
    """``flow``: the way that it is written."""
    import qflow as qf

    steps: Any = [qf.process(n=job.n)(step) for step in job.steps]
    items = job.stages.chunks if job.stages else job.items
    with qf.Flow(job.stages.flows[flow]() if job.stages else functools.reduce(operator.or_, steps)) as pipe:
        yield lambda count: pipe(items(count), ordered=job.ordered)


def grid(workload: Workload) -> Sequence[Setting]:
    return [{"flow": name} if name else {} for name in (workload.stages.flows if workload.stages else [""])]


PEER = Peer("qflow", run, grid, package="qflow")
