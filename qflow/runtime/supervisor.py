"""Supervisor: a thread beside a run that hears of its workers: at rest, failed, dead, overdue.

It never touches data. A dead worker is replaced by one that goes on from the same words; the `Ledger` says
when not to, and then the replacement gives an error in the place of the call that killed its
predecessors, so that it arrives in order. The thread sleeps in one poll of control sockets, process
descriptors and its own bell; only steps with a ``timeout`` make it look from time to time.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from qflow.errors import InternalError, QFlowError, ResourceError
from qflow.graph import bytesizes
from qflow.runtime import oom
from qflow.runtime.board import Phase
from qflow.runtime.child import Ending, kill, send
from qflow.runtime.failure import HOUSE
from qflow.runtime.ledger import Call, Ledger, Orders
from qflow.runtime.worker import Start, receive_message

if TYPE_CHECKING:
    from qflow.runtime.crew import Crew, Member

STALLED = 60.0  # seconds after which a step that gives no result is told of
SECOND_LOOK = 0.05  # seconds between the two looks at a call whose time is up, in which its stack is written
PATIENCE = (0.1, 0.4, 1.5)  # seconds until another try, when a replacement can't be started
HOPELESS = 3  # deaths of replacements that were only to say that their step gives up
MOST_STACK = 8192  # bytes of a stack that stand in an error

log = logging.getLogger("qflow")


class Running(NamedTuple):
    """A call of user code that is going on: its member, who, which, and since when."""

    number: int
    who: int
    place: int
    call: int
    since: int


class Supervisor:
    """The thread of one run."""

    def __init__(self, crew: Crew, start: Start, attempts: int) -> None:
        self.crew, self._start = crew, start
        self.ledger = Ledger(attempts)
        self.died: Counter[int] = Counter()  # workers of a group
        self.recycled: Counter[int] = Counter()
        self._incarnations: Counter[int] = Counter()
        self._hopeless: Counter[int] = Counter()
        self._resting: set[int] = set()
        self._overdue: dict[int, list[Call]] = {}
        self._told: set[tuple[int, int]] = set()
        self._looked: set[Running] = set()
        self._kills = oom.killed()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC)
        self._stopping, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="qflow-supervisor", daemon=True)
        self._timed = {n: g.options.timeout for n, g in enumerate(crew.plan.groups) if g.options.timeout is not None}

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Watch no longer; returns when the thread has let go of the crew."""
        self._stopping.set()
        if self._bell >= 0:
            os.eventfd_write(self._bell, 1)
            if self._thread.ident is not None:
                self._ended.wait()  # not `join`, which would give a thread of `_thread` a name that stays
            os.close(self._bell)
            self._bell = -1

    @property
    def all_rest(self) -> bool:
        """Whether no worker has anything to do in this run any more."""
        return len(self._resting) == len(self.crew.members)

    # ---- the thread

    def _run(self) -> None:
        try:
            self._register()
            while not self._stopping.is_set():
                self._look(self._poll.poll(self._until_next_look()))
        except BaseException as error:  # nobody else would notice a death
            self.crew.broken = True
            told = InternalError(f"The supervisor of the workers failed ({type(error).__name__}: {error}).")
            told.__cause__ = error
            self.crew.fail(told)
        finally:
            self._ended.set()

    def _register(self) -> None:
        self._poll = select.poll()
        self._poll.register(self._bell, select.POLLIN)
        self._whose: dict[int, int] = {}
        for number in self.crew.members:
            self._watch(number)

    def _watch(self, number: int) -> None:
        member = self.crew.members[number]
        for fd in (member.control.fileno(), member.child.fileno()):
            self._whose[fd] = number
            self._poll.register(fd, select.POLLIN)

    def _unwatch(self, member: Member) -> None:
        for fd in (member.control.fileno(), member.child.fileno()):
            if self._whose.pop(fd, None) is not None:
                self._poll.unregister(fd)

    def _look(self, ready: list[tuple[int, int]]) -> None:
        for fd, _ in ready:
            number = self._whose.get(fd)
            if number is None:
                continue
            if fd == self.crew.members[number].control.fileno():
                self._heard(number)
            else:
                self._dead(number)
        self._look_at_clock()

    def _heard(self, number: int) -> None:
        """Take a message of a member."""
        member = self.crew.members[number]
        message = receive_message(member.control)
        if message is None:  # it has closed its end, which no worker does that is alive and well
            self._poll.unregister(member.control.fileno())
            self._whose.pop(member.control.fileno(), None)
            kill(member.child)
            return
        word, content = message
        if word == "failed":
            self.crew.broken = True
            self.crew.fail(content.error())
        else:
            self.crew.keeps(number, content)
        self._rests(number)

    def _rests(self, number: int) -> None:
        self._resting.add(number)
        if self.all_rest:
            self.crew.channels.ring(self.crew.channels.consumer)

    # ---- deaths

    def _dead(self, number: int) -> None:
        member = self.crew.members[number]
        if member.control.fileno() in self._whose and _readable(member.control.fileno()):
            self._heard(number)  # its last words come before its death
        self._unwatch(member)
        self.crew.lost(number)
        if number in self._resting or self.crew.channels.board.cancelled[0] or self._stopping.is_set():
            self.crew.broken = True
            self._rests(number)
            return
        ending = self._reap(member)
        how, more = self._postmortem(member, ending)
        group = member.group
        decision = self.ledger.judge(
            self.crew.channels.board,
            group,
            number,
            member.participants,
            stream=self.crew.plan.groups[group].stream,
            overdue=self._overdue.pop(number, ()),
            blameless=ending is None,
        )
        (self.recycled if decision.left else self.died)[group] += 1
        name = self.crew.names[group]
        if not decision.left:
            then = "is not tried again" if decision.condemned else "ends the run" if decision.given_up else "is repeated"
            log.warning("A worker of step %r (process %d) %s; what it had in hand %s.", name, member.child.pid, how, then)
        orders = self.ledger.orders(self._start.orders, group, name, decision, how, more, self._timed.get(group, 0))
        self._replace(number, member, orders)

    def _postmortem(self, member: Member, ending: Ending | None) -> tuple[str, str]:
        """How a worker ended, and what else is known: the OOM killer, its stack."""
        if ending is None:
            return "was lost with the process that starts workers", ""
        kills, before = oom.killed(), self._kills
        self._kills = kills
        more = ""
        if os.WIFSIGNALED(ending.status) and os.WTERMSIG(ending.status) == signal.SIGKILL and kills > before:
            more = (
                f" The kernel's OOM killer ended {kills - before} process(es) meanwhile; this one had held "
                f"{bytesizes.show(ending.peak)}. Use fewer workers (n=), smaller items or smaller queues."
            )
        return _how(ending.status), more + _stack(member.fault)

    def _reap(self, member: Member) -> Ending | None:
        try:
            assert self.crew.nursery is not None
            ending = self.crew.nursery.reap(member.child.pid)
            self.crew.nursery.done([member.child.pid])
            return ending
        except (OSError, EOFError, QFlowError):
            return None  # the nursery has died, and its workers with it

    def _replace(self, number: int, member: Member, orders: Orders) -> None:
        """Let another worker go on from the dead one's words; when there is none, the run ends."""
        crew = self.crew
        member.close()
        self._hopeless[number] += orders.fatal is not None
        if orders.fatal is not None and self._hopeless[number] > HOPELESS:  # it can't even say that it gives up
            problem: QFlowError | None = orders.fatal.error()
        else:
            problem = self._hire(number, crew.names[member.group])
        if problem is not None:
            crew.broken = True
            del crew.members[number]
            crew.fail(problem)
            return
        self._incarnations[number] += 1
        group, incarnation = crew.shipped[member.group], self._incarnations[number]
        crew.send(crew.members[number], self._start._replace(group=group, orders=orders, incarnation=incarnation))
        self._watch(number)

    def _hire(self, number: int, name: str) -> QFlowError | None:
        """Another worker in the place of a dead one -> why not."""
        for wait in (*PATIENCE, None):
            try:
                self.crew.hire([number])
                return None
            except (OSError, EOFError, QFlowError) as error:
                if wait is None or self._stopping.wait(wait):
                    return ResourceError(f"A worker of step {name!r} died, and none could be started for it: {error}")
        raise AssertionError

    # ---- the clock

    def _running(self) -> Iterator[Running]:
        """The calls of user code that are going on."""
        for number, member in self.crew.members.items():
            for who in member.participants:
                state, place, since = self.crew.channels.board.at[who]
                if state & 7 in (Phase.RUN, Phase.OPEN):
                    yield Running(number, who, place - 1, state >> 3, since)

    def _until_next_look(self) -> float:
        """Milliseconds until a call's time may be up."""
        if self._looked:
            return 1000 * SECOND_LOOK
        waits = [STALLED, *self._timed.values()]
        now = time.monotonic_ns()
        for running in self._running():
            limit = self._timed.get(self.crew.members[running.number].group)
            if limit is not None:
                waits.append(limit - (now - running.since) / 1e9)
        return 1000 * max(0.001, min(waits))

    def _look_at_clock(self) -> None:
        now = time.monotonic_ns()
        looked, self._looked = self._looked, set()
        for running in self._running():
            member, seconds = self.crew.members[running.number], (now - running.since) / 1e9
            limit = self._timed.get(member.group)
            if limit is not None and seconds >= limit:
                if running not in looked:
                    self._looked.add(running)
                    send(member.child, signal.SIGUSR1)
                else:
                    self._overdue.setdefault(running.number, []).append((running.place, running.call))
                    kill(member.child)
            elif seconds >= STALLED and (running.who, running.since) not in self._told:
                self._told.add((running.who, running.since))
                name = self.crew.names[member.group]
                log.warning("Step %r has given no result for %d seconds (process %d).", name, seconds, member.child.pid)


def _readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def _how(status: int) -> str:
    """A wait status in words."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return f"was killed by signal {number} ({signal.Signals(number).name})"
    return f"exited with code {os.waitstatus_to_exitcode(status)} without returning"


def _stack(fault: int) -> str:
    """What the worker's fault handler has written, its end, without qflow's own frames."""
    size = os.fstat(fault).st_size
    text = os.pread(fault, MOST_STACK, max(0, size - MOST_STACK)).decode(errors="replace")
    ours = f'File "{HOUSE}', 'File "<string>"', "Extension modules:"
    lines = [line for line in text.splitlines() if line.strip() and not line.strip().startswith(ours)]
    return "\n".join(["\nIts stack:", *lines]) if lines else ""
