"""Whereabouts: what a step may know of the worker it runs in, and where in the user's code we are."""

from __future__ import annotations

import dataclasses
import inspect
import threading
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class WorkerInfo:
    """The worker that calls a step.

    Attributes:
        step: the step's name in the plan.
        index: which of its workers, 0 to n - 1.
        n: how many workers the step has.
        attempt: 1 when the item at work is tried for the first time; one more for each worker that died of it
            and each retry.
    """

    step: str
    index: int
    n: int
    attempt: int = 1


class Death(BaseException):
    """User code ends its worker, where that is no process that could be killed."""


class _Here(threading.local):
    """A thread of a step knows its own.

    Attributes:
        info: asks for it; None where there is no worker.
        simulated: the worker is no process of its own, and dies by `Death`.
        retries: of the item at work, where there is no worker.
        empty: makes an array of a shape and dtype where the result at work will lie, or None; see `outgoing`.
    """

    info: Callable[[], WorkerInfo] | None = None
    simulated = False
    retries = 0
    empty: Callable[..., Any] | None = None


here = _Here()


def worker() -> WorkerInfo | None:
    """The worker that runs this code; None in a process that is no worker, and in the serial engine.

    >>> import qflow as qf
    >>> qf.worker() is None
    True
    >>> list(qf.run(qf.process(n=2)(lambda x: qf.worker().n), [0]))
    [2]
    """
    return None if here.info is None else here.info()


def attempt() -> int:
    """At which try the item at work is: what `WorkerInfo.attempt` says, and in the serial engine, too."""
    return 1 + here.retries if here.info is None else here.info().attempt


def users_line() -> int:
    """How many frames above the caller's the user's line is, for `warnings.warn`."""
    frame, depth = inspect.currentframe(), 0
    while frame is not None and frame.f_globals.get("__name__", "").startswith("qflow."):
        frame, depth = frame.f_back, depth + 1
    return depth
