"""Server: the nursery's end of the line, which makes workers, signals them and waits for them.

One request, one reply: ``fds`` hands over descriptors for the next workers, ``fork`` makes these, ``made`` gives their
numbers and what shows their ends; ``undo`` takes all that back.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import pickle
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, NoReturn

from qflow.runtime.child import adopt_orphans, end_with
from qflow.runtime.environment import know_lacking, take_over
from qflow.runtime.needs import processes_refused

MOST_FDS = 200  # the kernel passes at most 253 descriptors in one message
SIGNALS = {signal.SIGINT, signal.SIGTERM}


class Way(NamedTuple):
    """How workers are started, the module of their ``main``, and the calls that the kernel lacks."""

    start: str
    worker: str
    lacking: frozenset[str]


def serve(fileno: int, way: tuple[Any, ...]) -> NoReturn:
    """Serve requests until the parent is gone."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored by the parent, nobody could be waited for
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    _fill_standard_streams()
    know_lacking(Way(*way).lacking)
    if "prctl" not in Way(*way).lacking:
        adopt_orphans()
    Server(socket.socket(fileno=fileno), Way(*way)).serve()


def _fill_standard_streams() -> None:
    """So that no descriptor of ours gets a number below 3."""
    fd = 0
    while fd < 3:
        fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        if fd < 3:
            os.set_inheritable(fd, True)
    os.close(fd)


class Server:
    """The nursery's end of the line."""

    def __init__(self, line: socket.socket, way: Way) -> None:
        self.line, self.way = line, way
        self._held: list[int] = []  # descriptors for the next workers
        self._came = 0  # how many came with this request
        self._handed: list[int] = []  # descriptors that go with the reply
        self._latest: list[int] = []  # the workers of the latest order
        self._ends: list[int] = []  # what shows their ends
        self._living: set[int] = set()  # our workers
        self._lifeline, self._our_end = os.pipe()
        self._main = None if way.start == "spawn" else importlib.import_module(way.worker).main
        gc.freeze()  # what is loaded stays; no later collection needs to look at it
        gc.enable()

    def serve(self) -> NoReturn:
        """Answer until nobody asks any more."""
        answers: dict[str, Callable[..., Any]] = {
            "load": self._load,
            "fds": self._hold,
            "fork": self._fork,
            "made": self._made,
            "undo": self._undo,
            "reap": self._reap,
        }
        while True:
            try:
                data, fds = receive(self.line)
                if not data:
                    self._leave()
                self._held += fds
                self._came = len(fds)
                word, *details = pickle.loads(data)
                reply = pickle.dumps(answers[word](*details))
                socket.send_fds(self.line, [reply], self._handed)
            except ConnectionError:
                self._leave()
            _close(self._handed)

    def _leave(self) -> NoReturn:
        """End, and with it the workers and what they have started."""
        for pid in self._living:
            _kill_group(pid)
        _end_children()
        os._exit(0)

    def _load(self, modules: Sequence[str], changed: Mapping[str, str | None]) -> None:
        take_over({name: value for name, value in {**os.environ, **changed}.items() if value is not None})
        for module in modules:
            with contextlib.suppress(Exception):
                importlib.import_module(module)

    def _hold(self, count: int) -> str:
        self._latest = []  # an order begins; the workers of the one before are not to be undone
        return "" if self._came == count else "too many open files (RLIMIT_NOFILE)"

    def _fork(self, numbers: Sequence[int], size: int) -> str:
        """Make workers -> why not."""
        common = b""
        while len(common) < size:
            part = self.line.recv(1 << 16)
            if not part:
                self._leave()
            common += part
        if self.way.start != "fork":  # there it would finalise what is the parent's
            gc.collect()
        gc.freeze()  # so that collections in the workers do not touch, and thereby copy, the shared pages
        self._latest = []
        try:
            with contextlib.ExitStack() as stack:
                make = self._spawner(common, stack) if self._main is None else partial(self._copy, self._main, common)
                for number in numbers:
                    self._ends.append(self._watched(partial(make, number)))
        except OSError as error:
            return processes_refused(len(numbers), error)
        _close(self._held)
        return ""

    def _watched(self, make: Callable[[int | None], int]) -> int:
        """Make a worker -> a descriptor that is readable once it has ended."""
        if "pidfd" not in self.way.lacking:
            return os.pidfd_open(self._noted(make(None)))
        read, write = os.pipe()
        self._ends.append(read)  # so that the worker closes it
        try:
            self._noted(make(write))
        finally:
            os.close(write)
        return self._ends.pop()

    def _noted(self, pid: int) -> int:
        self._latest.append(pid)
        self._living.add(pid)
        return pid

    def _copy(self, main: Callable[[int, list[int], bytes], None], common: bytes, number: int, end: int | None) -> int:
        """A worker that is a copy of the nursery."""
        nursery = os.getpid()
        pid = os.fork()
        if not pid:
            self.line.close()
            _close([self._our_end, *self._ends])
            _be_worker(nursery, self._lifeline, end, self.way, partial(main, number, self._held, common))
        return pid

    def _spawner(self, common: bytes, stack: contextlib.ExitStack) -> Callable[[int, int | None], int]:
        """What makes workers that are fresh interpreters."""
        from qflow.runtime.memory import anonymous  # with numpy, which the parent should not wait for before a nursery boots

        memory = anonymous("common", len(common))
        stack.callback(os.close, memory)
        os.pwrite(memory, common, 0)

        def spawn(number: int, end: int | None) -> int:
            fds = [memory, self._lifeline, *self._held, *([] if end is None else [end])]
            arguments = os.getpid(), self._lifeline, end, tuple(self.way), number, self._held, memory, len(common)
            return interpreter(f"server import spawned; spawned{arguments}", fds)

        return spawn

    def _made(self, start: int) -> list[int]:
        self._handed, self._ends = self._ends[:MOST_FDS], self._ends[MOST_FDS:]
        return self._latest[start : start + MOST_FDS]

    def _undo(self) -> None:
        """End the workers of the latest order, and drop the descriptors for the next."""
        for pid in self._latest:
            self._reap(pid)
        self._latest = []
        _close(self._ends)
        _close(self._held)

    def _reap(self, pid: int) -> tuple[int, int] | None:
        """How a worker ended; None for one that is not ours. One that lives, though nobody hears of it any more, is killed."""
        if pid not in self._living:
            return None
        self._living.discard(pid)
        os.kill(pid, signal.SIGKILL)  # while it is not waited for, its number is no other's
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            return None
        _kill_group(pid)
        _, status, usage = os.wait4(pid, 0)
        if not self._living:  # then no child of ours is anybody's
            _end_children()
        return status, usage.ru_maxrss * 1024


