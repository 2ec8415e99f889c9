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

    steps: Any = [qf.process(n=job.n)(step) for step in job.steps]
    items = job.stages.chunks if job.stages else job.items
    with qf.Flow(job.stages.flow() if job.stages else functools.reduce(operator.or_, steps)) as pipe:
        yield lambda count: pipe(items(count), ordered=job.ordered)


PEER = Peer("qflow", run, package="qflow")
