"""Running: a flow over tables from one file into another.

    slices --workers: read, need, functions--> handed --journal, stages, writer, in this process--> output

The output has its name when it is complete; until then there are ``<output>.partial``, which is made anew whenever a run begins,
and ``<output>.journal``, from which a run that was interrupted goes on.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from errno import ENOENT
from importlib.util import find_spec
from typing import Any, NamedTuple

from qflow.errors import GraphError, got
from qflow.graph.context import Context, Drawn, Setting, drawn_seed
from qflow.graph.fingerprint import fingerprint
from qflow.graph.flow import Joins
from qflow.graph.function import Function
from qflow.graph.options import RunOptions
from qflow.graph.ranks import checked, rank
from qflow.h5 import readers
from qflow.h5.block import Block, Slice
from qflow.h5.checking import check
from qflow.h5.collective import Collective, Sizes, communicator
from qflow.h5.files import stamp
from qflow.h5.inputs import Generated, Slices
from qflow.h5.journal import Handed, Journal, begun
from qflow.h5.meeting import Meeting
from qflow.h5.outputs import Append, Stage, checked_attrs
from qflow.h5.parted import parted
from qflow.h5.partial import Partial
from qflow.h5.tables import Tables
from qflow.h5.writer import Writer

EXISTS = ("refuse", "overwrite", "append")
DRIVERS = (None, "mpio", "sec2")


class Summary(NamedTuple):
    """What a run has done: slices, of all ranks in rank 0, else of this one; in rank 0 rows that were appended, by tables."""

    output: str
    slices: int
    rows: dict[str, int]


def run(
    flow: Joins[Any, Any],
    input: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    n: int | None = None,
    start: int | None = None,
    stop: int | None = None,
    exists: str = "refuse",
    resume: bool = False,
    drop: Iterable[str] = (),
    compression: str | int | None = None,
    attrs: Mapping[str, Mapping[str, Any]] | None = None,
    progress: bool = False,
    shard: tuple[int, int] | None = None,
    driver: str | None = None,
    **options: Any,
) -> Summary:
    """Run a flow over tables: the output has the tables of the input and what the flow appends.

    >>> import numpy as np, tempfile
    >>> from qflow import h5
    >>> def calibrate(hits):
    ...     return 0.5 * hits
    >>> flow = h5.rows("hits", size=2) | calibrate | h5.append("calib", refs="1:1")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with h5.Tables(f"{folder}/in.h5", "w") as file:
    ...         _ = file.append("hits", np.arange(5.0))
    ...     h5.run(flow, f"{folder}/in.h5", f"{folder}/out.h5", n=2).rows
    ...     with h5.Tables(f"{folder}/out.h5") as file:
    ...         print(file["hits", "calib", :].ravel())
    {'calib': 5}
    [0.0 0.5 1.0 1.5 2.0]

    Functions work in ``n`` processes; one process, this one, writes, in the order of the slices: the output is the same for any
    number of workers. Its name is there when it is complete. After an interruption, whatever it was, ``resume=True`` goes on
    behind the last complete slice. Holds: the slices at work, 16 MiB of rows and pairs to be written, and of each open
    file at most 16 MiB of chunks; ranks that write together hold 32 MiB each, and 1.2 KB for each slice and table.

    Args:
        flow: `rows`, then functions, `need`, `append`, `stage`. Functions with marks have workers of their own.
        input: the file that is read; it is copied to the output. May be left out where the flow makes its rows, or the output is
            the input.
        output: the file that is written.
        n: worker processes, if the flow has no marks; 1 when not given.
        start, stop: rows to go through, in place of those of `rows`.
        exists: what to do with an output that is there: ``"refuse"``; ``"overwrite"``; or ``"append"``: its own rows are gone
            through, and what the flow makes goes behind what is there.
        resume: go on with a run that was interrupted; if there is none, begin.
        drop: tables that are only wanted meanwhile; see `Tables`.
        compression: of new tables; see `Tables`.
        attrs: attributes by the names of groups of the output.
        shard: which of how many ranks this is; what the launcher says when not given (MPI, torchrun, a Slurm step). Rank r of R
            has slices r, r + R, ...; the output is that of one rank. All see the folder of the output.
            ``(0, 1)`` for a run of this process alone.
        driver: ``"mpio"``: all ranks of an MPI job write, by parallel HDF5, which an h5py that was built with MPI has; not in a
            flow with a `stage`, which sees all slices in one process, nor where one links two tables both ways. ``"sec2"``:
            rank 0 writes. The first where it can be, when not given. The content is the same.
        progress: show a bar (``pip install 'qflow[files]'``).
        options: of the run, as ``pipe(xs, ...)`` has them: ``params``, ``seed``, ``engine``.
    Raises:
        GraphError: an argument is wrong, the flow names what is not there, or an output is there and shall not be.
        ResourceError: another run writes this output.
        OSError: a file is missing, locked by a writer, or no complete HDF5 file; with its path.
    """
    try:
        job = _Job(Asked(flow, input, output, n, start, stop, exists, drop, compression, shard, driver, options))
        checked = {group: checked_attrs(each, f"of {group!r}") for group, each in (attrs or {}).items()}
        return job.done(checked, resume, progress)
    finally:
        readers.close()  # nobody can write a file that is open for reading


def made_of(flow: Joins[Any, Any], input: str | None, output: str, **options: Any) -> dict[str, Any]:
    """What an output is made of, as far as it decides what that holds; arguments as in `run`."""
    options.pop("progress", None)
    words = {word: options.pop(word) for word in Asked._fields if word in options}
    try:
        return _Job(Asked(flow, input, output, **{**words, "exists": "overwrite", "options": options})).made_of()
    finally:
        readers.close()


class Asked(NamedTuple):
    """What was asked for; see `run` for the words."""

    flow: Any
    input: Any
    output: Any
    n: int | None = None
    start: int | None = None
    stop: int | None = None
    exists: str = "refuse"
    drop: Iterable[str] = ()
    compression: Any = None
    shard: tuple[int, int] | None = None
    driver: str | None = None
    options: dict[str, Any] = {}


class _Job:
    """A run, checked."""

    def __init__(self, asked: Asked) -> None:
        for word, values in (("exists", EXISTS), ("driver", DRIVERS)):
            if (value := getattr(asked, word)) not in values:
                raise GraphError(f"`{word}` is one of {', '.join(map(repr, values))}, but got {got(value)}.")
        self.output, self.exists = os.path.realpath(_path(asked.output, "output")), asked.exists
        self.input = self._read(None if asked.input is None else os.path.abspath(_path(asked.input, "input")))
        self.options = asked.options
        for word, value in (("on_error", "raise"), ("ordered", True)):
            if self.options.get(word, value) != value:
                raise GraphError(
                    f"`h5.run` writes all slices in order: `{word}={value!r}`. "
                    "A function that gives `qf.SKIP` leaves a slice out."
                )
        self.drop = tuple([asked.drop] if isinstance(asked.drop, str) else asked.drop)
        self.compression = asked.compression
        self.rank = rank() if asked.shard is None else checked(*asked.shard, f"shard={asked.shard!r}")
        self.flow = parted(asked.flow, asked.start, asked.stop)
        self.parts, self.head, self.behind = self.flow.parts, self.flow.head, self.flow.behind
        file = None if self.input is None else readers.tables(self.input)
        check(self.parts, file, self.options.get("params") or {}, self.drop)
        self.comm = self._communicator(asked.driver)
        self.pipe = self.flow.pipe(asked.n, self.rank)

    def _communicator(self, driver: str | None) -> Any:
        """Of the ranks, if they write together."""
        if driver == "sec2" or self.rank.count == 1:
            return None
        comm = communicator(self.rank)
        if comm is None:
            why = f"this is not rank {self.rank} of an MPI job, or h5py was built without MPI (the README says how to build it)"
        elif self.behind:
            why = "`h5.stage` sees all slices in one process"
        elif crossed := self.flow.crossed:
            why = f"the flow links {crossed[0]!r} and {crossed[1]!r} twice, in both directions"
        else:
            return comm
        if driver is not None:
            raise GraphError(f"All ranks write together with `driver='mpio'`, but {why}. Leave it out, and rank 0 writes.")
        return None

    def _read(self, input: str | None) -> str | None:
        """Which file is read."""
        if os.path.isdir(self.output):
            raise GraphError(f"The output is the path of a file, but {self.output!r} is a folder.")
        there = os.path.lexists(self.output)
        same = input is not None and there and os.path.exists(input) and os.path.samefile(input, self.output)
        if self.exists == "append":
            if input is not None and not same:
                raise GraphError(
                    f'`exists="append"` goes through the rows of the output itself, {self.output!r}, so leave `input` out.'
                )
            stamp(self.output)
            return self.output
        if there and (same or self.exists == "refuse"):
            raise GraphError(
                f'There is {self.output!r} already. Write `exists="append"` to append to it'
                + (", or another output." if same else ', `exists="overwrite"` to replace it, or another output.')
            )
        folder = os.path.dirname(self.output) or os.curdir
        if not os.path.isdir(folder):
            raise FileNotFoundError(ENOENT, "There is no such folder for the output", folder)
        return input

    def done(self, attrs: Mapping[str, Mapping[str, Any]], resume: bool, progress: bool) -> Summary:
        """Run it."""
        meeting = Meeting(self.output, self.rank)
        path = meeting.journal(self.rank.index)
        journal = Journal(path)
        own = None
        try:
            left = begun(path)
            if left and not resume and self.exists != "overwrite":
                raise GraphError(
                    f"A run into {self.output!r} was interrupted, and left {path!r}. Go on with it by `resume=True`, "
                    'or begin anew by `exists="overwrite"`.'
                )
            if resume and not left and self.exists == "append" and meeting.alone:
                raise GraphError(
                    f"There is no run into {self.output!r} that was interrupted, and to begin one would append once more. "
                    "Run without `resume=True` if that is wanted."
                )
            options = self._begun(journal, meeting, resume and left)
            own = self._own(journal, meeting, options, progress)
            if self.comm is not None:
                return self._together(own, meeting, attrs)
            if self.rank.index == 0:
                return self._lead(own, meeting, _context(options), attrs)
            slices = sum(1 for _ in own)
            meeting.end()
            return Summary(self.output, slices, {})
        except BaseException as error:
            if own is not None:
                own.close()
            meeting.fail(error, journal)
            if begun(path):
                error.add_note(f"qflow: what its slices have given is kept in {path!r}; `resume=True` goes on behind them.")
            elif self.rank.index == 0:  # that of another one says that it failed
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            raise
        finally:
            journal.close()

    def _begun(self, journal: Journal, meeting: Meeting, resume: bool) -> dict[str, Any]:
        """The options of the run: with a seed of its own, or from the state on of one that was interrupted."""
        state = journal.state(self.made_of()) if resume else None
        if self.rank.index == 0:
            meeting.clear()
        if state is None:
            seed = self.options.get("seed")
            found = meeting.begin(journal, drawn_seed() if seed is None else seed, self.comm is not None)
            return {**self.options, "seed": Drawn(found) if seed is None else seed}
        found = meeting.begin(journal, state["seed"], self.comm is not None)
        if found != state["seed"]:  # rank 0 had nothing to go on with, and begins anew; so do the others
            journal.slices = 0
            return {**self.options, "seed": Drawn(found) if self.options.get("seed") is None else found}
        journal.meet(meeting.id)
        kept = {word: value for word, value in self.options.items() if word not in ("seed", "epoch")}
        return {**kept, "resume": state}

    def _lead(self, own: Iterator[Handed], meeting: Meeting, context: Context, attrs: Mapping[str, Mapping[str, Any]]) -> Summary:
        """Write what the slices of all ranks give."""
        with self._partial() as partial:
            with self._opened(partial) as file:
                self._say(file, attrs)
                writing = _Writing(self, file, context)
                for handed in meeting.all(own):
                    writing.add(handed)
                writing.end()
            partial.complete()
        meeting.complete()
        return Summary(self.output, writing.slices, writing.writer.rows)

    def _together(self, own: Iterator[Handed], meeting: Meeting, attrs: Mapping[str, Mapping[str, Any]]) -> Summary:
        """Write with all ranks at the same time what their slices give."""
        declared = {part.table: part.dtype for part in self.parts if isinstance(part, Append) and part.dtype is not None}
        collective = Collective(self.comm, self.head.table, self.drop)
        with self._partial() if self.rank.index == 0 else contextlib.nullcontext(self._partial()) as partial:
            if self.rank.index == 0:
                with self._opened(partial) as file:
                    self._say(file, attrs)
            sizes = [Sizes.of(handed, self.head.table) for handed in meeting.watched(own)]
            meeting.gathered()
            slices, rows = collective.write(partial.path, sizes, meeting.own(), declared, self.compression)
            if self.rank.index == 0:
                partial.complete()
        if self.rank.index:
            meeting.end()
            return Summary(self.output, len(sizes), {})
        meeting.complete()
        return Summary(self.output, slices, rows)

    def _partial(self) -> Partial:
        return Partial(self.output, replaces=self.exists != "refuse")

    def _opened(self, partial: Partial) -> contextlib.AbstractContextManager[Tables]:
        return partial.open(self.input, compression=self.compression, drop=self.drop)

    def _say(self, file: Tables, attrs: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the attributes."""
        own = {part.table: part.attrs for part in self.parts if isinstance(part, Append) and part.attrs}
        for group, each in (*attrs.items(), *own.items()):
            file.attrs(group).update(each)

    def _own(self, journal: Journal, meeting: Meeting, options: dict[str, Any], progress: bool) -> Generator[Handed]:
        """What the slices of this rank give: those of a run that was interrupted, then others."""
        yield from journal.read()
        if journal.slices:
            last = self.rank.index + (journal.slices - 1) * self.rank.count
            options = {**options, "resume": {**options["resume"], "path": [last], "results": journal.slices}}
        slices = self._slices()
        with self.pipe, self.pipe(slices, **options) as results:
            if "resume" not in options:
                journal.begin({**self.made_of(), "meeting": meeting.id, "state": results.state_dict()})
            try:
                for handed in _shown(results, slices, progress and self.rank.index == 0):
                    journal.add(handed)
                    yield handed
            except Exception as error:
                with contextlib.suppress(OSError):  # as on a full disk, of which the error may tell
                    journal.end(f"{type(error).__name__}: {error}")
                raise
        journal.end()

    def _slices(self) -> Any:
        of = self.head.of
        if of is None:
            return self.head.slices(self.input)
        file = None if self.input is None else readers.tables(self.input)
        first = len(file[self.head.table]) if file is not None and self.head.table in file else 0
        if callable(of):
            params = self.options.get("params") or {}
            given = {**self.head.places, **params}
            of = of(**{name: given[name] for name in Function(of).inputs.names if name in given})
        return Generated(self.input, self.head.table, of, first)

    def made_of(self) -> dict[str, Any]:
        """What must be the same where a run is gone on with."""
        parts = [part for each in self.pipe.operators for part in each.inside]
        functions = [(each.call, each.bound, each.init) for part in parts for each in part.functions]
        said = ("paths", "refs", "dtype", "as_", "value")
        words = [(type(part).__name__, part.name, *(vars(part).get(word) for word in said)) for part in parts]
        head = self.head
        given = dict(self.options.get("params") or {})
        return {
            "ranks": self.rank.count,
            "flow": fingerprint(functions, words, head.of, lenient=True),
            "table": head.table,
            "rows": [head.size, head.start, head.stop],
            "input": None if self.input is None else [*stamp(self.input)],
            "params": fingerprint(given, lenient=True),
            "seed": self.options.get("seed"),
            "exists": self.exists == "append",
        }


