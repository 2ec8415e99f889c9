"""Machine: the memory and the physical cores that this process may use."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

from qflow.graph.cores import allowed, groups, shares, text

_CORES = "/sys/devices/system/cpu"


def physical_cores() -> int:
    """The physical cores among those on which this process may run, at most the share of its control groups; at least 1."""
    cores = {_core(number) for number in allowed()}
    return max(1, min([len(cores), *map(math.ceil, shares())]))


def _core(number: int) -> tuple[str, ...]:
    """What is the same for the logical cores of a physical one."""
    with contextlib.suppress(OSError):
        topology = f"{_CORES}/cpu{number}/topology"
        return tuple(text(topology, name).strip() for name in ("physical_package_id", "core_id"))
    return (str(number),)


def available_memory() -> int:
    """Bytes that new processes can take before memory runs short: of the machine, and of each of its control groups.

    Sources: proc(5), ``MemAvailable``; Linux' documentation, cgroup v2 (``memory.max``, ``memory.current``, and of
    ``memory.stat`` what can be given back at once, ``inactive_file``), and of version 1 ``memory.limit_in_bytes`` and
    ``memory.usage_in_bytes``.
    """
    free = [int(line.split()[1]) * 1024 for line in _lines("/proc", "meminfo") if line.startswith("MemAvailable:")]
    return max(0, min([*free, *(left for group in groups("memory") for left in _left(group))], default=0))


def _left(group: str) -> Iterator[int]:
    for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        with contextlib.suppress(OSError, ValueError):
            most = int(text(group, limit))  # "max" is a ValueError: any
            back = [int(line.split()[1]) for line in _lines(group, "memory.stat") if line.startswith("inactive_file ")]
            yield most - int(text(group, used)) + sum(back)


def _lines(folder: str, name: str) -> list[str]:
    with contextlib.suppress(OSError):
        return text(folder, name).splitlines()
    return []
