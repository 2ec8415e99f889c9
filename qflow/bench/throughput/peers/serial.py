"""Serial: the plain loop in this process, without any library."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qflow.bench.throughput.peer import Epoch, Peer
from qflow.bench.throughput.workload import Job


@contextmanager
def run(job: Job) -> Iterator[Epoch]:
    yield lambda count: map(job.step, job.items(count))


PEER = Peer("serial loop", run, crosses=False)
