"""OOM: whether the kernel's killer has ended processes for want of memory, from its own counts.

Sources: cgroup v2 ``memory.events`` (oom_kill), cgroup v1 ``memory.oom_control`` (oom_kill), and for the
whole machine ``/proc/vmstat`` (oom_kill); Linux' documentation, admin-guide/cgroup-v2 and proc(5).
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def killed() -> int:
    """How many processes the OOM killer has ended so far, here or on the whole machine; only grows."""
    return max((_count(file) for file in _files()), default=0)


def _files() -> list[Path]:
    files = [Path("/proc/vmstat")]
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, folder = line.split(":", 2)
            if not controllers:
                files.append(Path("/sys/fs/cgroup" + folder, "memory.events"))
            elif "memory" in controllers.split(","):
                files.append(Path("/sys/fs/cgroup/memory" + folder, "memory.oom_control"))
    return files


def _count(file: Path) -> int:
    with suppress(OSError, ValueError):
        for line in file.read_text().splitlines():
            word, _, number = line.partition(" ")
            if word == "oom_kill":
                return int(number)
    return 0
