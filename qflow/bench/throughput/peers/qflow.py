"""qflow: its defaults and nothing else."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qflow.bench.throughput.peer import Epoch, Peer
from qflow.bench.throughput.workload import Job


@contextmanager
def run(job: Job) -> Iterator[Epoch]:
    import qflow as qf

    if job.stages:
        flow: Any = job.stages.flow()
        items = job.stages.chunks(job.count)
    else:
        flow, items = functools.reduce(operator.or_, [qf.process(n=job.n)(step) for step in job.steps]), job.items
    with qf.Flow(flow) as pipe:
        yield lambda: pipe(items, ordered=job.ordered)


PEER = Peer("qflow", run, package="qflow")
