"""Codec: an item as bytes in a cell, and back, with one copy of its arrays in and none out.

A cell holds a head of words, the item's index path, its pickle, and blocks of bytes, each aligned to 64:

    head     check | pickle bytes | path length | blocks | buffers | loose buffers
             path ... | bytes of each block ... | place of each buffer: block, first byte, bytes ...
    pickle   protocol 5; functions and classes of ``__main__`` by value
    blocks   the memory of arrays, tensors and other buffers

The places are left out when every buffer is a block of its own, which it is unless some share memory
(`spans`). Arrays and CPU tensors leave the pickle as the number of their buffer, dtype, shape and strides
(`parts`). Large ones are rebuilt as views on the cell; small ones, and all when cells run short, as copies.
A cell may also hold a value that looks like those before it, as a `table` of one row.
A worker gets read-only arrays and private copies of tensors, so that its input stays as it came.
"""

from __future__ import annotations

import functools
import os
import pickle
import signal
import struct
import sys
import threading
from collections.abc import Sequence
from itertools import chain
from typing import Any
from zlib import crc32

from qflow.errors import InternalError, TransportError
from qflow.runtime import table
from qflow.runtime.memory import Cells
from qflow.runtime.parts import LARGE as LARGE
from qflow.runtime.parts import Pickler, Store, rebuilding
from qflow.runtime.places import captured as captured
from qflow.runtime.places import classes_in, find
from qflow.runtime.spans import Place, blocks
from qflow.runtime.whereabouts import Death

ALIGN = 64
SCALARS = frozenset({int, float, bool, type(None), complex})
COUNTS, CHECK = struct.Struct("=6Q"), struct.Struct("=Q")
DEEP = 4000  # calls; a level of pickle takes up to 3, and a call up to 1 KiB of the stack, which may have 8 MiB
DIGESTED = 4096  # bytes at each end of a buffer
MAGIC = 0x71666C77 << 32

Path = tuple[int, ...]


class Encoded:
    """An item ready to be copied into a cell: ``nbytes`` in all.

    Attributes:
        pickled: the pickle, in pieces.
        buffers: the blocks beside it.
        owners: what keeps their memory alive.
    """

    __slots__ = ("buffers", "head", "nbytes", "owners", "pickled")

    def __init__(
        self,
        pickled: Sequence[bytes],
        path: Path,
        buffers: Sequence[Any] = (),
        places: Sequence[Place] = (),
        loose: int = 0,
        owners: Any = None,
    ) -> None:
        self.pickled, self.buffers, self.owners = pickled, buffers, owners
        length = sum(map(len, pickled))
        lengths = [buffer.nbytes for buffer in buffers]
        words = [length, len(path), len(lengths), len(places) or len(lengths), loose, *path, *lengths]
        if places:
            words += chain.from_iterable(places)
        head = _words(len(words)).pack(*words)
        self.head = CHECK.pack(MAGIC | crc32(head)) + head
        size = len(self.head) + length
        for nbytes in lengths:
            size = _aligned(size) + nbytes
        self.nbytes = size

    def digest(self, before: int = 0) -> int:
        """Of the item, for two of them to be told apart: its pickle, and both ends of its buffers."""
        for piece in self.pickled:
            before = crc32(piece, before)
        for buffer in self.buffers:
            raw = memoryview(buffer).cast("B")
            before = crc32(raw[-DIGESTED:], crc32(raw[:DIGESTED], before))
        return before

    def fill(self, region: memoryview) -> None:
        """Copy it into a cell."""
        at = len(self.head)
        region[:at] = self.head
        for piece in self.pickled:
            region[at : at + len(piece)] = piece
            at += len(piece)
        for buffer in self.buffers:
            at = _aligned(at)
            end = at + buffer.nbytes
            region[at:end] = buffer
            at = end


@functools.lru_cache
def _words(count: int) -> struct.Struct:
    return struct.Struct(f"={count}Q")


def _aligned(size: int) -> int:
    return (size + ALIGN - 1) & -ALIGN


def encode(value: Any, path: Path = (), most: int = sys.maxsize) -> Encoded:
    """An item as bytes, at most ``most``; what can't be sent is a TransportError that names the place in the item."""
    kind = type(value)
    simple = kind in SCALARS or ((kind is str or kind is bytes) and len(value) < LARGE)
    encoded = Encoded([pickle.dumps(value, 5)], path) if simple else _encode(value, path)
    if encoded.nbytes > most:
        raise TransportError(f"An item of {encoded.nbytes} bytes is larger than a cell can be ({most} bytes). Split it.")
    return encoded


def digest(value: Any, before: int) -> int:
    """Of a value after others, to see whether a step gives the same again; of one that can't be sent only that."""
    try:
        return encode(value).digest(before)
    except TransportError:
        return before + 1


def _encode(value: Any, path: Path) -> Encoded:
    pickler = Pickler(pieces := _Pieces())
    try:
        try:
            pickler.dump(value)
        except pickle.PicklingError as error:
            if not isinstance(error.__cause__, RecursionError):
                raise
            pickler = Pickler(pieces := _Pieces())
            with _deeper:
                pickler.dump(value)
        buffers, places = blocks(pickler.spans)
    except BaseException as error:
        if interrupted(error):
            raise
        raise unsendable(value, error, pickler.seen) from error
    if pickler.loose:
        if places:
            places += [(len(buffers) + number, 0, buffer.nbytes) for number, buffer in enumerate(pickler.loose)]
        buffers += pickler.loose
    return Encoded(pieces.pieces, path, buffers, places, len(pickler.loose), pickler.spans)


class _Deeper:
    """While it is entered, values nested more deeply can be pickled: 1000 levels and more in place of 300.

    Only the C code of pickle needs it, which from Python 3.12 on has as much by itself.
    """

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """In a copy of a process in which somebody may be inside."""
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()
        self._before = sys.getrecursionlimit()
        sys.setrecursionlimit(max(self._before, DEEP))

    def __exit__(self, *_: object) -> None:
        sys.setrecursionlimit(self._before)
        self._lock.release()


_deeper = _Deeper()
os.register_at_fork(after_in_child=_deeper.renew)


class _Pieces:
    """A file that keeps what is written as it is given, so that large bytes are not copied twice."""

    __slots__ = ("pieces",)

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def write(self, piece: Any) -> None:
        self.pieces.append(piece if type(piece) is bytes else bytes(piece))


def interrupted(error: BaseException) -> bool:
    """Whether an exception is the Ctrl-C of the user or a simulated death, and not the item's own."""
    return isinstance(error, Death) or (
        isinstance(error, KeyboardInterrupt)
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )


class Head:
    """Where the parts of an item lie in its cell; a head that can't be is an InternalError."""

    __slots__ = ("blocks", "loose", "path", "pickled", "places")

    def __init__(self, region: memoryview) -> None:
        check, pickled, path, blocks, buffers, loose = COUNTS.unpack_from(region)
        at = COUNTS.size + 8 * (path + blocks + (3 * buffers if buffers != blocks else 0))
        if at > len(region) or check != MAGIC | crc32(region[8:at]):
            raise InternalError("the head of an item was overwritten: its check word is wrong")
        words = _words(at - COUNTS.size >> 3).unpack_from(region, COUNTS.size)
        self.path: Path = words[:path]
        start, at = at, at + pickled
        self.pickled = slice(start, at)
        self.blocks: list[tuple[int, int]] = []
        self.places: list[Place] = []
        self.loose = range(buffers - loose, buffers) if loose else range(0)
        if buffers:
            for length in words[path : path + blocks]:
                at = _aligned(at)
                self.blocks.append((at, at := at + length))
            if buffers != blocks:
                self.places = [*zip(*[iter(words[path + blocks :])] * 3, strict=True)]
        if at > len(region) or loose > buffers or (self.places and not all(self._lies(*place) for place in self.places)):
            raise InternalError(f"the head of an item points outside of its cell of {len(region)} bytes")

    def _lies(self, block: int, start: int, length: int) -> bool:
        return block < len(self.blocks) and start + length <= self.blocks[block][1] - self.blocks[block][0]


