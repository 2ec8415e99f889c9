"""Ray: tasks on a local cluster, so many in flight; made for many machines, not for two cores."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from qflow.bench.throughput.peer import Epoch, Peer, Setting
from qflow.bench.throughput.workload import Each, Job, Workload, flat


@contextmanager
def run(job: Job, *, chunk: int, ahead: int = 4) -> Iterator[Epoch]:
    """``chunk``: items a task. ``ahead``: tasks of each worker that are in flight."""
    import ray

    ray.init(num_cpus=job.n * len(job.steps), include_dashboard=False, logging_level="ERROR", object_store_memory=1 << 30)
    try:
        steps = [ray.remote(_plain(step if chunk == 1 else Each(step))) for step in job.steps]
        results = _in_order if job.ordered else _as_they_come
        yield lambda count: flat(results(ray, steps, job.chunked(count, chunk), ahead * job.n), chunk)
    finally:
        ray.shutdown()


def _plain(step: Any) -> Any:
    """A function, which is what Ray takes."""
    return lambda item: step(item)


def _started(steps: Sequence[Any], item: Any) -> Any:
    for step in steps:
        item = step.remote(item)
    return item


def _in_order(ray: Any, steps: Sequence[Any], items: Sequence[Any], most: int) -> Iterator[Any]:
    pending: deque[Any] = deque()
    for item in items:
        if len(pending) == most:
            yield ray.get(pending.popleft())
        pending.append(_started(steps, item))
    while pending:
        yield ray.get(pending.popleft())


def _as_they_come(ray: Any, steps: Sequence[Any], items: Sequence[Any], most: int) -> Iterator[Any]:
    pending: list[Any] = []
    for item in items:
        pending.append(_started(steps, item))
        if len(pending) >= most:
            (ready,), pending = ray.wait(pending, num_returns=1)
            yield ray.get(ready)
    while pending:
        (ready,), pending = ray.wait(pending, num_returns=1)
        yield ray.get(ready)


def grid(workload: Workload) -> Sequence[Setting] | str:
    return [{"chunk": chunk} for chunk in dict.fromkeys([workload.chunks[-1], 1, workload.chunks[0]])]


PEER = Peer("Ray", run, grid, "ray", quick=False)
