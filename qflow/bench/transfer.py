"""Epochs of batches on their way to a device, for `device`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

import qflow as qf

Batches = Iterable[torch.Tensor]


class Made(Dataset[torch.Tensor]):
    """Batches as a map-style data set and as a step: each has its number in its first element."""

    def __init__(self, batches: int, nbytes: int) -> None:
        self.batches, self.nbytes = batches, nbytes
        self._batch: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, number: int) -> torch.Tensor:
        if self._batch is None:
            self._batch = torch.ones(self.nbytes // 4)
        batch = self._batch.clone()
        batch[0] = number
        return batch

    def __reduce__(self) -> Any:
        return Made, (self.batches, self.nbytes)


class Figures(NamedTuple):
    """Of one epoch: batches per second, bytes per second, and the median wait for a batch in microseconds."""

    rate: float
    nbytes: float
    wait: float


def systems(made: Made, device: torch.device) -> dict[str, Callable[[], Batches]]:
    """An epoch of each way to the device, by what it is called."""
    step = qf.process(n=2)(made.__getitem__)
    plain, moving, staged = step | qf.queue(4), step | qf.queue(4) | qf.to_device(str(device)), step | qf.queue(4, memory="4GB")
    loader: Any = DataLoader(made, batch_size=None, num_workers=2, pin_memory=device.type == "cuda", persistent_workers=True)
    found: dict[str, Callable[[], Batches]] = {
        "qflow, qf.to_device": partial(moving, range(len(made))),
        "qflow, .to(device) in the loop": lambda: _moved(plain(range(len(made))), device),
        "DataLoader, pinned, .to(non_blocking=True)": lambda: _moved(loader, device),
    }
    if device.type == "cuda":
        found["qflow, qf.to_device, through PyTorch's pages"] = partial(staged | qf.to_device(str(device)), range(len(made)))
    return found


def _moved(batches: Batches, device: torch.device) -> Iterator[torch.Tensor]:
    for batch in batches:
        yield batch.to(device, non_blocking=True)


def model_of(device: torch.device, busy: float) -> Callable[[], object]:
    """What keeps the device busy for so many seconds."""
    if device.type != "cuda":
        return lambda: None
    square = torch.rand(2048, 2048, device=device)
    _sync(device)
    began = time.perf_counter()
    for _ in range(20):
        square @ square
    _sync(device)
    times = max(1, round(busy / ((time.perf_counter() - began) / 20)))
    return lambda: [square @ square for _ in range(times)]


def measured(epoch: Callable[[], Batches], made: Made, device: torch.device, model: Callable[[], object]) -> Figures:
    waits, right = [], torch.ones((), device=device, dtype=torch.bool)
    batches = iter(epoch())
    began = last = time.perf_counter()
    for number in range(len(made)):
        batch = next(batches)
        waits.append(time.perf_counter() - last)
        right &= batch[0] == number
        model()
        last = time.perf_counter()
    _sync(device)
    seconds = time.perf_counter() - began
    if next(batches, None) is not None or not right:
        raise RuntimeError("A system gave other batches than those that were made.")
    return Figures(len(made) / seconds, made.nbytes * len(made) / seconds, statistics.median(waits) * 1e6)


def bound(device: torch.device, nbytes: int) -> float:
    """Bytes per second of copies from locked memory."""
    here = torch.empty(nbytes, dtype=torch.uint8).pin_memory()
    there = torch.empty(nbytes, dtype=torch.uint8, device=device)
    best = 0.0
    for _ in range(5):
        _sync(device)
        began = time.perf_counter()
        for _ in range(20):
            there.copy_(here, non_blocking=True)
        _sync(device)
        best = max(best, 20 * nbytes / (time.perf_counter() - began))
    return best


def _sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
