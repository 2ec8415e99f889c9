"""Worker: a process that runs one step of a plan, run after run, until its control socket ends.

The contract that all of this keeps:

- Success: every value reaches the consumer exactly once, in order; afterwards no process, thread,
  descriptor, semaphore or shared memory is left beyond the warm workers of a live pipe.
- Failure: the consumer gets the values before the failing one, then the original exception, which
  says which step, which item, which worker, with the worker's traceback. The pipe can run again at once.
- Early stop: back to rest within a second; user code that can't be interrupted is killed after 0.5 s.
- Death of a worker: `WorkerDied` within 2 seconds. (Not yet: the item is replayed in a fresh worker.)
- Death of the parent, SIGKILL too: every worker is gone within 2 s, nothing is left behind.
- Bounds: values alive at any time are at most what the queues and workers of the plan hold.

A worker waits for a start message, plays the effects that `turn.work` asks for until that returns or
the run is cancelled, reports that it rests, and waits again. It ignores SIGINT and SIGTERM: only the
parent, or the parent's death, ends it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import mmap
import os
import pickle
import signal
import socket
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from qflow.errors import StepError, blame
from qflow.graph.flow import Each
from qflow.graph.markers import CLOSE
from qflow.graph.plan import Group
from qflow.runtime import output
from qflow.runtime.board import DATA, END, ERROR, VIEWS, Board, Shape, words_needed
from qflow.runtime.codec import Path, decode, encode, path_of
from qflow.runtime.failpoints import Failpoints
from qflow.runtime.failure import NO_ITEM, failure_of
from qflow.runtime.memory import Cells, bytes_needed, mapped, words_of
from qflow.runtime.turn import Cancelled, Claim, Cursor, Parcel, Putter, Taker, work

CURSOR = struct.Struct("=QQ")


class Berth(NamedTuple):
    """What the workers of one crew are made with; descriptors are numbers in the worker.

    Attributes:
        shape: of the board.
        strides: bytes of addresses per cell, for each edge.
        processes: for each process its group's number and its participants.
        names: of the groups.
        words, edges, bells, cursors, outputs, controls: descriptors.
    """

    shape: Shape
    strides: tuple[int, ...]
    processes: tuple[tuple[int, tuple[int, ...]], ...]
    names: tuple[str, ...]
    words: int
    edges: tuple[int, ...]
    bells: tuple[int, ...]
    cursors: tuple[tuple[int, int], ...]
    outputs: tuple[tuple[int, int], ...]
    controls: tuple[int, ...]

    def descriptors(self) -> list[int]:
        """All of them, in one row."""
        twos = [fd for pair in (*self.cursors, *self.outputs) for fd in pair]
        return [self.words, *self.edges, *self.bells, *twos, *self.controls]

    def moved(self, fds: Sequence[int] | Mapping[int, int]) -> Berth:
        """The same with other numbers: descriptor i becomes ``fds[i]``."""

        def pairs(numbers: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
            return tuple((fds[a], fds[b]) for a, b in numbers)

        return self._replace(
            words=fds[self.words],
            edges=tuple(fds[e] for e in self.edges),
            bells=tuple(fds[b] for b in self.bells),
            cursors=pairs(self.cursors),
            outputs=pairs(self.outputs),
            controls=tuple(fds[c] for c in self.controls),
        )


class Start(NamedTuple):
    """A start message: the group pickled, or None for the one it has; and the parent's surroundings."""

    group: bytes | None
    environment: dict[str, str]
    directory: str | None
    path: list[str]
    levels: dict[str, int]
    filters: list[Any]


def main(number: int, fds: list[int], common: bytes) -> None:
    """Process ``number`` of a crew."""
    berth = pickle.loads(common).moved(fds)
    group, participants = berth.processes[number]
    control = socket.socket(fileno=berth.controls[number])
    for signum in (signal.SIGINT, signal.SIGTERM):  # not SIG_IGN, which programs that a step starts would inherit
        signal.signal(signum, lambda *_: None)
    output.redirect(*berth.outputs[group])
    faulthandler.enable()
    with contextlib.suppress(Exception):
        faulthandler.register(signal.SIGUSR1, chain=False)
    board = Board(berth.shape, words_of(berth.words, words_needed(berth.shape)))
    edges = (group, group + 1)
    memory = [mapped(berth.edges[e], bytes_needed(berth.shape.edges[e], berth.strides[e])) for e in edges]
    desks = [Desk(berth, board, group, me, memory) for me in participants]
    keep = {control.fileno(), *berth.bells, *berth.cursors[group]}
    for fd in fds:
        if fd not in keep:
            os.close(fd)
    Worker(control, desks).serve()


def send_message(line: socket.socket, message: Any) -> None:
    """A message on a control socket: its length, then its pickle."""
    data = pickle.dumps(message)
    line.sendall(struct.pack("=Q", len(data)) + data)


def receive_message(line: socket.socket) -> Any:
    """The next message of a control socket; None at its end."""
    head = _exactly(line, 8)
    return None if head is None else pickle.loads(_exactly(line, struct.unpack("=Q", head)[0]) or b"N.")


def _exactly(line: socket.socket, count: int) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        try:
            part = line.recv(min(count - len(data), 1 << 20))
        except OSError:
            return None
        if not part:
            return None
        data += part
    return bytes(data)


class Worker:
    """The control side of a worker process: one desk, or one per thread."""

    def __init__(self, control: socket.socket, desks: list[Desk]) -> None:
        self.control, self.desks = control, desks

    def serve(self) -> None:
        """Run after run, until the parent ends the line."""
        while True:
            message = receive_message(self.control)
            if message is None:
                os._exit(0)
            try:
                self._prepare(message)
                self._run()
                report: tuple[str, Any] = ("rest", [kept for desk in self.desks for kept in desk.kept()])
            except BaseException as error:
                report = ("failed", failure_of(error, self.desks[0].name, None, NO_ITEM, os.getpid()))
            with contextlib.suppress(Exception):
                sys.stdout.flush()
            send_message(self.control, report)

    def _prepare(self, start: Start) -> None:
        """Take over the parent's surroundings, and the step if it is new."""
        for key in set(os.environ) - set(start.environment):
            del os.environ[key]
        for key, value in start.environment.items():
            if os.environ.get(key) != value:
                os.environ[key] = value
        sys.path[:] = start.path
        with contextlib.suppress(OSError):
            if start.directory is not None:
                os.chdir(start.directory)
        output.adopt(start.levels, start.filters)
        if start.group is not None:
            for desk in self.desks:
                group: Group = pickle.loads(start.group)
                desk.group = group.opened()

    def _run(self) -> None:
        """One run of every desk."""
        failpoints = Failpoints(os.environ.get("QFLOW_FAILPOINTS", ""))

        def run(desk: Desk) -> None:
            try:
                desk.run(failpoints)
            except Cancelled:
                pass
            except BaseException as error:
                # Outside the step: the other threads might wait for this one for ever.
                send_message(self.control, ("failed", failure_of(error, desk.name, None, NO_ITEM, os.getpid())))
                os._exit(1)

        others = [threading.Thread(target=run, args=(desk,), daemon=True) for desk in self.desks[1:]]
        for thread in others:
            thread.start()
        run(self.desks[0])
        for thread in others:
            thread.join()


