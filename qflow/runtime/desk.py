"""Desk: where one worker's user code meets the coordination: loads items, runs the step, encodes results.

It plays those effects of `turn` that touch user data; who waits for whom is its host's business
(`worker`, `engines.simulated`). What the user's code is at stands in words that outlive the
worker (`board`), so that its death can be charged to the right call.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

from qflow.errors import NondeterministicStep, TransportError
from qflow.graph.attempt import FAILED, LAST, MANY, NO_ITEM, Caught, Failed, Results, Watch, fewer, other
from qflow.graph.context import PLAIN, Context
from qflow.graph.markers import CLOSE, MARKS
from qflow.graph.options import NOTHING
from qflow.graph.path import Path
from qflow.graph.plan import SMALL, Group
from qflow.graph.row import Kept, Row
from qflow.runtime import heap
from qflow.runtime.board import CALLS, DATA, DONE, END, ERROR, GIVEN, OFFSET, PACKED, VIEWS, Board, Phase
from qflow.runtime.codec import decode, digest, encode, path_of, poison
from qflow.runtime.dash import Dash
from qflow.runtime.failure import bytes_of, failure_of, parcel_of
from qflow.runtime.gates import Gate, gates_of
from qflow.runtime.ledger import Orders, Verdict
from qflow.runtime.log import copied
from qflow.runtime.outgoing import Outgoing
from qflow.runtime.pace import Pace
from qflow.runtime.packed import Filling, Packer, RecordReader, mark_of, mark_of_row, other_mark, packs, read
from qflow.runtime.putter import Putter
from qflow.runtime.side import Claim, Parcel
from qflow.runtime.table import Reader as Table
from qflow.runtime.table import Single
from qflow.runtime.taker import Taker
from qflow.runtime.whereabouts import WorkerInfo

DASH = 256  # values that go the quick way before the worker looks up
LONG = 1_000_000  # nanoseconds of work after which it looks at its memory

IDLE, LOAD, RUN, SEND = map(int, (Phase.IDLE, Phase.LOAD, Phase.RUN, Phase.SEND))  # plain numbers: they are stored often


def _plain(group: Group, context: Context) -> Callable[[Any], Any] | None:
    """The function of a step that does nothing else; a value at a time is timed, and counted, by others."""
    (first, *more), options = group.operators, group.options
    if more or group.stream or options.limited or options.timeout or first.depends(context):
        return None
    return first.plain(context)  # type: ignore[attr-defined, no-any-return]


def _wait(given: Any) -> Any:
    from qflow.runtime.awaiting import of_worker  # asyncio takes 50 ms to load

    return of_worker.wait(given)


def _context(orders: Orders, group: Group | None) -> Context:
    """That of the run; threads share the global generators, so that these can't follow an item."""
    context: Context = pickle.loads(orders.context) if orders.context else PLAIN
    several = group is not None and group.placement == "thread" and group.n > 1
    return dataclasses.replace(context, seeded=False) if several else context


NO_CLAIM = Claim(-1, -1, 0, 0, 0, 0)


class Desk:
    """One participant: the group, its input and output cells, its words.

    Args:
        names: of the groups, for errors.
        number: of the group.
        me: the participant.
        inputs, outputs: cells, `memory.Cells` or their like.
    """

    streams = False
    group: Group | None = None  # with the user's classes built
    orders = Orders()
    context = PLAIN  # of the run

    def __init__(self, board: Board, names: tuple[str, ...], number: int, me: int, inputs: Any, outputs: Any) -> None:
        self.board, self.number, self.me = board, number, me
        self.name, self._maker = names[number], names[number - 1] if number else "source"
        self.inputs, self.outputs = inputs, outputs
        self.at, self.counts = board.at[me], board.counts[me]
        self.taker = Taker(board, board.edges[number], me)
        self.now: Callable[[], int] = time.monotonic_ns
        self.pace = Pace(board.edges[number + 1].shape.producers)
        self.forked: list[bool] = []  # not empty in a copy of this process that user code has made
        self.caught: Caught = BaseException  # what user code may raise that is a failure of its item
        self.between: Callable[[], None] | None = None  # called when an item is finished
        self.unkept: Callable[[int], None] = lambda cell: None  # called for each kept cell that is free again
        self._gate = threading.Lock()
        self._kept: set[int] = set()  # input cells on which user code keeps views
        self._results: Results | None = None  # of the item at work, from its step
        self._there: list[Any] = []  # of them, those that are there already, the next one last
        self._first: Path = ()  # the path of the next of these
        self._answer: Parcel | None = None  # in place of them
        self._open = False  # more results may come
        self._path: Path = ()
        self._value: Any = NO_ITEM
        self._viewing: int | None = None  # the cell of the item at work, if it has views on it
        self._retries = self._begun = self._calls = self._busy = 0
        self._claim, self._k = NO_CLAIM, 0
        self._known = 0  # results to come of the value at work that a predecessor has published
        self._gated = self._careful = False
        self._gates: dict[int, Callable[..., Any]] = {}
        self._idle = 0  # nanoseconds of this result in which the worker was not busy
        self._packer, self._filling = Packer(), Filling(outputs)
        self._outgoing = Outgoing(outputs, self._packer)
        self._reader: Table | RecordReader | None = None  # of the small values in the worker's hands
        self._at_value = 0  # the offset of the value at work, for ``at``
        self._alone = False  # no two values are taken at once
        self._several = board.edges[number + 1].shape.most > 1  # results may share a cell
        self._function: Callable[[Any], Any] | None = None  # of a step that may `Dash`
        self._blanked = -1, -1  # for which value a cell was begun last
        self._outcome: tuple[Any, BaseException | None] | None = None  # of a call that was made, for the value that is begun next
        self._values: list[Any] | None = None  # in the worker's hands, if they came in a table
        self.ring: Callable[[int], object] = lambda who: None
        self.effects: dict[str, Callable[..., Any]] = {
            "share": self._share,
            "copy": self._take,
            "putter": self._attach,
            "dash": self._dash,
            "begin": self._begin,
            "spill": self._spill,
            "result": self._result,
            "fewer": lambda now, before: self._mixed(fewer(now, before)),
            "other": lambda: self._mixed(other()),
            "fill": self._fill,
            "add": self._filling.add,
            "punch": outputs.punch,
            "give back": inputs.punch,
            "release": self._release,
        }

    def start(self, orders: Orders, gate: threading.Lock | None = None, shared: Sequence[threading.Semaphore] = ()) -> None:
        """Be ready for a run of the group, which is not looked at when the step is given up.

        ``gate``: for user code that runs in one thread at a time; ``shared``: for the steps that share the threads.
        """
        self.orders, self._gate = orders, gate or self._gate
        self._gates = {} if self.group is None else self._gates_of(self.group, shared)
        self._claim, self._reader, self._values, self._outcome = NO_CLAIM, None, None, None  # of a run that was cancelled
        self._begun, self._blanked = 0, (-1, -1)
        self.pace.restart(files=self.group is not None and self.group.carries)
        self.outputs.forget()
        self._careful = bool(orders.verdicts or orders.suspects or orders.poison)
        self.context = _context(orders, self.group)
        self._function = None if self._careful or self.group is None else _plain(self.group, self.context)
        options = NOTHING if self.group is None else self.group.options
        self._alone = bool(options.limited or options.timeout or orders.verdicts or orders.suspects)
        many = not self.streams
        self._watch = Watch(self.caught, self._enter, self._leave, self._copy, digest, many, self.context, wait=_wait)
        self._row = self._row_at_start()
        self.at[0] = IDLE

    def _row_at_start(self) -> Row | None:
        return None if self.orders.fatal or self.group is None else self._row_of(self.group)

    def _gates_of(self, group: Group, shared: Sequence[threading.Semaphore]) -> dict[int, Callable[..., Any]]:
        """For the place of each operator that shares the threads what calls it."""
        size, first = self.board.OF_PART, self.board.COUNTS
        gates = {}
        for number, (part, open_) in enumerate(zip(group.parts, shared or gates_of(group.parts), strict=True)):
            counts = self.counts[first + number * size : first + (number + 1) * size]
            gates[part.place] = Gate(open_, counts, self.now, self._not_busy).call
        return gates

    def _not_busy(self, nanoseconds: int) -> None:
        """The worker has waited for its turn, while its clock ran."""
        self._idle += nanoseconds

    def _row_of(self, group: Group, states: Sequence[Kept] | None = None) -> Row:
        return Row(
            group.operators, self._watch, states, group.labels or None, self.orders.starts.get(self.number, ()), self._gates
        )

    def info(self) -> WorkerInfo:
        """What the step may know of its worker."""
        offset = (self.board.state(self.me) or self._at_value) >> OFFSET
        tries = self.orders.tries.get((self.at[1] - 1, offset), 0)
        out = self.board.edges[self.number + 1]
        return WorkerInfo(self.name, self.me - out.first, out.shape.producers, 1 + tries + self._retries)

    def kept(self) -> list[tuple[int, int, int]]:
        """At rest, the cells that user code still has views on: edge, cell, and who takes from it, or 0 for its own output."""
        self._let_go()
        self._kept -= {*self.inputs.returned}
        self.inputs.returned.clear()
        lent = [(self.number + 1, cell, 0) for cell in self._outgoing.lent()]
        return [(self.number, cell, self.me) for cell in self._kept] + lent

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """An array where the result at work will lie, or None; see `outgoing`."""
        return self._outgoing.empty(shape, dtype) if self.at[0] & 7 == RUN else None

    # ---- around user code

    def _enter(self, phase: int = RUN) -> None:
        """User code begins; raises the verdict if this call is not to be made."""
        if self.forked:
            os._exit(0)
        self._calls += 1
        if self._careful:
            self._enter_carefully()
        self.at[0] = self._at_value | self._calls << CALLS | phase

    def _enter_carefully(self) -> None:
        verdict = self.orders.verdicts.get((self.at[1] - 1, (self._at_value >> CALLS) + self._calls))
        if verdict is not None:
            raise verdict.error()
        if self.orders.suspects:
            self._gated = self._gate.acquire(timeout=10)  # not for ever: threads may wait for each other

    def _leave(self) -> None:
        if self.forked:  # a copy of this worker, made by the user's code; the original goes on, and its words are not ours
            os._exit(0)
        self.at[0] = IDLE
        if self._gated:
            self._gated = False
            self._gate.release()

    def _copy(self, value: Any) -> Callable[[], Any]:
        """Keep a value for a step that may be tried again on it."""
        try:
            body = copied(encode(value))
        except Exception:
            return lambda: self._again(value)
        return lambda: self._again(decode(body, 0, read_only=True, views=False)[0])

    def _reload(self) -> Any:
        """The item at work as it came."""
        if self._reader is not None:
            return self._again(self._reader.load(self._k, read_only=True)[0])
        return self._again(decode(self.inputs, self._claim.cell, read_only=True, views=False)[0])

    def _again(self, value: Any) -> Any:
        self._retries += 1
        self.counts[3] += 1
        self.at[2] = self.now()
        return value

    # ---- items

    def _share(self, available: int) -> int:
        """How many of the small values that lie there to take at once."""
        return 1 if self._alone else self.pace.take(available)

    def _behind(self) -> int:
        """How many results like the last ones may wait behind this worker, while others go on; one if they do not look alike."""
        shape, template = self._putter.edge.shape, self._packer.template
        return shape.waiting(self._putter.producer, shape.small if template is None else template.row)

    def _take(self, claim: Claim) -> None:
        """Copy the claimed small values to where they outlive the worker."""
        read(self.inputs.region(claim.cell), claim.offset, claim.values).copy(self._lies(claim))

    def _lies(self, claim: Claim) -> memoryview:
        """Where the small values of a claim lie."""
        region: memoryview = self.inputs.inbox(self.me - self.board.edges[self.number + 1].first)
        return region

    def _read(self, claim: Claim) -> None:
        """Be ready to load a claim's values."""
        self._claim, self._reader, self._values = claim, None, None
        if claim.kind & PACKED:
            self._reader = read(self._lies(claim), claim.offset, claim.values)
            if isinstance(self._reader, Table):
                self._values = self._reader.values(read_only=True)
        self.pace.begin(self.counts[0])

    def _blank(self, claim: Claim, k: int) -> Parcel | None:
        """A cell to be begun for the quick way, unless that has just been tried."""
        if self._values is None or self._outcome is not None or self._blanked == (claim.number, k):
            return None
        assert isinstance(self._reader, Table)
        if self._values[k] is CLOSE:
            return None
        self._blanked = claim.number, k
        return self._packer.blank(self._reader.words)

    def _attach(self, putter: Putter) -> None:
        """The run begins with what puts its results."""
        self._putter = putter
        self._outgoing.attach(putter)

    def _dash(self, claim: Claim, k: int) -> int:
        """Do as many values of a claim as the quick way can, from the ``k``-th on -> the first that is not done."""
        table, reader = self._filling.table, self._reader
        if self._values is None or self._function is None or table is None or self._claim is not claim:
            return k
        assert isinstance(reader, Table)
        if reader.words != table.words:
            return k
        end = k
        while reader.closing and end < claim.values and self._values[end] is not CLOSE:
            end += 1
        dash = Dash(self._putter, self.at, self.ring, self.forked)
        nbytes = self._packer.row_bytes(table.template, table.words)
        size = min(self._putter.room(nbytes), table.room, (end if reader.closing else claim.values) - k, DASH)
        if size <= 0:
            return k
        self._let_go()
        if self.forked:
            os._exit(0)
        self._retries = 0
        self.at[2], self.at[1] = begun, _ = self.now(), claim.place + 1
        words, job, counts = table.words, self.board.job[self.me], self.counts
        job[9], job[11] = max(0, counts[1] - k), max(0, counts[2] - k)
        job[10] = claim.number + 1
        table.paths[table.rows * words : (table.rows + size) * words] = reader.paths[k * words : (k + size) * words]
        done = dash.run(self._function, table, claim, k, self._values[k : k + size], nbytes)
        self._outcome = dash.outcome
        counts[0] += self.now() - begun
        counts[1] += done - k
        counts[2] += done - k
        job[10] = 0
        return done

    def _called(self) -> Any:
        """What the step has given for the value at work, when it was called on the quick way."""
        assert self._outcome is not None
        (result, raised), self._outcome = self._outcome, None
        self._calls += 1
        if raised is not None:
            raise raised
        assert self.group is not None
        given: Iterable[Any] = self.group.operators[0].given(result)  # type: ignore[attr-defined]
        return given

    def _begin(self, claim: Claim, k: int, skip: int) -> Parcel | None:
        """Load a value of a claim and start the step on it -> its only result if that is known, a cell to begin, or None.

        ``skip``: how many of its results a predecessor has published.
        """
        if self._claim is not claim:
            self._read(claim)
        else:
            self._let_go()
        quick = self._function is not None and not skip
        if quick and self._several and not self._packer.large and (blank := self._blank(claim, k)) is not None:
            return blank
        self._outgoing.begin()
        self._k, self._known = k, skip
        self._begun += 1
        self._retries = self._calls = 0
        self._at_value = claim.offset + k << OFFSET
        self.at[2], self.at[1] = self.now(), claim.place + 1
        self._results = None
        if self._row is None:
            assert self.orders.fatal is not None
            self._answer = self._given_up(self.orders.fatal)
            return None
        if claim.kind & ERROR:
            self._answer = self._passed_on(claim.cell)
            return None
        try:
            self._enter(LOAD)
            value, self._path, viewing = self._load(claim.cell, k)
            self._leave()
        except self.caught as error:
            self._leave()
            self._answer = self._not_loaded(error)
            return None
        self._viewing = claim.cell if viewing else None
        self._value = value
        self.counts[1] += value is not CLOSE
        if quick and self._packer.large and self._outcome is None and type(value) not in MARKS:
            single = self._call(value)
            if single is not None:
                self.counts[2] += 1
                return Parcel(DATA | END, single.nbytes, single)
        called = None if self._outcome is None else self._called
        self._results = self._row.add(value, self._path, self._reload, called)
        return None

    def _call(self, value: Any) -> Single | None:
        """Call the function of a plain step, of which a large result is expected -> that, or None: see ``_outcome``."""
        assert self._function is not None
        self.at[0] = self._at_value | 2 << CALLS | RUN  # call 1 was to load it
        begun = self.now()
        try:
            self._outcome = self._function(value), None
        except BaseException as error:
            self._outcome = None, error
        if self.forked:
            os._exit(0)
        self.at[0] = IDLE
        self.counts[0] += self.now() - begun
        result, raised = self._outcome
        single = None
        if raised is None and not self._outgoing.used:
            with contextlib.suppress(Exception):  # a thread of the user's may change it; the normal way says so
                single = self._packer.single(result, self._path)
        if single is None or single.nbytes > self.outputs.stride:
            return None
        self._outcome, self._calls = None, 3
        return single

    def _passed_on(self, cell: int) -> Parcel | None:
        """The failure of an earlier step, for the next one, if that still needs what comes."""
        failure, path, _ = decode(self.inputs, cell, read_only=True, views=False)
        return None if self._row is not None and self._row.over(path[:1]) else parcel_of(failure, path)

    def _given_up(self, verdict: Verdict) -> Parcel:
        failed = Failed(verdict.error(), self.name, None, None)
        with contextlib.suppress(Exception):
            self._path = self._path_of_value()
        return parcel_of(failure_of(failed, self._path, None)._replace(fatal=True, group=self.number), self._path)

    def _not_loaded(self, error: BaseException) -> Parcel:
        """An item that can't be built here; the step that made it is to blame."""
        path = self._path_of_value()
        if not isinstance(error, TransportError):
            told = TransportError(f"An item can't be built in another process ({type(error).__name__}: {error}).")
            told.__cause__ = error
            error = told
        return self._failure(Failed(error, self._maker, None, None), path, last=True, group=self.number - 1)

    def _path_of_value(self) -> Path:
        return path_of(self.inputs, self._claim.cell) if self._reader is None else self._reader.path(self._k)

    def _load(self, cell: int, k: int) -> tuple[Any, Path, bool]:
        """A value, with views while few cells of its producer are kept."""
        if self._kept:
            self._unkeep()
        if self._reader is not None:
            if self._values is not None:
                return self._values[k], self._reader.path(k), False
            return (*self._reader.load(k, read_only=True), False)
        each = self.board.edges[self.number].cells_each
        views = not self._kept or sum(kept // each == cell // each for kept in self._kept) < VIEWS
        return decode(self.inputs, cell, read_only=True, views=views)

    def _result(self) -> Parcel | None:
        """The next result of the item at work, encoded."""
        if self._results is None:
            answer, self._answer = self._answer, None
            return answer
        self.at[2] = begun = self.now()
        try:
            path, value, known = self._next(self._results)
            while known & MANY:
                self._there, self._first = value[::-1], path
                path, value, known = self._next(self._results)
        except StopIteration:
            self._open = False
            return None
        finally:
            self.counts[0] += self.now() - begun - self._idle
            self._idle = 0
        last = bool(known & LAST)
        self._open = not last
        if known & FAILED:
            return self._failure(value, path, last=last)
        try:
            self._enter(SEND)
            encoded = self._packer.pack(value, path, self.outputs.stride)
            other = other_mark(encoded, value) if self._known else 0
            self._leave()
        except self.caught as error:
            self._leave()
            return self._failure(Failed(error, self.name, None, self._value), path, last=last)
        self.counts[2] += value is not CLOSE
        if last and type(encoded) is Single and self._outgoing.place(encoded):
            nbytes = encoded.nbytes
            del value, encoded  # and all that holds the result: who does so still may change it
            self._results.close()
            content, cell = self._outgoing.sent(nbytes)
            return Parcel(DATA | END, nbytes, content, cell=cell)
        if last or self.streams:
            return Parcel(DATA | END if last else DATA, encoded.nbytes, encoded, packs=packs(encoded))
        self._known -= self._known > 0
        return Parcel(DATA, encoded.nbytes, encoded, mark_of(encoded), packs(encoded), other=other)

    def _next(self, results: Results) -> tuple[Path, Any, int]:
        return self._next_there() if self._there else next(results)

    def _next_there(self) -> tuple[Path, Any, int]:
        path = self._first
        self._first = (*path[:-1], path[-1] + 1)
        return path, self._there.pop(), 0

    def _spill(self, claim: Claim, k: int, given: int) -> int:
        """Put results that are there already into the open table, as many as it takes -> how many are given."""
        table = self._filling.table
        if not self._there or table is None or self._careful or len(self._first) != table.words:
            return given
        putter = self._putter
        nbytes, row, store = self._packer.row_bytes(table.template, table.words), table.rows, table.store
        size = min(putter.room(nbytes), table.room, len(self._there))
        count, value = 0, None
        for value in islice(reversed(self._there), max(size, 0)):
            if not store(row + count, value):
                break
            count += 1
        if count:
            *path, first = self._first
            table.put_paths(row, count, self._first)
            table.rows += count
            del self._there[-count:]
            self._first = (*path, first + count)
            given += count
            self._calls += count  # as if each had been sent by itself
            self.counts[2] += count
            mark = mark_of_row(table.template, value) if count == size else 0
            putter.spilled(claim.number, count, count * nbytes, k << DONE | given << GIVEN, mark << GIVEN | given)
            for _, who in putter.wake(claim.number):
                self.ring(who)
        return given

    def _failure(self, failed: Failed, path: Path, *, last: bool, group: int | None = None) -> Parcel:
        failure = failure_of(failed, path, os.getpid())._replace(group=self.number if group is None else group)
        if self.orders.collect:
            failure = failure._replace(value=bytes_of(failed.value))
        return parcel_of(failure, path, last=last)

    def _mixed(self, error: NondeterministicStep) -> Parcel:
        return self._failure(Failed(error, self.name, None, None), self._path, last=True)

    def _fill(self, cell: int, parcel: Parcel) -> None:
        if parcel.nbytes > SMALL:  # it may be too large for the memory that there is
            self.at[0] = self._at_value | self._calls << CALLS | SEND
        self.pace.large |= not parcel.packs
        self._filling.fill(cell, parcel)
        self.at[0] = IDLE

    def _release(self, claim: Claim) -> bool:
        """The claim is finished -> whether user code keeps a view on its cell."""
        self._let_go()
        packed = bool(claim.kind & PACKED)
        kept = not packed and claim.cell in self._kept
        if self._careful:
            for suspect in [each for each in self.orders.suspects if claim.has(*each)]:
                self.orders.suspects.discard(suspect)
            if self.orders.poison and not kept and not packed and self.taker.holds(claim):
                poison(self.inputs, claim.cell)
        if packed and self._claim is claim:
            self.pace.end(self.counts[0], claim.values, self._behind)
        self._claim, self._reader, self._values = NO_CLAIM, None, None
        before, self._busy = self._busy, self.counts[0]
        if self._busy - before > LONG:
            heap.look()
        if self._begun:  # not one that a predecessor has finished
            self._begun = max(0, self._begun - claim.values)
            if self.between is not None:
                self.between()
        return kept

    def _let_go(self) -> None:
        """Drop the item; if its cell does not come back, user code keeps a view on it."""
        if self._open:
            self._close()
        self._value, self._results, self._answer, self._there = NO_ITEM, None, None, []
        cell, self._viewing = self._viewing, None
        if cell is not None:
            if cell in self.inputs.returned:
                self.inputs.returned.remove(cell)
            else:
                self._kept.add(cell)

    def _close(self) -> None:
        """End an iterator of which no more results are asked for: its ``finally`` is user code, too."""
        self._open = False
        assert self._results is not None
        try:
            self._enter()
            self._results.close()
        except self.caught:
            pass
        self._leave()

    def _unkeep(self) -> None:
        """Give back kept cells whose last view is gone."""
        returned = self.inputs.returned
        while returned:
            cell = returned.popleft()
            if cell in self._kept:
                self._kept.discard(cell)
                if self.orders.poison:
                    poison(self.inputs, cell)
                self.unkept(cell)
