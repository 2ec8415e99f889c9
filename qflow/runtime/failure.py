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
from typing import Any, NamedTuple

import cloudpickle

from qflow.errors import QFlowError, RemoteTraceback, StepError, annotate
from qflow.graph.attempt import Failed
from qflow.graph.carrier import reported
from qflow.graph.path import index_of
from qflow.graph.run import ItemFailure
from qflow.runtime.board import END, ERROR
from qflow.runtime.codec import Body, decode, encode
from qflow.runtime.log import copied
from qflow.runtime.side import Parcel

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
    attempts: int = 1
    fatal: bool = False
    value: bytes | None = None
    group: int = -1

    def told(self) -> ItemFailure:
        """What the consumer is told."""
        value = None
        if self.value is not None:
            with suppress(Exception, SystemExit, GeneratorExit):
                value = decode(Body(memoryview(self.value)), 0, read_only=False, views=False)[0]
        return ItemFailure(self.error(), self.step, self.path, self.item, self.pid, self.attempts, value, self.fatal)

    def error(self) -> BaseException:
        """The exception to raise in the consumer."""
        error: BaseException = StepError(self.text)
        if self.pickled is not None:
            with suppress(Exception, SystemExit, GeneratorExit):  # it came back in the worker, but may need what only that has
                error = pickle.loads(self.pickled)
        if self.trace:
            error.__cause__ = RemoteTraceback(self.trace)
        return annotate(error, self.step, self.path, self.item, self.pid, attempts=self.attempts)


def failure_of(failed: Failed, path: tuple[int, ...] | None, pid: int | None) -> Failure:
    """The failure for what user code or the codec has raised."""
    error = failed.error
    if isinstance(error, ValueError) and "read-only" in text_of(error):
        error.add_note(
            "qflow: a worker's input arrays are read-only; work on `x.copy()`, or write `y = x * 2` in place of `x *= 2`."
        )
    index = None if path is None else index_of(path)
    attempts = max(failed.attempts, error.attempts if isinstance(error, QFlowError) else 1)
    return Failure(_travelling(error), _words(error, failed.step), _trace(error), failed.step, index, failed.what, pid, attempts)


def parcel_of(failure: Failure, path: tuple[int, ...], *, last: bool = True) -> Parcel:
    """A failure ready for a cell."""
    encoded = encode(failure, path)
    return Parcel(ERROR | END if last else ERROR, encoded.nbytes, encoded)


def bytes_of(value: Any) -> bytes | None:
    """A value that failed, as bytes that only its reader takes apart; None when it can't be sent."""
    try:
        return bytes(copied(encode(reported(value))).region(0))
    except Exception:
        return None


HOUSE = os.path.dirname(os.path.dirname(__file__))


def _trace(error: BaseException) -> str:
    """A traceback from the first frame that is not qflow's on; nothing for an error of qflow that no user code raised."""
    below = error.__traceback__
    while below is not None and below.tb_frame.f_code.co_filename.startswith(HOUSE):
        below = below.tb_next
    if below is None and isinstance(error, QFlowError) and error.__cause__ is None:
        return ""
    try:
        return "".join(traceback.format_exception(type(error), error, below or error.__traceback__))[-MOST:]
    except Exception:
        return f"<{type(error).__name__}, whose traceback can't be printed>"


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


def text_of(error: BaseException) -> str:
    """What an exception says, cut; it may not be printable."""
    try:
        return str(error)[:2000]
    except Exception:
        return "<unprintable>"


def _words(error: BaseException, step: str) -> str:
    text = text_of(error)
    if isinstance(error, SystemExit):
        return f"step {step!r} called sys.exit({text})"
    return text if isinstance(error, QFlowError) else f"{type(error).__name__}: {text}"
