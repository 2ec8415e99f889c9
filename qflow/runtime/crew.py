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
from qflow.runtime.memory import Cells, anonymous, stride_for, words_of
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
        self.kept: set[tuple[int, int]] = set()  # edge and cell on which views are kept
        self._resting: set[int] = set()
        self.modules: Any = ()
        self.broken = False
        self._ending: Callable[[], BaseException] | None = None
        self._fds = contextlib.ExitStack()
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
        shape = self.shape
        counts = [edge.all_cells for edge in shape.edges]
        strides = tuple(stride_for(count * len(counts)) for count in counts)
        words = self._own(anonymous("words", 8 * words_needed(shape)))
        edges = [
            self._own(anonymous(f"edge-{e}", count * stride))
            for e, (count, stride) in enumerate(zip(counts, strides, strict=True))
        ]
        self._words = words_of(words, words_needed(shape))
        self.board = Board(shape, self._words)
        self.first_cells = Cells(edges[0], counts[0], strides[0])
        self.last_cells = Cells(edges[-1], counts[-1], strides[-1]) if len(edges) > 1 else self.first_cells
        self._strides, self._counts, self._edge_fds = strides, counts, edges
        self.bells = [self._own(os.eventfd(0, os.EFD_CLOEXEC)) for _ in range(shape.participants)]
        self.cursors = [tuple(map(self._own, os.pipe())) for _ in plan.groups]
        outputs = [[os.pipe() for _ in range(2)] for _ in plan.groups]
        self.forwarders = [output.Forwarder(name, out[0], err[0]) for name, (out, err) in zip(self.names, outputs, strict=True)]
        written = [fd for pair in outputs for _, fd in pair]
        processes = tuple(self._processes(plan))
        pairs = [socket.socketpair() for _ in processes]
        try:
            fds = [
                words,
                *edges,
                *self.bells,
                *(fd for pair in self.cursors for fd in pair),
                *written,
                *(theirs.fileno() for _, theirs in pairs),
            ]
            at = {fd: number for number, fd in enumerate(fds)}  # the nursery hands on what lies where, not what it is called here
            berth = Berth(
                shape,
                strides,
                processes,
                self.names,
                at[words],
                tuple(at[fd] for fd in edges),
                tuple(at[fd] for fd in self.bells),
                tuple((at[r], at[w]) for r, w in self.cursors),
                tuple((at[out], at[err]) for (_, out), (_, err) in outputs),
                tuple(at[theirs.fileno()] for _, theirs in pairs),
            )
            self.nursery = nursery.acquire() if processes else None
            made = self.nursery.fork(fds, len(processes), pickle.dumps(berth), preload) if self.nursery else []
        except BaseException:
            for ours, _ in pairs:
                ours.close()
            raise
        finally:
            for fd in written:
                os.close(fd)
            for _, theirs in pairs:
                theirs.close()
        self.members = [
            Member(group, participants, pid, pidfd, ours)
            for (group, participants), (pid, pidfd), (ours, _) in zip(processes, made, pairs, strict=True)
        ]
        self._resting = set(range(len(self.members)))
        self._watch()

    members: list[Member] = []
    forwarders: list[output.Forwarder] = []
    nursery: nursery.Nursery | None = None

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
        surroundings = Start(None, dict(os.environ), _directory(), list(sys.path), output.levels(), _filters())
        self._resting.clear()
        self._watch()
        for member in self.members:
            with contextlib.suppress(OSError):  # it has died; the consumer will see that
                send_message(member.control, surroundings._replace(group=changed[member.group]))

    def _reset(self) -> None:
        board = self.board
        _clear(self._words)
        last = len(board.edges) - 1
        returned = self.last_cells.returned
        while returned:
            self.kept.discard((last, returned.popleft()))
        for number, cell in self.kept:
            board.edges[number].cell[cell] = KEPT
        for number, (read, write) in enumerate(self.cursors):
            _drain(read)
            if self.plan.groups[number].n > 1:
                os.write(write, CURSOR.pack(1, 0))

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
        self._watched: dict[int, Callable[[], None]] = {}
        for forwarder in self.forwarders:
            for fd in (forwarder.out, forwarder.err):
                self._watched[fd] = partial(forwarder.forward, fd)
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
            self.kept.update(content)

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
            for fd in (forwarder.out, forwarder.err):
                forwarder.forward(fd)

    # ---- endings

    def _died(self, number: int) -> None:
        self.broken = True
        self._unwatch(self.members[number].pidfd)
        if self._ending is None:
            self._ending = partial(self._death, self.members[number])

    def _death(self, member: Member) -> WorkerDied:
        """The error for a dead member, with the item it worked on."""
        select.select([member.pidfd], [], [], 2)
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
        cells = Cells(self._edge_fds[member.group], self._counts[member.group], self._strides[member.group])
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
        """End the workers and give everything back."""
        members, self.members = self.members, []
        for member in members:
            member.control.close()  # at rest, a worker ends by itself
        end = time.monotonic() + (GRACE if len(self._resting) == len(members) and not self.broken else 0)
        for member in members:
            if not select.select([member.pidfd], [], [], max(0, end - time.monotonic()))[0]:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(member.pidfd, signal.SIGKILL)
                select.select([member.pidfd], [], [], 2)
            with contextlib.suppress(OSError, EOFError):
                if self.nursery is not None:
                    self.nursery.reap(member.pid)
            os.close(member.pidfd)
        with contextlib.suppress(OSError):
            if self.nursery is not None:
                self.nursery.done([member.pid for member in members])
        for forwarder in self.forwarders:
            forwarder.close()
        self.forwarders = []
        self._fds.close()
        self._watched, self._ending = {}, None
        self._poll = select.poll()
        vars(self).pop("_words", None)
        vars(self).pop("board", None)  # the memory goes with the last view on it, not with the last run object
        vars(self).pop("first_cells", None)
        vars(self).pop("last_cells", None)
        held, self.nursery = self.nursery, None
        if held is not None:
            nursery.release(held, linger=linger)

    def forget(self) -> None:
        """In a forked copy of the parent: close what would keep the workers alive."""
        for member in self.members:
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
