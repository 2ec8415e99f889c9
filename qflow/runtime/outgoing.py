"""Outgoing: memory in the very cell that the result at work will have, so that what is made there need not be copied.

Where an array will lie in its cell is known as soon as results look alike (`template`): there `empty` makes it. When
the step returns it, all else is written around it, and the cell goes out as it is, unless somebody still holds
the array: what he does to it later must not change what was sent, so then it is copied, and its cell
is not used until he lets go.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from operator import index
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from qflow.runtime.parts import LARGE
from qflow.runtime.table import Single, layout
from qflow.runtime.whereabouts import here

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

    from qflow.runtime.packed import Packer
    from qflow.runtime.putter import Putter


def empty(shape: SupportsIndex | Iterable[SupportsIndex], dtype: DTypeLike = float) -> NDArray[Any]:
    """An array to be filled and returned by a step, in C order, as of ``np.empty``: in a worker, returning it copies nothing.

    >>> import numpy as np, qflow as qf
    >>> def batch(number):
    ...     found = qf.empty((2, 3), "f4")
    ...     found[:] = number
    ...     return {"x": found}
    >>> [float(each["x"].sum()) for each in qf.run(qf.process(batch), [1, 2])]
    [6.0, 12.0]

    Use it for `h5py.Dataset.read_direct`, ``np.stack(..., out=)``, ``readinto``; ``torch.from_numpy`` of it may be
    returned, too. It is an ordinary array: it may be changed, kept, or not returned. One that is kept after the step has
    returned it was copied when it was sent.

    Args:
        shape: of the array.
        dtype: of its elements; their values are whatever lay there.
    Memory held: that of the step's output, where results of this structure have come before that are larger than 64 KiB, and
        the array has at least 32 KiB; else memory of its own.
    """
    wanted = np.dtype(dtype)
    sizes = tuple(map(index, shape)) if isinstance(shape, Iterable) else (index(shape),)
    found = None if here.empty is None else here.empty(sizes, wanted)
    return np.empty(sizes, wanted) if found is None else found


class Whole:
    """What already lies in its cell."""

    __slots__ = ("nbytes",)

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes

    def fill(self, region: memoryview) -> None:
        """Nothing is left to do."""


class Copied:
    """What lies in another cell, in whose memory somebody keeps an array."""

    __slots__ = ("_region", "nbytes")

    def __init__(self, region: memoryview) -> None:
        self._region, self.nbytes = region, len(region)

    def fill(self, region: memoryview) -> None:
        """Copy it into a cell."""
        region[: self.nbytes] = self._region


class Outgoing:
    """The outgoing cell of one worker, from run to run; ``cells`` of its output, ``packer`` of its results."""

    def __init__(self, cells: Any, packer: Packer) -> None:
        self._cells, self._packer = cells, packer
        self._putter: Putter | None = None
        self._cell = -1  # in which arrays were made for the item at work
        self._addresses: dict[int, int] = {}  # of these arrays, by their columns
        self._memory = range(0)  # addresses of the cell
        self._lease: Any = None  # weakly: what they hold
        self._template: Any = None  # for whose columns they were made
        self._lent: set[int] = set()  # cells in which somebody keeps an array

    def attach(self, putter: Putter) -> None:
        """A run begins."""
        self.begin()
        self._putter = putter
        for cell in self._lent:
            putter.withhold(cell)

    def begin(self) -> None:
        """An item begins: nothing is made for it yet."""
        if self._cell >= 0:
            self._lent.add(self._cell)
            self._forget()
        if self._lent:
            self._collect()

    def lent(self) -> list[int]:
        """At rest, the cells in which somebody keeps an array."""
        self.begin()
        return [*self._lent]

    @property
    def used(self) -> bool:
        """Whether an array was made for the item at work."""
        return self._cell >= 0

    def _forget(self) -> None:
        self._cell, self._template, self._addresses = -1, None, {}

    def _collect(self) -> None:
        """Give back cells in which nobody keeps an array any more."""
        returned = self._cells.returned
        while returned:
            cell = returned.popleft()
            if cell in self._lent:
                self._lent.discard(cell)
                if self._putter is not None:
                    self._putter.give_back(cell)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any] | None:
        """An array in the outgoing cell, or None if it can't be there."""
        template, words = self._packer.template, self._packer.words
        if self._putter is None or template is None or not template.large or len(self._lent) >= self._putter.edge.shape.lent:
            return None
        plan = layout(template, words, 1)
        for number, column in enumerate(template.columns):
            same = column.word in ("array", "tensor") and column.shape == shape and np.dtype(column.dtype) == dtype
            if same and number not in self._addresses and column.nbytes >= LARGE:
                break
        else:
            return None
        first = plan.columns[0]
        lease = None
        if self._cell < 0:
            nbytes = Single.size(template, words)
            cell = self._putter.take_free(nbytes)
            if cell is None:
                return None
            self._cell, self._template = cell, template
            self._cells.region(cell, nbytes)
        elif template is not self._template or (lease := self._lease()) is None:
            return None
        if lease is None:
            lease = self._cells.lease(self._cell, first, plan.heap)
            self._lease = weakref.ref(lease)
        found: NDArray[Any] = np.ndarray(shape, dtype, lease, plan.columns[number] - first)
        self._addresses[number] = address = _address(found)
        start = address - plan.columns[number]
        self._memory = range(start, start + plan.heap)
        return found

    def place(self, single: Single) -> bool:
        """Write a result around those of its arrays that lie in the outgoing cell -> whether there are any."""
        if self._cell < 0 or single.template is not self._template or len(single.path) != self._packer.words:
            return False
        leaves = single.leaves
        here = [number for number, leaf in enumerate(leaves) if isinstance(leaf, np.ndarray) and _address(leaf) in self._memory]
        if not here or self._addresses != {number: _address(leaves[number]) for number in here}:
            return False  # somebody may keep what is not returned, or returned elsewhere: it would be overwritten
        single.fill_around(self._cells.region(self._cell), here)
        return True

    def sent(self, nbytes: int) -> tuple[Whole | Copied, int]:
        """Of a result that was written and is now held by nobody else -> its content, and the cell that it must have, or -1."""
        cell = self._cell
        self._forget()
        assert self._putter is not None
        if self._lease() is None:
            self._lent.add(cell)
            self._collect()
            return Whole(nbytes), cell
        self._lent.add(cell)
        return Copied(self._cells.region(cell)[:nbytes]), -1


def _address(array: NDArray[Any]) -> int:
    found: int = array.__array_interface__["data"][0]
    return found
