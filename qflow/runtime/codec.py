"""Codec: an item as bytes in a cell, and back, with one copy of its arrays in and none out.

A cell holds a head of words (lengths), the item's index path, a pickle, and the buffers of the
item's arrays and tensors, each aligned to 64 bytes:

    words: pickle bytes | path length | buffers | path ... | buffer lengths ...
    pickle (protocol 5, functions and classes of ``__main__`` by value)
    buffers

Arrays and CPU tensors leave the pickle as (number of the buffer, dtype, shape, order). Large ones are
rebuilt as views on the cell; small ones, and all when cells run short, as copies. A worker gets
read-only arrays and private copies of tensors, so that its input stays as it came.
"""

from __future__ import annotations

import io
import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any, cast

import cloudpickle
import numpy as np

from qflow.errors import TransportError, describe
from qflow.runtime.memory import Cells, Lease

ALIGN = 64
LARGE = 32 * 1024  # bytes of a buffer from which on a view is worth pinning its cell
SCALARS = frozenset({int, float, bool, str, bytes, type(None), complex})

Path = tuple[int, ...]


class Encoded:
    """An item ready to be copied into a cell: ``nbytes`` in all."""

    __slots__ = ("buffers", "nbytes", "path", "pickled")

    def __init__(self, pickled: bytes | memoryview, buffers: list[memoryview], path: Path) -> None:
        self.pickled, self.buffers, self.path = pickled, buffers, path
        size = _aligned(8 * (3 + len(path) + len(buffers)) + len(pickled))
        for buffer in buffers:
            size = _aligned(size + buffer.nbytes)
        self.nbytes = size

    def fill(self, region: memoryview) -> None:
        """Copy it into a cell."""
        words = [len(self.pickled), len(self.path), len(self.buffers), *self.path, *(buffer.nbytes for buffer in self.buffers)]
        at = 8 * len(words)
        region[:at] = np.array(words, np.uint64).view(np.uint8).data
        region[at : at + len(self.pickled)] = self.pickled
        at = _aligned(at + len(self.pickled))
        for buffer in self.buffers:
            region[at : at + buffer.nbytes] = buffer
            at = _aligned(at + buffer.nbytes)


def _aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


def encode(value: Any, path: Path = (), most: int = sys.maxsize) -> Encoded:
    """An item as bytes, at most ``most``; what can't be sent is a TransportError that names the place in the item."""
    encoded = _encode(value, path)
    if encoded.nbytes > most:
        raise TransportError(f"An item of {encoded.nbytes} bytes is larger than a cell can be ({most} bytes). Split it.")
    return encoded


def _encode(value: Any, path: Path) -> Encoded:
    if type(value) in SCALARS:
        return Encoded(pickle.dumps(value, 5), [], path)
    file = io.BytesIO()
    pickler = _Pickler(file, 5)
    try:
        pickler.dump(value)
    except Exception as error:
        raise unsendable(value, error) from error
    return Encoded(file.getbuffer(), pickler.buffers, path)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles by value what a worker can't import, and takes arrays and tensors out of the pickle."""

    def __init__(self, file: Any, protocol: int) -> None:
        super().__init__(file, protocol)
        self.buffers: list[memoryview] = []

    def reducer_override(self, value: Any) -> Any:
        kind = type(value)
        if kind is np.ndarray:
            return self._array(value)
        if kind.__module__ == "torch" and kind.__name__ == "Tensor":
            return self._tensor(value)
        if isinstance(value, io.IOBase) and not isinstance(value, io.BytesIO | io.StringIO):
            raise TypeError(
                f"cannot pickle an open file ({getattr(value, 'name', 'unnamed')})"
            )  # cloudpickle would send its contents
        return super().reducer_override(value)

    def _array(self, value: np.ndarray[Any, Any]) -> Any:
        if value.dtype.hasobject:
            return NotImplemented
        order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
        flat = value.T if order == "F" else np.ascontiguousarray(value)
        raw: Any = flat.reshape(-1).view(np.uint8) if flat.size else b""
        self.buffers.append(memoryview(raw).cast("B"))
        read_only = not value.flags.writeable and not _ours(value)
        return _array, (len(self.buffers) - 1, _dtype(value.dtype), value.shape, order, read_only)

    def _tensor(self, value: Any) -> Any:
        torch = sys.modules["torch"]
        if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
            return super().reducer_override(value)
        if value.requires_grad and not value.is_leaf:
            raise TransportError("a tensor that is part of a graph of gradients can't leave its process; send `tensor.detach()`")
        plain = value.detach().resolve_conj().resolve_neg().contiguous()
        raw = plain.reshape(-1).view(torch.uint8).numpy() if plain.numel() else b""
        self.buffers.append(memoryview(raw).cast("B"))
        return _tensor, (len(self.buffers) - 1, str(value.dtype).removeprefix("torch."), tuple(value.shape), value.requires_grad)


def _dtype(dtype: np.dtype[Any]) -> Any:
    """A dtype in its shortest form that comes back the same."""
    return dtype.str if dtype.isbuiltin == 1 else dtype


def _ours(value: Any) -> bool:
    """Whether an array is read-only because it came to this worker as its input."""
    while isinstance(value, np.ndarray):
        if isinstance(value, Lease):
            return True
        value = value.base
    return isinstance(value, memoryview) and isinstance(value.obj, Lease)


