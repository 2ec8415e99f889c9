"""Row: a fault or a payload: the step that has it, how the results are consumed, and what is right."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from qflow.bench import steps
from qflow.bench.systems import Step

TAKEN = 3  # results after which the consumer breaks, or is interrupted

Who = Literal["group", "parent", "victim"]


@dataclass(frozen=True)
class Signal:
    """A signal from outside: which, and to whom: the parent, its process group, or the worker a mark names."""

    to: Who
    number: signal.Signals


@dataclass(frozen=True)
class Row:
    """A row of the matrix.

    Attributes:
        title: the head of the row.
        step: what runs in the workers.
        right: the result of an item, where the step does its work.
        items: how many there are.
        leaves: the consumer breaks after 3 results.
        awaited: it waits for this mark before it breaks.
        signal: what comes from outside; to the parent or its group once it has 3 results.
        shm: bytes of /dev/shm, if it is not to be the machine's own.
        descriptors: how many files the parent may have open, if not what it may anyway.
        survivable: the worker dies once; repeating its item gives every result.
        quick: whether ``--quick`` has it.
        differs: how a result differs from what the step returned, in words; "" if it doesn't.
        mild: a difference is a cost rather than a fault.
        quiet: a run that goes well writes nothing.
    """

    title: str
    step: Step
    right: Callable[[int], Any] = steps.healthy
    items: int = 20
    leaves: bool = False
    awaited: str = ""
    signal: Signal | None = None
    shm: int = 0
    descriptors: int = 0
    survivable: bool = False
    quick: bool = False
    differs: Callable[[Any], str] | None = None
    mild: bool = False
    quiet: bool = False

    def prepare(self) -> None:
        """Limit what this process may do."""
        if self.descriptors:
            resource.setrlimit(resource.RLIMIT_NOFILE, (self.descriptors, self.descriptors))

    @property
    def parent_dies(self) -> bool:
        return self.signal is not None and self.signal.to == "parent"


def same(result: Any, item: int, row: Row) -> bool:
    """Whether a result is the right one for an item; a function may be one that returns the right one."""
    right, result = row.right(item), result() if callable(result) else result
    if isinstance(right, np.ndarray):
        return np.array_equal(np.asarray(result), right)
    return type(result) is type(right) and bool(result == right)
