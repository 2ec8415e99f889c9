"""Crew: the warm workers of one plan and their channels; one run at a time.

A run that is cut short is cancelled; who is not at rest after `GRACE` is killed. During a run a `Supervisor`
has the control sockets; the consumer's thread only hears its bell.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from qflow.errors import ResourceError
from qflow.graph.plan import Plan
from qflow.runtime import nursery, output
from qflow.runtime.board import Phase, Shape, shape_of
from qflow.runtime.channels import Channels, Kept
from qflow.runtime.child import Child, Ending, ended, kill
from qflow.runtime.environment import for_workers
from qflow.runtime.ledger import Orders
from qflow.runtime.memory import anonymous
from qflow.runtime.needs import check_descriptors
from qflow.runtime.store import Hold
from qflow.runtime.supervisor import Supervisor
from qflow.runtime.worker import Start, framed

GRACE = 0.5  # seconds that user code has to finish when a run is cut short
TICK = 0.05  # seconds; as much of `GRACE` is counted for one wait


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
    """The workers of one plan.

    Attributes:
        members: by the numbers of their processes.
        shipped: the pickled groups that the workers have.
        held: what is shared and these refer to, for workers that come later, too.
        broken: it can't run again.
        modules: of the steps, for whoever keeps it.
    """

    channels: Channels

    def __init__(self, plan: Plan, ordered: bool, preload: Sequence[str] = (), start: str = "forkserver") -> None:
        self.start_method = start
        self._preload = preload
        self.key = key_of(plan, ordered)
        self.names = tuple(group.name for group in plan.groups)
        self.shipped: list[bytes] = [b""] * len(plan.groups)
        self.held = Hold()
        self.members: dict[int, Member] = {}
        self.modules: Any = ()
        self.broken = False
        self.nursery: nursery.Nursery | None = None
        self.supervisor: Supervisor | None = None
        self._kept: dict[int, list[Kept]] = {}  # what each member's step keeps views on
        self._ending: BaseException | None = None
        self._at_rest = True
        try:
            self._build(plan, shape_of(plan, ordered=ordered))
        except OSError as error:
            self.close()
            raise ResourceError(f"The workers could not be started: {error}") from error
        except BaseException:
            self.close()
            raise

    # ---- making

    def _build(self, plan: Plan, shape: Shape) -> None:
        processes = tuple(_processes(plan, shape))
        check_descriptors(shape, len(processes), sum(group.stream for group in plan.groups))
        if processes:  # first: a nursery that is a copy of this process must have none of this crew's descriptors
            self.nursery = nursery.acquire(self.start_method)
        self.channels = Channels(plan, shape)
        self._berth = self.channels.berth(processes)
        self.hire(range(len(processes)))

    def hire(self, numbers: Sequence[int]) -> None:
        """Let the nursery make these processes, with their ends of everything."""
        if not numbers:
            return
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            lines: list[tuple[socket.socket, socket.socket]] = []
            for _ in numbers:
                lines.append(socket.socketpair())
                ours.callback(lines[-1][0].close)
                theirs.callback(lines[-1][1].close)
            faults: list[int] = []
            for _ in numbers:
                faults.append(anonymous("stack", 0, sealed=False))
                ours.callback(os.close, faults[-1])
            berth = self._berth._replace(
                controls={number: end.fileno() for number, (_, end) in zip(numbers, lines, strict=True)},
                faults=dict(zip(numbers, faults, strict=True)),
            )
            fds = berth.descriptors()
            common = pickle.dumps(berth.moved({fd: number for number, fd in enumerate(fds)}))
            try:
                children = self._living_nursery().fork(fds, numbers, common, self._preload)
            except nursery.NurseryDied:  # meanwhile
                children = self._living_nursery().fork(fds, numbers, common, self._preload)
            for number, child, (mine, _), fault in zip(numbers, children, lines, faults, strict=True):
                self.members[number] = Member(*berth.processes[number], child, mine, fault)
            ours.pop_all()

    def _living_nursery(self) -> nursery.Nursery:
        """The nursery, or another one if it has died."""
        if self.nursery is None or not self.nursery.alive:
            held, self.nursery = self.nursery, None
            if held is not None:
                nursery.release(held)
            self.nursery = nursery.acquire(self.start_method)
        return self.nursery

    # ---- a run

    def start(self, plan: Plan, groups: list[bytes], held: Hold, orders: Orders, attempts: int) -> None:
        """Let every worker begin a run of a plan like that of the crew, with its groups pickled, and held what they refer to."""
        self.channels.reset(kept for each in self._kept.values() for kept in each)
        changed = [new if new != old else None for new, old in zip(groups, self.shipped, strict=True)]
        self.shipped, self.held = list(groups), held
        start = Start(None, orders, for_workers(os.environ), _directory(), list(sys.path), output.levels(), output.filters())
        messages = {group: framed(start._replace(group=group)) for group in {*changed}}
        self.supervisor = Supervisor(self, plan.groups, start, attempts)
        self.supervisor.start()
        for member in self.members.values():
            self.send(member, messages[changed[member.group]])

    def watch(self) -> None:
        """Hear of the workers from here on; what they have said meanwhile is not lost."""
        assert self.supervisor is not None
        self.supervisor.watch()

    def send(self, member: Member, start: bytes) -> None:
        """Let a member begin. Until its workers say otherwise, what they die of is their start."""
        for who in member.participants:
            at = self.channels.board.at[who]
            at[2], at[0] = time.monotonic_ns(), Phase.OPEN
        with contextlib.suppress(OSError):  # it has died; the supervisor will see that
            member.control.sendall(start)

    def keeps(self, number: int, kept: list[Kept]) -> None:
        """A member rests, and its step keeps views on some cells."""
        self._kept[number] = kept

    def lost(self, number: int) -> None:
        """A member has died; what it kept views on since an earlier run is free.

        Its replacement frees what it kept in this one, but does not look if it had taken nothing yet.
        """
        self.channels.unkeep(self._kept.pop(number, ()))

    def fail(self, error: BaseException) -> None:
        """Let the consumer raise an error once it has taken what is there."""
        if self._ending is None:
            self._ending = error
        self.channels.ring(self.channels.consumer)

    def wait(self, seconds: float | None) -> bool:
        """Sleep until there is something for the consumer, and print what workers print -> whether they did.

        What a failure means is raised by the next call: first the consumer takes what is there.
        """
        if self._ending is not None:
            raise self._ending
        return self.channels.wait(seconds)

    def rest(self, seconds: float) -> bool:
        """Wait until every worker rests -> whether they do.

        Of a sleep that took longer than it should, as when another thread kept this process to itself (a garbage
        collection of millions of objects), only `TICK` counts: the supervisor could not hear that they rest.
        """
        assert self.supervisor is not None
        while not self.supervisor.all_rest:
            if seconds <= 0:
                return False
            began = time.monotonic()
            printed = self.wait(TICK)
            took = time.monotonic() - began
            seconds -= took if printed else min(took, TICK)
        self.channels.flush()
        return True

    @property
    def sound(self) -> bool:
        """Whether all members live, and wait for the next run."""
        return not self.broken and not any(ended(member.child, 0) for member in self.members.values())

    # ---- endings

    def settle(self) -> bool:
        """Let a cancelled run come to rest -> whether the crew can be used again."""
        with contextlib.suppress(Exception):
            return self.rest(GRACE) and not self.broken
        return False

    def end_run(self) -> None:
        """The run is over: its supervisor goes."""
        if self.supervisor is not None:
            self._at_rest = self.supervisor.all_rest
            self.supervisor.stop()
            self.supervisor = None

    def trim(self) -> None:
        """At rest, give back memory that a next run does not need for its beginning."""
        with contextlib.suppress(ResourceError):  # no addresses to do it
            self.channels.trim(kept for each in self._kept.values() for kept in each)

    def close(self, *, linger: bool = False) -> None:
        """End the workers and give everything back; interrupted, it goes on where it was when called again."""
        self.end_run()
        for member in self.members.values():
            member.control.close()  # at rest, a worker ends by itself
        end = time.monotonic() + (GRACE if self._at_rest and not self.broken else 0)
        try:
            while self.members:
                number, member = next(iter(self.members.items()))
                if not ended(member.child, end - time.monotonic()):
                    kill(member.child)
                self.reap(member)
                del self.members[number]
                member.close()
        finally:
            self._give_back(linger)

    def reap(self, member: Member) -> Ending | None:
        """End what a member has started, and it -> how it ended; None when its nursery has died, and it with that."""
        if self.nursery is not None:
            with contextlib.suppress(OSError, EOFError):
                return self.nursery.reap(member.child.pid)
        return None

    def _give_back(self, linger: bool) -> None:
        self._ending = None
        self.held = Hold()
        if "channels" in vars(self):
            self.channels.close()
            del self.channels  # the memory goes with the last view on it, not with the last run object
        held, self.nursery = self.nursery, None
        if held is not None:
            nursery.release(held, linger=linger)

    def pin(self) -> None:
        """This process is about to be forked."""
        if "channels" in vars(self):
            self.channels.leases.pin()

    def forget(self) -> None:
        """In a forked copy of the parent: close what would keep the workers alive."""
        for member in self.members.values():
            member.control.close()


def key_of(plan: Plan, ordered: bool) -> Any:
    """What must be equal for a crew to run a plan."""
    return (
        tuple((group.name, group.n, group.placement, group.stream) for group in plan.groups),
        (plan.bounds, plan.budgets),
        ordered,
    )


def _processes(plan: Plan, shape: Shape) -> Iterator[tuple[int, tuple[int, ...]]]:
    """For each process: its group, and its participants; threads share one process."""
    for number, group in enumerate(plan.groups):
        first = shape.first[number + 1]
        everyone = tuple(range(first, first + group.n))
        yield from [(number, everyone)] if group.placement == "thread" else [(number, (one,)) for one in everyone]


def _directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None
