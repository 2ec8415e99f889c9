"""Leaks: what a test left behind on this machine, found by looking at the machine.

    with nothing_left():                # `fixtures.no_leaks` is the same as a pytest fixture
        list(pipe(range(10)))
        pipe.close()

A snapshot is taken before a test, and everything that is there afterwards and was not there before is
left over. Processes carry ``QFLOW_TEST_TAG`` in their environment, so that they are found also when
their parent is gone; those that are forked without a new environment are found as descendants.
Whatever existed before, as the warm workers of a module's fixture, is never a leak.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

TAG = "QFLOW_TEST_TAG"
PATIENCE = 3.0  # seconds until a process that was told to end must be gone
_STANDARD_LIBRARY = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver")


@contextmanager
def nothing_left(*, patience: float = PATIENCE) -> Iterator[None]:
    """A block that must leave nothing behind that was not there before.

    >>> import qflow as qf
    >>> with qf.testing.nothing_left():
    ...     with qf.process(n=2)(abs) | qf.queue(2) as pipe:
    ...         list(pipe([-1, -2]))
    [1, 2]

    Looked for are processes (also those whose parent is gone), threads, open descriptors, mappings of shared
    memory, entries of /dev/shm, and changes of what the whole process shares: signal handlers, resource limits,
    the working directory, the start method of multiprocessing. Warm workers belong to their pipe: close it, as
    ``with pipe:`` does, or make it before the block.

    Args:
        patience: seconds to wait for what is on its way out.
    Raises:
        AssertionError: something is left; the text lists it.
    """
    set_tag()
    before = snapshot()
    yield
    found = left_over(before, patience=patience)
    if found:
        raise AssertionError("left behind:\n  " + "\n  ".join(found))


def set_tag() -> None:
    """Give this run of the tests its tag; ``.ci/run`` sets it before Python starts, so that forks have it too."""
    os.environ.setdefault(TAG, uuid.uuid4().hex)


def snapshot() -> dict[str, dict[Any, str]]:
    """Everything that a test could leave: kind -> thing -> its description."""
    return {
        "process": dict(_processes()),
        "thread": {thread.ident: thread.name for thread in threading.enumerate()},
        "descriptor": dict(_descriptors()),
        "mapping": dict(_mappings()),
        "/dev/shm entry": {name: name for name in _listed("/dev/shm")},
        "changed": {state: state for state in _state()},
    }


def left_over(before: dict[str, dict[Any, str]], *, patience: float = PATIENCE) -> list[str]:
    """What is there now and was not before, in words; waits a little for what is on its way out."""
    end = time.monotonic() + patience
    found = _new_since(before)
    while found:
        gc.collect()  # not before something is found: it takes longer than most tests
        found = _new_since(before)
        if time.monotonic() > end:
            break
        time.sleep(0.02)  # what we wait for is another process's end, which tells nobody
    return found


def _new_since(before: dict[str, dict[Any, str]]) -> list[str]:
    return [
        f"{kind} {what}"
        for kind, things in snapshot().items()
        for key, what in things.items()
        if key not in before[kind] or (kind == "descriptor" and before[kind][key] != what)
        if kind != "/dev/shm entry" or not _foreign(what)
    ]


def _processes() -> Iterator[tuple[tuple[int, str], str]]:
    """(pid, start time) -> command, of the tagged processes and the descendants of this one."""
    tag = f"{TAG}={os.environ.get(TAG, '')}".encode()
    seen: dict[int, tuple[int, str, bytes]] = {}
    tagged = set()
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        with suppress(OSError, ValueError):
            folder = Path("/proc", str(pid))
            fields = folder.joinpath("stat").read_text().rpartition(")")[2].split()
            seen[pid] = int(fields[1]), fields[19], folder.joinpath("cmdline").read_bytes()
            if tag in folder.joinpath("environ").read_bytes().split(b"\0"):
                tagged.add(pid)
    ours = tagged | {pid for pid in seen if os.getpid() in _ancestors(pid, seen)}
    ours -= {os.getpid(), *_ancestors(os.getpid(), seen)}
    for pid in ours:
        _, started, command = seen[pid]
        if not any(name in command for name in _STANDARD_LIBRARY):
            yield (pid, started), f"{pid} {command.replace(bytes(1), b' ').decode(errors='replace')[:200] or '(zombie)'}"


def _ancestors(pid: int, seen: dict[int, tuple[int, str, bytes]]) -> Iterator[int]:
    while pid in seen and seen[pid][0]:
        pid = seen[pid][0]
        yield pid


def _descriptors() -> Iterator[tuple[str, str]]:
    for name in _listed("/proc/self/fd"):
        with suppress(OSError):  # the descriptor of the listing itself
            yield name, f"{name} -> {os.readlink(f'/proc/self/fd/{name}')}"


def _mappings() -> Iterator[tuple[str, str]]:
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "memfd:qflow" in line or "/dev/shm" in line:
            yield line.split()[0], line


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _foreign(entry: str) -> bool:
    """Whether an entry of /dev/shm is in use by a process that is none of ours: this machine has other users."""
    ours = {pid for (pid, _), _ in _processes()} | {os.getpid()}
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        with suppress(OSError):
            if pid not in ours and f"/dev/shm/{entry}" in Path("/proc", str(pid), "maps").read_text():
                return True
    return False


def _state() -> Iterator[str]:
    """What belongs to the whole process, as text."""
    for number in signal.Signals:
        yield f"signal handler {number.name}: {signal.getsignal(number)}"
    for name in (name for name in dir(resource) if name.startswith("RLIMIT_")):
        yield f"{name}: {resource.getrlimit(getattr(resource, name))}"
    yield f"working directory: {os.getcwd()}"
    # Not chosen yet is the same as the default: `multiprocessing.Queue()` chooses it.
    yield f"start method: {multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]}"
