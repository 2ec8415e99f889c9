"""World: the processes that train together, and what they tell each other.

Which of them this one is, is said by whoever launched it (`qflow.graph.ranks`), over all machines: neither the part of the data
nor the group of processes goes by numbers on one machine. Those choose a GPU, and nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import distributed

from qflow.graph.ranks import Rank, rank

T = TypeVar("T")
_LOCAL = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "PMI_LOCAL_RANK", "SLURM_LOCALID")


@dataclasses.dataclass(frozen=True)
class World:
    """This process among those that train together.

    Attributes:
        rank: which of how many.
        device: where it trains.
    """

    rank: Rank
    device: torch.device

    @property
    def many(self) -> bool:
        """Whether there are others."""
        return self.rank.count > 1

    def say(self, text: str) -> None:
        """Print a line, on the first rank only."""
        if not self.rank.index:
            print(text, flush=True)

    def gather(self, mine: T) -> list[T]:
        """What each rank gives, by rank; all must call it."""
        if not self.many:
            return [mine]
        found: list[T | None] = [None] * self.rank.count
        distributed.all_gather_object(found, mine)
        return found  # type: ignore[return-value]


@contextlib.contextmanager
def world() -> Iterator[World]:
    """Join the other ranks for a block; alone, where no launcher says that there are others.

    Several ranks find each other by MASTER_ADDR and MASTER_PORT, which torchrun sets. They talk by gloo, and on GPUs by NCCL.
    """
    place, device = rank(), _device()
    if place.count == 1:
        yield World(place, device)
        return
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, rank=place.index, world_size=place.count)
    try:
        yield World(place, device)
    finally:
        distributed.destroy_process_group()


def _device() -> torch.device:
    """The GPU of this rank, or the CPU where there are none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = next((int(os.environ[name]) for name in _LOCAL if name in os.environ), 0)
    device = torch.device("cuda", local % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device
