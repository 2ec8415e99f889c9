"""Cache: what a part of a flow has given, written by a first run and read by later ones.

    xs | read | transform | qf.cache("folder") | augment | ...      first run: all of it, and each value is written
    0 1 2 ...             | (read it)          | augment | ...      later runs: by number, in the workers of the next step

What is there counts if the source, and the code and parameters of the steps before it, are what they were (`fingerprint`); else
it is made anew. It is one folder for a fingerprint:

    <fingerprint>/items        the values, as they lie in shared memory, one after another
                  index        where each ends: 8 bytes
                  about.json   how many items and bytes; written last
    .part-<...>                the same, of a run that is not over; its run holds a lock on it, and the next run removes it

A folder is given its name when the run has ended, and no item failed: a part is never read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import mmap
import os
import shutil
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple, final

from qflow.errors import GraphError, got
from qflow.graph.accumulator import Accumulator
from qflow.graph.fingerprint import Unknown, fingerprint
from qflow.graph.flow import Beginning, Each, Operator, Queue, Stream
from qflow.graph.options import RunOptions
from qflow.graph.repeat import Repeat
from qflow.graph.run import Run
from qflow.graph.shard import Shard
from qflow.graph.source import Source
from qflow.runtime.codec import Body, decode, encode
from qflow.runtime.log import copied

FORMAT = 1
PART = ".part-"
WORD = 8


@final
class Cache(Stream[Any, Any]):
    """Keeps what comes to it in a folder; see `cache`."""

    def __init__(self, folder: str, key: str | None = None, part: str | None = None) -> None:
        self.folder, self.key, self.part = folder, key, part

    @property
    def name(self) -> str:
        return "cache"

    @property
    def meaning(self) -> str:
        return "qf.cache"

    def accumulator(self, state: Any = None) -> Accumulator:
        return Writing(self.part, state)

    def length(self, items: int) -> int:
        return items

    def begins(self, before: tuple[Operator[Any, Any], ...], source: Any, options: RunOptions) -> Beginning | None:
        print_ = self._fingerprint(before, source, options)
        folder = Path(self.folder).absolute()
        found = stored(folder / print_)
        if options.resume is not None and options.resume.get("stored") != print_:
            return None  # the run before did not read it
        if found is None and options.resume is not None:
            raise GraphError(f"The state is of a run that read the cache in {self.folder!r}, which is no longer there.")
        names = tuple(name for operator in before for part in operator.resolve().lower() for name in part.names)
        rank = next((operator.now.index for operator in before if isinstance(operator, Shard)), 0)
        if found is not None:
            reading = Reading(str(found.folder), print_, (*names, self.name), rank)
            return Beginning(range(found.items), (reading,), whole=True)
        steps = {function.name for operator in before for function in operator.functions}
        part = Part(folder, print_, {*names, *steps, self.name, "source"})
        return Beginning(source, (*before, Cache(self.folder, self.key, str(part.folder))), part.ended)

    def _fingerprint(self, before: tuple[Operator[Any, Any], ...], source: Any, options: RunOptions) -> str:
        """Of all that decides what comes to it."""
        plain = dataclasses.replace(options.context, seeded=False)
        drawing: list[Any] = [operator for operator in before if operator.depends(dataclasses.replace(plain, params={}))]
        if isinstance(source, Source) and (source.varies or source.depends(plain)):
            drawing.append(source)
        if drawing:
            raise GraphError(
                f"`{drawing[0]!r}` before `qf.cache` differs from epoch to epoch, and the cache would keep the first. "
                "Let what draws random numbers stand behind it."
            )
        if any(each.lands for operator in before for each in operator.inside):
            raise GraphError(
                "`qf.cache` behind `qf.files.write` would keep records of outputs that may be gone. "
                "Write `qf.files.records(pipe, names, cache=...)`, which looks at them."
            )
        if any(isinstance(operator, Repeat) for operator in before):
            raise GraphError("`qf.cache` stands before `qf.repeat`: `xs | read | qf.cache(folder) | qf.repeat()`.")
        kept = [operator for operator in before if not isinstance(operator, Queue | Cache)]
        functions = [each for operator in kept for each in operator.functions]
        named = sorted({name for function in functions for name in function.parameters if name in options.params})
        code = fingerprint(FORMAT, [*map(_words, kept)], [(each.call, each.bound, each.init) for each in functions], lenient=True)
        try:
            given = fingerprint(*(options.params[name] for name in named))
            items = fingerprint(source, files=True) if self.key is None else self.key
        except Unknown as error:
            raise GraphError(
                f"`qf.cache` can't tell whether the source, or a parameter, is the same another time ({error}). "
                f'Give it a name of its own, which you change with it: `qf.cache({self.folder!r}, key="2024-03")`.'
            ) from error
        return fingerprint(code, given, items)[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cache) and (self.folder, self.key) == (other.folder, other.key)

    def __hash__(self) -> int:
        return hash((Cache, self.folder, self.key))

    def __repr__(self) -> str:
        return f"qf.cache({self.folder!r}{'' if self.key is None else f', key={self.key!r}'})"


def _words(operator: Operator[Any, Any]) -> Any:
    """What an operator says of what it does, beside the code of its functions."""
    if isinstance(operator, Shard):
        return operator.now.pair, operator.even
    function = getattr(operator, "function", None)
    inside = getattr(getattr(function, "call", None), "operators", ())  # of a chain
    return type(operator).__name__, operator.resolve().meaning, [*map(_words, inside)]


class Stored(NamedTuple):
    """A cache that is complete."""

    folder: Path
    items: int


def stored(folder: Path) -> Stored | None:
    """What a folder has, if it is whole."""
    try:
        about = json.loads((folder / "about.json").read_text())
        sizes = (folder / "items").stat().st_size, (folder / "index").stat().st_size
    except (OSError, ValueError):
        return None
    if not isinstance(about, dict) or not about.keys() >= {"format", "items", "bytes"}:
        return None
    whole = about["format"] == FORMAT and sizes == (about["bytes"], about["items"] * WORD)
    return Stored(folder, about["items"]) if whole else None


@final
class Reading(Each[Any, Any]):
    """Reads a value that was stored, by its number."""

    def __init__(self, folder: str, stored: str, names: tuple[str, ...], rank: int) -> None:
        self.folder, self.stored, self.of_rank = folder, stored, rank
        self._names = names
        self._open: tuple[memoryview, memoryview] | None = None

    @property
    def name(self) -> str:
        return "cache"

    @property
    def names(self) -> tuple[str, ...]:
        return self._names

    @property
    def meaning(self) -> str:
        return "qf.cache"

    def outputs(self, value: Any) -> Iterable[Any]:
        if self._open is None:
            self._open = _mapped(self.folder, "items"), _mapped(self.folder, "index").cast("Q")
        items, index = self._open
        region = items[index[value - 1] if value else 0 : index[value]]
        return (decode(Body(region), 0, read_only=False, views=False)[0],)

    def length(self, items: int) -> int:
        return items

    def __reduce__(self) -> Any:
        return Reading, (self.folder, self.stored, self._names, self.of_rank)

    def __repr__(self) -> str:
        return f"qf.cache({self.folder!r})"


def _mapped(folder: str, name: str) -> memoryview:
    with open(os.path.join(folder, name), "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


@final
class Writing(Accumulator):
    """Values pass, and are written; from ``state`` on, where a worker has died."""

    whole = True

    def __init__(self, part: str | None, state: Any) -> None:
        self._count: int
        self._end: int
        self._writes: bool
        fresh = part is not None and stored(Path(part)) is None  # else it was written in the first repetition
        self._count, self._end, self._writes = state or (0, 0, fresh)
        self._files: list[int] = []
        if self._writes:
            assert part is not None
            self._folder = part
            self._files = [
                os.open(os.path.join(part, name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC) for name in ("items", "index")
            ]
            self._closing = weakref.finalize(self, _close, self._files)

    def add(self, value: Any) -> Iterator[Any]:
        if self.skip:
            self.skip = 0
            return
        if self._writes:
            self._write(value)
        yield value

    def _write(self, value: Any) -> None:
        items, index = self._files
        body = copied(encode(value)).region(0)
        end = self._end + len(body)
        _write_at(items, body, self._end)
        _write_at(index, end.to_bytes(WORD, "little"), self._count * WORD)
        self._count, self._end = self._count + 1, end

    def finish(self) -> Iterator[Any]:
        if self._writes:
            items, index = self._files
            os.ftruncate(items, self._end)  # a worker that died may have written more
            os.ftruncate(index, self._count * WORD)
            for file in self._files:
                os.fsync(file)
            about = {"format": FORMAT, "items": self._count, "bytes": self._end}
            Path(self._folder, "about.json").write_text(json.dumps(about))
        return iter(())

    def again(self, words: tuple[int, ...]) -> None:
        super().again(words)
        self._writes = False  # what came before is not seen

    def cut(self) -> None:
        self._writes = False

    @property
    def state(self) -> Any:
        return self._count, self._end, self._writes


def _write_at(file: int, data: Any, at: int) -> None:
    data = memoryview(data)
    while data:
        written = os.pwrite(file, data, at)
        data, at = data[written:], at + written


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)


class Part:
    """The folder of a run that writes; it is locked as long as the run may go on."""

    def __init__(self, folder: Path, name: str, steps: set[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._to, self._steps = folder / name, steps
        with _alone(folder):
            for left in folder.glob(PART + "*"):
                if (lock := _locked(left)) is not None:  # its run is over
                    shutil.rmtree(left, ignore_errors=True)
                    os.close(lock)
            self.folder = Path(mkdtemp("", PART, folder))
            lock = _locked(self.folder)
        self._gone = weakref.finalize(self, _remove, self.folder, lock, os.getpid())

    def ended(self, run: Run[Any], whole: bool) -> None:
        """The run is over: give what it wrote its name, if that is all there is, and nothing failed on the way to it."""
        whole = whole or run.repetition > 0
        if whole and stored(self.folder) is not None and not self._lacks(run):
            with _alone(self._to.parent):
                if stored(self._to) is None:  # no other run was faster
                    shutil.rmtree(self._to, ignore_errors=True)
                    self.folder.rename(self._to)
        self._gone()

    def _lacks(self, run: Run[Any]) -> bool:
        """Whether an item has failed before it. The path of one that failed behind it says so, but for the first ones, of which
        the step's name says it; that may be one of a chain, or the word of an operator."""
        row, part = run._plan.row, str(self.folder)
        place = next(at for at, each in enumerate(row) if getattr(getattr(each, "stream", each), "part", None) == part)
        streams = sum(isinstance(operator, Stream) for operator in row[:place])
        behind = {name for operator in row[place + 1 :] for name in operator.names} - self._steps
        failures = zip(run.failures, run._failed, strict=False)
        return any(passed <= streams and failure.step not in behind for failure, (passed, *_) in failures)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """A block in which no other run adds to a folder, or removes from it."""
    lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _locked(folder: Path) -> int | None:
    """A lock on a folder, unless somebody has it."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def _remove(folder: Path, lock: int | None, process: int) -> None:
    if process == os.getpid():
        shutil.rmtree(folder, ignore_errors=True)
    if lock is not None:
        os.close(lock)


def cache(folder: str | os.PathLike[str], *, key: str | None = None) -> Cache:
    """Write what comes here to a folder in a first run, and read it in later ones, in which nothing before it runs.

    >>> import qflow as qf, tempfile
    >>> def slow(x):
    ...     print("slow", x)
    ...     return x * x
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pipe = qf.map(slow) | qf.cache(folder) | qf.pack(2)
    ...     [list(pipe([1, 2], engine="serial")) for _ in range(2)]
    slow 1
    slow 2
    [[[1, 4]], [[1, 4]]]

    Stream: T -> T. Order: kept. Holds: nothing. It is read in the workers of the next step, each item by itself. It is made anew
    when the source, the code of a step before it, or a parameter that one names is not what it was; files that a source names
    count by size and time of change. Not noticed are changes in what steps read or draw by themselves, in packages of the same
    version, and in code that they only come upon at work, as that of an object's class. A run that ends early, in which
    an item failed before it, or that goes on from a state, leaves none. The folder keeps a cache for each fingerprint; remove
    those that you no longer need. Values are stored as they are sent: read folders that you trust, for they may hold pickles.

    Args:
        folder: is made if it is not there. Ranks may share it.
        key: a text that stands for the source, for one whose items can't be looked through, as those of an iterator.
    Raises:
        GraphError: what stands before it draws random numbers, repeats, or can't be told apart from what it was.
    """
    if not isinstance(folder, str | os.PathLike) or not os.fspath(folder):
        raise GraphError(f'`qf.cache` takes a folder, but got {got(folder)}. Write for example `qf.cache("cache")`.')
    if key is not None and not isinstance(key, str):
        raise GraphError(f'`key` is a text, but got {got(key)}. Write for example `qf.cache({os.fspath(folder)!r}, key="v2")`.')
    return Cache(os.fspath(folder), key)
