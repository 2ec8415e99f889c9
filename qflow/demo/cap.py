"""Cap: a limit on the memory of this process and of all it starts.

Where a memory cgroup can be made, the kernel holds the whole job to the limit; elsewhere RLIMIT_DATA
holds each process to it (never RLIMIT_AS: torch reserves far more addresses than it uses).

    command --fork--> job, in the group --> workers, in the group
       \\______ waits, says what happened, removes the group

The command stays outside, since the kernel may have to kill the job.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from qflow.graph import bytesizes


@dataclasses.dataclass(frozen=True)
class Group:
    """A memory cgroup: its version, and its folder."""

    version: int
    folder: Path

    def limit(self, size: int) -> None:
        """Set the limit, without swap where that can be said."""
        name, swap, most = ("max", "swap.max", 0) if self.version == 2 else ("limit_in_bytes", "memsw.limit_in_bytes", size)
        (self.folder / f"memory.{name}").write_text(str(size))
        with contextlib.suppress(OSError):  # no swap accounting
            (self.folder / f"memory.{swap}").write_text(str(most))

    def enter(self) -> None:
        """Move this process in; what it starts from now on is in it too."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    @property
    def killed(self) -> int:
        """How many processes the kernel has killed to keep the limit."""
        text = (self.folder / ("memory.events" if self.version == 2 else "memory.oom_control")).read_text()
        return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), 0)

    def remove(self) -> None:
        """End what is left in it, and remove it."""
        for _ in range(300):
            for process in (self.folder / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGKILL)
            try:
                return self.folder.rmdir()
            except OSError:  # the last one is still on its way out
                time.sleep(0.01)


def parents(mounts: str, own: str) -> Iterator[Group]:
    """Groups that may be given a child with a memory limit, the best first.

    A child of version 2 needs a parent that hands the memory controller down, and a group with
    processes can't, unless it is the root; then a sibling of this process's group will do.

    Args:
        mounts: text of ``/proc/self/mounts``.
        own: text of ``/proc/self/cgroup``.
    """
    paths = {controllers: path.lstrip("/") for _, controllers, path in (line.split(":", 2) for line in own.splitlines())}
    for _, mount, kind, options, *_ in (line.split() for line in mounts.splitlines()):
        if kind == "cgroup" and "memory" in options.split(","):
            path = next((path for controllers, path in paths.items() if "memory" in controllers.split(",")), "")
            yield from (Group(1, Path(mount, path)), Group(1, Path(mount)))
        elif kind == "cgroup2":
            inside = Path(mount, paths.get("", ""))
            yield from (Group(2, folder) for folder in (inside, inside.parent) if _hands_down(folder))


def _hands_down(folder: Path) -> bool:
    try:
        return "memory" in (folder / "cgroup.subtree_control").read_text().split()
    except OSError:
        return False


def new_group(size: int) -> Group | None:
    """A new group with this limit, or None where none can be made."""
    for parent in parents(Path("/proc/self/mounts").read_text(), Path("/proc/self/cgroup").read_text()):
        group = Group(parent.version, parent.folder / f"qflow-demo-{os.getpid()}")
        try:
            group.folder.mkdir()
        except OSError:
            continue
        try:
            group.limit(size)
            return group
        except OSError:
            group.folder.rmdir()
    return None


def fork_capped(size: int) -> int | str:
    """Go on as a child process with the limit.

    Returns:
        In the child what limits it, as text; in the parent, after the child has ended, its exit status.
    """
    group = new_group(size)
    child = os.fork()
    if child:
        return _attend(child, group, size)
    if group is None:
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
        return f"{bytesizes.show(size)} for each process (RLIMIT_DATA; no cgroup can be made here)"
    group.enter()
    return f"{bytesizes.show(size)} for all processes together (memory cgroup v{group.version}: {group.folder})"


def _attend(child: int, group: Group | None, size: int) -> int:
    """Wait for the job, pass on what ends it, and say so if memory did."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the child as well
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    killed = group.killed if group else 0
    if group:
        group.remove()
    if status in (-signal.SIGINT, -signal.SIGTERM):
        return 128 - status
    if killed or status < 0:
        why = f"the kernel ended {killed} of its processes" if killed else f"it was ended by {signal.Signals(-status).name}"
        hint = "It needs more: write a larger --memory, or fewer --workers or --rows."
        print(f"qflow demo: the job did not keep to --memory {bytesizes.show(size)}: {why}. {hint}", file=sys.stderr)
        return 1
    return status
