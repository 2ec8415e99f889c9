"""Cores: how many processes can compute at once here."""

from __future__ import annotations

import contextlib
import math
import os

_GROUPS = "/sys/fs/cgroup"


def allowed() -> set[int]:
    """The numbers of the logical cores on which this process may run."""
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def usable() -> int:
    """The logical cores that this process may use: by its affinity, and by the share of its control groups."""
    return max(1, min([len(allowed()), *map(math.ceil, shares())]))


def shares() -> list[float]:
    """The cores' time that the control groups of this process may take, in cores.

    Source: Linux' documentation, `cgroup v2 <https://docs.kernel.org/admin-guide/cgroup-v2.html>`_ (``cpu.max``), and of version
    1 the CFS bandwidth control (``cpu.cfs_quota_us``).
    """
    found = []
    for group in groups("cpu"):
        with contextlib.suppress(OSError, ValueError):
            most, period = text(group, "cpu.max").split()
            found += [] if most == "max" else [int(most) / int(period)]
        with contextlib.suppress(OSError, ValueError):
            quota = int(text(group, "cpu.cfs_quota_us"))
            found += [quota / int(text(group, "cpu.cfs_period_us"))] if quota > 0 else []
    return found


def text(folder: str, name: str) -> str:
    """What a small file says."""
    with open(os.path.join(folder, name)) as file:
        return file.read()


def own_groups(controller: str) -> list[tuple[str, str]]:
    """This process's control groups: the folder of all, and where in it."""
    found = []
    with contextlib.suppress(OSError):
        for line in text("/proc/self", "cgroup").splitlines():
            _, controllers, folder = line.split(":", 2)
            if not controllers or controller in controllers.split(","):
                found.append((os.path.join(_GROUPS, controller) if controllers else _GROUPS, folder.strip("/")))
    return found


def groups(controller: str) -> list[str]:
    """The folders of this process's control groups, and of those above them."""
    found = []
    for base, own in own_groups(controller):
        while own:
            found.append(os.path.join(base, own))
            own = os.path.dirname(own)
        found.append(base)
    return found