class _Rebuilding(threading.local):
    """The buffers of the item that this thread rebuilds."""

    buffers: list[Any]
    read_only: bool


_rebuilding = _Rebuilding()


def _array(number: int, dtype: Any, shape: tuple[int, ...], order: str, read_only: bool) -> Any:
    array: np.ndarray[Any, Any] = np.ndarray(shape, dtype, _rebuilding.buffers[number], order=order)  # type: ignore[arg-type]
    if read_only or _rebuilding.read_only:
        array.flags.writeable = False
    return array


def _tensor(number: int, dtype: str, shape: tuple[int, ...], requires_grad: bool) -> Any:
    import torch  # only where a tensor is met: `import qflow` and array workers must not load it

    kind = getattr(torch, dtype)
    if 0 in shape:
        plain = torch.empty(shape, dtype=kind)
    else:
        buffer = _rebuilding.buffers[number]
        plain = torch.frombuffer(bytearray(buffer) if _rebuilding.read_only else buffer, dtype=kind).reshape(shape)
    return plain.requires_grad_() if requires_grad else plain


class Head:
    """Where the parts of an item lie in its cell."""

    __slots__ = ("buffers", "path", "pickled")

    def __init__(self, region: memoryview) -> None:
        pickled, path, buffers = region[:24].cast("Q")
        words = region[24 : 24 + 8 * (path + buffers)].cast("Q")
        self.path: Path = tuple(words[:path])
        at = 24 + 8 * (path + buffers)
        self.pickled = (at, at + pickled)
        at = _aligned(at + pickled)
        self.buffers = []
        for length in words[path:]:
            self.buffers.append((at, at + length))
            at = _aligned(at + length)


def path_of(cells: Cells, cell: int) -> Path:
    """The index path of the item in a cell."""
    return Head(cells.region(cell)).path


def decode(cells: Cells, cell: int, *, read_only: bool, views: bool) -> tuple[Any, Path, bool]:
    """The item in a cell -> value, index path, and whether it holds views on the cell.

    With ``views``, buffers of `LARGE` bytes and more are views, and the cell's number comes back in
    ``cells.returned`` when the last of them is gone.
    """
    region = cells.region(cell)
    head = Head(region)
    large = views and any(end - start >= LARGE for start, end in head.buffers)
    owner: Any = None
    if large:  # one lease for the cell, which all views of the item hold
        start, end = head.buffers[0][0], head.buffers[-1][1]
        owner = cells.lease(cell, start, end)
    buffers: list[Any] = []
    for first, last in head.buffers:
        if owner is not None and last - first >= LARGE:
            buffers.append(memoryview(owner)[first - start : last - start])
        else:
            copy: Any = bytearray(region[first:last])
            if read_only and copy:
                copy = memoryview(cast(Any, Lease((len(copy),), np.uint8, copy)))
            buffers.append(copy)
    try:
        _rebuilding.buffers, _rebuilding.read_only = buffers, read_only
        value = pickle.loads(region[head.pickled[0] : head.pickled[1]])
    finally:
        _rebuilding.buffers = []
    return value, head.path, large


def unsendable(value: Any, error: Exception) -> TransportError:
    """The error for a value that can't be sent: the place in it, and why."""
    place, culprit = find_unsendable(value, "")
    return TransportError(
        f"An item can't be sent to another process: {'item' + place} is {describe(culprit)} ({type(error).__name__}: {error}). "
        "Return plain data: numbers, text, arrays, tensors, and containers or dataclasses of them."
    )


def sendable(value: Any) -> bool:
    """Whether a value can be pickled."""
    try:
        _Pickler(io.BytesIO(), 5).dump(value)
    except Exception:
        return False
    return True


def find_unsendable(value: Any, place: str, depth: int = 0) -> tuple[str, Any]:
    """The innermost part of a value that can't be pickled, and where it lies."""
    parts: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        parts = [(f"[{key!r}]", part) for key, part in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(f"[{number}]", part) for number, part in enumerate(value)]
    elif hasattr(value, "__dict__") and not isinstance(value, type) and not callable(value):
        parts = [(f".{key}", part) for key, part in vars(value).items()]
    if depth < 8:
        for step, part in parts[:1000]:
            if not sendable(part):
                return find_unsendable(part, place + step, depth + 1)
    return place, value


def captured(function: Callable[..., Any]) -> list[tuple[str, Any]]:
    """What a function carries with it: closure, globals it names, defaults, attributes of a bound object."""
    found: list[tuple[str, Any]] = []
    function = getattr(function, "func", function)
    bound = getattr(function, "__self__", None)
    if bound is not None and not isinstance(bound, type(sys)):
        found.append(("self", bound))
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None)
    if code is None:
        found += [] if bound is not None else list(getattr(function, "__dict__", {}).items())
        return found
    cells = zip(code.co_freevars, getattr(function, "__closure__", None) or (), strict=False)
    for name, cell in cells:
        try:
            found.append((name, cell.cell_contents))
        except ValueError:
            continue
    scope = getattr(function, "__globals__", {})
    found += [(name, scope[name]) for name in code.co_names if name in scope]
    found += [("a default", value) for value in getattr(function, "__defaults__", None) or ()]
    return found
