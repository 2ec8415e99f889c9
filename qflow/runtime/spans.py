"""Spans: the memory under arrays and tensors, and which of it travels.

A span reaches from the lowest to the highest byte of an array. It is dense when that is no more than
the array's own bytes: any order of axes, reversed axes, broadcast axes. Dense spans travel as they lie,
so that strides stay, and spans that overlap travel as one block, so that what shared memory shares it
again. A view with gaps joins the block that holds it wholly; alone it packs its own bytes, in the
order of its axes, and never ships its base.

    a            ################        one block: a, a.T, a[::-1] and a[::3] lie in it
    a[::3]       #  #  #  #  #
    b[::3]       #  #  #  #  #           packed: #####
"""

from __future__ import annotations

import bisect
import ctypes
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

Place = tuple[int, int, int]  # number of a block, first byte in it, bytes
Ints = Sequence[int]

_memory_at = ctypes.pythonapi.PyMemoryView_FromMemory
_memory_at.restype, _memory_at.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
_READ = 0x100  # PyBUF_READ
NOTHING = memoryview(b"")


def memory_at(address: int, nbytes: int) -> memoryview:
    """Bytes of this process, to read; the caller keeps their owner alive."""
    found: memoryview = _memory_at(address, nbytes, _READ)
    return found


def reach(shape: Ints, strides: Ints, itemsize: int) -> tuple[int, int]:
    """Of elements at these strides, at least one: bytes below the first one, and bytes from the lowest to the highest.

    >>> reach((4, 2), (-16, 8), 8)
    (48, 64)
    """
    below = above = 0
    for count, stride in zip(shape, strides, strict=True):
        if stride < 0:
            below -= (count - 1) * stride
        else:
            above += (count - 1) * stride
    return below, below + above + itemsize


def packed(shape: Ints, strides: Ints, itemsize: int) -> tuple[int, ...]:
    """The strides without gaps, overlaps and reversals, the order of the axes kept.

    >>> packed((2, 3, 5), (8, 1600, 80), 8)
    (8, 80, 16)
    """
    found = [0] * len(shape)
    for axis in reversed(_outer_first(strides)):
        found[axis], itemsize = itemsize, itemsize * shape[axis]
    return tuple(found)


def _outer_first(strides: Ints) -> list[int]:
    """The axes, those of large strides first."""
    return sorted(range(len(strides)), key=lambda axis: -abs(strides[axis]))


class ArraySpan:
    """The memory of an array.

    Attributes:
        array: itself.
        root: what owns the memory; arrays of different roots don't overlap.
        nbytes: the array's own bytes.
        below, extent: bytes below its first element, and from the lowest to the highest.
    """

    __slots__ = ("array", "below", "extent", "nbytes", "root")

    def __init__(self, array: np.ndarray[Any, Any], below: int, extent: int) -> None:
        self.array, self.below, self.extent, self.nbytes = array, below, extent, array.nbytes
        root: Any = array
        while isinstance(root, np.ndarray) and root.base is not None:
            root = root.base
        self.root = id(root)

    def address(self) -> int:
        """Of its lowest byte."""
        return int(self.array.__array_interface__["data"][0]) - self.below

    def content(self) -> Any:
        """Its bytes as they travel when nothing overlaps it."""
        array = self.array
        if not array.size:
            return NOTHING
        if not array.flags.c_contiguous:
            if self.extent <= array.nbytes:
                return memory_at(self.address(), self.extent)
            array = np.ascontiguousarray(array.transpose(_outer_first(array.strides)))
        return array.reshape(-1).view(np.uint8)


class TensorSpan:
    """The memory of a tensor on the CPU; attributes as for arrays."""

    __slots__ = ("extent", "nbytes", "root", "storage", "tensor")

    below = 0

    def __init__(self, tensor: Any, extent: int) -> None:
        self.tensor, self.nbytes, self.extent = tensor, tensor.nbytes, extent
        self.storage = tensor.untyped_storage()  # lives on when the tensor is given another
        self.root = -self.storage.data_ptr()  # never an array's

    def address(self) -> int:
        """Of its lowest byte."""
        return int(self.tensor.data_ptr())

    def content(self) -> Any:
        """Its bytes as they travel when nothing overlaps it."""
        if not self.extent:
            return NOTHING
        if self.extent <= self.nbytes:
            return memory_at(self.address(), self.extent)
        tensor = self.tensor.detach()
        tensor = tensor.conj() if tensor.is_conj() else tensor  # as the bytes lie; neither copies
        tensor = sys.modules["torch"]._neg_view(tensor) if tensor.is_neg() else tensor
        self.tensor = tensor.permute(_outer_first(tensor.stride())).contiguous()  # held, for it owns what is copied
        return memory_at(self.tensor.data_ptr(), self.nbytes)


Span = ArraySpan | TensorSpan


def _may_overlap(roots: set[int], count: int) -> bool:
    return len(roots) < count or min(roots) < 0 < max(roots)  # an array can lie over a tensor


def blocks(spans: Sequence[Span]) -> tuple[list[Any], list[Place]]:
    """What is to be copied for these spans, and the place of each in it; no places when each is a block."""
    if len(spans) < 2 or not _may_overlap({span.root for span in spans}, len(spans)):
        return [span.content() for span in spans], []
    places: list[Place] = [(0, 0, 0)] * len(spans)
    lows: list[int] = []
    highs: list[int] = []
    for low, number in sorted((span.address(), number) for number, span in enumerate(spans) if 0 < span.extent <= span.nbytes):
        if highs and low < highs[-1]:
            highs[-1] = max(highs[-1], low + spans[number].extent)
        else:
            lows.append(low)
            highs.append(low + spans[number].extent)
    contents: list[Any] = [memory_at(low, high - low) for low, high in zip(lows, highs, strict=True)]
    for number, span in enumerate(spans):
        low = span.address()
        block = bisect.bisect_right(lows, low) - 1
        if block >= 0 and span.extent and low + span.extent <= highs[block]:
            places[number] = block, low - lows[block], span.extent
        else:
            content = span.content()
            places[number] = len(contents), 0, content.nbytes
            contents.append(content)
    if len(contents) == len(spans):
        return [contents[block] for block, _, _ in places], []
    return contents, places
