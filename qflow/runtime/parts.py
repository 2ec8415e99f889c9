"""Parts: arrays and tensors, which leave an item's pickle and are rebuilt on the bytes beside it.

What arrives: the type, dtype, shape, values bit by bit, the strides where the bytes have no gaps, the
read-only flag, attributes, `requires_grad` of a leaf; the same object twice is one object, and what shared
memory shares it. In a worker, arrays are read-only and tensors private copies, each kind sharing
memory among itself. Not kept: the gradient and hooks of a tensor, pinned and shared memory, the file of
a `np.memmap` (its content arrives, as a memmap without a file), the metadata of what others pickle.

Whatever is no plain array or CPU tensor goes the way its own class pickles it, and the arrays in
it come by here: masked arrays, sparse tensors, parameters, data frames, graphs. Bytes that a class
hands to pickle's protocol 5 as buffers lie beside the pickle too.
"""

from __future__ import annotations

import array as typed
import io
import sys
import threading
from collections.abc import Callable
from typing import Any, ClassVar

import cloudpickle
import numpy as np

from qflow.errors import TransportError
from qflow.runtime.memory import Cells, Lease
from qflow.runtime.shared import SharedSequence, referred
from qflow.runtime.spans import ArraySpan, Place, Span, TensorSpan, packed, reach

Layout = tuple[tuple[int, ...], int] | None  # strides and bytes below the first element; None for C order

