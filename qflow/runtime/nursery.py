"""Nursery: a fork server of our own, preloaded, that makes worker processes.

    parent --socketpair--> nursery --fork--> workers
      |                                        ^
      +---------- control, bells, cells -------+   (descriptors, handed on by the nursery)

The nursery is a fresh interpreter started by ``python -c``: it runs one thread, never the user's main
module, and listens nowhere. It preloads what its parent has loaded of numpy and torch, so that a fork
takes milliseconds and workers share those pages. Its socket is the lifeline: at end of file it exits,
and the kernel kills its workers with it (PR_SET_PDEATHSIG), even those stuck in C code.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from qflow.errors import ResourceError

PRELOAD = ("numpy", "torch")
LINGER = 0.5  # seconds that it waits for the next pipe before it goes
_MOST_FDS = 200  # the kernel passes at most 253 descriptors in one message
_PDEATHSIG = 1

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


# ---- in the parent


class Nursery:
    """The parent's end: asks for workers, and for the way they ended."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        code = f"import sys; sys.path[:] = {sys.path!r}; from qflow.runtime.nursery import serve; serve({theirs.fileno()})"
        command = [sys.executable, *subprocess._args_from_interpreter_flags(), "-c", code]  # type: ignore[attr-defined]
        signals = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})  # until it ignores them
        try:
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**ONE_THREAD, **os.environ},
                process_group=0,  # a kernel signals and waits for its whole group at its end; ours ends by the lifeline
            )
        except OSError as error:
            ours.close()
            raise ResourceError(f"The process that starts the workers could not be started: {error}") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, signals)
            theirs.close()
        self._socket = ours
        self._lock = threading.RLock()
        self._loaded: set[str] = set()
        self._dead = False

    def fork(self, fds: Sequence[int], count: int, common: bytes, modules: Sequence[str] = ()) -> list[tuple[int, int]]:
        """Make ``count`` workers that inherit ``fds`` and have ``modules`` loaded -> their process ids and pidfds."""
        with self._talking():
            wanted = [name for name in (*PRELOAD, *modules) if name in sys.modules and name not in self._loaded]
            if wanted:
                self._loaded.update(wanted)
                self._send(("load", wanted))
                self._receive()
            for start in range(0, len(fds), _MOST_FDS):
                part = list(fds[start : start + _MOST_FDS])
                self._send(("fds", len(part)), part)
                (word, problem), _ = self._receive()
                if word != "held":
                    raise ResourceError(f"{len(fds)} descriptors for {count} workers were refused: {problem}")
            self._send(("fork", count, len(common)))
            for start in range(0, len(common), 1 << 16):
                self._socket.send(common[start : start + (1 << 16)])
            return self._made(count)

    def _made(self, count: int) -> list[tuple[int, int]]:
        made: list[tuple[int, int]] = []
        while len(made) < count:
            (word, pids), pidfds = self._receive()
            made += zip(pids, pidfds, strict=False) if word == "forked" else ()
            if word != "forked" or len(pids) != len(pidfds):
                for _, pidfd in made:
                    os.close(pidfd)
                raise ResourceError(
                    f"{count} worker processes could not be started: {pids if word != 'forked' else 'too few descriptors'}"
                )
        return made

    def reap(self, pid: int) -> int:
        """The wait status of a worker that has ended."""
        with self._talking():
            self._send(("reap", pid))
            return int(self._receive()[0][1])

    def done(self, pids: Sequence[int]) -> None:
        """Nobody will ask for these workers any more."""
        with self._talking():
            self._send(("forget", list(pids)))

    @contextlib.contextmanager
    def _talking(self) -> Iterator[None]:
        """One request and its reply. Interrupted between the two, nothing later could be understood: it is given up."""
        with self._lock:
            if self._dead:
                raise ConnectionError("the process that starts the workers has ended")
            try:
                yield
            except BaseException:
                self._dead = True
                self._socket.close()
                raise

    def _send(self, message: tuple[Any, ...], fds: Sequence[int] = ()) -> None:
        socket.send_fds(self._socket, [pickle.dumps(message)], fds)

    def _receive(self) -> tuple[Any, list[int]]:
        data, fds, _, _ = socket.recv_fds(self._socket, 1 << 16, _MOST_FDS)
        if not data:
            raise ConnectionError("the process that starts the workers has ended")
        return pickle.loads(data), list(fds)

    @property
    def alive(self) -> bool:
        return not self._dead and self._process.poll() is None

    def close(self) -> None:
        """Let it go; its workers go with it."""
        self._dead = True
        self._socket.close()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:  # it may be in the middle of a long import
            self._process.kill()
            self._process.wait()

    def forget(self) -> None:
        """In a forked copy of the parent: give up the lifeline without ending anything."""
        self._socket.close()
        self._process.returncode = 0


