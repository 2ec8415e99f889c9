"""mpire: imap with chunks of a size, and with chunks made by hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from qflow.bench.throughput.peer import Epoch, Peer, Setting, one_stage
from qflow.bench.throughput.workload import Job, Workload, flat


@contextmanager
def run(job: Job, *, chunk: int = 1, by_hand: int = 1) -> Iterator[Epoch]:
    """``chunk``: what it sends at once. ``by_hand``: items of a task, which saves it the bookkeeping of each."""
    from mpire import WorkerPool

    with WorkerPool(job.n, keep_alive=True) as pool:
        imap = pool.imap if job.ordered else pool.imap_unordered

        def epoch(count: int) -> Iterable[Any]:
            items = job.chunked(count, by_hand)
            # In tuples of one, for it would take a list for the arguments of a call.
            results = imap(job.on_chunks(by_hand), zip(items, strict=True), iterable_len=len(items), chunk_size=chunk)
            return flat(results, by_hand)

        yield epoch


def grid(workload: Workload) -> Sequence[Setting] | str:
    chunks = [chunk for chunk in reversed(workload.chunks) if chunk > 1]
    return one_stage(workload) or [{"chunk": chunks[0]}, *({"by_hand": chunk} for chunk in chunks), {}]


PEER = Peer("mpire", run, grid, "mpire")
