"""OOM: whether the kernel's killer has ended processes for want of memory, from its own counts.

Sources: cgroup v2 ``memory.events`` (oom_kill), cgroup v1 ``memory.oom_control`` (oom_kill), and for the
whole machine ``/proc/vmstat`` (oom_kill); Linux' documentation, admin-guide/cgroup-v2 and proc(5).
"""

from __future__ import annotations

from contextlib import suppress


def killed() -> int:
    """How many processes the OOM killer has ended so far, here or on the whole machine; only grows."""
    return max((_count(file) for file in _files()), default=0)


def _files() -> list[str]:
    files = ["/proc/vmstat"]
    with suppress(OSError):
        for line in _lines("/proc/self/cgroup"):
            _, controllers, folder = line.split(":", 2)
            if not controllers:
                files.append(f"/sys/fs/cgroup{folder}/memory.events")
            elif "memory" in controllers.split(","):
                files.append(f"/sys/fs/cgroup/memory{folder}/memory.oom_control")
    return files


def _count(file: str) -> int:
    with suppress(OSError, ValueError):
        for line in _lines(file):
            word, _, number = line.partition(" ")
            if word == "oom_kill":
                return int(number)
    return 0


def _lines(name: str) -> list[str]:
    with open(name) as file:
        return file.read().splitlines()
