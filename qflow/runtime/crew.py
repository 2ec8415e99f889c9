"""Crew: the warm workers and channels of one plan; one run at a time.

A crew is made once and reset between runs: all words to zero but those of cells on which somebody keeps
views, cursors drained and written anew. A run that is cut short is cancelled: one word, a ring for
everybody, a poisoned cursor for those who wait for theirs; who is not at rest after `GRACE` is killed.
During a run a `Supervisor` has the control sockets; the consumer's thread only hears its bell.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from qflow.errors import ResourceError
from qflow.graph.plan import Plan
from qflow.runtime import nursery, output
from qflow.runtime.board import KEPT, POISON, Board, Phase, shape_of, words_needed
from qflow.runtime.child import Child, ended, kill
from qflow.runtime.environment import for_workers
from qflow.runtime.ledger import Orders
from qflow.runtime.log import REGIONS
from qflow.runtime.memory import Cells, anonymous, bytes_needed, mapped, stride_for, words_of
from qflow.runtime.needs import check_descriptors
from qflow.runtime.supervisor import Supervisor
from qflow.runtime.worker import CURSOR, Berth, Start, send_message

GRACE = 0.5  # seconds that user code has to finish when a run is cut short


class Member(NamedTuple):
    """One worker process: its group's number and its participants, its ends, and where its stack is written."""

    group: int
    participants: tuple[int, ...]
    child: Child
    control: socket.socket
    fault: int

    def close(self) -> None:
        """Let go of what leads to it."""
        self.control.close()
        self.child.close()
        os.close(self.fault)


