"""Errors: every exception qflow raises by itself.

    QFlowError (RuntimeError)
     +-- GraphError        a flow is put together wrongly; raised on the line that is wrong
     +-- StepError         user code failed and its own exception can't travel as it is
     |    +-- StepTimeout            a step computed longer on an item than its `timeout`
     |    +-- NondeterministicStep   tried again, a step gave fewer results for the same item
     +-- TransportError    an item can't cross to another process
     +-- WorkerDied        a worker process ended in the middle of the work
     +-- ResourceError     memory, descriptors or processes do not suffice
     +-- InternalError     the books do not balance: a defect of qflow, never of its user

A failing step raises the user's own exception type; `annotate` adds where it happened as a note.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TypeVar

E = TypeVar("E", bound=BaseException)


class QFlowError(RuntimeError):
    """Base of all errors of qflow: ``step``, ``index``, ``worker`` say where, when they are known."""

    step: str | None = None
    index: tuple[int, ...] | None = None
    worker: int | None = None
    attempts: int = 1


class GraphError(QFlowError):
    """A flow, mark, source or option is wrong; nothing has run yet."""


class StepError(QFlowError):
    """User code failed and its exception can't be raised as it was; the text tells what it was."""


class StepTimeout(StepError):
    """A step computed longer on an item than its ``timeout``; the text has the stack of its worker."""


class NondeterministicStep(StepError):
    """An iterator that was tried again on an item gave fewer or other results than before, so that they would be a mix."""


class TransportError(QFlowError):
    """An item can't be sent from one process to another."""


class WorkerDied(QFlowError):
    """A worker process died: killed, out of memory, a crash, or ``os._exit`` in a step."""


class ResourceError(QFlowError):
    """The machine refuses what the plan needs; the text says how much of what."""


class InternalError(QFlowError):
    """Counts at two ends of a channel differ. Never seen so far; please report it."""


class RemoteTraceback(Exception):
    """The traceback of a worker, as text: the cause of an error that the consumer sees."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return "\n" + self.text


_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 80
_repr.maxlong = 40


def describe(value: object) -> str:
    """A value in at most 200 characters: its type, shape and dtype or a short repr, never its data.

    >>> describe([1, 2])
    '[1, 2]'
    """
    with suppress(Exception):
        shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
        if shape is not None and dtype is not None:
            return f"{type(value).__name__} {str(dtype).removeprefix('torch.')}{list(shape)}"
    try:
        text = _repr.repr(value)
    except Exception:
        text = f"<unprintable {type(value).__name__}>"
    return text if len(text) <= 200 else text[:197] + "..."


def blame(error: E, step: str, value: object) -> E:
    """Remember on the error which step raised it, and for what; the innermost step wins."""
    with suppress(Exception):
        vars(error).setdefault("_qflow_blame", (step, describe(value)))
    return error


def blamed(error: BaseException) -> tuple[str, str] | None:
    """Take back what `blame` has noted."""
    found: tuple[str, str] | None = vars(error).pop("_qflow_blame", None)
    return found


def place(step: str, index: tuple[int, ...] | None, item: str | None, worker: int | None, attempts: int = 1) -> str:
    """The sentence that says where something failed."""
    path = "" if index is None else f", item {'.'.join(map(str, index))}"
    what = "" if item is None else f" ({item})"
    tries = "" if attempts == 1 else f", at try {attempts}"
    return f"in step {step!r}{path}{what}" + ("" if worker is None else f", worker {worker}") + tries


def annotate(
    error: E, step: str, index: tuple[int, ...] | None, item: str | None, worker: int | None = None, *, attempts: int = 1
) -> E:
    """Add the place as a note, and as attributes on an error of qflow's own."""
    with suppress(Exception):
        error.add_note("qflow: " + place(step, index, item, worker, attempts))
    if isinstance(error, QFlowError):
        error.step, error.index, error.worker, error.attempts = step, index, worker, attempts
    return error


def not_quiet(error: StopIteration, who: str) -> StepError:
    """What is raised in place of a StopIteration of user code."""
    told = StepError(f"{who} raised {error!r}, which would end the loop quietly")
    told.__cause__ = error
    return told


def near(name: str, names: Iterable[str]) -> str:
    """For an error: which of some names was likely meant.

    >>> near("hist", ["hits", "tracks"])
    " (did you mean 'hits'?)"
    """
    from difflib import get_close_matches  # 3 ms, and only where something is wrong

    found = get_close_matches(name, [*names], 1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def listed(names: Iterable[str]) -> str:
    """For an error: names."""
    return ", ".join(map(repr, names)) or "none"


def got(value: Any) -> str:
    """What a message says it got."""
    return f"{describe(value)} of type {type(value).__name__}"
