"""Nursery: a process of our own that makes worker processes.

    parent --socketpair--> nursery --fork--> workers
      |                                        ^
      +---------- control, bells, cells -------+   (descriptors, handed on by the nursery)

It runs one thread, never the user's main module, and listens nowhere. There are three ways to start:

- forkserver: the nursery is a fresh interpreter that preloads what its parent has loaded of numpy and torch, so that a
  fork takes milliseconds and workers share those pages. All crews of a process share it.
- spawn: the same, but each worker is a fresh interpreter, which loads everything by itself.
- fork: the nursery is a copy of the parent, made for one crew; its workers have all that the parent had in memory then.

Its socket is the lifeline: at end of file it exits, and its workers end with it (see `child`).
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import os
import pickle
import select
import signal
import socket
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from qflow.errors import ResourceError
from qflow.runtime.child import Child, Ending
from qflow.runtime.environment import check_copyable, for_workers, lacking, limit_threads, take_over
from qflow.runtime.needs import processes_refused
from qflow.runtime.server import MOST_FDS, SIGNALS, Way, interpreter, receive, serve
from qflow.runtime.whereabouts import users_line

STARTS = ("forkserver", "spawn", "fork")
PRELOAD = ("numpy", "torch")
MOST_CHANGED = 1 << 15  # characters of changed variables; behind more of them each worker loads by itself
LINGER = 0.5  # seconds that it waits for the next pipe before it goes


class NurseryDied(ConnectionError):
    """The process that starts the workers has ended, and they have ended with it."""

    def __init__(self) -> None:
        super().__init__("the process that starts the workers has ended")


class Nursery:
    """The parent's end: asks for workers, and for the way they ended.

    Args:
        start: one of `STARTS`.
        worker: the module whose ``main(number, fds, common)`` a worker runs.
    """

    def __init__(self, start: str = "forkserver", *, worker: str = "qflow.runtime.worker") -> None:
        self.start = start
        self._lock = threading.RLock()
        self._loaded: set[str] = set()
        self._environment = for_workers(os.environ)  # that it has
        self._dead = self._reaped = self._asked = False
        way = Way(start, worker, lacking())
        if start == "fork":
            check_copyable()
            _warn_of_threads()
        with _making:  # no copy of this process is made meanwhile, which would keep the line open
            ours, theirs = _line()
            signals = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until it ignores them
            try:
                self.pid = _copied(ours, theirs, way) if start == "fork" else _executed(theirs, way, self._environment)
            except OSError as error:
                ours.close()
                problem = processes_refused(1, error)
                raise ResourceError(f"The process that starts the workers could not be started: {problem}.") from error
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, signals)
                theirs.close()
            self._socket = ours
            _nurseries.add(self)

    def fork(self, fds: Sequence[int], numbers: Sequence[int], common: bytes, modules: Sequence[str] = ()) -> list[Child]:
        """Make the workers of these process numbers; they inherit ``fds`` and have ``modules`` loaded."""
        made: list[Child] = []
        with self._talking():
            self._load(modules)
            problem = self._hand_over(fds) or self._order(numbers, common)
            if not problem:
                made, problem = self._made(len(numbers))
            if problem:
                self._ask("undo")
        if problem:
            for child in made:
                child.close()
            raise ResourceError(f"{len(numbers)} worker processes could not be started: {problem}.")
        return made

    def _load(self, modules: Sequence[str]) -> None:
        wanted = [name for name in (*PRELOAD, *modules) if name in sys.modules and name not in self._loaded]
        if not wanted or self.start != "forkserver":
            return
        before, now = self._environment, for_workers(os.environ)  # libraries as HDF5 look at it when they are loaded
        changed = {name: now.get(name) for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
        if len(repr(changed)) < MOST_CHANGED:
            self._loaded.update(wanted)
            self._environment = now
            self._ask("load", wanted, changed)

    def _hand_over(self, fds: Sequence[int]) -> str:
        """Hand over descriptors -> why not."""
        for start in range(0, len(fds), MOST_FDS):
            part = list(fds[start : start + MOST_FDS])
            if problem := self._ask("fds", len(part), fds=part):
                return f"{len(fds)} descriptors were refused: {problem}"
        return ""

    def _order(self, numbers: Sequence[int], common: bytes) -> str:
        """Order workers -> why not."""
        self._send(("fork", list(numbers), len(common)))
        for start in range(0, len(common), 1 << 16):
            self._socket.send(common[start : start + (1 << 16)])
        return str(self._receive()[0])

    def _made(self, count: int) -> tuple[list[Child], str]:
        """The workers of the order, and why they are not all."""
        made: list[Child] = []
        for start in range(0, count, MOST_FDS):
            self._send(("made", start))
            pids, pidfds = self._receive()
            made += map(Child, pids, pidfds)
        return made, "" if len(made) == count else "this process has no descriptors left for them (RLIMIT_NOFILE)"

    def reap(self, pid: int) -> Ending:
        """End a worker and all that it has started -> how it has ended. ChildProcessError: it is no worker of this nursery."""
        with self._talking():
            ending = self._ask("reap", pid)
        if ending is None:
            raise ChildProcessError(f"process {pid} is no worker of this nursery")
        return Ending(*ending)

    @contextlib.contextmanager
    def _talking(self) -> Iterator[None]:
        """One request and its reply. Interrupted between the two, nothing later could be understood: it is given up."""
        with self._lock:
            if self._dead:
                raise NurseryDied
            self._asked = True
            try:
                yield
            except BaseException as error:
                self._dead = True
                self._socket.shutdown(socket.SHUT_WR)
                if isinstance(error, OSError) and not isinstance(error, NurseryDied):
                    raise NurseryDied from error
                raise

    def _ask(self, *message: Any, fds: Sequence[int] = ()) -> Any:
        self._send(message, fds)
        return self._receive()[0]

    def _send(self, message: tuple[Any, ...], fds: Sequence[int] = ()) -> None:
        socket.send_fds(self._socket, [pickle.dumps(message)], fds)

    def _receive(self) -> tuple[Any, list[int]]:
        data, fds = receive(self._socket)
        if not data:
            raise NurseryDied
        return pickle.loads(data), fds

    @property
    def alive(self) -> bool:
        """Whether it can be asked. (Its line tells, not its number: some program may wait for all children.)"""
        return not self._dead and not self._ended(0)

    def _ended(self, seconds: float) -> bool:
        if self._socket.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(self._socket, 0)  # a hangup, not the reply that another thread waits for
        return bool(poll.poll(seconds * 1000))

    def close(self) -> None:
        """Let it go; its workers go with it."""
        self._dead = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        if self._asked:  # else it has no workers, and may still boot
            self._ended(2)
        self._socket.close()
        if not self._reaped:
            self._reaped = True
            with contextlib.suppress(ChildProcessError, ProcessLookupError):  # somebody else has waited for it
                if os.waitpid(self.pid, os.WNOHANG)[0] == 0:  # it may be in the middle of a long import
                    os.kill(self.pid, signal.SIGKILL)
                    os.waitpid(self.pid, 0)

    def forget(self) -> None:
        """In a forked copy of the parent: give up the lifeline without ending anything."""
        self._dead = True
        self._socket.close()


def _line() -> tuple[socket.socket, socket.socket]:
    """Both ends of a line, none of them where standard streams belong: a program may have closed those."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        ours, theirs = (socket.socket(fileno=fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3)) for end in ends)
    finally:
        for end in ends:
            end.close()
    return ours, theirs


