"""Tagged: the processes of a cell, found by an environment variable, also when init has adopted them.

Fork, exec, spawn and a fork server hand the environment on; ``/proc/PID/environ`` shows it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from qflow.bench.marks import TAG

_EXEC = 0.02  # seconds
_TICKS = os.sysconf("SC_CLK_TCK")


def processes(tag: str) -> Iterator[int]:
    """The processes alive that carry a tag."""
    for name in os.listdir("/proc"):
        if name.isdecimal() and carries(int(name), tag):
            yield int(name)


def carries(process: int, tag: str) -> bool:
    """Whether a process is alive and carries a tag; one that has ended shows no environment."""
    try:
        return f"{TAG}={tag}".encode() in Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def send(process: int, tag: str, number: signal.Signals) -> bool:
    """Send a signal to a process of the tag and to no other that has its number by now; whether it was there."""
    with suppress(ProcessLookupError):
        descriptor = os.pidfd_open(process)
        try:
            if carries(process, tag):
                signal.pidfd_send_signal(descriptor, number)
                return True
        finally:
            os.close(descriptor)
    return False


def end(tag: str) -> None:
    """Kill every process of a tag, and those that they start meanwhile; gives up after 10 s."""
    last = time.monotonic() + 10
    while (alive := present(tag)) and time.monotonic() < last:
        for process in alive:
            send(process, tag, signal.SIGKILL)
        time.sleep(0.01)


def left(tag: str, *, patience: float) -> int:
    """How many processes of a tag are there after so many seconds; returns as soon as none is."""
    last = time.monotonic() + patience
    while (alive := present(tag)) and time.monotonic() < last:
        time.sleep(0.05)
    return len(alive)


def present(tag: str) -> list[int]:
    """The processes alive that carry a tag; looks twice, for in the middle of an exec a process has no environment."""
    found = list(processes(tag))
    if not found:
        time.sleep(_EXEC)
        found = list(processes(tag))
    return found


def cpu_seconds(tag: str) -> float:
    """What the living processes of a tag have computed so far."""
    return sum(map(_cpu_seconds, processes(tag)))


def _cpu_seconds(process: int) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS
