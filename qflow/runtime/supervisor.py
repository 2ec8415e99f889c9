"""Supervisor: a thread beside a run that hears of its workers: at rest, failed, dead, overdue.

It never touches data. A dead worker is replaced by one that goes on from the same words; the `Ledger` says
when not to, and then the replacement gives an error in the place of the call that killed its
predecessors, so that it arrives in order. The thread sleeps in one poll of control sockets, process
descriptors and its own bell; the `Clock` says for how long.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qflow.errors import InternalError, QFlowError, ResourceError
from qflow.graph.plan import Group
from qflow.runtime import postmortem
from qflow.runtime.child import kill, readable, send, stopped
from qflow.runtime.clock import Clock, Due
from qflow.runtime.ledger import Ledger, Orders, Value
from qflow.runtime.needs import start_thread
from qflow.runtime.worker import Start, framed, receive_message

if TYPE_CHECKING:
    from qflow.runtime.crew import Crew, Member

PAUSES = (0.1, 0.4, 1.5)  # seconds until another try, when a replacement can't be started

log = logging.getLogger("qflow")


class Supervisor:
    """The thread of one run; ``groups`` with the options that hold for it."""

    def __init__(self, crew: Crew, groups: Sequence[Group], start: Start, attempts: int) -> None:
        self.crew, self._groups, self._start = crew, groups, start
        self.ledger = Ledger(attempts)
        self.died: Counter[int] = Counter()  # workers of a group
        self.recycled: Counter[int] = Counter()
        self._incarnations: Counter[int] = Counter()
        self._resting: set[int] = set()
        self._left: set[int] = set()  # members that ended by themselves, to be replaced by fresh ones
        self._stopped: set[int] = set()  # members that were found to be stopped when their time was up
        self._overdue: dict[int, set[Value]] = {}  # of a member, the values whose time is up
        self._member_of = {who: number for number, member in crew.members.items() for who in member.participants}
        limits = {who: self._timeout(crew.members[number].group) for who, number in self._member_of.items()}
        participants = range(1, crew.channels.consumer)
        self._clock = Clock(crew.channels.board, participants, {who: limit for who, limit in limits.items() if limit})
        self._bell = os.eventfd(0, os.EFD_CLOEXEC)
        self._stopping, self._ended = threading.Event(), threading.Event()
        self._watching = threading.Event()
        self._starting = threading.Lock()
        self._began = False

    def _timeout(self, group: int) -> float:
        return self._groups[group].options.timeout or 0

    def start(self) -> None:
        """Begin the thread, before the workers begin: later it would wait for a core, and the caller for it."""
        start_thread("qflow-supervisor", self._run)

    def watch(self) -> None:
        """Look at the workers from here on."""
        self._watching.set()

    def stop(self) -> None:
        """Watch no longer; returns when the thread has let go of the crew. Interrupted, it may be called again."""
        with self._starting:
            self._stopping.set()
        self._watching.set()
        if self._bell >= 0:
            os.eventfd_write(self._bell, 1)
            if self._began:
                self._ended.wait()  # not `join`, which would give a thread of `_thread` a name that stays
            bell, self._bell = self._bell, -1
            os.close(bell)

    @property
    def all_rest(self) -> bool:
        """Whether no worker has anything to do in this run any more."""
        return len(self._resting) == len(self.crew.members)

    # ---- the thread

    def _run(self) -> None:
        with self._starting:
            if self._stopping.is_set():
                return
            self._began = True
        try:
            self._watching.wait()
            self._killer = postmortem.Killer()
            self._register()
            while not self._stopping.is_set():
                self._look(self._poll.poll(self._clock.wait()))
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

    def _unwatch(self, *fds: int) -> None:
        for fd in fds:
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
        for due in self._clock.due():
            self._do(due)

    def _heard(self, number: int) -> None:
        """Take a message of a member."""
        member = self.crew.members[number]
        message = receive_message(member.control)
        if message is None:  # it has closed its end, which no worker does that is alive and well
            self._unwatch(member.control.fileno())
            kill(member.child)
            return
        word, content = message
        if word == "left":
            self._left.add(number)
            return
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
        crew, member = self.crew, self.crew.members[number]
        control = member.control.fileno()
        if control in self._whose and readable(member.control, 0):  # its last words come before its death
            member.control.setblocking(False)  # a copy of it may keep the line open
            self._heard(number)
        self._unwatch(control, member.child.fileno())
        crew.lost(number)
        if number in self._resting or crew.channels.board.cancelled[0] or self._stopping.is_set():
            crew.broken = True
            self._rests(number)
            return
        ending = crew.reap(member)
        how, more = postmortem.how(ending), self._killer.told(ending) + postmortem.stack(member.fault)
        group, name = member.group, crew.names[member.group]
        left = number in self._left
        self._left.discard(number)
        decision = self.ledger.judge(
            crew.channels.board,
            group,
            member.participants,
            stream=self._groups[group].stream,
            overdue=self._overdue.pop(number, set()),
            blameless=left or ending is None,
        )
        (self.recycled if left else self.died)[group] += 1
        if not left:
            then = "is not tried again" if decision.condemned else "ends the run" if decision.given_up else "is repeated"
            log.warning("A worker of step %r (process %d) %s; what it had in hand %s.", name, member.child.pid, how, then)
        orders = self.ledger.orders(self._start.orders, group, name, decision, how, more, self._timeout(group))
        self._replace(number, member, orders)

    def _replace(self, number: int, member: Member, orders: Orders) -> None:
        """Let another worker go on from the dead one's words; when there is none, the run ends."""
        crew = self.crew
        member.close()
        if orders.fatal is not None and self.ledger.hopeless(member.group):  # it can't even say that it gives up
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
        crew.send(crew.members[number], framed(self._start._replace(group=group, orders=orders, incarnation=incarnation)))
        self._watch(number)

    def _hire(self, number: int, name: str) -> QFlowError | None:
        """Another worker in the place of a dead one -> why not."""
        for pause in (*PAUSES, None):
            try:
                self.crew.hire([number])
                return None
            except (OSError, EOFError, QFlowError) as error:
                if pause is None or self._stopping.wait(pause):
                    return ResourceError(f"A worker of step {name!r} died, and none could be started for it: {error}")
        raise AssertionError

    # ---- the clock

    def _do(self, due: Due) -> None:
        who = due.running.who
        number = self._member_of[who]
        member = self.crew.members.get(number)
        if member is None:
            return
        if self._excusable(number, member):
            self._clock.excuse(who)
        elif due.action == "tell":
            self._tell(member, due)
        elif due.action == "look":
            postmortem.clear(member.fault)
            send(member.child, signal.SIGUSR1)
        else:
            self._overdue.setdefault(number, set()).add(due.running.value)
            kill(member.child)

    def _excusable(self, number: int, member: Member) -> bool:
        """Whether it may have been delayed: somebody has stopped it, or it waited for what it prints to be printed."""
        if stopped(member.child):
            self._stopped.add(number)
            return True
        was_stopped = number in self._stopped
        self._stopped.discard(number)
        return was_stopped or self.crew.channels.drain(member.group)

    def _tell(self, member: Member, due: Due) -> None:
        who, place = due.running.who, due.running.place
        taken = self.crew.channels.board.counts[who][1]
        at = f"at number {taken} of the items that it took" if place >= 0 else "while it was loaded or built"
        name, pid = self.crew.names[member.group], member.child.pid
        stack = postmortem.stack(member.fault)
        log.warning("Step %r has given no result for %d seconds (process %d, %s).%s", name, due.seconds, pid, at, stack)
