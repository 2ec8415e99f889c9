"""torch DataLoader: one result at a time, as it is documented, and in batches made by hand that are flattened again."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from qflow.bench.systems import Mapped
from qflow.bench.throughput.peer import Epoch, Peer, Setting, own_source
from qflow.bench.throughput.workload import InTurn, Job, Lazy, Stages, Workload, flat


def as_is(result: Any) -> Any:
    """A collate function that leaves arrays as arrays."""
    return result


@contextmanager
def run(
    job: Job,
    *,
    prefetch: int,
    tensors: bool = True,
    chunk: int = 1,
    rows: bool = False,
    sharing: str = "",
    workers: int = 0,
) -> Iterator[Epoch]:
    """``tensors``: arrays become tensors, which cross in shared memory. ``rows``: a data set of rows, that it batches."""
    import torch
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    if sharing:
        torch.multiprocessing.set_sharing_strategy(sharing)  # type: ignore[no-untyped-call]
    stages = job.stages if rows else None
    size = stages.size if stages else 1
    order = Order(chunk)
    data: Any = _rows(stages) if stages else (Mapped if chunk == 1 else Parts)(job.step, job.items(job.workload.most))
    loader: DataLoader[Any] = DataLoader(
        data,
        sampler=order,
        batch_size=stages.size if stages else None,
        num_workers=workers or job.n,
        prefetch_factor=prefetch,
        persistent_workers=True,
        in_order=job.ordered,
        collate_fn=None if tensors else as_is,
    )

    def epoch(count: int) -> Iterable[Any]:
        order.count = count * size
        return flat(loader, chunk)

    yield epoch


def _rows(stages: Stages) -> Lazy:
    """A data set of rows, transformed."""
    return Lazy(InTurn((stages.row, stages.transform)), sys.maxsize)


class Order:
    """A sampler: the first ``count`` numbers, or slices of them; it can change while the workers stay."""

    def __init__(self, chunk: int) -> None:
        self.chunk, self.count = chunk, 0

    def __len__(self) -> int:
        return -(-self.count // self.chunk)

    def __iter__(self) -> Iterator[Any]:
        if self.chunk == 1:
            return iter(range(self.count))
        starts = range(0, self.count, self.chunk)
        return (slice(start, min(start + self.chunk, self.count)) for start in starts)


class Parts(Mapped):
    """A data set whose indices are slices."""

    def __getitem__(self, part: Any) -> list[Any]:
        return list(map(self.step, self.items[part]))


def grid(workload: Workload) -> Sequence[Setting] | str:
    if reason := own_source(workload):
        return reason
    if workload.stages:
        more: list[Setting] = [{"prefetch": 2, "rows": True, "workers": n} for n in workload.workers]
        return [{"prefetch": 2, "rows": True}, *more, {"prefetch": 8, "rows": True}]
    if "torch" in workload.packages:
        return [{"prefetch": 2}, {"prefetch": 8}, {"prefetch": 2, "sharing": "file_system"}]
    if workload.size:
        return [{"prefetch": 2}, {"prefetch": 2, "tensors": False}, {"prefetch": 8}, {"prefetch": 8, "tensors": False}]
    return [{"prefetch": 2}, {"prefetch": 16}]


def by_hand(workload: Workload) -> Sequence[Setting] | str:
    if reason := own_source(workload):
        return reason
    tensors = {} if "torch" in workload.packages else {"tensors": False}
    if workload.stages:
        others: list[Setting] = [{"prefetch": 2, "workers": n} for n in workload.workers]
        return [{"prefetch": 2}, *others, *([{"prefetch": 2, **tensors}] if tensors else []), {"prefetch": 8}]
    return [{"prefetch": 4, "chunk": chunk, **tensors} for chunk in workload.chunks if chunk > 1]


PEER = Peer("torch DataLoader", run, grid, "torch")
BY_HAND = Peer("torch DataLoader, batched by hand", run, by_hand, "torch")