class Desk:
    """One participant: plays the effects of `turn` for it."""

    group: Group

    def __init__(self, berth: Berth, board: Board, group: int, me: int, memory: Sequence[mmap.mmap]) -> None:
        self.name, self.board, self.edge, self.me = berth.names[group], board, group, me
        self.inputs, self.outputs = (Cells(berth.shape.edges[e], berth.strides[e], memory[e - group]) for e in (group, group + 1))
        self.bells = berth.bells
        self.cursor_read, self.cursor_write = berth.cursors[group]
        self.hand = board.hand[me].cast("B")
        self.counts = board.counts[me]
        self.taker = Taker(board, board.edges[group], me)
        self._kept: set[int] = set()  # input cells on which user code keeps views
        self._results: Iterator[tuple[Path, Any, bool]] = iter(())
        self._parcels: Iterator[Parcel] | None = None
        self._path: Path = ()
        self._value: Any = None
        self._viewing: int | None = None  # the cell of the item at work, if it has views on it
        self._effects: dict[str, Callable[..., Any]] = {
            "wait": lambda: os.eventfd_read(self.bells[self.me]),
            "ring": lambda who: os.eventfd_write(self.bells[who], 1),
            "cursor": lambda: os.readv(self.cursor_read, [self.hand]),
            "pass": lambda number, place: os.write(self.cursor_write, CURSOR.pack(number, place)),
            "passed?": self._passed,
            "begin": self._begin,
            "result": self._result,
            "fill": lambda cell, parcel: parcel.content.fill(self.outputs.region(cell)),
            "release": self._release,
        }

    def run(self, failpoints: Failpoints) -> None:
        """One run of the step, to the end of its input."""
        self.failpoints = failpoints
        if self.group.stream:
            self._stream()
        else:
            self.drive(work(self.board, self.edge, self.me))

    def drive(self, actions: Any) -> Any:
        """Play what a generator of `turn` asks for -> what it returns."""
        effects, meet = self._effects, self.failpoints.meet if self.failpoints.rules else None
        outcome = None
        try:
            while True:
                action = actions.send(outcome)
                if type(action) is str:
                    outcome = None
                    if meet is not None:
                        meet(action)
                else:
                    outcome = effects[action[0]](*action[1:])
        except StopIteration as stop:
            return stop.value

    def kept(self) -> list[tuple[int, int]]:
        """At rest, the cells that user code still has views on: edge and cell."""
        self._let_go()
        self._kept -= {*self.inputs.returned}
        self.inputs.returned.clear()
        return [(self.edge, cell) for cell in self._kept]

    # ---- items one by one

    def _passed(self) -> bool:
        waiting = bytearray(4)
        fcntl.ioctl(self.cursor_read, termios.FIONREAD, waiting)
        return any(waiting)

    def _begin(self, claim: Claim) -> None:
        self._parcels = None
        if claim.kind & ERROR:
            self._parcels = iter([self._passed_on(claim.cell)])
            return
        try:
            self._value, self._path, viewing = self._load(claim.cell)
            self._viewing = claim.cell if viewing else None
        except BaseException as error:
            self._value, self._path = NO_ITEM, path_of(self.inputs, claim.cell)
            self._parcels = iter([self._failed(error)])
            return
        self.counts[1] += self._value is not CLOSE
        self._results = run_each(self.group.operators, self._value, self._path)  # type: ignore[arg-type]

    def _passed_on(self, cell: int) -> Parcel:
        """The failure of an earlier step, for the next one."""
        failure, path, _ = decode(self.inputs, cell, read_only=True, views=False)
        encoded = encode(failure, path)
        return Parcel(ERROR | END, encoded.nbytes, encoded)

    def _load(self, cell: int) -> tuple[Any, Path, bool]:
        """The item in an input cell, with views while few cells of its producer are kept."""
        self._unkeep()
        each = self.board.edges[self.edge].cells_each
        views = sum(kept // each == cell // each for kept in self._kept) < VIEWS
        return decode(self.inputs, cell, read_only=True, views=views)

    def _result(self) -> Parcel | None:
        """The next result of the item at work, encoded; a failure is the last one."""
        if self._parcels is not None:
            return next(self._parcels, None)
        begun = time.perf_counter_ns()
        try:
            path, value, last = next(self._results)
        except StopIteration:
            return None
        except BaseException as error:
            self._parcels = iter(())
            return self._failed(error)
        finally:
            self.counts[0] += time.perf_counter_ns() - begun
        try:
            encoded = encode(value, path, self.outputs.stride)
        except Exception as error:
            self._parcels = iter(())
            return self._failed(error)
        self.counts[2] += value is not CLOSE
        return Parcel(DATA | END if last else DATA, encoded.nbytes, encoded)

    def _failed(self, error: BaseException) -> Parcel:
        failure = failure_of(error, self.name, self._path, self._value, os.getpid())
        encoded = encode(failure, self._path)
        return Parcel(ERROR | END, encoded.nbytes, encoded)

    def _release(self, claim: Claim) -> bool:
        """The item is finished -> whether user code keeps a view on its cell."""
        self._let_go()
        return claim.cell in self._kept

    def _let_go(self) -> None:
        """Drop the item; if its cell does not come back, user code keeps a view on it."""
        self._drop()
        cell, self._viewing = self._viewing, None
        if cell is not None:
            if cell in self.inputs.returned:
                self.inputs.returned.remove(cell)
            else:
                self._kept.add(cell)

    def _drop(self) -> None:
        close = getattr(self._results, "close", None)
        if close is not None:
            with contextlib.suppress(Exception):
                close()
        self._value, self._results, self._parcels = None, iter(()), None

    def _unkeep(self) -> None:
        """Give back kept cells whose last view is gone."""
        returned = self.inputs.returned
        while returned:
            cell = returned.popleft()
            self._kept.discard(cell)
            self.drive(self.taker.unkeep(cell))

    # ---- streams

    def _stream(self) -> None:
        """The group's transform over all items, in order."""
        out = self.board.edges[self.edge + 1]
        putter = Putter(self.board, out, 0)
        item = 0
        waited = 0

        def values() -> Iterator[Any]:
            nonlocal waited
            cursor = Cursor(self.board, self.edge, self.me)
            while True:
                begun = time.perf_counter_ns()
                claim = self.drive(cursor.take())
                if claim is None:
                    return
                if claim.kind & ERROR:
                    raise _Upstream(self._passed_on(claim.cell))
                value, self._path, viewing = self._load(claim.cell)
                if viewing:
                    self._kept.add(claim.cell)
                self.drive(cursor.taker.free(claim.cell, claim.place, viewing))
                self.counts[1] += value is not CLOSE
                waited += time.perf_counter_ns() - begun
                yield value
                del value

        results = self.group.transform(values())
        parcel: Parcel | None = None
        while parcel is None or not parcel.kind & ERROR:
            self.drive(putter.lane_free(item))
            begun, waited = time.perf_counter_ns(), 0
            self._value = NO_ITEM
            try:
                value = next(results)
                self.counts[0] += time.perf_counter_ns() - begun - waited
                encoded = encode(value, (item,), self.outputs.stride)
                parcel = Parcel(DATA | END, encoded.nbytes, encoded)
                self.counts[2] += 1
                del value, encoded
            except StopIteration:
                break
            except Cancelled:
                raise
            except _Upstream as upstream:
                parcel = upstream.parcel
            except BaseException as error:
                parcel = self._failed(error)
            self.drive(putter.put(item, parcel))
            item += 1
        self.drive(putter.end(item))


class _Upstream(BaseException):
    """An earlier step has failed; the failure passes through a stream."""

    def __init__(self, parcel: Parcel) -> None:
        self.parcel = parcel


def run_each(operators: Sequence[Each[Any, Any]], value: Any, path: Path) -> Iterator[tuple[Path, Any, bool]]:
    """What operators that work item by item make of one value: index path, result, and whether it is known to be the last.

    The same values as their transforms, piped; results of an iterator get its counter at the end of their path.
    """
    for number, operator in enumerate(operators):
        outputs = guarded(operator, value)
        if type(outputs) is not tuple:
            for position, each in enumerate(_blaming(operator, value, outputs)):
                for below, result, _ in run_each(operators[number + 1 :], each, (*path, position)):
                    yield below, result, False
            return
        if not outputs:
            return
        value = outputs[0]
    yield path, value, True


def guarded(operator: Each[Any, Any], value: Any) -> Any:
    """An operator's outputs for a value; what it raises is blamed on it."""
    try:
        return operator.outputs(value)
    except StopIteration as error:
        raise blame(
            StepError(f"step {operator.name!r} raised {error!r}, which would end the loop quietly"), operator.name, value
        ) from error
    except Exception as error:
        blame(error, operator.name, value)
        raise


def _blaming(operator: Each[Any, Any], value: Any, outputs: Any) -> Iterator[Any]:
    try:
        yield from outputs
    except Exception as error:
        blame(error, operator.name, value)
        raise
