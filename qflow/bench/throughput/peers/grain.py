"""Grain: a mapped data set whose workers send ahead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from qflow.bench.throughput.peer import Epoch, Peer, Setting, own_source
from qflow.bench.throughput.workload import Job, Workload, flat


@contextmanager
def run(job: Job, *, buffer: int, threads: int = 1, chunk: int = 1) -> Iterator[Epoch]:
    """``buffer``: results that wait for each worker. ``threads``: of each worker."""
    import grain

    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, 8))
    options = grain.MultiprocessingOptions(num_workers=job.n, per_worker_buffer_size=buffer)

    def epoch(count: int) -> Iterable[Any]:
        mapped = grain.MapDataset.source(job.chunked(count, chunk)).map(job.on_chunks(chunk))
        return flat(mapped.to_iter_dataset(reading).mp_prefetch(options), chunk)

    yield epoch


def grid(workload: Workload) -> Sequence[Setting] | str:
    if reason := own_source(workload):
        return reason
    chunks = [{"buffer": 4, "chunk": chunk} for chunk in workload.chunks if chunk > 1]
    if workload.size >= 1 << 16:
        return [{"buffer": 4}, {"buffer": 16}, *chunks[:1]]
    return [*chunks[-1:], {"buffer": 16}, *chunks[:-1]]


PEER = Peer("Grain", run, grid, "grain", quick=False)
