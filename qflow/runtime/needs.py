"""Needs: what a plan takes of the machine's limited things, known before anything is started."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from qflow.errors import ResourceError

if TYPE_CHECKING:
    from qflow.runtime.board import Shape

_MORE = 5  # the nursery's socket, the supervisor's bell, and those that are open for a moment


def descriptors_needed(shape: Shape, workers: int, streams: int) -> int:
    """File descriptors that this process has open while a crew of so many processes is made.

    Memory of the words, edges and streams' logs (of three a mapping, too), a bell for each participant, a cursor's
    pipe and two pipes of output for each step; for each worker both ends of a control line, a descriptor of the
    process, and memory for its stack.
    """
    edges, steps = len(shape.edges), len(shape.edges) - 1
    return (1 + edges + streams + 3) + shape.participants + (2 + 4) * steps + 4 * workers + _MORE


def check_descriptors(shape: Shape, workers: int, streams: int) -> None:
    """Refuse a plan for which the descriptors of this process do not suffice."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = descriptors_needed(shape, workers, streams)
    try:
        held = len(os.listdir("/proc/self/fd")) - 1
    except OSError:
        return
    if limit != resource.RLIM_INFINITY and held + needed > limit:
        hint = (
            f"`ulimit -n {held + needed}`" if most == resource.RLIM_INFINITY or held + needed <= most else "a higher hard limit"
        )
        raise ResourceError(
            f"{workers} worker processes of {len(shape.edges) - 1} steps need {needed} file descriptors; this process "
            f"holds {held} and may have {limit} (RLIMIT_NOFILE). It takes {hint}, or fewer workers."
        )


def start_thread(name: str, run: Callable[[], object]) -> None:
    """Start a thread of ours, or say why there is none left."""
    try:
        threading.Thread(target=run, name=name, daemon=True).start()
    except RuntimeError as error:
        raise ResourceError(f"A thread could not be started: {processes_refused(1, error)}.") from error


def processes_refused(count: int, error: Exception) -> str:
    """Why so many processes could not be started, with the limit that stands in the way."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    may = "" if limit == resource.RLIM_INFINITY else f", and this user may have {limit} processes and threads (RLIMIT_NPROC)"
    return f"{error}{may}"
