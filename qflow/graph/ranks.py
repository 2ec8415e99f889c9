"""Ranks: which of several equal processes this one is, as whoever launched them says.

    explicit numbers  >  torch.distributed, if initialised  >  torchrun  >  Open MPI  >  PMI (MPICH, Intel MPI)  >  Slurm

Slurm only within a step: a shell in an allocation has its number of tasks, too, and would read a part of the data.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping

from qflow.errors import GraphError

_LAUNCHERS = (
    ("torchrun", "RANK", "WORLD_SIZE"),
    ("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI", "PMI_RANK", "PMI_SIZE"),
    ("Slurm", "SLURM_PROCID", "SLURM_NTASKS"),
)


@dataclasses.dataclass(frozen=True)
class Rank:
    """Number ``index`` of ``count``, from 0 on; ``said`` by whom, empty where nobody said anything."""

    index: int
    count: int
    said: str = ""

    @property
    def pair(self) -> list[int]:
        """The numbers."""
        return [self.index, self.count]

    def __str__(self) -> str:
        return f"{self.index} of {self.count}{self.said and f', {self.said}'}"


def rank(environment: Mapping[str, str] | None = None) -> Rank:
    """The rank of this process; 0 of 1 where nobody says otherwise.

    >>> rank({"RANK": "1", "WORLD_SIZE": "4"})
    Rank(index=1, count=4, said='torchrun')
    >>> rank({"SLURM_PROCID": "1", "SLURM_NTASKS": "4"})
    Rank(index=0, count=1, said='')

    Args:
        environment: variables; this process's, and torch.distributed, when not given.
    Raises:
        GraphError: the variables are not those of a rank.
    """
    if environment is None:
        distributed = sys.modules.get("torch.distributed")
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            return Rank(distributed.get_rank(), distributed.get_world_size(), "torch.distributed")
        environment = os.environ
    for said, index, count in _LAUNCHERS:
        if index in environment and count in environment and (said != "Slurm" or "SLURM_STEP_ID" in environment):
            text = f"{index}={environment[index]} {count}={environment[count]}"
            return checked(environment[index], environment[count], text, said)
    return Rank(0, 1)


def checked(index: object, count: object, text: str, said: str = "") -> Rank:
    """A rank of numbers as they were written, or a GraphError."""
    try:
        found = Rank(int(index), int(count), said)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        found = Rank(-1, 0)
    if isinstance(index, bool | float) or isinstance(count, bool | float) or not 0 <= found.index < found.count:
        raise GraphError(f"A shard is one of `count`, number 0 to count - 1, but got {text}. Write for example `qf.shard(0, 4)`.")
    return found