def receive(line: socket.socket) -> tuple[bytes, list[int]]:
    """A message, and descriptors that programs do not inherit. (`socket.recv_fds` forgets its flags in Python 3.11.)"""
    data, fds, _, _ = socket.recv_fds(line, 1 << 16, MOST_FDS)
    for fd in fds:
        os.set_inheritable(fd, False)
    return data, list(fds)


def _end_children() -> None:
    """End all children: workers, and as a subreaper what those have left in groups of their own."""
    pause, end = select.poll(), time.monotonic() + 1
    while time.monotonic() < end:
        try:
            with open("/proc/thread-self/children") as file:
                children = [int(pid) for pid in file.read().split()]
        except OSError:
            return
        for pid in children:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)
        if not children:
            return
        pause.poll(2)


def _kill_group(pid: int) -> None:
    """End the programs that a worker has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _close(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())


def interpreter(code: str, fds: Sequence[int], **options: Any) -> int:
    """A fresh interpreter that runs a line of a module of ours -> its process, for which we wait ourselves.

    Its garbage collection is off: imports make no garbage to speak of, and looking for it would take a tenth of their time.
    """
    import subprocess  # which a nursery that forks does without

    code = f"import gc, sys; gc.disable(); sys.path[:] = {sys.path!r}; from qflow.runtime.{code}"
    command = [sys.executable, *subprocess._args_from_interpreter_flags(), "-c", code]  # type: ignore[attr-defined]
    process = subprocess.Popen(command, pass_fds=fds, stdin=subprocess.DEVNULL, **options)
    process.returncode = 0
    return process.pid


# ---- in a worker


def spawned(
    nursery: int, lifeline: int, end: int | None, way: tuple[Any, ...], number: int, held: list[int], memory: int, size: int
) -> NoReturn:
    """Become a worker, in a fresh interpreter; ``memory`` has the bytes that are common to all."""
    know_lacking(Way(*way).lacking)
    for fd in (lifeline, memory, *held, *([] if end is None else [end])):
        os.set_inheritable(fd, False)
    common = os.pread(memory, size, 0)
    os.close(memory)

    def main() -> None:
        run = importlib.import_module(way[1]).main
        gc.enable()
        run(number, held, common)

    _be_worker(nursery, lifeline, end, Way(*way), main)


def _be_worker(nursery: int, lifeline: int, end: int | None, way: Way, main: Callable[[], None]) -> NoReturn:
    """Become a worker; ``end`` is what it keeps open as long as it lives."""
    status = 1
    try:
        os.setpgid(0, 0)  # a group of its own, which ends with it
        end_with(nursery, lifeline, prctl="prctl" not in way.lacking)
        if end is not None:
            os.register_at_fork(after_in_child=partial(os.close, end))
        main()
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)
