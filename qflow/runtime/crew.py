"""Crew: the warm workers and channels of one plan; one run at a time.

A crew is made once and reset between runs: all words to zero but those of cells on which somebody keeps
views, cursors drained and written anew. A run that is cut short is cancelled: one word, a ring for
everybody, a poisoned cursor for those who wait for theirs; who is not at rest after `GRACE` is killed.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from qflow.errors import QFlowError, ResourceError, WorkerDied, annotate, describe, place
from qflow.graph.plan import Plan
from qflow.runtime import nursery, output
from qflow.runtime.board import KEPT, POISON, Board, shape_of, words_needed
from qflow.runtime.codec import decode
from qflow.runtime.memory import Cells, anonymous, bytes_needed, mapped, stride_for, words_of
from qflow.runtime.worker import CURSOR, Berth, Start, receive_message, send_message

GRACE = 0.5  # seconds that user code has to finish when a run is cut short


class Member(NamedTuple):
    """One worker process."""

    group: int
    participants: tuple[int, ...]
    pid: int
    pidfd: int
    control: socket.socket


class Crew:
    """Workers, channels and bells for one plan."""

    def __init__(self, plan: Plan, ordered: bool, preload: Sequence[str] = ()) -> None:
        self.key = key_of(plan, ordered)
        self.plan = plan
        self.shape = shape_of(plan, ordered=ordered)
        self.names = tuple(group.name for group in plan.groups)
        self._shipped: list[bytes | None] = [None] * len(plan.groups)
        self.leased: set[int] = set()  # cells of the last edge on which the consumer keeps views
        self._kept: dict[int, list[tuple[int, int]]] = {}  # what each member's step keeps views on: edge and cell
        self._resting: set[int] = set()
        self.modules: Any = ()
        self.broken = False
        self._ending: Callable[[], BaseException] | None = None
        self._fds = contextlib.ExitStack()
        self.members: list[Member] = []
        self.forwarders: list[output.Forwarder] = []
        self.nursery: nursery.Nursery | None = None
        self._watched: dict[int, Callable[[], None]] = {}
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
        stride = stride_for(sum(edge.producers * edge.large for edge in shape.edges))
        self._strides = (stride,) * len(shape.edges)
        words = self._own(anonymous("words", 8 * words_needed(shape)))
        self._edge_fds = [self._own(anonymous(f"edge-{e}", bytes_needed(edge, stride))) for e, edge in enumerate(shape.edges)]
        self._words = words_of(words, words_needed(shape))
        self.board = Board(shape, self._words)
        self.first_cells = self._cells(0)
        self.last_cells = self._cells(-1) if len(shape.edges) > 1 else self.first_cells
        self.bells = [self._own(os.eventfd(0, os.EFD_CLOEXEC)) for _ in range(shape.participants)]
        self.cursors = [(self._own(read), self._own(write)) for read, write in (os.pipe() for _ in plan.groups)]
        self._hire(words, tuple(self._processes(plan)), preload)
        self._watch()

    def _hire(self, words: int, processes: tuple[tuple[int, tuple[int, ...]], ...], preload: Sequence[str]) -> None:
        """Let the nursery make the processes, with their ends of everything."""
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            outputs = []
            for name in self.names:
                (out, out_end), (err, err_end) = _pipe(theirs), _pipe(theirs)
                self.forwarders = [*self.forwarders, output.Forwarder(name, out, err)]
                outputs.append((out_end, err_end))
            lines = [socket.socketpair() for _ in processes]
            for mine, end in lines:
                ours.callback(mine.close)
                theirs.callback(end.close)
            ends = tuple(end.fileno() for _, end in lines)
            berth = Berth(
                self.shape,
                self._strides,
                processes,
                self.names,
                words,
                tuple(self._edge_fds),
                tuple(self.bells),
                tuple(self.cursors),
                tuple(outputs),
                ends,
            )
            if processes:
                fds = berth.descriptors()
                self.nursery = nursery.acquire()
                common = pickle.dumps(berth.moved({fd: number for number, fd in enumerate(fds)}))
                made = self.nursery.fork(fds, len(processes), common, preload)
                self.members = [
                    Member(*who, pid, pidfd, mine) for who, (pid, pidfd), (mine, _) in zip(processes, made, lines, strict=True)
                ]
            ours.pop_all()
        self._resting = set(range(len(self.members)))

    def _cells(self, edge: int) -> Cells:
        shape, stride = self.shape.edges[edge], self._strides[edge]
        return Cells(shape, stride, mapped(self._edge_fds[edge], bytes_needed(shape, stride)))

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

    def start(self, groups: list[bytes]) -> None:
        """Reset, and let every worker begin a run of these pickled groups."""
        self._reset()
        changed = [new if new != old else None for new, old in zip(groups, self._shipped, strict=True)]
        self._shipped = list(groups)
        surroundings = Start(
            None, {**nursery.ONE_THREAD, **os.environ}, _directory(), list(sys.path), output.levels(), _filters()
        )
        self._resting.clear()
        self._watch()
        for member in self.members:
            with contextlib.suppress(OSError):  # it has died; the consumer will see that
                send_message(member.control, surroundings._replace(group=changed[member.group]))

    def _reset(self) -> None:
        board = self.board
        _clear(self._words)
        self.collect()
        last = len(board.edges) - 1
        for edge, cell in [*((last, cell) for cell in self.leased), *(kept for each in self._kept.values() for kept in each)]:
            board.edges[edge].cell[cell] = KEPT
        for number, (read, write) in enumerate(self.cursors):
            _drain(read)
            if self.plan.groups[number].n > 1:
                os.write(write, CURSOR.pack(1, 0))

    def collect(self) -> list[int]:
        """Cells of the last edge whose last view is gone since the last look."""
        returned, found = self.last_cells.returned, []
        while returned:
            found.append(returned.popleft())
        self.leased.difference_update(found)
        return found

    def ring(self, who: int) -> None:
        os.eventfd_write(self.bells[who], 1)

    def fail(self, error: BaseException) -> None:
        """Let the consumer raise an error once it has taken what is there."""
        self._ending = lambda: error
        self.ring(self.consumer)

    def cancel(self) -> None:
        """Let everybody go to rest."""
        self.board.cancelled[0] = 1
        for number, (_, write) in enumerate(self.cursors):
            os.write(write, CURSOR.pack(POISON, 0) * self.plan.groups[number].n)
        for who in range(self.shape.participants):
            self.ring(who)

    def _watch(self) -> None:
        """Make the list of what `wait` looks at: the consumer's bell, what workers print, their reports, their deaths."""
        self._poll = select.poll()
        self._watched = {}
        for forwarder in self.forwarders:
            for fd in (forwarder.out, forwarder.err):
                self._watched[fd] = partial(self._print, forwarder, fd)
        for number, member in enumerate(self.members):
            self._watched[member.control.fileno()] = partial(self._report, number)
            self._watched[member.pidfd] = partial(self._died, number)
        for fd in (self.bells[self.consumer], *self._watched):
            self._poll.register(fd, select.POLLIN)

    def wait(self, timeout: float | None) -> None:
        """Sleep until the consumer's bell rings, or a worker prints, rests, fails or dies.

        What a failure or death means is raised by the next call: first the consumer takes what is there.
        """
        if self._ending is not None:
            raise self._ending()
        for fd, _ in self._poll.poll(None if timeout is None else max(0, timeout * 1000)):
            if fd == self.bells[self.consumer]:
                os.eventfd_read(fd)
            elif fd in self._watched:
                self._watched[fd]()

    def _print(self, forwarder: output.Forwarder, fd: int) -> None:
        if not forwarder.forward(fd):
            self._unwatch(fd)  # every worker of the step has closed it

    def _unwatch(self, fd: int) -> None:
        if self._watched.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def _report(self, number: int) -> None:
        message = receive_message(self.members[number].control)
        self._unwatch(self.members[number].control.fileno())
        if message is None:
            return self._died(number)
        self._resting.add(number)
        word, content = message
        if word == "failed":
            self.broken = True
            self._ending = content.error
        else:
            self._kept[number] = content

    def rest(self, timeout: float) -> bool:
        """Wait until every worker rests -> whether they do."""
        end = time.monotonic() + timeout
        while len(self._resting) < len(self.members):
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

    # ---- endings

    def _died(self, number: int) -> None:
        self.broken = True
        self._unwatch(self.members[number].pidfd)
        if self._ending is None:
            self._ending = partial(self._death, self.members[number])

    def _death(self, member: Member) -> WorkerDied:
        """The error for a dead member, with the item it worked on."""
        kill(member.pidfd)  # one that only closed its control line is as good as dead
        how = self._how(member)
        self.flush()
        step, item, index = self.names[member.group], None, None
        with contextlib.suppress(Exception):
            index, item = self._item_of(member)
        error = WorkerDied(f"A worker {how} " + place(step, index, item, member.pid))
        return annotate(error, step, index, item, member.pid)

    def _how(self, member: Member) -> str:
        try:
            status = self.nursery.reap(member.pid) if self.nursery else 0
        except (OSError, QFlowError, EOFError):
            return "was lost, with the process that starts workers,"
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            return f"was killed by signal {number} ({signal.Signals(number).name})"
        return f"exited with code {os.waitstatus_to_exitcode(status)}"

    def _item_of(self, member: Member) -> tuple[tuple[int, ...] | None, str | None]:
        """The item that a dead worker worked on: index path and short repr."""
        cells = self._cells(member.group)
        for who in member.participants:
            job = self.board.job[who]
            if job[0] != job[4]:
                cell = job[3] >> 3
                value, path, _ = decode(cells, cell, read_only=True, views=False)
                return path, describe(value)
        return None, None

    def stop(self) -> bool:
        """Cut a run short -> whether the crew can be used again."""
        self.cancel()
        with contextlib.suppress(Exception):
            return self.rest(GRACE) and not self.broken
        return False

    def close(self, *, linger: bool = False) -> None:
        """End the workers and give everything back; interrupted, it goes on where it was when called again."""
        for member in self.members:
            member.control.close()  # at rest, a worker ends by itself
        grace = GRACE if len(self._resting) == len(self.members) and not self.broken else 0
        end = time.monotonic() + grace
        try:
            while self.members:
                member = self.members[-1]
                if not ended(member.pidfd, end - time.monotonic()):
                    kill(member.pidfd)
                self._reap(member)
                self.members.pop()
                os.close(member.pidfd)
        finally:
            self._give_back(linger)

    def _reap(self, member: Member) -> None:
        with contextlib.suppress(OSError):
            if self.nursery is not None:
                self.nursery.reap(member.pid)
                self.nursery.done([member.pid])

    def _give_back(self, linger: bool) -> None:
        """Everything but the workers: pipes, bells, memory, the nursery."""
        forwarders, self.forwarders = self.forwarders, []
        for forwarder in forwarders:
            forwarder.close()
        self._fds.close()
        self._watched, self._ending = {}, None
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
        for member in self.members:
            member.control.close()


def _pipe(theirs: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe whose writing end is the workers'."""
    read, write = os.pipe()
    theirs.callback(os.close, write)
    return read, write


def ended(pidfd: int, seconds: float) -> bool:
    """Wait for a process to end -> whether it has. (A poll: `select` knows no descriptor above 1023.)"""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(max(0, seconds * 1000)))


def kill(pidfd: int) -> None:
    """End a process, and wait until it has."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    ended(pidfd, 2)


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
