"""Scenarios: scripts that limit, kill or confuse their own process, run in a process of their own."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

UNCLEAN = re.compile("Exception ignored|leaked|resource_tracker")
LISTENING = "import faulthandler, signal; faulthandler.register(signal.SIGUSR1, all_threads=True); del faulthandler, signal\n"


def script(
    text: str, *, within: Sequence[str] = (), timeout: float = 60, **variables: str | None
) -> subprocess.CompletedProcess[str]:
    """Run a script to its end, with these variables in its environment (None: without) and by these commands.

    One that takes too long is killed when its stacks and its workers' have been printed.
    """
    changed = {**os.environ, **variables}
    environment = {name: value for name, value in changed.items() if value is not None}
    command = [*within, sys.executable, "-c", LISTENING + textwrap.dedent(text)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as child:
        try:
            out, err = child.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            print(stacks(child.pid))
            child.kill()
            print(*child.communicate(), sep="\n")
            raise
    assert not UNCLEAN.search(err), err
    return subprocess.CompletedProcess(command, child.returncode, out, err)


def stacks(pid: int) -> str:
    """The stacks of the workers below a process; its own go to its standard error."""
    found = []
    for each in [pid, *descendants(pid)]:
        with contextlib.suppress(OSError):
            if listens(each):
                os.kill(each, signal.SIGUSR1)
                time.sleep(0.2)  # the handler tells nobody that it is done
                found += [f"Process {each}:", *(Path(fd).read_text() for fd in faults(each))]
    return "\n".join(found)


def descendants(pid: int) -> Iterator[int]:
    """All processes below one."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            yield child
            yield from descendants(child)


def listens(pid: int) -> bool:
    """Whether a process has a handler for SIGUSR1, which would end it otherwise."""
    (caught,) = re.findall(r"^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(caught, 16) >> signal.SIGUSR1 - 1 & 1)


def faults(pid: int) -> Iterator[str]:
    """The files into which a worker writes its stack."""
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        if "qflow-stack" in os.readlink(fd) and fd.name.isdigit():
            yield str(fd)


def killed_parent(text: str, lacking: str = "") -> list[int]:
    """Run a script that prints process numbers and goes on, and kill it -> the numbers."""
    command = [sys.executable, "-c", textwrap.dedent(text) + "\nimport time; time.sleep(60)"]
    environment = {**os.environ, "QFLOW_WITHOUT": lacking}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment) as child:
        assert child.stdout is not None
        pids = child.stdout.readline().split()
        child.kill()
    assert pids
    return [int(pid) for pid in pids]


def assert_gone(pids: Sequence[int], seconds: float = 2) -> None:
    """These processes are gone, or go within so many seconds."""
    end = time.monotonic() + seconds
    while any(map(lives, pids)) and time.monotonic() < end:
        time.sleep(0.01)  # the end of a process that is nobody's child tells nobody
    assert not [pid for pid in pids if lives(pid)]


class Ends:
    """Processes whose ends are awaited by descriptor, so that the time of the last one is known."""

    def __init__(self, pids: Iterable[int | str]) -> None:
        self._fds: dict[int, int] = {}
        for pid in map(int, pids):
            with contextlib.suppress(ProcessLookupError):
                self._fds[os.pidfd_open(pid)] = pid

    def last(self, seconds: float = 10) -> float:
        """Wait for them all -> the time on the monotonic clock."""
        end = time.monotonic() + seconds
        try:
            while self._fds and (left := end - time.monotonic()) > 0:
                for fd in select.select(self._fds, [], [], left)[0]:
                    del self._fds[fd]
                    os.close(fd)
            assert not self._fds, f"still there after {seconds} s: {list(self._fds.values())}"
            return time.monotonic()
        finally:
            for fd in self._fds:
                os.close(fd)


@contextlib.contextmanager
def program(text: str, seconds: float = 60, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A script that runs beside the test, which reads its lines; it says where it hangs, and is killed at the end."""
    watched = f"import faulthandler; faulthandler.dump_traceback_later({seconds}, exit=True)\n" + textwrap.dedent(text)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", watched], **{**pipes, **options}) as child:
        try:
            yield child
        finally:
            child.kill()


def state_of(pid: int) -> str:
    """The kernel's letter: R runs, S waits, T stopped, Z ended but not yet taken note of; empty when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def lives(pid: int) -> bool:
    """Whether a process runs; one that has ended may wait long for the init of a container to take note of it."""
    return state_of(pid) not in ("", "Z")


def children_of(pid: int) -> set[int]:
    """The processes that a process of one thread has made."""
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


@contextlib.contextmanager
def limited(what: int, soft: int) -> Iterator[None]:
    """A soft limit of this process, for a moment."""
    before = resource.getrlimit(what)
    resource.setrlimit(what, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)


def needs_unshare(*options: str) -> None:
    """Skip where no new namespaces may be made."""
    tried = subprocess.run(["unshare", *options, "--fork", "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no namespaces here: {tried.stderr.strip()}")
