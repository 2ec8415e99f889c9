"""Failure: an exception on its way from a worker to the consumer.

The user's own exception travels when it survives a round trip tried in the worker, else its type
name and text do, as a `StepError`. Its traceback always travels as text.
"""

from __future__ import annotations

import io
import os
import pickle
import traceback
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple

import cloudpickle

from qflow.errors import QFlowError, RemoteTraceback, StepError, annotate, blamed, describe

MOST = 64 * 1024  # bytes of a pickled exception, characters of a traceback


class Failure(NamedTuple):
    """What is known of an exception: pickled if it can travel, else in words, and where it was raised."""

    pickled: bytes | None
    text: str
    trace: str
    step: str
    path: tuple[int, ...] | None
    item: str | None
    pid: int | None

    def error(self) -> BaseException:
        """The exception to raise in the consumer."""
        error: BaseException = StepError(self.text)
        if self.pickled is not None:
            with suppress(Exception):  # it came back in the worker, but may need what only that has
                error = pickle.loads(self.pickled)
        if self.trace:
            error.__cause__ = RemoteTraceback(self.trace)
        return annotate(error, self.step, self.path, self.item, self.pid)


def failure_of(error: BaseException, step: str, path: tuple[int, ...] | None, item: Any, pid: int | None) -> Failure:
    """The failure for an exception that user code or the codec has raised."""
    where = blamed(error)
    if isinstance(error, ValueError) and "read-only" in _text(error):
        error.add_note(
            "qflow: a worker's input arrays are read-only; work on `x.copy()`, or write `y = x * 2` in place of `x *= 2`."
        )
    step, what = where if where is not None else (step, None if item is NO_ITEM else describe(item))
    try:
        trace = "".join(traceback.format_exception(type(error), error, _from_user(error.__traceback__)))[-MOST:]
    except Exception:
        trace = f"<{type(error).__name__}, whose traceback can't be printed>"
    return Failure(_travelling(error), _words(error, step), trace, step, path, what, pid)


NO_ITEM: Any = object()
_HOUSE = os.path.dirname(os.path.dirname(__file__))


def _from_user(trace: TracebackType | None) -> TracebackType | None:
    """A traceback from the first frame that is not qflow's on, or all of it."""
    below = trace
    while below is not None and below.tb_frame.f_code.co_filename.startswith(_HOUSE):
        below = below.tb_next
    return below or trace


def _travelling(error: BaseException) -> bytes | None:
    """The exception pickled, when it comes back as what it was."""
    if not isinstance(error, Exception) or isinstance(error, StopIteration | StopAsyncIteration):
        return None
    notes = getattr(error, "__notes__", None)
    try:
        file = io.BytesIO()
        cloudpickle.Pickler(file, 5).dump(error)
        if file.tell() > MOST:
            return None
        back = pickle.loads(file.getvalue())
        if type(back) is not type(error) or str(back) != str(error) or getattr(back, "__notes__", None) != notes:
            return None
    except BaseException:
        return None
    return file.getvalue()


def _text(error: BaseException) -> str:
    try:
        return str(error)[:2000]
    except Exception:
        return "<unprintable>"


def _words(error: BaseException, step: str) -> str:
    text = _text(error)
    if isinstance(error, SystemExit):
        return f"step {step!r} called sys.exit({text})"
    return text if isinstance(error, QFlowError) else f"{type(error).__name__}: {text}"
