"""Child: a worker process as its crew sees it; and, inside it, what ends it with those who made it.

A worker ends when its nursery ends, and the nursery when the parent does. The kernel sees to the first
(PR_SET_PDEATHSIG), also for a worker that is stuck in C code. Where the kernel does not, a thread of the
worker waits for the end of a pipe that only the nursery can write to; such a thread can't end a worker whose
C code keeps the interpreter to itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import threading
from typing import NamedTuple

PATIENCE = 2.0  # seconds that a killed process may take to end
_PDEATHSIG, _SUBREAPER = 1, 36  # prctl(2)


class Child(NamedTuple):
    """A worker process.

    Attributes:
        pid: its number, until it is reaped.
        pidfd: readable once it has ended. Where the kernel has no such descriptors, a pipe that only the worker can write to.
    """

    pid: int
    pidfd: int

    def fileno(self) -> int:
        return self.pidfd

    def close(self) -> None:
        """Let go of the descriptor; the process is not touched."""
        os.close(self.pidfd)


class Ending(NamedTuple):
    """How a worker ended: its wait status, and the most memory that it held, in bytes."""

    status: int
    peak: int


def readable(end: Child | socket.socket, seconds: float) -> bool:
    """Wait until something can be read -> whether it can. (A poll: `select` knows no descriptor above 1023.)"""
    poll = select.poll()
    poll.register(end, select.POLLIN)
    return bool(poll.poll(max(0, seconds * 1000)))


def ended(child: Child, seconds: float) -> bool:
    """Wait for a worker to end -> whether it has."""
    return readable(child, seconds)


def send(child: Child, signum: int) -> None:
    """Send a signal to a worker, if it lives."""
    try:
        signal.pidfd_send_signal(child.pidfd, signum)
    except ProcessLookupError:
        pass
    except OSError:  # no pidfd; but while its pipe has not ended, the number is its own
        if not ended(child, 0):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signum)


def stopped(child: Child) -> bool:
    """Whether somebody has stopped a worker, as SIGSTOP does."""
    with contextlib.suppress(OSError, IndexError), open(f"/proc/{child.pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] in "Tt"
    return False


def kill(child: Child) -> None:
    """End a worker, and wait until it has."""
    send(child, signal.SIGKILL)
    ended(child, PATIENCE)


# ---- in the nursery


def adopt_orphans() -> None:
    """Become the parent of what workers leave behind."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1)


# ---- in the worker


def end_with(nursery: int, lifeline: int, *, prctl: bool) -> None:
    """End this process when its parent, the nursery, has ended; ``lifeline`` is a pipe that ends with it."""
    if prctl:
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
        os.close(lifeline)
    else:
        threading.Thread(target=_outlive, args=(lifeline,), name="qflow-lifeline", daemon=True).start()
    if os.getppid() != nursery:  # it ended before anybody watched
        os._exit(1)


def _outlive(lifeline: int) -> None:
    os.read(lifeline, 1)
    os._exit(1)
