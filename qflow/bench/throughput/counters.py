"""Counters: what a process and all its descendants have taken so far, as the kernel counts it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from qflow.demo.memory import tree

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Counted:
    """Of one process: CPU seconds, page faults without a disk, and mappings at the moment."""

    cpu: float
    faults: int
    mappings: int

    def since(self, before: Counted | None) -> Counted:
        """What was added."""
        if before is None:
            return self
        return Counted(self.cpu - before.cpu, self.faults - before.faults, self.mappings - before.mappings)


def counted(process: int) -> Counted | None:
    """The counters of a process; None when it is gone."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
        mappings = Path(f"/proc/{process}/maps").read_bytes().count(b"\n")
    except OSError:
        return None
    return Counted((int(fields[11]) + int(fields[12])) / _TICKS, int(fields[7]), mappings)


def snapshot() -> dict[int, Counted]:
    """The counters of this process and of its descendants."""
    return {process: found for process in tree(os.getpid()) if (found := counted(process))}


def added(before: dict[int, Counted], after: dict[int, Counted]) -> Counted:
    """The sum over all processes; those that ended meanwhile are left out."""
    changes = [found.since(before.get(process)) for process, found in after.items()]
    return Counted(
        sum(change.cpu for change in changes),
        sum(change.faults for change in changes),
        sum(change.mappings for change in changes),
    )
