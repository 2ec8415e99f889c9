"""Journal: what the slices of a run have given, in a file beside the output, so that a run that was interrupted goes on.

    head  record  record  ...        each: the lengths of its header and arrays and their CRC-32, the header in JSON, the arrays

Records are only added; the last one may be cut off, and is made again. Nothing in it is executed: numbers, texts, plain arrays.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import struct
import time
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, final

import numpy as np
from numpy.lib import format as npy

from qflow.errors import GraphError, ResourceError
from qflow.h5.block import ROWS, Made

VERSION, END = 1, "end"
_FRAME = struct.Struct("<QQI")
_LOCK = struct.Struct("@hhqqi4x")  # struct flock of fcntl(2)
OWNED, SAID = 1 << 62, (1 << 62) + 1  # bytes far behind the end that are locked while a run has it open, and has said so


class Handed(NamedTuple):
    """What a slice has given: rows for tables, and ``value``, what a stage behind gets, or `ROWS`."""

    start: int
    stop: int
    over: bool
    value: Any
    made: tuple[Made, ...]
    rows: Any = None  # of the slice, where a generator made them


@final
class Journal:
    """The journal of an output, open for adding; whoever has it open is the only one. Then `begin`, or `state` and `read`.

    Raises:
        ResourceError: another process writes this output.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = _locked(path)
        self.slices = 0  # of the run that was interrupted
        self._anew = False  # begun by this process: nothing of an interrupted run is in it

    def begin(self, head: Mapping[str, Any]) -> None:
        """Begin anew.

        Args:
            head: what the run is made of; ``state``: what it can be gone on from; ``meeting``: see there.
        """
        self._file.seek(0)
        self._file.truncate()
        self._write(_head(head), [])
        self._anew = True

    def meet(self, meeting: str) -> None:
        """Change the word ``meeting`` of the head, which has as many letters as before."""
        place = self._file.tell()
        self._file.seek(0)
        found = _frame(self._file)
        assert found is not None
        self._file.seek(0)
        self._write(_head({**json.loads(found[0]), "meeting": meeting}), [])
        self._file.seek(place)

    def state(self, head: Mapping[str, Any]) -> dict[str, Any]:
        """Go on -> the state with which the run began; a GraphError if it was made of anything else.

        What is behind the last whole record goes.
        """
        found = _frame(self._file)
        there = None if found is None else json.loads(found[0])
        if not isinstance(there, dict) or there.pop("qflow.h5.journal", None) != VERSION or "state" not in there:
            raise GraphError(f"{self.path!r} is no journal of `h5.run`. Remove it, and run without `resume=True`.")
        for word, value in json.loads(json.dumps(head)).items():
            if there.get(word) != value:
                raise GraphError(
                    f"The run that was interrupted had another {word} ({there.get(word)!r}, now {value!r}). "
                    'Go on with what it was begun with, or begin anew by `exists="overwrite"`.'
                )
        place = self._file.tell()
        self.slices = self._to_end()
        self._file.seek(place)
        return dict(there["state"])

    def read(self) -> Iterator[Handed]:
        """Behind `state`: what slices have given."""
        for _ in range(self.slices):
            found = _frame(self._file)
            assert found is not None, "looked at before"
            yield _handed(json.loads(found[0]), found[1])

    def add(self, handed: Handed) -> None:
        """Write what a slice has given, at once."""
        header, arrays = _record(handed)
        self._write(json.dumps(header).encode(), arrays)

    def end(self, failed: str = "") -> None:
        """There are no more slices, or they failed."""
        self._write(json.dumps({END: failed}).encode(), [])

    def refuse(self, meeting: str, failed: str) -> None:
        """Tell the others of a meeting, which may not have been begun here, that this rank has failed; slices stay."""
        if self._anew:
            return
        if begun(self.path):
            self._file.seek(0)
            _frame(self._file)
            self._to_end()
            self.meet(meeting)
        else:
            self.begin({"meeting": meeting})
        self.end(failed)

    def say(self) -> None:
        """From now on others see that it was said what this run is."""
        fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _lock(SAID))

    def close(self) -> None:
        """Let another run write the output."""
        self._file.close()

    def _to_end(self) -> int:
        """Go behind the last whole slice; what is there goes -> how many slices were passed."""
        count = 0
        while (found := _frame(self._file)) is not None and END not in json.loads(found[0]):
            count += 1
        if found is not None:
            self._file.seek(-(_FRAME.size + len(found[0])), os.SEEK_CUR)
        self._file.truncate()
        return count

    def _write(self, header: bytes, arrays: list[Any]) -> None:
        parts: list[Any] = [
            np.ascontiguousarray(each).reshape(-1).view(np.uint8) for each in arrays if each.size and each.dtype.itemsize
        ]
        crc = zlib.crc32(header)
        for part in parts:
            crc = zlib.crc32(part, crc)
        self._file.write(_FRAME.pack(len(header), sum(map(len, parts)), crc))
        self._file.write(header)
        for part in parts:
            self._file.write(part)
        self._file.flush()


def _head(head: Mapping[str, Any]) -> bytes:
    return json.dumps({"qflow.h5.journal": VERSION, **head}).encode()


