"""Workers: how many processes fit, by cores and by memory."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
from collections.abc import Iterable
from typing import Any

from qflow.errors import GraphError, ResourceError, got
from qflow.files.names import names_of
from qflow.graph import bytesizes
from qflow.graph.options import workers as counted
from qflow.graph.sizes import nbytes
from qflow.runtime.machine import available_memory, physical_cores

EXAMPLE = 'qf.files.workers(process_size="3GB")'


@dataclasses.dataclass(frozen=True, repr=False)
class Workers:
    """How many workers fit, asked for when a run starts; see `workers`."""

    n: float | None = None
    process_size: int | None = None
    mem_frac: float = 0.8
    mem_available: int | None = None

    def __call__(self) -> int:
        cores = physical_cores()
        n = cores if not self.n else max(1, round(self.n * cores)) if self.n < 1 else int(self.n)
        return n if self.process_size is None else min(n, self._fitting(self.process_size))

    @property
    def memory(self) -> int:
        """Bytes that all of them may take now."""
        return int(available_memory() * self.mem_frac) if self.mem_available is None else self.mem_available

    def _fitting(self, size: int) -> int:
        memory = self.memory
        if memory < size:
            raise ResourceError(
                f"Not even one process of {bytesizes.show(size)} fits into the {bytesizes.show(memory)} of memory that there are"
                f"{'' if self.mem_available is not None else f' ({self.mem_frac:.0%} of what is available)'}. "
                "Give a smaller `process_size`, or `n=1` without one if the step takes the file apart."
            )
        return memory // size

    def __repr__(self) -> str:
        plain = Workers()
        said = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        words = [f"{name}={value!r}" for name, value in said.items() if value != getattr(plain, name)]
        return f"qf.files.workers({', '.join(words)})"


def workers(
    *,
    n: float | None = None,
    process_size: float | str | None = None,
    mem_frac: float = 0.8,
    mem_available: float | str | None = None,
) -> Workers:
    """As many workers as cores and memory allow, for ``n=`` of a mark; counted when a run starts.

    >>> import qflow as qf
    >>> qf.files.workers(n=8, mem_available="10GB", process_size="3GB")()
    3

    The smaller of two numbers: cores, and how often ``process_size`` fits into ``mem_available``, or else into ``mem_frac`` of
    the memory that is available to this process: of the machine, and of its control groups. Where the names are a list, the
    sizes of the first 8 inputs can lower it, and ``n="auto"``, too: such an input must fit as often, whatever ``process_size``
    says, but one worker there is; and there are no more than inputs.

    Args:
        n: workers; between 0 and 1 a part of the physical cores that this process may use, at least 1; None or 0: all of them.
        process_size: bytes that one worker takes at most, or a text as ``"3GB"``; None: memory is not looked at.
        mem_frac: the part of the available memory that all workers may take, above 0, at most 1.
        mem_available: bytes that they may take, in place of that.
    Raises:
        GraphError: a number is negative, or above 1 and not whole, or a size can't be read.
        ResourceError: (when a run starts) not even one fits.
    """
    if n is not None and (not _number(n) or not 0 <= n < math.inf or (n > 1 and n != int(n))):
        raise GraphError(
            f"`n` is a whole number of workers, or a part of the cores between 0 and 1, but got {got(n)}. "
            f"Write for example `{EXAMPLE}`."
        )
    if not _number(mem_frac) or not 0 < mem_frac <= 1:
        raise GraphError(f"`mem_frac` is a number above 0, at most 1, but got {got(mem_frac)}. Write for example `mem_frac=0.8`.")
    size = None if process_size is None else _nbytes(process_size, "process_size", EXAMPLE)
    available = (
        None if mem_available is None else _nbytes(mem_available, "mem_available", 'qf.files.workers(mem_available="10GB")')
    )
    return Workers(n, size, mem_frac, available)


def _nbytes(value: Any, word: str, example: str) -> int:
    """A size; on a command line a number without a unit, too, is a text."""
    return nbytes(int(value) if isinstance(value, str) and value.isdecimal() else value, word, example)


def lowered(n: Any, items: Iterable[Any], most: int) -> Any:
    """The ``n`` of a mark, for so many inputs, of which the first are these: no more than workers that can hold such a file each.

    What the user has counted himself stays.
    """
    if n != "auto" and not isinstance(n, Workers):
        return n
    sizes = [*map(_size, items)]
    rule, wanted = n if isinstance(n, Workers) else Workers(), max(1, min(counted(n), most))
    fit = max(1, rule.memory // max([1, *sizes]))
    if fit < wanted:
        held = bytesizes.show(max(sizes))
        logging.getLogger("qflow").info("%d workers in place of %d: an input takes %s.", fit, wanted, held)
    return min(wanted, fit)


def _size(item: Any) -> int:
    """Bytes of the files of an input; 0: not all are there, which it will be told itself."""
    with contextlib.suppress(OSError, TypeError, ValueError):
        return sum(os.stat(name).st_size for name in names_of(item))
    return 0


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
