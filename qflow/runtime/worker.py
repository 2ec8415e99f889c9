"""Worker: a process that runs one step of a plan, run after run, until its control socket ends.

The contract that all of this keeps:

- Success: every value reaches the consumer exactly once, in order; afterwards no process, thread,
  descriptor, semaphore or shared memory is left beyond the warm workers of a live pipe.
- Failure: the consumer gets the values before the failing one, then the original exception, which
  says which step, which item, which worker, with the worker's traceback. The pipe can run again at once.
- Early stop: back to rest within a second; user code that can't be interrupted is killed after 0.5 s.
- Death of a worker: a fresh one goes on from its words and repeats the item it had in hand; the output is
  the same. An item fails with `WorkerDied`, which names it, when workers die twice of the same call of a step on it.
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
import os
import pickle
import signal
import socket
import struct
import sys
import termios
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from qflow.errors import ResourceError
from qflow.graph import bytesizes
from qflow.graph.attempt import Failed
from qflow.graph.context import drawn_seed, seed_globals
from qflow.graph.plan import Group
from qflow.runtime import heap, output
from qflow.runtime.board import Board, Phase, Shape, words_needed
from qflow.runtime.desk import Desk
from qflow.runtime.environment import take_over
from qflow.runtime.failpoints import Failpoints
from qflow.runtime.failure import failure_of
from qflow.runtime.gates import gates_of
from qflow.runtime.ledger import Orders
from qflow.runtime.log import REGIONS, Log
from qflow.runtime.memory import PAGE, Cells, bytes_needed, mapped, words_of
from qflow.runtime.side import Cancelled
from qflow.runtime.store import Hold, holding
from qflow.runtime.stream_desk import StreamDesk
from qflow.runtime.streaming import stream
from qflow.runtime.turn import work
from qflow.runtime.whereabouts import here

CURSOR = struct.Struct("=QQQ")


class Berth(NamedTuple):
    """What the workers of one crew are made with; descriptors are numbers in the worker.

    Attributes:
        shape: of the board.
        strides: bytes of addresses per cell, for each edge.
        processes: for each process its group's number and its participants.
        names: of the groups.
        words, edges, bells: descriptors.
        cursors, outputs: pairs of descriptors, for each group.
        logs: descriptors of the streams' logs, by group.
        controls, faults: for each process that is made now its control socket, and the memory into which its stack is
            written when it dies or is asked for it.
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
    logs: dict[int, int]
    controls: dict[int, int]
    faults: dict[int, int]

    def descriptors(self) -> list[int]:
        """All of them, in one row."""
        twos = [fd for pair in (*self.cursors, *self.outputs) for fd in pair]
        single = (self.logs, self.controls, self.faults)
        return [self.words, *self.edges, *self.bells, *twos, *(fd for fds in single for fd in fds.values())]

    def moved(self, fds: Sequence[int] | Mapping[int, int]) -> Berth:
        """The same with other numbers: descriptor i becomes ``fds[i]``."""

        def pairs(numbers: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
            return tuple((fds[a], fds[b]) for a, b in numbers)

        def named(numbers: dict[int, int]) -> dict[int, int]:
            return {key: fds[fd] for key, fd in numbers.items()}

        return self._replace(
            words=fds[self.words],
            edges=tuple(fds[e] for e in self.edges),
            bells=tuple(fds[b] for b in self.bells),
            cursors=pairs(self.cursors),
            outputs=pairs(self.outputs),
            logs=named(self.logs),
            controls=named(self.controls),
            faults=named(self.faults),
        )


class Start(NamedTuple):
    """A start message.

    Attributes:
        group: the step pickled, or None for the one that the worker has.
        orders: for this run.
        environment, directory, path, levels, filters: the parent's surroundings.
        incarnation: 0 for a worker that begins the run, else how many have died in its place.
    """

    group: bytes | None
    orders: Orders
    environment: dict[str, str]
    directory: str | None
    path: list[str]
    levels: dict[str, int]
    filters: list[output.Filter]
    incarnation: int = 0


def main(number: int, fds: list[int], common: bytes) -> None:
    """Process ``number`` of a crew."""
    heap.keep()
    berth = pickle.loads(common).moved(fds)
    group, participants = berth.processes[number]
    control, fault = socket.socket(fileno=berth.controls[number]), berth.faults[number]
    for signum in (signal.SIGINT, signal.SIGTERM):  # not SIG_IGN, which programs that a step starts would inherit
        signal.signal(signum, lambda *_: None)
    output.redirect(*berth.outputs[group])
    several = len(participants) > 1
    faulthandler.enable(fault, all_threads=False)  # who walks over others that run may crash in another way
    faulthandler.register(signal.SIGUSR1, fault, all_threads=several, chain=False)
    board = Board(berth.shape, words_of(berth.words, words_needed(berth.shape)))
    edges = (group, group + 1)
    memory = [mapped(berth.edges[e], bytes_needed(berth.shape.edges[e], berth.strides[e])) for e in edges]
    stride = berth.strides[group]
    log = Log(mapped(berth.logs[group], REGIONS * stride), stride) if group in berth.logs else None

    def desk(me: int) -> Desk:
        inputs, outputs = (Cells(berth.shape.edges[e], berth.strides[e], memory[e - group]) for e in edges)
        own = board, berth.names, group, me, inputs, outputs
        return Desk(*own) if log is None else StreamDesk(*own, log)

    keep = {control.fileno(), fault, *berth.bells, *berth.cursors[group]}
    for fd in fds:
        if fd not in keep:
            os.close(fd)
    Worker(control, [desk(me) for me in participants], berth.bells, berth.cursors[group]).serve()


def send_message(line: socket.socket, message: Any) -> None:
    """A message on a control socket."""
    line.sendall(framed(message))


def framed(message: Any) -> bytes:
    """A message as bytes: the length of its pickle, then that."""
    data = pickle.dumps(message)
    return struct.pack("=Q", len(data)) + data


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


_held = threading.local()


def _hold_signals() -> None:
    """A copy of this process may be ended before it has its own ways with signals (`Worker._forked`): they wait until then."""
    _held.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})


