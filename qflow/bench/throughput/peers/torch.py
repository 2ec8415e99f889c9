"""torch DataLoader: one result at a time, as it is documented, and in batches made by hand that are flattened again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from qflow.bench.systems import Mapped
from qflow.bench.throughput.peer import Epoch, Peer, Setting, own_source
from qflow.bench.throughput.workload import Each, Job, Lazy, Workload, flat


def as_is(result: Any) -> Any:
    """A collate function that leaves arrays as arrays."""
    return result


@contextmanager
def run(
    job: Job, *, prefetch: int, tensors: bool = True, chunk: int = 1, rows: bool = False, sharing: str = ""
) -> Iterator[Epoch]:
    """``tensors``: arrays become tensors, which cross in shared memory. ``rows``: a data set of rows, that it batches."""
    import torch
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    if sharing:
        torch.multiprocessing.set_sharing_strategy(sharing)  # type: ignore[no-untyped-call]
    data, batch = _data(job, chunk, rows)
    loader: DataLoader[Any] = DataLoader(
        data,
        batch_size=batch,
        num_workers=job.n,
        prefetch_factor=prefetch,
        persistent_workers=True,
        in_order=job.ordered,
        collate_fn=None if tensors else as_is,
    )
    yield lambda: loader if chunk == 1 else flat(loader)


def _data(job: Job, chunk: int, rows: bool) -> tuple[Any, int | None]:
    """The data set, and the size of its batches if the loader makes them."""
    if rows and job.stages:
        stages = job.stages
        return Lazy(_Row(stages.row, stages.transform), job.count * stages.size), stages.size
    return (Mapped(job.step, job.items) if chunk == 1 else Mapped(Each(job.step), job.chunked(chunk))), None  # type: ignore[arg-type]


class _Row:
    """The number of a row -> the row, transformed."""

    def __init__(self, read: Any, transform: Any) -> None:
        self.read, self.transform = read, transform

    def __call__(self, number: int) -> Any:
        return self.transform(self.read(number))


def grid(workload: Workload) -> Sequence[Setting] | str:
    if reason := own_source(workload):
        return reason
    if workload.stages:
        return [{"prefetch": 2, "rows": True}, {"prefetch": 8, "rows": True}]
    if workload.packages == ("torch",):
        return [{"prefetch": 2}, {"prefetch": 8}, {"prefetch": 2, "sharing": "file_system"}]
    if workload.size:
        return [{"prefetch": 2}, {"prefetch": 2, "tensors": False}, {"prefetch": 8}, {"prefetch": 8, "tensors": False}]
    return [{"prefetch": 2}, {"prefetch": 16}]


def by_hand(workload: Workload) -> Sequence[Setting] | str:
    if reason := own_source(workload):
        return reason
    if workload.stages:
        return [{"prefetch": 2}, {"prefetch": 2, "tensors": False}, {"prefetch": 8}]
    tensors = {} if workload.packages == ("torch",) else {"tensors": False}
    return [{"prefetch": 4, "chunk": chunk, **tensors} for chunk in workload.chunks if chunk > 1]


PEER = Peer("torch DataLoader", run, grid, "torch")
BY_HAND = Peer("torch DataLoader, batched by hand", run, by_hand, "torch")
