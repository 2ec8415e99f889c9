"""mpire: imap with chunks of a size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from qflow.bench.throughput.peer import Epoch, Peer, Setting, one_stage
from qflow.bench.throughput.workload import Job, Workload


@contextmanager
def run(job: Job, *, chunk: int) -> Iterator[Epoch]:
    from mpire import WorkerPool

    with WorkerPool(job.n, keep_alive=True) as pool:
        imap = pool.imap if job.ordered else pool.imap_unordered
        yield lambda: imap(job.step, job.items, iterable_len=len(job.items), chunk_size=chunk)


def grid(workload: Workload) -> Sequence[Setting] | str:
    return one_stage(workload) or [{"chunk": chunk} for chunk in dict.fromkeys([workload.chunks[-1], 1, *workload.chunks])]


PEER = Peer("mpire", run, grid, "mpire")
