"""Memory: what a process and all its descendants take, and the most they took.

The measure is PSS, proportional set size: each page counts once, shared out over the processes that
map it, so that the sum over a tree counts a forked or shared page once. Read from
``/proc/PID/smaps_rollup``; Linux.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType

INTERVAL = 0.2  # seconds between measurements
_MOST_BUSY = 0.1  # of a core: walking the pages of 6 processes with torch takes 60 ms


class Peak:
    """A context in which the summed PSS of a tree of processes is measured, every 0.2 s and at its end.

    Less often where measuring would take more than a tenth of a core.

    Args:
        root: the process whose tree it is.
    Attributes:
        bytes: the most that was measured; a shorter peak may have been missed.
        largest: the most that one process took, in bytes.
        processes: how many processes there were then.
        times: how often it was measured.
    """

    def __init__(self, root: int) -> None:
        self.root, self.bytes, self.largest, self.processes, self.times = root, 0, 0, 0, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="qflow-demo-memory", daemon=True)

    def measure(self) -> None:
        """Measure now."""
        sizes = [size for size in map(pss, tree(self.root)) if size]
        self.times += 1
        self.largest = max(self.largest, *sizes, 0)
        if sum(sizes) > self.bytes:
            self.bytes, self.processes = sum(sizes), len(sizes)

    def _watch(self) -> None:
        taken = 0.0
        while not self._over.wait(max(INTERVAL, taken / _MOST_BUSY)):
            start = time.thread_time()
            self.measure()
            taken = time.thread_time() - start

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        self.measure()


def tree(root: int) -> list[int]:
    """A process and its descendants, also those whose parents are not descendants of Python's making."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            children.setdefault(_parent(entry), []).append(int(entry.name))
    found = [root]
    for process in found:
        found += children.get(process, ())
    return found


def _parent(entry: Path) -> int:
    """The parent of a process, or -1 when it is gone."""
    try:
        return int((entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except OSError:
        return -1


def pss(process: int) -> int:
    """The proportional set size of a process in bytes; 0 when it has ended or is another user's."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