class _Writing:
    """What is done in this process with what slices have given."""

    def __init__(self, job: _Job, file: Tables, context: Context) -> None:
        self._job, self.writer, self.slices = job, Writer(file), 0
        ready = [each.begun(file) if isinstance(each, Stage) else each.opened() for each in job.behind]
        self._operators: list[Any] = [
            each.within(Setting(context, each.name)) if each.depends(context) else each for each in ready
        ]
        for part in job.parts:
            if isinstance(part, Append) and part.dtype is not None:
                self.writer.expect(part.table, part.dtype)

    def add(self, handed: Handed) -> None:
        """The next slice."""
        job = self._job
        at = Slice(job.input, job.head.table, handed.start, handed.stop, handed.rows)
        value: Any = Block(at, job.flow.names, handed.made, handed.value, handed.over)
        for each in self._operators:
            if each.setting is not None:
                each.setting.at((self.slices,), behind=False)
            (value,) = each.called(value)
        self.writer.add(value)
        self.slices += 1

    def end(self) -> None:
        """There are no more."""
        self.writer.finish()
        for each in self._operators:
            if isinstance(each, Stage):
                each.ended(self.writer.file)


def _context(options: Mapping[str, Any]) -> Context:
    """What a run is beside its data."""
    words = ("seed", "epoch", "params", "resume")
    return RunOptions(**{word: options[word] for word in words if word in options}).context


def _shown(results: Any, slices: Any, progress: bool) -> Iterator[Handed]:
    if not progress or find_spec("tqdm") is None:
        return iter(results)
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    tqdm.monitor_interval = 0  # seconds; it would leave a thread that looks after slow bars
    return iter(tqdm(results, total=len(slices) if isinstance(slices, Slices) else None, unit="slice"))


def _path(path: Any, word: str) -> str:
    if not isinstance(path, str | os.PathLike):
        raise GraphError(f'`{word}` is the path of an HDF5 file, but got {got(path)}. Write `h5.run(flow, "in.h5", "out.h5")`.')
    return os.fspath(path)