LARGE = 32 * 1024  # bytes of a block from which on a view is worth pinning its cell
_IOBase = io.IOBase.__base__
SHORT = frozenset("biufcmMSU")  # kinds of dtype that their text tells wholly
CONJUGATE, NEGATIVE, GRADIENT = 1, 2, 4


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles by value what a worker can't import, and takes arrays and tensors out of the pickle.

    Attributes:
        spans: of the arrays and tensors met.
        loose: buffers that other classes handed out.
        seen: the objects that were to be pickled; the last one is what failed.
    """

    def __init__(self, file: Any) -> None:
        self.loose: list[memoryview] = (loose := [])
        super().__init__(file, 5, lambda buffer: loose.append(buffer.raw()))  # a bound method would be a cycle
        self.spans: list[Span] = []
        self.seen: list[Any] = []
        self._tensors: Any = getattr(sys.modules.get("torch"), "Tensor", ())
        self._special: Any = (np.ndarray, self._tensors, _IOBase)

    def reducer_override(self, value: Any) -> Any:
        self.seen.append(value)
        way = self._ways.get(type(value))
        if way is not None:
            return way(self, value)
        if isinstance(value, self._special):
            if isinstance(value, np.ndarray):
                return self._subclass(value)
            if isinstance(value, self._tensors):
                return self._tensor(value)
            if not isinstance(value, io.BytesIO | io.StringIO):  # cloudpickle would send a file's contents
                raise TypeError(f"cannot pickle an open file ({getattr(value, 'name', 'unnamed')})")
        return super().reducer_override(value)

    # ---- arrays

    def _array(self, value: np.ndarray[Any, Any]) -> Any:
        dtype = value.dtype
        if dtype.hasobject:
            return _object_array(value)
        if not dtype.itemsize:
            return NotImplemented
        if value.base is not None and (found := referred(value)) is not None:
            return found
        flags, shape, below, extent = value.flags, value.shape, 0, value.nbytes
        layout: Layout = None
        if extent and not flags.c_contiguous:
            below, extent = reach(shape, value.strides, dtype.itemsize)
            layout = value.strides, below
        self.spans.append(ArraySpan(value, below, extent))
        short = dtype.str if dtype.kind in SHORT and dtype.metadata is None else dtype
        return _array, (len(self.spans) - 1, short, shape, layout, not flags.writeable and not is_ours(value))

    def _subclass(self, value: np.ndarray[Any, Any]) -> Any:
        """An array of a subclass that has no way of its own: bytes, type and attributes."""
        kind: Any = type(value)
        own = kind.__reduce__ not in (np.ndarray.__reduce__, np.ma.MaskedArray.__reduce__)
        if own or kind.__reduce_ex__ is not np.ndarray.__reduce_ex__ or value.dtype.hasobject or not value.dtype.itemsize:
            return NotImplemented
        rebuild, arguments = self._array(value.view(np.ndarray))
        of_file = ("_mmap", "filename", "offset", "mode") if isinstance(value, np.memmap) else ()
        attributes = {name: each for name, each in vars(value).items() if name not in of_file}
        return _with_attributes((rebuild, (*arguments, kind)), attributes)

    def _memoryview(self, value: memoryview) -> Any:
        raw = np.ndarray(value.nbytes, np.uint8, value)
        shape = value.shape if value.ndim != 1 else None
        _memoryview(raw, value.format, shape)  # a format that can't be rebuilt is an error here
        return _memoryview, (raw, value.format, shape)

    def _typed(self, value: typed.array[Any]) -> Any:
        return _typed, (value.typecode, np.ndarray(len(value) * value.itemsize, np.uint8, value))

    # ---- tensors

    def _tensor(self, value: Any) -> Any:
        """A tensor, or one of a subclass that has no way of its own."""
        if value.requires_grad and not value.is_leaf:
            raise TransportError("a tensor that is part of a graph of gradients can't leave its process; send `tensor.detach()`")
        if not (value.is_cpu or value.is_meta):
            raise TransportError(f"a tensor on {value.device} can't leave its process; send `tensor.cpu()`")
        torch, kind = sys.modules["torch"], type(value)
        if kind is torch.Tensor:
            return _with_attributes(self._plain(torch, value), value.__dict__)
        if kind.__reduce_ex__ is not torch.Tensor.__reduce_ex__ or kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
            return NotImplemented
        with torch._C.DisableTorchFunctionSubclass():
            return _with_attributes(self._plain(torch, value, kind), value.__dict__)

    def _plain(self, torch: Any, value: Any, *kind: type) -> Any:
        if value.layout is not torch.strided:
            return _sparse_of(torch, value)
        if not value.is_cpu or value.is_quantized or value.is_nested or getattr(value, "has_names", bool)():
            return NotImplemented
        if (found := referred(value)) is not None:
            return found
        shape, strides, extent = tuple(value.shape), value.stride(), value.nbytes
        if extent and not value.is_contiguous():
            extent = value.element_size() * reach(shape, strides, 1)[1]
        self.spans.append(TensorSpan(value.detach().as_subclass(torch.Tensor) if kind else value, extent))
        flags = GRADIENT * value.requires_grad + CONJUGATE * value.is_conj() + NEGATIVE * value.is_neg()
        return _tensor, (len(self.spans) - 1, str(value.dtype).removeprefix("torch."), shape, strides, flags, *kind)

    _ways: ClassVar[dict[type, Callable[[Any, Any], Any]]] = {
        np.ndarray: _array,
        memoryview: _memoryview,
        typed.array: _typed,
        SharedSequence: lambda _, value: value.reduced(),
    }


def _object_array(value: np.ndarray[Any, Any]) -> Any:
    """Numpy's own way, which forgets that an array is read-only."""
    return NotImplemented if value.flags.writeable else (_locked, (value.copy("K"),))


def _sparse_of(torch: Any, value: Any) -> Any:
    # Not torch's own way: it keeps every sparse tensor that it rebuilds, for a check at the end of `torch.load`.
    plain, layout = value.detach(), value.layout
    if layout is torch.sparse_coo:
        parts = [plain._indices(), plain._values()]
    elif layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = [plain.crow_indices(), plain.col_indices(), plain.values()]
    elif layout in (torch.sparse_csc, torch.sparse_bsc):
        parts = [plain.ccol_indices(), plain.row_indices(), plain.values()]
    else:
        return NotImplemented
    coalesced = layout is torch.sparse_coo and value.is_coalesced()
    return _sparse, (str(layout).removeprefix("torch."), parts, tuple(value.shape), coalesced, value.requires_grad)


