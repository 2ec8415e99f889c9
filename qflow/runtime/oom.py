"""OOM: whether the kernel's killer has ended processes for want of memory, from its own counts.

Sources: cgroup v2 ``memory.events`` (oom_kill), cgroup v1 ``memory.oom_control`` (oom_kill), and for the
whole machine ``/proc/vmstat`` (oom_kill); Linux' documentation, admin-guide/cgroup-v2 and proc(5).
"""

from __future__ import annotations

from contextlib import suppress
from os.path import join

from qflow.graph.cores import own_groups, text

COUNTS = ("memory.events", "memory.oom_control")  # of version 2, and of version 1


def killed() -> int:
    """How many processes the OOM killer has ended so far, here or on the whole machine; only grows."""
    return max((_count(folder, name) for folder, name in _files()), default=0)


def _files() -> list[tuple[str, str]]:
    return [("/proc", "vmstat"), *((join(base, own), name) for base, own in own_groups("memory") for name in COUNTS)]


def _count(folder: str, name: str) -> int:
    with suppress(OSError, ValueError):
        for line in text(folder, name).splitlines():
            word, _, number = line.partition(" ")
            if word == "oom_kill":
                return int(number)
    return 0
