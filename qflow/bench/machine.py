"""Machine: where and with what was measured, in a line."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Iterable

from qflow.bench.systems import named


def here() -> str:
    """Cores, system, Python and date."""
    cores, release = len(os.sched_getaffinity(0)), ".".join(platform.release().split(".")[:2])
    return f"{cores} cores, {platform.system()} {release}, Python {platform.python_version()}, {datetime.date.today()}"


def versions(systems: Iterable[str]) -> dict[str, str]:
    """Package -> version, of those that are not the standard library's."""
    return {system.package: system.version for system in map(named, systems) if system.package}