def _with_attributes(reduced: Any, attributes: dict[str, Any]) -> Any:
    """A reduction that also sets attributes."""
    if not attributes or reduced is NotImplemented:
        return reduced
    return (*reduced, attributes, None, None, _set_attributes)


def is_ours(value: Any) -> bool:
    """Whether an array is read-only because it came to this worker as its input."""
    while isinstance(value, np.ndarray) and not isinstance(value, _LAYERS):
        value = value.base
    return isinstance(value, Input | Taken) or (isinstance(value, Lease) and not value.flags.writeable)


# ---- rebuilding


class Input(bytes):
    """Bytes of a worker's input, copied out of their cell."""


class Taken(np.ndarray[Any, Any]):
    """Bytes of a worker's input, copied out of their cell: as `Input`, for many of them, which that would allocate twice."""

    @classmethod
    def of(cls, region: memoryview) -> Taken:
        """A copy of a region that can't be written to."""
        taken = cls(len(region), np.uint8)
        taken[:] = region
        taken.flags.writeable = False
        return taken


class Sent(np.ndarray[Any, Any]):
    """A layer between an array and its memory, by which `is_ours` tells what was sent read-only."""


_LAYERS = Lease, Sent, Taken


class Store:
    """The blocks of an item that is rebuilt, in ``shared`` for its arrays: views on its cell, or copies, made when asked for.

    Args:
        extents: the first byte of each block in the cell, and the one after its last.
        places: of the buffers in the blocks; none when each is a block.
        read_only: as in a worker.
        views: whether blocks of `LARGE` bytes and more may be views.
    """

    __slots__ = (
        "_cell",
        "_cells",
        "_extents",
        "_private",
        "_region",
        "_storages",
        "_views",
        "lease",
        "places",
        "read_only",
        "shared",
    )

    def __init__(
        self,
        cells: Cells,
        cell: int,
        region: memoryview,
        extents: list[tuple[int, int]],
        places: list[Place],
        *,
        read_only: bool,
        views: bool,
    ) -> None:
        self._cells, self._cell, self._region, self._extents = cells, cell, region, extents
        self.places, self.read_only, self._views = places, read_only, views
        self.lease: Lease | None = None  # one for all views on the cell
        self.shared: list[Any] = [None] * len(extents)
        self._private: dict[int, bytearray] = {}
        self._storages: dict[int, Any] = {}

    def share(self, block: int) -> Any:
        """Make a block for the arrays on it."""
        start, end = self._extents[block]
        if self._views and end - start >= LARGE:
            first = self._extents[0][0]
            if self.lease is None:
                self.lease = self._cells.lease(self._cell, first, self._extents[-1][1])
                if self.read_only:
                    self.lease.flags.writeable = False
            found: Any = memoryview(self.lease)[start - first : end - first]  # type: ignore[arg-type]
        else:
            found = (Input if self.read_only else bytearray)(self._region[start:end])
        self.shared[block] = found
        return found

    def writable(self, block: int) -> Any:
        """A block for the tensors on it: in a worker a copy, for a tensor can't be read-only."""
        if not self.read_only:
            return self.shared[block] or self.share(block)
        found = self._private.get(block)
        if found is None:
            start, end = self._extents[block]
            self._private[block] = found = bytearray(self._region[start:end])
        return found

    def storage(self, block: int) -> Any:
        """A block as torch holds memory, for the tensors that share it."""
        found = self._storages.get(block)
        if found is None:
            torch = sys.modules["torch"]
            self._storages[block] = found = torch.frombuffer(self.writable(block), dtype=torch.uint8).untyped_storage()
        return found

    def loose(self, number: int) -> memoryview:
        """The bytes of a buffer of another class."""
        block, start, length = self.places[number] if self.places else (number, 0, None)
        found = memoryview(self.shared[block] or self.share(block))
        return found if length is None else found[start : start + length]

    def forget(self) -> None:
        """Leave the cell alone: the item is lost, and its cell goes back by another way."""
        if self.lease is not None:
            self.lease._note, self.lease = None, None