def _executed(line: socket.socket, way: Way, environment: dict[str, str]) -> int:
    """A nursery that is a fresh interpreter -> its process."""
    return interpreter(
        f"server import serve; serve({line.fileno()}, {tuple(way)})",
        [line.fileno()],
        env=environment,
        process_group=0,  # a kernel signals and waits for its whole group at its end; ours ends by the lifeline
    )


def _copied(ours: socket.socket, line: socket.socket, way: Way) -> int:
    """A nursery that is a copy of this process -> its process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python's own about threads, from 3.12 on
        pid = os.fork()
    if pid:
        return pid
    try:
        gc.freeze()  # so that nothing of the parent's is finalised here
        ours.close()
        os.setpgid(0, 0)
        _be_ordinary()
        limit_threads(os.environ)
        take_over(for_workers(os.environ))
        serve(line.detach(), way)
    finally:
        os._exit(1)


def _be_ordinary() -> None:
    """In a copy of the user's process: no handlers of its, no wakeup, no standard input."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    if null:
        os.close(null)


def _warn_of_threads() -> None:
    threads = [thread for thread in threading.enumerate() if not thread.name.startswith("qflow-")]
    if len(threads) > 1 and not _warned:
        _warned.append(True)
        warnings.warn(
            f"`start='fork'` copies a process with {len(threads)} threads: what a lock of theirs protects may be "
            "unusable in the workers, and who waits for it waits for ever. The default, `start='forkserver'`, is safe.",
            RuntimeWarning,
            stacklevel=users_line(),
        )


_warned: list[bool] = []
_making = threading.RLock()
_nurseries: weakref.WeakSet[Nursery] = weakref.WeakSet()


class _Shared:
    """The nursery of this process for one way to start, made when the first crew needs it, closed after the last one."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.nursery: Nursery | None = None
        self.users = 0


_shared = {start: _Shared() for start in STARTS}


def acquire(start: str = "forkserver") -> Nursery:
    """A nursery that works, for one more user; a dead one is replaced."""
    if start == "fork":
        return Nursery(start)
    shared = _shared[start]
    with shared.lock:
        if shared.nursery is not None and not shared.nursery.alive:
            shared.nursery.close()
            shared.nursery = None
        if shared.nursery is None:
            shared.nursery = Nursery(start)
            shared.users = 0
        shared.users += 1
        return shared.nursery


def release(nursery: Nursery, *, linger: bool = False) -> None:
    """One user less; with the last one the nursery goes, or soon after when it may linger."""
    if nursery.start == "fork":
        nursery.close()
        return
    shared = _shared[nursery.start]
    with shared.lock:
        if nursery is not shared.nursery:
            return
        shared.users -= 1
        if shared.users:
            return
        if not linger:
            shared.nursery = None
            nursery.close()
            return
    threading.Event().wait(LINGER)
    with shared.lock:
        if nursery is shared.nursery and not shared.users:
            shared.nursery = None
            nursery.close()


@contextlib.contextmanager
def ahead(start: str) -> Iterator[None]:
    """Have a nursery boot while this process prepares what needs one.

    What stands in its way is told when it is needed. A nursery that is a copy of this process is for one crew only.
    """
    early = None
    if start != "fork":
        with contextlib.suppress(OSError, ResourceError):
            early = acquire(start)
    try:
        yield
    finally:
        if early is not None:
            release(early)


def _forget() -> None:
    """In a forked copy of this process: no line of ours stays open."""
    _making.release()
    for nursery in list(_nurseries):
        nursery.forget()
    _nurseries.clear()
    _shared.update({start: _Shared() for start in STARTS})


@atexit.register
def _at_exit() -> None:
    for shared in _shared.values():
        nursery, shared.nursery = shared.nursery, None
        if nursery is not None:
            nursery.close()


os.register_at_fork(before=_making.acquire, after_in_parent=_making.release, after_in_child=_forget)