class _Shared:
    """The nursery of this process, made when the first crew needs it, closed after the last one."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.nursery: Nursery | None = None
        self.users = 0


_shared = _Shared()


def acquire() -> Nursery:
    """The nursery, for one more user."""
    with _shared.lock:
        if _shared.nursery is not None and not _shared.nursery.alive:
            _shared.nursery.close()
            _shared.nursery = None
        if _shared.nursery is None:
            _shared.nursery = Nursery()
            _shared.users = 0
        _shared.users += 1
        return _shared.nursery


def release(nursery: Nursery, *, linger: bool = False) -> None:
    """One user less; with the last one the nursery goes, or soon after when it may linger."""
    with _shared.lock:
        if nursery is not _shared.nursery:
            return
        _shared.users -= 1
        if _shared.users:
            return
        if not linger:
            _shared.nursery = None
            nursery.close()
            return
    threading.Event().wait(LINGER)
    with _shared.lock:
        if nursery is _shared.nursery and not _shared.users:
            _shared.nursery = None
            nursery.close()


def _forget() -> None:
    if _shared.nursery is not None:
        _shared.nursery.forget()
    _shared.__init__()  # type: ignore[misc]


@atexit.register
def _at_exit() -> None:
    nursery, _shared.nursery = _shared.nursery, None
    if nursery is not None:
        nursery.close()


os.register_at_fork(after_in_child=_forget)


# ---- in the nursery


def serve(fileno: int) -> None:
    """Serve requests until the parent is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    line = socket.socket(fileno=fileno)
    importlib.import_module("qflow.runtime.worker")
    held: list[int] = []
    ended: dict[int, int] = {}
    while True:
        try:
            data, fds, _, _ = socket.recv_fds(line, 1 << 16, _MOST_FDS)
        except OSError:
            data = b""
        if not data:
            os._exit(0)
        match pickle.loads(data):
            case ("load", modules):
                for module in modules:
                    with contextlib.suppress(Exception):
                        importlib.import_module(module)
                _reply(line, ("loaded", modules))
            case ("fds", count):
                held += fds
                _reply(line, ("held", "") if len(fds) == count else ("refused", "too many open files"))
            case ("fork", count, size):
                common = b""
                while len(common) < size:
                    common += line.recv(1 << 16)
                _fork_all(line, held, count, common)
                for fd in held:
                    os.close(fd)
                held = []
            case ("reap", pid):
                if pid not in ended:
                    ended[pid] = os.waitpid(pid, 0)[1]
                _reply(line, ("ended", ended[pid]))
            case ("forget", pids):
                for pid in pids:
                    ended.pop(pid, None)


def _reply(line: socket.socket, message: tuple[Any, ...], fds: Sequence[int] = ()) -> None:
    try:
        socket.send_fds(line, [pickle.dumps(message)], fds)
    except OSError:
        os._exit(0)


def _fork_all(line: socket.socket, held: list[int], count: int, common: bytes) -> None:
    gc.collect()
    gc.freeze()  # so that collections in the workers do not touch, and thereby copy, the shared pages
    pids: list[int] = []
    pidfds: list[int] = []
    failure = ""
    for number in range(count):
        try:
            pid = os.fork()
        except OSError as error:
            failure = str(error)
            break
        if not pid:
            _be_worker(line, held, number, common)
        pids.append(pid)
        try:
            pidfds.append(os.pidfd_open(pid))
        except OSError as error:
            failure = str(error)
            break
    if failure:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        _reply(line, ("refused", failure))
    else:
        for start in range(0, len(pids), _MOST_FDS):
            _reply(line, ("forked", pids[start : start + _MOST_FDS]), pidfds[start : start + _MOST_FDS])
    for fd in pidfds:
        os.close(fd)


def _be_worker(line: socket.socket, held: list[int], number: int, common: bytes) -> None:
    """Become a worker; never returns."""
    status = 1
    try:
        nursery = os.getppid()
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != nursery:  # it died before the kernel knew
            os._exit(1)
        line.close()
        main: Callable[[int, list[int], bytes], None] = sys.modules["qflow.runtime.worker"].main
        main(number, held, common)
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)