class _Rebuilding(threading.local):
    """The item that this thread rebuilds."""

    store: Store = None  # type: ignore[assignment]


rebuilding = _Rebuilding()


def _array(number: int, dtype: Any, shape: tuple[int, ...], layout: Layout, read_only: bool, kind: Any = np.ndarray) -> Any:
    store = rebuilding.store
    block, start, length = store.places[number] if store.places else (number, 0, 0)
    buffer = store.shared[block] or store.share(block)
    if read_only:
        buffer = Sent(len(buffer), np.uint8, buffer)
    if layout is None:
        array = np.ndarray.__new__(kind, shape, dtype, buffer, start)
    else:
        strides, below = layout
        itemsize = np.dtype(dtype).itemsize
        if (length or len(buffer)) != reach(shape, strides, itemsize)[1]:
            strides, below = packed(shape, strides, itemsize), 0
        array = np.ndarray.__new__(kind, shape, dtype, buffer, start + below, strides)
    if read_only:
        array.flags.writeable = False
    return array


def _locked(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array.flags.writeable = False
    return array


def _memoryview(raw: np.ndarray[Any, Any], form: str, shape: tuple[int, ...] | None) -> memoryview:
    view = memoryview(raw)  # type: ignore[arg-type]
    return view.cast(form) if shape is None else view.cast(form, shape)  # type: ignore[call-overload, no-any-return]


def _typed(code: str, raw: np.ndarray[Any, Any]) -> typed.array[Any]:
    array = typed.array(code)
    array.frombytes(raw)  # type: ignore[arg-type]
    return array


def _tensor(number: int, dtype: str, shape: tuple[int, ...], strides: tuple[int, ...], flags: int, kind: Any = None) -> Any:
    import torch  # only where a tensor is met: `import qflow` and array workers must not load it

    store, element = rebuilding.store, getattr(torch, dtype)
    if 0 in shape:
        tensor = torch.empty_strided(shape, strides, dtype=element)
    elif store.places:
        tensor = _sharing(torch, store, store.places[number], element, shape, strides)
    else:
        tensor = torch.frombuffer(store.writable(number), dtype=element)
        if strides != (1,):
            dense = tensor.numel() == reach(shape, strides, 1)[1]
            tensor = tensor.as_strided(shape, strides if dense else packed(shape, strides, 1))
    return tensor if not flags and kind is None else _flagged(torch, tensor, flags, kind)


def _sharing(torch: Any, store: Store, place: Place, element: Any, shape: Any, strides: Any) -> Any:
    """A tensor whose memory may be another's too."""
    block, start, length = place
    if length != element.itemsize * reach(shape, strides, 1)[1]:
        strides = packed(shape, strides, 1)
    if start % element.itemsize:
        part = memoryview(store.writable(block))[start : start + length]
        return torch.frombuffer(part, dtype=element).as_strided(shape, strides)
    return torch.empty(0, dtype=element).set_(store.storage(block), start // element.itemsize, shape, strides)


def _flagged(torch: Any, tensor: Any, flags: int, kind: Any) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        if flags & CONJUGATE:
            torch._C._set_conj(tensor, True)
        if flags & NEGATIVE:
            torch._C._set_neg(tensor, True)
        if kind is not None:
            tensor = tensor.as_subclass(kind)
        return tensor.requires_grad_() if flags & GRADIENT else tensor


def _sparse(layout: str, parts: list[Any], shape: tuple[int, ...], coalesced: bool, gradient: bool) -> Any:
    import torch

    if layout == "sparse_coo":
        tensor: Any = torch.sparse_coo_tensor(*parts, shape, is_coalesced=coalesced, check_invariants=False)  # type: ignore[call-arg, arg-type]
    else:
        tensor = torch.sparse_compressed_tensor(*parts, shape, layout=getattr(torch, layout), check_invariants=False)  # type: ignore[call-arg, arg-type]
    return tensor.requires_grad_() if gradient else tensor


def _set_attributes(value: Any, attributes: dict[str, Any]) -> None:
    value.__dict__.update(attributes)
