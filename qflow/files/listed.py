"""Records: a whole run as a list, with a progress bar, and stored, so that later calls do only what is missing.

The file of a cache has a line for each input, when it is done, with a digest of the steps' code and of what they were given:

    {"qflow.files.records": 1}
    {"steps": "0f3c...", "input": "a.fits", "stamps": [[size, time]], "records": [[output, meta, [[size, time]]]]}

Stamps are those of the input's files before the run, and of each output behind it. Lines are only added; the last one of an input
and its steps counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from qflow.errors import GraphError, got
from qflow.files.names import names_of
from qflow.files.plain import NotPlain, from_plain, to_plain
from qflow.files.planned import outputs
from qflow.files.reading import Read
from qflow.files.record import Record, shown
from qflow.files.writing import Write
from qflow.graph.fingerprint import fingerprint
from qflow.graph.flow import Flow, Joins, Queue
from qflow.graph.function import Function
from qflow.graph.source import check_source

HEAD = {"qflow.files.records": 1}


def records(
    flow: Joins[Any, Record],
    names: Iterable[Any],
    *,
    cache: str | os.PathLike[str] | None = None,
    renew: bool = False,
    progress: bool = False,
    **options: Any,
) -> list[Record]:
    """Run a flow that ends with `write`, and give all its records; with ``cache`` only what is not yet done.

    >>> import qflow as qf, tempfile, pathlib
    >>> def count(data, meta):
    ...     print("count")
    ...     meta["bytes"] = len(data)
    ...     return data
    >>> pipe = qf.files.read() | count | qf.files.write(None)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path, cache = pathlib.Path(folder, "a.txt"), pathlib.Path(folder, "records.jsonl")
    ...     _ = path.write_text("hello")
    ...     first = qf.files.records(pipe, [path], cache=cache, engine="serial")
    ...     qf.files.records(pipe, [path], cache=cache, engine="serial") == first
    count
    True

    Args:
        flow: operators; the workers are ended afterwards unless it is a `Flow` of yours.
        names: the source; all of it is held.
        cache: a file to which each input's records are written as they come. A later call takes from there the inputs that
            have not changed since, by size and time, and whose outputs are there; those that failed, and all if the code of the
            steps or ``params`` has changed, are done again. It is JSON, a line for each input; metadata may be numbers, texts,
            lists, tuples, dicts, sets, dates, paths, bytes, and NumPy's arrays and scalars.
        renew: do all again, and write that to the cache.
        progress: show a bar with files and bytes a second (``pip install 'qflow[files]'``).
        options: of the run, as ``pipe(names, ...)`` has them.
    Raises:
        GraphError: as the run; or the flow makes other items of the names before it reads them, which a cache can't follow; or
            ``cache`` is another kind of file.
    """
    check_source(names, explicit=True)
    items = list(names)
    pipe = flow if isinstance(flow, Flow) else Flow(flow)
    with contextlib.ExitStack() as stack:
        if pipe is not flow:
            stack.enter_context(pipe)
        if cache is None:
            return [*_shown(stack.enter_context(pipe(items, **options)), items, progress)]
        stored = Stored(_path_of(cache), steps_of(pipe, options))
        groups = [stored.known(item) for item in items]
        missing = [number for number, group in enumerate(groups) if group is None or renew]
        if missing:
            if any(isinstance(each, Write) and each.function for operator in pipe.operators for each in operator.inside):
                outputs(pipe, items, params=options.get("params"))  # all of them, with those that are done, must be apart
            left = [items[number] for number in missing]
            run = _shown(stack.enter_context(pipe(left, **options)), left, progress)
            for number, group in zip(missing, by_input(run, left), strict=True):
                if group and all(record.error is None for record in group):
                    stored.add(items[number], group)
                groups[number] = group
    return [record for group in groups for record in group or ()]


def _shown(run: Any, items: list[Any], progress: bool) -> Iterable[Record]:
    if not progress:
        return cast("Iterable[Record]", run)
    from qflow.files.bar import progress as shows

    return shows(run, names=items)


def by_input(run: Iterable[Record], items: Iterable[Any]) -> Iterator[list[Record]]:
    """The records of each input, when they are complete: one, of a step that gives an iterator several; or none.

    >>> [len(group) for group in by_input([Record("a"), Record("a"), Record("c")], "abc")]
    [2, 0, 1]
    """
    records = iter(run)
    record = next(records, None)
    for item in items:
        group: list[Record] = []
        while record is not None and record.input == item:
            group.append(record)
            record = next(records, None)
        yield group
    if record is not None:
        raise GraphError(
            f"There is a record of {record.input!r}, which is no input, or not in its turn. With `cache`, steps behind "
            "`qf.files.write` give the records on as they are and in their order."
        )


def _path_of(cache: Any) -> Path:
    """A path, or a GraphError for what is none."""
    if not isinstance(cache, str | os.PathLike):
        raise GraphError(f'`cache` is the path of a file, but got {got(cache)}. Write for example `cache="records.jsonl"`.')
    path = Path(cache)
    if path.is_dir() or not path.parent.is_dir():
        raise GraphError(f"`cache` is the path of a file in a folder that is there, but got {str(path)!r}.")
    return path


def steps_of(flow: Flow[Any, Any], options: Mapping[str, Any]) -> str:
    """A digest of all that a flow does, and of what a run gives to its steps."""
    inside = [each for operator in flow.operators for each in operator.inside]
    place = next((place for place, each in enumerate(inside) if isinstance(each, Read)), 0)
    if options.get("ordered") is False or any(not isinstance(each, Queue) for each in inside[:place]):
        raise GraphError(
            "`cache` needs the records in the order of the names: `ordered=True`, and nothing before `qf.files.read` "
            "that makes other items of them."
        )
    functions = [getattr(each, "function", None) for each in inside]
    calls = [(each.call, each.bound, each.init) for each in functions if isinstance(each, Function)]
    said = ("values", "naming", "switches")
    words = [(type(each).__name__, *(getattr(each, word, None) for word in said)) for each in inside]
    run = {word: options.get(word) for word in ("seed", "epoch")}
    return fingerprint(calls, words, dict(options.get("params") or {}), run, lenient=True)


class Stored:
    """The file of a cache, for some steps."""

    def __init__(self, path: Path, steps: str) -> None:
        self._path, self._steps = path, steps
        self._now: dict[str, Any] = {}  # what the files of each input were before the run
        self._lines = dict(self._read()) if path.exists() else {}

    def _read(self) -> Iterator[tuple[str, Any]]:
        """The lines of these steps by their inputs."""
        with self._path.open() as file:
            try:
                ours = json.loads(file.readline() or json.dumps(HEAD)) == HEAD
            except ValueError:
                ours = False
            if not ours:
                raise GraphError(f"`cache` is a file of records, but {str(self._path)!r} is none. Choose another name.")
            for line in file:
                with contextlib.suppress(ValueError, KeyError, TypeError):  # the last one may be cut off
                    each = json.loads(line)
                    if each["steps"] == self._steps:
                        yield each["input"], each

    def known(self, name: Any) -> list[Record] | None:
        """The records of an input, if they need not be made again; a GraphError if it was asked for before."""
        key, now = _key(name), _stamps(name)
        if key in self._now:
            raise GraphError(f"With `cache` each input stands once in the names, but {name!r} stands there twice.")
        self._now[key] = now
        line = self._lines.get(key)
        if line is None or now is None or line["stamps"] != now:
            return None
        try:
            group = [Record(name, output, from_plain(meta)) for output, meta, _ in line["records"]]
            there = [output is None or _stamps(output) == stamps for output, _, stamps in line["records"]]
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            return None
        return group if all(there) and all(type(record.meta) is dict for record in group) else None

    def add(self, name: Any, group: list[Record]) -> None:
        """Write the records of an input; one that has no files, or metadata that can't be written, is done again next time."""
        key = _key(name)
        try:
            kept = [[each.output, to_plain(dict(each.meta)), each.output and _stamps(each.output)] for each in group]
        except NotPlain as error:
            warnings.warn(
                f"The metadata of {shown(name)!r} can't be kept, and will be made again: {error}. "
                "Numbers, texts, lists, dicts, dates, paths and arrays can.",
                stacklevel=3,
            )
            return
        if self._now[key] is not None:
            self._write({"steps": self._steps, "input": key, "stamps": self._now[key], "records": kept})

    def _write(self, line: Any) -> None:
        """Add a line, at once, for others may do so, too."""
        with self._path.open("ab+", buffering=0) as file:
            if not file.tell():
                file.write(json.dumps(HEAD).encode() + b"\n")
            file.seek(-1, os.SEEK_END)
            whole = file.read() == b"\n"  # else a program was killed amid its last line
            file.write((b"" if whole else b"\n") + json.dumps(line).encode() + b"\n")


def _key(item: Any) -> str:
    found = shown(item)
    return found if isinstance(found, str) else json.dumps(found)


def _stamps(name: Any) -> list[list[int]] | None:
    """Size and time of change of the files of a name or group; None: one is not there."""
    try:
        found = [os.stat(each) for each in names_of(name)]
    except (OSError, TypeError, ValueError):
        return None
    return [[each.st_size, each.st_mtime_ns] for each in found]