def _let_signals() -> None:
    """They come now."""
    signal.pthread_sigmask(signal.SIG_SETMASK, _held.mask)


class Worker:
    """The process: its control socket, and one desk, or one for each thread."""

    def __init__(self, control: socket.socket, desks: list[Desk], bells: Sequence[int], cursor: tuple[int, int]) -> None:
        self.control, self.desks, self.bells, self.cursor = control, desks, bells, cursor
        self._gate = threading.Lock()
        self._gates: list[threading.Semaphore] = []  # of the steps, where several share the threads
        self._group = b""  # pickled
        self._hold = Hold()  # of what the step refers to
        self._finished = 0  # items, of which a worker may be fit for some only
        self._leaving = False
        self._seeded = False
        for desk in desks:
            desk.effects |= self._waiting(desk)
            desk.ring = desk.effects["ring"]
        os.register_at_fork(before=_hold_signals, after_in_parent=_let_signals, after_in_child=self._forked)

    def _waiting(self, desk: Desk) -> dict[str, Any]:
        """The effects by which a desk waits for others, and wakes them."""
        read, write = self.cursor
        bells, hand, bell = self.bells, desk.board.hand[desk.me].cast("B"), self.bells[desk.me]
        return {
            "wait": partial(desk.pace.waiting, partial(os.eventfd_read, bell)),
            "ring": lambda who: os.eventfd_write(bells[who], 1),
            "cursor": lambda: os.readv(read, [hand]),
            "pass": lambda *cursor: os.write(write, CURSOR.pack(*cursor)),
            "passed?": lambda: _waiting_in(read),
        }

    def _forked(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by which a pool or a loader ends the processes that it has forked
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for desk in self.desks:
            desk.forked.append(True)
        _let_signals()

    def serve(self) -> None:
        """Run after run, until the parent ends the line."""
        while True:
            message = receive_message(self.control)
            if message is None:
                os._exit(0)
            try:
                self._prepare(message)
                self._run(message.incarnation)
                report: tuple[str, Any] = ("rest", [kept for desk in self.desks for kept in desk.kept()])
            except BaseException as error:
                report = ("failed", failure_of(Failed(error, self.desks[0].name, None, None), None, os.getpid()))
            with contextlib.suppress(Exception):
                sys.stdout.flush()
            try:
                send_message(self.control, report)
            except OSError:  # the parent has closed the line meanwhile
                os._exit(0)

    def _prepare(self, start: Start) -> None:
        """Take over the parent's surroundings, and the step if it is new."""
        take_over(start.environment)
        sys.path[:] = start.path
        with contextlib.suppress(OSError):
            if start.directory is not None:
                os.chdir(start.directory)
        output.adopt(start.levels, start.filters)
        if start.group is not None:
            self._group, self._hold, self._gates = start.group, Hold(), []
        for desk in self.desks:
            here.info = desk.info  # for the constructors, too
            if start.group is not None:
                desk.group = None
            if desk.group is None and start.orders.fatal is None:
                with holding(self._hold):
                    desk.group = pickle.loads(self._group).opened()
            limited = desk.group is not None and desk.group.options.limited
            desk.between = self._between if limited else None
            if desk.group is not None:
                _check_memory(desk.group)
                self._gates = self._gates or gates_of(desk.group.parts)
            desk.start(start.orders, self._gate, self._gates)
        if start.group is not None:
            output.adopt(start.levels, start.filters)  # those, too, whose categories came with the step
        if not self._seeded:  # a copy of a process has its generators; torch begins with the same numbers everywhere
            self._seeded = True
            seed_globals(drawn_seed())

    def _run(self, incarnation: int) -> None:
        """One run of every desk."""
        rules = os.environ.get("QFLOW_FAILPOINTS", "")
        hold = Hold(self._hold.held)  # with what comes in items: it is mapped once in a run

        def run(desk: Desk) -> None:
            here.info, here.empty = desk.info, desk.empty
            try:
                with holding(hold):
                    self._drive(desk, Failpoints(rules, incarnation, desk.me))
            except Cancelled:
                pass
            except BaseException as error:
                # Outside the step: the other threads might wait for this one for ever.
                failure = failure_of(Failed(error, desk.name, None, None), None, os.getpid())
                send_message(self.control, ("failed", failure))
                os._exit(1)

        others = [threading.Thread(target=run, args=(desk,), daemon=True) for desk in self.desks[1:]]
        for thread in others:
            thread.start()
        run(self.desks[0])
        for thread in others:
            thread.join()

    def _drive(self, desk: Desk, failpoints: Failpoints) -> None:
        """Play what the coordination asks for, to the end of the input."""
        desk.board.watched = bool(failpoints.rules)
        actions = (stream if desk.streams else work)(desk.board, desk.number, desk.me)
        effects = desk.effects
        desk.unkept = lambda cell: _play(desk.taker.unkeep(cell), effects)
        outcome = None
        try:
            while True:
                action = actions.send(outcome)
                if type(action) is str:
                    failpoints.meet(action)
                    outcome = None
                else:
                    outcome = effects[action[0]](*action[1:])
        except StopIteration:
            return

    def _between(self) -> None:
        """Between two items: leave, when the step's mark says that this process has done enough."""
        self._finished += 1
        assert self.desks[0].group is not None
        options = self.desks[0].group.options
        enough = options.max_items is not None and self._finished >= options.max_items
        if enough or self._leaving or _exceeded(options.max_memory):
            self._leaving = True
            if all(desk.at[0] == Phase.IDLE for desk in self.desks):
                with contextlib.suppress(Exception):
                    sys.stdout.flush()
                send_message(self.control, ("left", None))
                os._exit(0)
            threading.Event().wait()  # the last thread that is between two items ends the process


def _exceeded(most: int | None) -> bool:
    """Whether this process holds more, without what is only kept for what comes."""
    if most is None or private_memory() <= most:
        return False
    heap.trim()
    return private_memory() > most


def _check_memory(group: Group) -> None:
    """Refuse a bound on memory that a fresh worker already exceeds: each of its items would cost a worker."""
    most, held = group.options.max_memory, private_memory() if group.options.max_memory else 0
    if most is not None and held > most:
        raise ResourceError(
            f"A worker of step {group.name!r} holds {bytesizes.show(held)} before its first item, more than "
            f"max_memory={bytesizes.show(most)!r} allows. Write at least twice as much, or leave it out."
        )


def _play(actions: Any, effects: dict[str, Any]) -> None:
    for action in actions:
        effects[action[0]](*action[1:])


def _waiting_in(fd: int) -> bool:
    """Whether something lies in a pipe."""
    waiting = bytearray(4)
    fcntl.ioctl(fd, termios.FIONREAD, waiting)
    return any(waiting)


def private_memory() -> int:
    """Bytes of memory that only this process has: resident, without what it shares (proc(5), statm)."""
    with open("/proc/self/statm", "rb") as file:
        _, resident, shared, *_ = map(int, file.read().split())
    return (resident - shared) * PAGE
