"""multiprocessing.Pool: imap as it is, and with chunks of a size chosen by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from qflow.bench.throughput.peer import Epoch, Peer, Setting, one_stage
from qflow.bench.throughput.workload import Job, Workload


@contextmanager
def run(job: Job, *, chunksize: int = 1) -> Iterator[Epoch]:
    from multiprocessing import Pool

    with Pool(job.n) as pool:
        imap = pool.imap if job.ordered else pool.imap_unordered
        yield lambda count: imap(job.step, job.items(count), chunksize)


def plain(workload: Workload) -> Sequence[Setting] | str:
    return one_stage(workload) or [{}]


def by_hand(workload: Workload) -> Sequence[Setting] | str:
    return one_stage(workload) or [{"chunksize": chunk} for chunk in reversed(workload.chunks) if chunk > 1]


PLAIN = Peer("multiprocessing.Pool", run, plain, quick=False)
BY_HAND = Peer("multiprocessing.Pool, chunked by hand", run, by_hand)
