"""joblib: a generator of results from its reusable processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from qflow.bench.throughput.peer import Epoch, Peer, Setting, one_stage
from qflow.bench.throughput.workload import Job, Workload, flat


@contextmanager
def run(job: Job, *, chunk: int, ahead: int = 4) -> Iterator[Epoch]:
    """``chunk``: items a task; 1: joblib chooses how many. ``ahead``: tasks of each worker that are sent ahead."""
    from joblib import Parallel, delayed

    kind = "generator" if job.ordered else "generator_unordered"
    task = delayed(job.on_chunks(chunk))
    size = "auto" if chunk == 1 else 1
    with Parallel(job.n, return_as=kind, batch_size=size, pre_dispatch=f"{ahead} * n_jobs") as parallel:
        yield lambda count: flat(parallel(task(item) for item in job.chunked(count, chunk)), chunk)


def grid(workload: Workload) -> Sequence[Setting] | str:
    if workload.n == 1:
        return "with one job it computes in the caller's process"
    return one_stage(workload) or [{"chunk": chunk} for chunk in dict.fromkeys([workload.chunks[-1], 1, *workload.chunks])]


PEER = Peer("joblib", run, grid, "joblib")
