"""Postmortem: what is known of a worker's end, in words."""

from __future__ import annotations

import os
import signal

from qflow.graph import bytesizes
from qflow.runtime import oom
from qflow.runtime.child import Ending
from qflow.runtime.failure import HOUSE

MOST = 8192  # bytes of a stack


def how(ending: Ending | None) -> str:
    """How a worker ended; None: its nursery is gone, and it with that."""
    if ending is None:
        return "was lost with the process that starts workers"
    if os.WIFSIGNALED(ending.status):
        number = os.WTERMSIG(ending.status)
        return f"was killed by signal {number} ({signal.Signals(number).name})"
    return f"exited with code {os.waitstatus_to_exitcode(ending.status)} without returning"


class Killer:
    """Whether it was the kernel's OOM killer."""

    def __init__(self) -> None:
        self._before = oom.killed()

    def told(self, ending: Ending | None) -> str:
        """What it did since the last look, if that may have ended the worker."""
        before, self._before = self._before, oom.killed()
        killed = ending is not None and os.WIFSIGNALED(ending.status) and os.WTERMSIG(ending.status) == signal.SIGKILL
        if not killed or self._before == before:
            return ""
        assert ending is not None
        return (
            f" The kernel's OOM killer ended {self._before - before} process(es) meanwhile; this one had held "
            f"{bytesizes.show(ending.peak)}. Use fewer workers (n=), smaller items or smaller queues."
        )


def stack(fault: int) -> str:
    """What a worker's fault handler has written, its end, without qflow's own frames."""
    size = os.fstat(fault).st_size
    text = os.pread(fault, MOST, max(0, size - MOST)).decode(errors="replace")
    ours = f'File "{HOUSE}', 'File "<string>"', "Extension modules:"
    lines = [line for line in text.splitlines() if line.strip() and not line.strip().startswith(ours)]
    return "\n".join(["\nIts stack:", *lines]) if lines else ""


def clear(fault: int) -> None:
    """Forget what was written; the worker writes on from the beginning, for its end of the file is the same."""
    os.lseek(fault, 0, os.SEEK_SET)
    os.ftruncate(fault, 0)
