"""Store: bytes that never change, once in the memory of the machine, for all processes that read them.

    maker: memfd, written, sealed          a reference: key, process, descriptor, inode, size
      |                                           |  (in a step, an item, any pickle)
      +-- its own mapping                         v
                              reader: /proc/PROCESS/fd/DESCRIPTOR --> its own mapping of the same pages

A process maps a store once, however many references come, and lets it go with the last object on it. Nothing has a name, and
the pages go with the last process. The head of a store has its key, so that no other file is ever taken for it; what the
descriptor leads to is compared before it is opened, for a process's number may be another's by then.

Why by /proc and not by descriptors sent over the workers' sockets: a reference is bytes, so that one way serves steps, items,
logs of streams, replacements of dead workers, and pickle in other programs. It needs to be the same user's process and dumpable
(hidepid and Yama's ptrace_scope do not matter to the own user's). Where it can't be had, what is shared travels as a copy.

A reference is good as long as somebody in its process holds the store. `Hold` sees to that: a run holds what its steps refer to,
and what its source has sent by reference; all else travels as a copy, as what a worker itself has made.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import mmap
import os
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from qflow.errors import ResourceError, TransportError
from qflow.runtime.environment import lacking
from qflow.runtime.memory import anonymous

HEAD = 64  # bytes before the content
_MAGIC = b"qflow-shared-1".ljust(HEAD - 16, b"\0")
_GET_DUMPABLE = 3  # prctl(2)
_MOST = 1 << 30  # bytes of one write; the kernel takes less than 2**31


class Reference(NamedTuple):
    """Where a store can be had: from a process that holds it.

    Attributes:
        key: its own, 16 random bytes.
        pid, fd: a process and its descriptor.
        device, inode, size: of what the descriptor leads to.
        writable: changes may be made, which each process has for itself.
    """

    key: bytes
    pid: int
    fd: int
    device: int
    inode: int
    size: int
    writable: bool


class Store(mmap.mmap):
    """The mapping of a store in this process.

    Attributes:
        fd: in the process that made it, and in its forked copies, what leads to it; else -1.
        reference: as it came; for a store made here see `refer`.
    """

    fd = -1
    reference: Reference

    @property
    def address(self) -> int:
        """Of the first byte of its content."""
        return int(np.ndarray(0, np.uint8, self, HEAD).__array_interface__["data"][0])

    def refer(self) -> Reference | None:
        """A reference for other processes; None when they could not follow it."""
        if self.fd < 0:
            return self.reference
        if _dumpable() and os.path.exists(f"/proc/{os.getpid()}/fd/{self.fd}"):
            return self.reference._replace(pid=os.getpid())
        _tell()
        return None

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


_stores: weakref.WeakValueDictionary[bytes, Store] = weakref.WeakValueDictionary()
_contents: weakref.WeakValueDictionary[int, Store] = weakref.WeakValueDictionary()  # by address


class Writer:
    """A store that is made: ``with Writer() as writer: writer.write(part); store = writer.store()``.

    Args:
        writable: as in `Reference`.
    Attributes:
        size: bytes written, without the head.
    """

    def __init__(self, *, writable: bool = False) -> None:
        self.size = -HEAD
        self._writable, self._key = writable, os.urandom(16)
        self._fd = anonymous("shared", 0, sealed=False)

    def __enter__(self) -> Writer:
        try:
            self.write(_MAGIC + self._key)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def write(self, part: Any) -> None:
        """Append the bytes of a buffer; ResourceError when there is no room for them."""
        left = memoryview(part)
        left = left.cast("B") if left.nbytes else left[:0]
        self.size += left.nbytes
        while left:
            try:
                left = left[os.write(self._fd, left[:_MOST]) :]
            except OSError as error:
                raise ResourceError(f"{self.size} bytes of shared memory for `qf.shared` were refused: {error}") from error

    def store(self) -> Store:
        """What was written, sealed; nobody can change it."""
        if "memfd" not in lacking():
            fcntl.fcntl(
                self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            )
        status = os.fstat(self._fd)
        place = status.st_dev, status.st_ino, HEAD + self.size
        store = _mapped(self._fd, Reference(self._key, os.getpid(), self._fd, *place, self._writable))
        store.fd, self._fd = self._fd, -1
        return store


def _mapped(fd: int, reference: Reference) -> Store:
    # Private, for the kernel before 6.7 maps what is sealed against writing in no other way; it is the same pages.
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if reference.writable else 0)
    try:
        store = Store(fd, reference.size, flags=mmap.MAP_PRIVATE, prot=protection)
    except OSError as error:
        raise ResourceError(f"{reference.size} bytes of addresses for `qf.shared` were refused: {error}") from error
    store.reference = reference
    found = _stores.setdefault(reference.key, store)  # another thread may have been faster
    if found is store:
        _contents[store.address] = store
    return found


def opened(reference: Reference) -> Store:
    """The store of a reference, mapped if this process does not have it yet; TransportError when it is gone."""
    store = _stores.get(reference.key)
    if store is None:
        fd = _opened(reference)
        try:
            store = _mapped(fd, reference)
        finally:
            os.close(fd)
    if travelling.hold is not None:
        travelling.hold.held[store] = reference
    return store


def _opened(reference: Reference) -> int:
    """A descriptor of the store in another process, to be closed."""
    wanted = reference.device, reference.inode, reference.size
    with contextlib.suppress(OSError):
        place = os.open(f"/proc/{reference.pid}/fd/{reference.fd}", os.O_PATH | os.O_CLOEXEC)  # which opens nothing yet
        try:
            status = os.fstat(place)
            if (status.st_dev, status.st_ino, status.st_size) == wanted:
                fd = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC)
                if os.pread(fd, HEAD, 0) == _MAGIC + reference.key:
                    return fd
                os.close(fd)
        finally:
            os.close(place)
    raise TransportError(
        f"What `qf.shared` had made, {reference.size - HEAD} bytes, is gone or out of reach: process {reference.pid}, which "
        "this was pickled in, has ended, has let it go, or runs on another machine or as another user. Keep it there as long as "
        "others may read it, or pickle `list(x)`."
    )


def store_of(value: np.ndarray[Any, Any]) -> Store | None:
    """The store in which an array lies, as a whole or as a view."""
    base = value.base
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, Store) else None


def store_at(address: int) -> Store | None:
    """The store whose content begins at an address."""
    return _contents.get(address)


def any_stores() -> bool:
    """Whether this process has a store."""
    return bool(_stores)


class Hold:
    """Stores that are kept for whoever gets a reference to them.

    Args:
        held: what it begins with.
        room: how many it takes at once; others when they come again. A worker's takes none: what has come to it in this run
            is held by the parent.
    """

    def __init__(self, held: Mapping[Store, Reference] | None = None, *, room: int = 0) -> None:
        self.held: dict[Store, Reference] = dict(held or {})
        self._room = room
        self._met: weakref.WeakSet[Store] = weakref.WeakSet()

    def refer(self, store: Store) -> Reference | None:
        """A reference to a store that is held; None when it has to travel as a copy."""
        found = self.held.get(store)
        if found is not None or not self._takes(store):
            return found
        found = store.refer()
        if found is not None:
            self.held[store] = found
        return found

    def _takes(self, store: Store) -> bool:
        if len(self.held) < self._room or store in self._met:
            return True
        if self._room:
            self._met.add(store)
        return False


class _Travelling(threading.local):
    """What this thread sends and receives is held here; None: it travels as a copy."""

    hold: Hold | None = None


travelling = _Travelling()


@contextlib.contextmanager
def holding(hold: Hold | None) -> Iterator[None]:
    """What is pickled or unpickled in this block is held; with None it is copied."""
    before, travelling.hold = travelling.hold, hold
    try:
        yield
    finally:
        travelling.hold = before


def _dumpable() -> bool:
    """Whether the user's other processes may see the descriptors of this one."""
    if "prctl" in lacking():
        return True
    return bool(ctypes.CDLL(None).prctl(_GET_DUMPABLE) == 1)


def _tell() -> None:
    if not _told:
        _told.append(True)
        logging.getLogger("qflow").warning(
            "Other processes can't see the descriptors of this one (it is not dumpable, or /proc is missing): each worker gets "
            "a copy of its own of what `qf.shared` has made."
        )


_told: list[bool] = []