class Crew:
    """Workers, channels and bells for one plan."""

    def __init__(self, plan: Plan, ordered: bool, preload: Sequence[str] = (), start: str = "forkserver") -> None:
        self.start_method = start
        self.key = key_of(plan, ordered)
        self.plan = plan
        self.shape = shape_of(plan, ordered=ordered)
        self.names = tuple(group.name for group in plan.groups)
        self.shipped: list[bytes] = [b""] * len(plan.groups)
        self.leased: set[int] = set()  # cells of the last edge on which the consumer keeps views
        self._pinned: set[int] = set()  # those that a forked copy of this process may see, for ever
        self._kept: dict[int, list[tuple[int, int, int]]] = {}  # what each member's step keeps views on: edge, cell, who
        self.modules: Any = ()
        self.broken = False
        self._ending: Callable[[], BaseException] | None = None
        self._fds = contextlib.ExitStack()
        self.members: dict[int, Member] = {}
        self.forwarders: list[output.Forwarder] = []
        self.nursery: nursery.Nursery | None = None
        self.supervisor: Supervisor | None = None
        try:
            self._build(plan, preload)
        except OSError as error:
            self.close()
            raise ResourceError(f"The workers could not be started: {error}") from error
        except BaseException:
            self.close()
            raise

    # ---- making

    def _build(self, plan: Plan, preload: Sequence[str]) -> None:
        """Cut the memory, make bells and cursors, then hire."""
        shape = self.shape
        processes = tuple(self._processes(plan))
        streams = [number for number, group in enumerate(plan.groups) if group.stream]
        check_descriptors(shape, len(processes), len(streams))
        if processes:  # first: a nursery that is a copy of this process must have none of this crew's descriptors
            self.nursery = nursery.acquire(self.start_method)
        stride = stride_for(sum(edge.producers * edge.large for edge in shape.edges) + REGIONS * len(streams))
        strides = (stride,) * len(shape.edges)
        words = self._own(anonymous("words", 8 * words_needed(shape)))
        edges = tuple(self._own(anonymous(f"edge-{e}", bytes_needed(edge, stride))) for e, edge in enumerate(shape.edges))
        logs = {number: self._own(anonymous(f"log-{number}", REGIONS * stride)) for number in streams}
        self._words = words_of(words, words_needed(shape))
        self.board = Board(shape, self._words)
        self.bells = [self._own(os.eventfd(0, os.EFD_CLOEXEC)) for _ in range(shape.participants)]
        self.cursors = [self._pipe() for _ in plan.groups]
        outputs = tuple(self._outputs(name) for name in self.names)
        self.berth = Berth(
            shape,
            strides,
            processes,
            self.names,
            words,
            edges,
            tuple(self.bells),
            tuple(self.cursors),
            outputs,
            logs,
            {},
            {},
        )
        self.first_cells = self._cells(0)
        self.last_cells = self._cells(-1) if len(shape.edges) > 1 else self.first_cells
        self.hire(range(len(self.berth.processes)), preload)
        self._poll = select.poll()
        for fd in (self.bells[self.consumer], *self._outs):
            self._poll.register(fd, select.POLLIN)

    def _outputs(self, name: str) -> tuple[int, int]:
        """Pipes for what a step's workers print -> their ends; they stay open here, for workers to come."""
        (out, out_end), (err, err_end) = self._pipe(), self._pipe()
        self.forwarders = [*self.forwarders, output.Forwarder(name, out, err)]
        return out_end, err_end

    @property
    def _outs(self) -> dict[int, output.Forwarder]:
        return {fd: forwarder for forwarder in self.forwarders for fd in (forwarder.out, forwarder.err)}

    def hire(self, numbers: Sequence[int], preload: Sequence[str] = ()) -> None:
        """Let the nursery make these processes, with their ends of everything."""
        if not numbers:
            return
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            lines = [socket.socketpair() for _ in numbers]
            for mine, end in lines:
                ours.callback(mine.close)
                theirs.callback(end.close)
            faults = [anonymous("stack", 0, sealed=False) for _ in numbers]
            for fault in faults:
                ours.callback(os.close, fault)
            berth = self.berth._replace(
                controls={number: end.fileno() for number, (_, end) in zip(numbers, lines, strict=True)},
                faults=dict(zip(numbers, faults, strict=True)),
            )
            fds = berth.descriptors()
            common = pickle.dumps(berth.moved({fd: number for number, fd in enumerate(fds)}))
            if self.nursery is None or not self.nursery.alive:
                held, self.nursery = self.nursery, None
                if held is not None:
                    nursery.release(held)
                self.nursery = nursery.acquire(self.start_method)
            children = self.nursery.fork(fds, numbers, common, preload)
            for number, child, (mine, _), fault in zip(numbers, children, lines, faults, strict=True):
                self.members[number] = Member(*self.berth.processes[number], child, mine, fault)
            ours.pop_all()

    def _cells(self, edge: int) -> Cells:
        shape, stride = self.shape.edges[edge], self.berth.strides[edge]
        return Cells(shape, stride, mapped(self.berth.edges[edge], bytes_needed(shape, stride)))

    def _pipe(self) -> tuple[int, int]:
        read, write = os.pipe()
        return self._own(read), self._own(write)

    def _own(self, fd: int) -> int:
        self._fds.callback(os.close, fd)
        return fd

    def _processes(self, plan: Plan) -> Iterator[tuple[int, tuple[int, ...]]]:
        """For each process: its group, and its participants; threads share one process."""
        for number, group in enumerate(plan.groups):
            first = self.shape.first[number + 1]
            everyone = tuple(range(first, first + group.n))
            yield from [(number, everyone)] if group.placement == "thread" else [(number, (one,)) for one in everyone]

    @property
    def consumer(self) -> int:
        return self.shape.participants - 1

    # ---- a run

    def start(self, groups: list[bytes], orders: Orders, attempts: int) -> None:
        """Reset, and let every worker begin a run of these pickled groups."""
        self._reset()
        changed = [new if new != old else None for new, old in zip(groups, self.shipped, strict=True)]
        self.shipped = list(groups)
        start = Start(None, orders, for_workers(os.environ), _directory(), list(sys.path), output.levels(), _filters())
        self.supervisor = Supervisor(self, start, attempts)
        for member in self.members.values():
            self.opening(member)
            with contextlib.suppress(OSError):  # it has died; the supervisor will see that
                send_message(member.control, start._replace(group=changed[member.group]))
        self.supervisor.start()

    def opening(self, member: Member) -> None:
        """Until its workers say otherwise, what they die of is their start."""
        for who in member.participants:
            self.board.at[who][3] = time.monotonic_ns()
            self.board.at[who][0] = Phase.OPEN

    def _reset(self) -> None:
        board = self.board
        _clear(self._words)
        self.collect()
        for cell in self.leased:
            board.edges[-1].cell[cell] = KEPT | self.consumer
        for edge, cell, who in (kept for each in self._kept.values() for kept in each):
            board.edges[edge].cell[cell] = KEPT | who
        for number, (read, write) in enumerate(self.cursors):
            _drain(read)
            if self.plan.groups[number].n > 1:
                os.write(write, CURSOR.pack(1, 0))

    def collect(self) -> list[int]:
        """Cells of the last edge whose last view is gone since the last look."""
        returned, found = self.last_cells.returned, []
        while returned:
            cell = returned.popleft()
            if cell not in self._pinned:
                found.append(cell)
        self.leased.difference_update(found)
        return found

    def pin(self) -> None:
        """This process is about to be forked: what the copy sees of the cells must never change."""
        self._pinned |= self.leased

    def ring(self, who: int) -> None:
        os.eventfd_write(self.bells[who], 1)

    def keeps(self, number: int, kept: list[tuple[int, int, int]]) -> None:
        """A member rests, and its step keeps views on some cells."""
        self._kept[number] = kept

    def lost(self, number: int) -> Member:
        """A member has died; what it kept views on since an earlier run is free.

        Its replacement frees what it kept in this one, but does not look if it had taken nothing yet.
        """
        for edge, cell, who in self._kept.pop(number, ()):
            edges = self.board.edges[edge]
            if edges.cell[cell] == KEPT | who:
                edges.cell[cell] = 0
                self.ring(edges.first + cell // edges.cells_each)
        return self.members[number]

    def fail(self, error: BaseException) -> None:
        """Let the consumer raise an error once it has taken what is there."""
        if self._ending is None:
            self._ending = lambda: error
        self.ring(self.consumer)

    def cancel(self) -> None:
        """Let everybody go to rest."""
        self.board.cancelled[0] = 1
        for number, (_, write) in enumerate(self.cursors):
            os.write(write, CURSOR.pack(POISON, 0) * self.plan.groups[number].n)
        for who in range(self.shape.participants):
            self.ring(who)

    def wait(self, timeout: float | None) -> None:
        """Sleep until the consumer's bell rings or a worker prints.

        What a failure means is raised by the next call: first the consumer takes what is there.
        """
        if self._ending is not None:
            raise self._ending()
        for fd, _ in self._poll.poll(None if timeout is None else max(0, timeout * 1000)):
            if fd == self.bells[self.consumer]:
                os.eventfd_read(fd)
            else:
                self._outs[fd].forward(fd)

    def rest(self, timeout: float) -> bool:
        """Wait until every worker rests -> whether they do."""
        end = time.monotonic() + timeout
        assert self.supervisor is not None
        while not self.supervisor.all_rest:
            left = end - time.monotonic()
            if left < 0:
                return False
            self.wait(left)
        self.flush()
        return True

    def flush(self) -> None:
        """Print what workers have printed."""
        for forwarder in self.forwarders:
            forwarder.flush()

    @property
    def sound(self) -> bool:
        """Whether all members live, and wait for the next run."""
        return not self.broken and not any(ended(member.child, 0) for member in self.members.values())

    # ---- endings

    def stop(self) -> bool:
        """Cut a run short -> whether the crew can be used again."""
        self.cancel()
        with contextlib.suppress(Exception):
            return self.rest(GRACE) and not self.broken
        return False

    def end_run(self) -> None:
        """The run is over: its supervisor goes."""
        supervisor, self.supervisor = self.supervisor, None
        if supervisor is not None:
            self._idle = supervisor.all_rest
            supervisor.stop()

    _idle = True

    def close(self, *, linger: bool = False) -> None:
        """End the workers and give everything back; interrupted, it goes on where it was when called again."""
        self.end_run()
        for member in self.members.values():
            member.control.close()  # at rest, a worker ends by itself
        end = time.monotonic() + (GRACE if self._idle and not self.broken else 0)
        try:
            while self.members:
                number, member = next(iter(self.members.items()))
                if not ended(member.child, end - time.monotonic()):
                    kill(member.child)
                self._reap(member)
                del self.members[number]
                member.close()
        finally:
            self._give_back(linger)

    def _reap(self, member: Member) -> None:
        with contextlib.suppress(OSError):
            if self.nursery is not None:
                self.nursery.reap(member.child.pid)
                self.nursery.done([member.child.pid])

    def _give_back(self, linger: bool) -> None:
        """Everything but the workers: pipes, bells, memory, the nursery."""
        forwarders, self.forwarders = self.forwarders, []
        for forwarder in forwarders:
            forwarder.close()
        self._fds.close()
        self._ending = None
        self._poll = select.poll()
        if "last_cells" in vars(self):
            self.collect()
            self.last_cells.give_back(self.leased)
        for name in ("_words", "board", "first_cells", "last_cells"):
            vars(self).pop(name, None)  # the memory goes with the last view on it, not with the last run object
        held, self.nursery = self.nursery, None
        if held is not None:
            nursery.release(held, linger=linger)

    def forget(self) -> None:
        """In a forked copy of the parent: close what would keep the workers alive."""
        for member in self.members.values():
            member.control.close()


def key_of(plan: Plan, ordered: bool) -> Any:
    """What must be equal for a crew to run a plan."""
    return tuple((group.name, group.n, group.placement, group.stream) for group in plan.groups), plan.bounds, ordered


def _clear(words: Any) -> None:
    words.cast("B")[:] = bytes(8 * len(words))


def _drain(fd: int) -> None:
    os.set_blocking(fd, False)
    with contextlib.suppress(BlockingIOError):
        while os.read(fd, 1 << 16):
            pass
    os.set_blocking(fd, True)


def _directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None


def _filters() -> list[Any]:
    """The warning filters that can be pickled."""
    found = []
    for entry in warnings.filters:
        with contextlib.suppress(Exception):
            pickle.dumps(entry)
            found.append(entry)
    return found