def _frame(file: Any, *, skip: bool = False) -> tuple[bytes, bytes] | None:
    """The next record of a file; None, and back at its place: there is none that is whole. ``skip``: without its arrays."""
    place = file.tell()
    frame = file.read(_FRAME.size)
    if len(frame) == _FRAME.size:
        header_size, size, crc = _FRAME.unpack(frame)
        if header_size and place + _FRAME.size + header_size + size <= os.fstat(file.fileno()).st_size:
            header = file.read(header_size)
            if skip and size:
                with contextlib.suppress(ValueError):  # which has not come yet, on a network
                    json.loads(header)
                    file.seek(size, os.SEEK_CUR)
                    return header, b""
            body = file.read(size)
            if zlib.crc32(body, zlib.crc32(header)) == crc:
                return header, body
    file.seek(place)
    return None


def follow(path: str, meeting: str, pause: float, patience: float) -> Iterator[Handed]:
    """What another rank of a meeting writes to its journal, as it comes; looked for after pauses of so many seconds.

    Raises:
        ResourceError: that rank has failed, is gone, or has not begun after ``patience`` seconds.
    """
    yield from itertools.starmap(_handed, _followed(path, meeting, pause, patience))


def noted(path: str, meeting: str, pause: float, patience: float) -> Iterator[object]:
    """The same, but only that something came."""
    return _followed(path, meeting, pause, patience, skip=True)


def _followed(
    path: str, meeting: str, pause: float, patience: float, *, skip: bool = False
) -> Iterator[tuple[dict[str, Any], bytes]]:
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        while (file := _of_meeting(path, meeting)) is None:
            if time.monotonic() > begun + patience:
                raise ResourceError(
                    f"The rank that writes {path!r} has not begun within {patience:g} seconds. "
                    "If each rank writes an output of its own, say so: `h5.run(..., shard=(0, 1))`."
                )
            time.sleep(pause)
        stack.enter_context(file)
        while True:
            gone = free(path)
            found = _frame(file, skip=skip)
            if found is None:
                if gone:
                    raise ResourceError(f"The rank that wrote {path!r} is gone.")
                time.sleep(pause)
                continue
            header = json.loads(found[0])
            if END in header:
                if header[END]:
                    raise ResourceError(f"Another rank has failed: {header[END]}")
                return
            yield header, found[1]


def _of_meeting(path: str, meeting: str) -> Any:
    """A journal, behind its head, if it is of a meeting."""
    with contextlib.suppress(FileNotFoundError):
        file = open(path, "rb")
        found = _frame(file)
        if found is not None and json.loads(found[0]).get("meeting") == meeting:
            return file
        file.close()
    return None


def free(path: str, place: int = OWNED) -> bool:
    """Whether nobody has a journal open, or it is not there."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        return bool(_LOCK.unpack(fcntl.fcntl(file, fcntl.F_OFD_GETLK, _lock(place)))[0] == fcntl.F_UNLCK)
    return True


def _lock(place: int) -> bytes:
    """A lock of a byte for who has a file open, so that it goes with the last copy of that; see fcntl(2), F_OFD_SETLK."""
    return _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, place, 1, 0)


def begun(path: str) -> bool:
    """Whether there is a journal with slices in it."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        first = _frame(file) and _frame(file)
        return first is not None and END not in json.loads(first[0])
    return False


def _locked(path: str) -> Any:
    """A file open for reading and writing that nobody else has open so; made if it is not there."""
    while True:
        file = open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")
        try:
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, _lock(OWNED))
        except OSError as error:
            file.close()
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                text = f"The file system has no locks, which a run needs: {error.strerror}"
                raise OSError(error.errno, text, path) from error
            raise ResourceError(f"Another run writes this output at the moment: it holds {path!r}.") from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()  # its run has just ended, and removed it


def _record(handed: Handed) -> tuple[dict[str, Any], list[Any]]:
    arrays = []

    def kept(array: Any) -> list[Any]:
        arrays.append(np.asarray(array))
        return [npy.dtype_to_descr(arrays[-1].dtype), list(arrays[-1].shape)]

    made = [
        {
            "table": each.table,
            "rows": kept(each.rows),
            "links": {other: pairs if isinstance(pairs, str) else kept(pairs) for other, pairs in each.links.items()},
        }
        for each in handed.made
    ]
    header: dict[str, Any] = {"start": handed.start, "stop": handed.stop, "over": handed.over, "made": made}
    if handed.value is not ROWS:
        header["value"] = kept(handed.value)
    if handed.rows is not None:
        header["rows"] = kept(handed.rows)
    return header, arrays


def _handed(header: Mapping[str, Any], body: bytes) -> Handed:
    place = 0

    def array(kind: Any) -> Any:
        nonlocal place
        dtype, shape = _dtype(kind[0]), tuple(kind[1])
        count = int(np.prod(shape))
        found = np.frombuffer(body, dtype, count, place).reshape(shape) if count and dtype.itemsize else np.empty(shape, dtype)
        place += count * dtype.itemsize
        return found

    made = tuple(
        Made(
            each["table"],
            array(each["rows"]),
            {other: pairs if isinstance(pairs, str) else array(pairs) for other, pairs in each["links"].items()},
        )
        for each in header["made"]
    )
    value = array(header["value"]) if "value" in header else ROWS
    rows = array(header["rows"]) if "rows" in header else None
    return Handed(header["start"], header["stop"], header["over"], value, made, rows)


def _dtype(descr: Any) -> Any:
    """A type as it was written; JSON has made lists of tuples."""

    def fields(each: Any) -> Any:
        if isinstance(each, str):
            return each
        return [
            (tuple(name) if isinstance(name, list) else name, fields(kind), *map(tuple, shape)) for name, kind, *shape in each
        ]

    return npy.descr_to_dtype(fields(descr))
