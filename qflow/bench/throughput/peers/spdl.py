"""SPDL: stages of threads, stages of a pool of processes, and everything in one subprocess with its shared memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from qflow.bench.systems import Mapped
from qflow.bench.throughput.peer import Epoch, Peer, Setting, own_source
from qflow.bench.throughput.workload import Each, Job, Workload, flat

if TYPE_CHECKING:
    from concurrent.futures import Executor


@contextmanager
def run(job: Job, *, processes: bool, chunk: int = 1, sink: int = 8, staged: bool = False, workers: int = 0) -> Iterator[Epoch]:
    """``chunk``: so many items go through the stages at once. ``staged``: read, transform, regroup, collate."""
    from concurrent.futures import ProcessPoolExecutor

    n = workers or job.n
    with ProcessPoolExecutor(n) if processes else nullcontext() as pool:
        if staged:
            yield partial(_epoch, partial(_staged, job, pool, n), 1 + n, sink)
        else:
            epoch = partial(_epoch, partial(_mapped, job, pool, n, chunk), n * len(job.steps), sink)
            yield lambda count: flat(epoch(count), chunk)


def _epoch(add: Any, threads: int, sink: int, count: int) -> Iterable[Any]:
    from spdl.pipeline import PipelineBuilder

    pipeline = add(PipelineBuilder(), count).add_sink(sink).build(num_threads=max(4, threads))
    with pipeline.auto_stop():
        yield from pipeline


def _mapped(job: Job, pool: Executor | None, n: int, chunk: int, builder: Any, count: int) -> Any:
    builder.add_source(job.chunked(count, chunk))
    for step in job.steps:
        builder.pipe(
            step if chunk == 1 else Each(step),
            executor=pool,
            concurrency=n,
            output_order="input" if job.ordered else "completion",
        )
    return builder


def _staged(job: Job, pool: Executor | None, n: int, builder: Any, count: int) -> Any:
    stages = job.stages
    assert stages
    order: dict[str, Any] = {"output_order": "input"}
    transform: dict[str, Any] = {"executor": pool, "concurrency": n, **order}
    builder.add_source(stages.chunks(count))
    if stages.read:
        builder.pipe(stages.read, **order).pipe(Each(stages.transform), **transform).disaggregate()
    else:
        builder.pipe(stages.transform, **transform)
    return builder.aggregate(stages.size).pipe(stages.collate, **order)


@contextmanager
def run_in_subprocess(job: Job, *, buffer: int, arena: int = 0, chunk: int = 1) -> Iterator[Epoch]:
    """``arena``: so many segments of shared memory, which are used again and again."""
    from spdl.pipeline import SharedMemorySegmentPool, iterate_in_subprocess

    size = max(1 << 20, 2 * chunk * job.workload.size)

    def epoch(count: int) -> Iterable[Any]:
        memory = SharedMemorySegmentPool(segment_size=size, count=arena) if arena else None  # it serves one iteration
        data = partial(Mapped, job.on_chunks(chunk), job.chunked(count, chunk))
        return flat(iterate_in_subprocess(data, buffer_size=buffer, arena=memory), chunk)

    yield epoch


def grid(workload: Workload) -> Sequence[Setting] | str:
    if workload.stages:
        return [{"staged": True}, {}, *({"staged": True, "workers": n} for n in workload.workers), {"chunk": 2}]
    chunks: list[Setting] = [{"chunk": chunk} for chunk in workload.chunks if chunk > 1]
    return [*chunks[-1:], {}, *chunks[:-1]]


def grid_of_subprocess(workload: Workload) -> Sequence[Setting] | str:
    if reason := own_source(workload):
        return reason
    if workload.n > 2:
        return "it has one worker"
    chunks = [{"buffer": 8, "chunk": chunk} for chunk in workload.chunks if chunk > 1]
    if workload.size >= 1 << 16:
        return [{"buffer": 3, "arena": 4}, {"buffer": 8, "arena": 12}, {"buffer": 3}]
    if workload.size:
        return [*({**cell, "arena": 12} for cell in chunks[-1:]), *chunks[-1:], *chunks[:-1]]
    return [*chunks[-1:], {"buffer": 8}, *chunks[:-1]]


THREADS = Peer("SPDL, threads", partial(run, processes=False), grid, "spdl", crosses=False, quick=False)
PROCESSES = Peer("SPDL, pool of processes", partial(run, processes=True), grid, "spdl", quick=False)
SUBPROCESS = Peer("SPDL, one subprocess", run_in_subprocess, grid_of_subprocess, "spdl")
