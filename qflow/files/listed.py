"""Records: a whole run as a list, with a progress bar, and stored, so that later calls do only what is missing.

The file of a cache has a line for the code of the steps and the parameters, then one for each input, when it is done; the number
behind a name tells how many like it came before:

    {"format": 1, "steps": "0f3c..."}
    {"input": "\\"a.fits\\"#0", "stamps": [[size, time]], "records": [[output, meta, [[size, time]]]]}

Stamps are those of the input's files before the run, and of each output behind it.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from qflow.errors import GraphError, InternalError, got
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

FORMAT = 1


def records(
    flow: Joins[Any, Record],
    names: Iterable[Any],
    *,
    cache: str | os.PathLike[str] | None = None,
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
        progress: show a bar with files and bytes a second (``pip install 'qflow[files]'``).
        options: of the run, as ``pipe(names, ...)`` has them.
    Raises:
        GraphError: as the run; or the flow makes other items of the names before it reads them, which a cache can't follow.
    """
    check_source(names, explicit=True)
    items = list(names)
    pipe = flow if isinstance(flow, Flow) else Flow(flow)
    with contextlib.ExitStack() as stack:
        if pipe is not flow:
            stack.enter_context(pipe)
        if cache is None:
            return [*_shown(stack.enter_context(pipe(items, **options)), items, progress)]
        stored = Stored(_path_of(cache), pipe, options)
        groups = [stored.known(item, before) for item, before in _told_apart(items)]
        missing = [number for number, group in enumerate(groups) if group is None]
        if missing:
            if any(isinstance(each, Write) and each.function for operator in pipe.operators for each in operator.inside):
                outputs(pipe, items, params=options.get("params"))  # all of them, with those that are done, must be apart
            left = [items[number] for number in missing]
            run = _shown(stack.enter_context(pipe(left, **options)), left, progress)
            for number, group in zip(missing, by_input(run, left), strict=True):
                if group and all(record.error is None for record in group):
                    stored.add(number, group)
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
    records, left = iter(run), list(items)
    record = next(records, None)
    for number, item in enumerate(left, 1):
        group: list[Record] = []
        again = left[number : number + 1] == [item]  # then one record is of each
        while record is not None and record.input == item and not (group and again):
            group.append(record)
            record = next(records, None)
        yield group
    if record is not None:
        raise InternalError(f"There is a record of {record.input!r}, which is no input, or not in its turn.")


def _told_apart(items: list[Any]) -> Iterator[tuple[Any, int]]:
    """Each item, and how many like it came before."""
    seen: Counter[str] = Counter()
    for item in items:
        yield item, seen[_key(item)]
        seen[_key(item)] += 1


def _path_of(cache: Any) -> Path:
    """A path, or a GraphError for what is none."""
    if not isinstance(cache, str | os.PathLike):
        raise GraphError(f'`cache` is the path of a file, but got {got(cache)}. Write for example `cache="records.jsonl"`.')
    path = Path(cache)
    if path.is_dir() or not path.parent.is_dir():
        raise GraphError(f"`cache` is the path of a file in a folder that is there, but got {str(path)!r}.")
    return path


class Stored:
    """The file of a cache."""

    def __init__(self, path: Path, flow: Flow[Any, Any], options: Mapping[str, Any]) -> None:
        inside = [each for operator in flow.operators for each in operator.inside]
        place = next((place for place, each in enumerate(inside) if isinstance(each, Read)), 0)
        if options.get("ordered") is False or any(not isinstance(each, Queue) for each in inside[:place]):
            raise GraphError(
                "`cache` needs the records in the order of the names: `ordered=True`, and nothing before `qf.files.read` "
                "that makes other items of them."
            )
        functions = [getattr(each, "function", None) for each in inside]
        calls = [(each.call, each.bound, each.init) for each in functions if isinstance(each, Function)]
        words = [(type(each).__name__, getattr(each, "values", None), getattr(each, "naming", None)) for each in inside]
        steps = fingerprint(calls, words, dict(options.get("params") or {}), lenient=True)
        self._path, self._head = path, {"format": FORMAT, "steps": steps}
        self._lines: dict[str, Any] = {}
        self._keys: list[tuple[str, Any]] = []  # of all inputs, with what their files were before the run
        if self._read():
            with path.open("rb+") as file:  # the last line may have been cut off
                if file.seek(-1, os.SEEK_END) >= 0 and file.read() != b"\n":
                    file.write(b"\n")
        else:
            part = path.with_name(f".{path.name}.{os.getpid()}")
            part.write_text(json.dumps(self._head) + "\n")
            os.replace(part, path)

    def _read(self) -> bool:
        """Read the lines -> whether they are of these steps."""
        if not self._path.exists():
            return False
        with self._path.open() as file:
            try:
                if json.loads(file.readline()) != self._head:
                    return False
            except ValueError:
                raise GraphError(f"`cache` is a file of records, but {str(self._path)!r} is none. Choose another name.") from None
            for line in file:
                with contextlib.suppress(ValueError, KeyError, TypeError):  # the last one may be cut off
                    each = json.loads(line)
                    self._lines[each["input"]] = each
        return True

    def known(self, name: Any, before: int) -> list[Record] | None:
        """The records of an input, before which so many like it came, if they need not be made again."""
        key, now = f"{_key(name)}#{before}", _stamps(names_of(name))
        self._keys.append((key, now))
        line = self._lines.get(key)
        if line is None or now is None or line["stamps"] != now:
            return None
        try:
            group = [Record(name, output, from_plain(meta)) for output, meta, _ in line["records"]]
            there = [output is None or _stamps([output]) == stamps for output, _, stamps in line["records"]]
        except (ValueError, KeyError, TypeError):
            return None
        return group if all(there) else None

    def add(self, number: int, group: list[Record]) -> None:
        """Write the records of an input; one that has no files, or metadata that can't be written, is done again next time."""
        key, stamps = self._keys[number]
        try:
            kept = [
                [record.output, to_plain(dict(record.meta)), None if record.output is None else _stamps([record.output])]
                for record in group
            ]
        except NotPlain as error:
            warnings.warn(
                f"The metadata of {shown(group[0].input)!r} can't be kept, and will be made again: {error}. "
                "Numbers, texts, lists, dicts, dates, paths and arrays can.",
                stacklevel=3,
            )
            return
        if stamps is not None:
            with self._path.open("a") as file:
                file.write(json.dumps({"input": key, "stamps": stamps, "records": kept}) + "\n")


def _key(item: Any) -> str:
    return json.dumps(shown(item))


def _stamps(names: Iterable[str]) -> list[list[int]] | None:
    """Size and time of change of files; None: one is not there."""
    try:
        found = [os.stat(name) for name in names]
    except OSError:
        return None
    return [[each.st_size, each.st_mtime_ns] for each in found]