class Body:
    """Bytes of an item that lie in no cell of their own, for `decode`."""

    def __init__(self, region: memoryview) -> None:
        self._region = region

    def region(self, cell: int) -> memoryview:
        """All of them."""
        return self._region


def path_of(cells: Cells | Body, cell: int) -> Path:
    """The index path of the item in a cell."""
    region = cells.region(cell)
    return table.Reader(region, 0, 1).path(0) if table.is_table(region) else Head(region).path


def poison(cells: Any, cell: int) -> None:
    """Overwrite the item in a cell that is about to be free."""
    region = cells.region(cell)
    if table.is_table(region):
        size = table.Reader(region, 0, 1).nbytes
    else:
        head = Head(region)
        size = head.blocks[-1][1] if head.blocks else head.pickled.stop
    region[:size] = b"\xdb" * size


def decode(cells: Any, cell: int, *, read_only: bool, views: bool) -> tuple[Any, Path, bool]:
    """The item in a cell -> value, index path, and whether it holds views on the cell.

    With ``views``, arrays on `LARGE` bytes and more are views, and the cell's number comes back in
    ``cells.returned`` when the last of them is gone. What can't be rebuilt is a TransportError, and no view is left.
    """
    region = cells.region(cell)
    if table.is_table(region):
        return table.Reader(region, 0, 1).one(cells, cell, read_only=read_only, views=views)
    head = Head(region)
    store = Store(cells, cell, region, head.blocks, head.places, read_only=read_only, views=views) if head.blocks else None
    try:
        return _loaded(region[head.pickled], store, head.loose), head.path, store is not None and store.lease is not None
    except BaseException as error:
        if store is not None:
            store.forget()
        if interrupted(error):
            raise
        raise _lost(region[head.pickled], error) from error


def _loaded(pickled: memoryview, store: Store | None, loose: range) -> Any:
    if store is None:
        return pickle.loads(pickled)
    outer, rebuilding.store = rebuilding.store, store
    try:
        return pickle.loads(pickled, buffers=map(store.loose, loose) if loose else None)
    finally:
        rebuilding.store = outer


def _lost(pickled: memoryview, error: BaseException) -> TransportError:
    """The error for an item that can't be rebuilt: what is in it, and why."""
    names = classes_in(pickled)
    what = f"it holds {', '.join(names)}, and rebuilding it" if names else "rebuilding it"
    text = f"An item can't be rebuilt in this process: {what} raised {type(error).__name__}: {error}. "
    if isinstance(error, ImportError | AttributeError):
        return TransportError(
            text + "A class or function travels by its name, and this process can't import it under that name; "
            "put it in a module that every process can import, or define it in the script or notebook itself."
        )
    return TransportError(
        text + "Its `__reduce__`, `__getstate__` or `__setstate__` may be wrong: try `pickle.loads(pickle.dumps(x))`."
    )


def unsendable(value: Any, error: BaseException, seen: Sequence[Any] = ()) -> TransportError:
    """The error for a value that can't be sent: the place in it, and why."""
    reason = str(error) if isinstance(error, TransportError) else f"{type(error).__name__}: {error}"
    if isinstance(error.__cause__ or error, RecursionError):
        reason = f"nested too deeply: pickle gave up after {DEEP} calls"
    return TransportError(
        f"An item can't be sent to another process: {find(value, seen, sendable)} ({reason}). "
        "Return plain data: numbers, text, arrays, tensors, and containers or dataclasses of them."
    )


def sendable(value: Any) -> bool:
    """Whether a value can be pickled."""
    try:
        Pickler(_Pieces()).dump(value)
    except BaseException as error:
        if interrupted(error):
            raise
        return False
    return True
