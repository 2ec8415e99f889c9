"""Output: what workers print, warn and log appears in the process that runs the pipe, with the step's name.

Standard output and error of a step's workers are pipes to the parent. A log record travels as one line
of the error pipe that begins with `RECORD`, and is handled by the parent's logger of the same name.
The consumer's thread forwards, so that in a notebook the lines appear under the cell that runs.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import sys
import threading
import traceback
import warnings
from contextlib import suppress
from typing import Any, NamedTuple

from qflow.graph.function import resolve_name

RECORD = "\x1e"
FIELDS = ("name", "levelno", "levelname", "pathname", "lineno", "funcName", "created")
USUAL = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime"})  # what each record has
MOST = 4096  # bytes of a record's line: no more are written to a pipe at once (pipe(7), PIPE_BUF)
EXTRA = MOST // 8  # characters of what was added to a record by ``extra=``, which the parent's formatters may name
PLAIN = str | int | float | None


class Filter(NamedTuple):
    """A warning filter, with its category by name: nobody imports a package for warnings that can't be met without it."""

    action: str
    message: Any
    category: tuple[str, str]
    module: Any
    line: int


# ---- in the worker


class ToParent(logging.Handler):
    """Writes records as lines for the parent."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(Exception):
            text = record.getMessage()
            if record.exc_info:
                text += "\n" + logging.Formatter().formatException(record.exc_info)
            fields = {key: getattr(record, key) for key in FIELDS}
            extra = {key: value for key, value in vars(record).items() if key not in USUAL and isinstance(value, PLAIN)}
            if sum(len(str(each)) for each in (*extra, *extra.values())) > EXTRA:
                extra = {}
            sys.stderr.flush()
            os.write(2, _line({**extra, **fields}, text))


def _line(fields: dict[str, Any], text: str) -> bytes:
    """A record as one line, its text cut so that it is written at once: workers of a step share a pipe."""
    text = text[:MOST]
    while True:
        line = f"{RECORD}{json.dumps({**fields, 'msg': text}, ensure_ascii=False)}\n".encode(errors="backslashreplace")
        if len(line) <= MOST or not text:
            return line
        text = text[: len(text) - max(1, (len(line) - MOST) // 6)]  # a character takes up to 6


def redirect(out: int, err: int) -> None:
    """Let everything this worker prints go into its step's pipes."""
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False, errors="backslashreplace")
    sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")
    logging.getLogger().addHandler(ToParent())


def adopt(levels: dict[str, int], filters: list[Filter]) -> None:
    """Log and warn as the parent does at this moment; of filters those whose categories can be met here."""
    for name, level in levels.items():
        logging.getLogger(name or None).setLevel(level)
    known = ((filter, resolve_name(*filter.category)) for filter in filters)
    kept = [(each.action, each.message, kind, each.module, each.line) for each, kind in known if isinstance(kind, type)]
    warnings.filters[:] = kept  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined]


# ---- in the parent


def filters() -> list[Filter]:
    """The warning filters that can be sent."""
    found = []
    for action, message, category, module, line in warnings.filters:
        with suppress(Exception):
            assert isinstance(category, type)
            filter = Filter(action, message, (category.__module__, category.__qualname__), module, line)
            pickle.dumps(filter)
            found.append(filter)
    return found


def levels() -> dict[str, int]:
    """The levels that are set on this process's loggers."""
    root = logging.getLogger()
    loggers = ((name, logger) for name, logger in root.manager.loggerDict.items() if isinstance(logger, logging.Logger))
    return {**{name: logger.level for name, logger in loggers if logger.level}, "": root.level}


class Forwarder:
    """The parent's end of one step's pipes."""

    def __init__(self, step: str, out: int, err: int) -> None:
        self.step = step
        self._pending = {out: b"", err: b""}
        self._reading = threading.Lock()
        self.out, self.err = out, err
        for fd in (out, err):
            os.set_blocking(fd, False)

    def forward(self, fd: int) -> bool:
        """Print the whole lines among what lies in a pipe, at most one filling of it -> whether there may be more."""
        with self._reading:
            more = self._read(fd)
            *lines, self._pending[fd] = self._pending[fd].split(b"\n")
        for line in lines:
            self._line(fd, line.decode(errors="backslashreplace"))
        return more

    def drain(self) -> None:
        """Make room in the pipes, and print nothing yet."""
        with self._reading:
            for fd in (self.out, self.err):
                self._read(fd)

    def _read(self, fd: int) -> bool:
        try:
            data = os.read(fd, 1 << 16)
        except OSError:
            return False
        self._pending[fd] += data
        return bool(data)

    def flush(self) -> None:
        """Print what lies in both pipes."""
        for fd in (self.out, self.err):
            for _ in range(16):  # somebody may print for ever
                if not self.forward(fd):
                    break

    def _line(self, fd: int, line: str) -> None:
        line, mark, record = line.partition(RECORD) if fd == self.err else (line, "", "")
        if mark:
            with suppress(ValueError):
                self._log(json.loads(record))
            if not line:
                return
        stream = sys.stdout if fd == self.out else sys.stderr
        if stream is not None:
            with suppress(ValueError):  # it may be closed at exit
                stream.write(f"[{self.step}] {line}\n")

    def _log(self, fields: dict[str, Any]) -> None:
        record = logging.makeLogRecord({**fields, "msg": f"[{self.step}] {fields['msg']}", "args": ()})
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            try:
                logger.handle(record)
            except Exception:  # a handler of the user, that is no fault of the run's
                if logging.raiseExceptions:
                    traceback.print_exc()

    def close(self) -> None:
        """Print the rest; whoever made the pipes closes them."""
        with suppress(OSError):  # where it would be printed may be closed
            self.flush()
            for fd, rest in self._pending.items():
                if rest:
                    self._line(fd, rest.decode(errors="backslashreplace"))
