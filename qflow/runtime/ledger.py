"""Ledger: what the deaths of workers are charged to, as pure values.

A worker that dies leaves its words (`board`): what it was `at`. Whoever replaces it goes on from there,
so the ledger only decides whether it should: an item at whose calls workers die `attempts` times gets a
`Verdict` in its place, a step that can't go on is given up. Only a death in the middle of work on user
data is charged. Of threads that died together all items are charged, and are repeated one at a time; which of
them it was is certain as soon as one alone has been charged `attempts` times.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence, Set
from typing import NamedTuple

from qflow.errors import QFlowError, StepTimeout, TransportError, WorkerDied
from qflow.graph.row import Start
from qflow.runtime.board import CALLS, CLOSED, ENDED, LOW, OFFSET, SHIFT, Board, Edge, Phase

STORM = 5  # deaths of a step's workers with items in hand, and nothing committed between; one more for each further worker

HOPELESS = 3  # deaths of workers that were only to say that their step gives up

Value = tuple[int, int]  # the entry's place, and the value's offset in it
Call = tuple[int, int]  # the entry's place, and which call of user code for which of its values


class At(NamedTuple):
    """What one participant of a dead worker was at: phase, place + 1, call, and whether it had an item in hand."""

    who: int
    phase: Phase
    place: int
    call: int
    claimed: bool

    @property
    def charged(self) -> Call | None:
        """The call that the death is charged to, if it was in the middle of one."""
        return (self.place - 1, self.call) if self.phase in (Phase.LOAD, Phase.RUN, Phase.SEND) else None


def at_of(board: Board, who: int, *, stream: bool) -> At:
    """What a participant is at, or was when it died."""
    state, place = board.state(who), board.at[who][1]
    job = board.job[who]
    return At(who, Phase(state & 7), place, state >> CALLS, bool(place) if stream else job[0] != job[7])


def value_of(call: Call) -> Value:
    """What a call is for."""
    return call[0], call[1] >> OFFSET - CALLS


class Verdict(NamedTuple):
    """In place of the call that a worker died of: the kind of error, its text, and how often it was tried."""

    kind: str
    text: str
    attempts: int = 1

    def error(self) -> QFlowError:
        """The exception."""
        error = {"timeout": StepTimeout, "load": TransportError}.get(self.kind, WorkerDied)(self.text)
        error.attempts = self.attempts
        return error


class Orders(NamedTuple):
    """What the workers of a step are told for a run.

    Attributes:
        collect: failures bring the value that failed.
        verdicts: calls that are not to be made; the error instead.
        tries: for values, how often workers died of them.
        suspects: values, one of which has killed a worker: until they are finished, user code runs
            in one thread at a time. The threads of a process share the set.
        fatal: the step is given up; the next item fails with this, for all policies.
        poison: overwrite cells that are free, so that a view that should not be there shows itself.
        context: of the run, pickled; empty: that of a run that says nothing.
        starts: where the streams of each group begin, in the midst of a run.
    """

    collect: bool = False
    verdicts: dict[Call, Verdict] = {}
    tries: dict[Value, int] = {}
    suspects: set[Value] = set()
    fatal: Verdict | None = None
    poison: bool = False
    context: bytes = b""
    starts: dict[int, tuple[Start, ...]] = {}


@dataclasses.dataclass(frozen=True)
class Decision:
    """What to do about a death.

    Attributes:
        condemned: calls that are not to be repeated: the kind of error, and the number of deaths.
        suspects: values, one of which has killed the worker; they are repeated one at a time.
        given_up: why the step can't go on; empty: it can. ``kind``: of error.
    """

    condemned: dict[Call, tuple[str, int]] = dataclasses.field(default_factory=dict)
    suspects: frozenset[Value] = frozenset()
    given_up: str = ""
    kind: str = "died"


class Ledger:
    """The deaths of one run."""

    def __init__(self, attempts: int) -> None:
        self.attempts = attempts
        self._deaths: Counter[tuple[int, Call]] = Counter()  # of a group's call
        self._openings: Counter[int] = Counter()  # of a member while it built its step
        self._storms: Counter[int] = Counter()  # of a group's members with an item in hand
        self._verdicts: dict[int, dict[Call, Verdict]] = {}
        self._hopeless: Counter[int] = Counter()  # of a group's members that were only to say that their step gives up
        self._own: dict[int, int] = {}  # member -> its progress at its last death
        self._step: dict[int, list[tuple[int, ...]]] = {}  # group -> its progress at the last death in it

    def judge(
        self,
        board: Board,
        group: int,
        participants: Sequence[int],
        *,
        stream: bool,
        overdue: Set[Value] = frozenset(),
        blameless: bool = False,
    ) -> Decision:
        """A member of a group died; what its participants were at is taken from their words.

        Args:
            overdue: the values for which it was killed because their time was up.
            blameless: it is known that it ended for another reason.
        """
        ats = [at_of(board, who, stream=stream) for who in participants]
        for who in participants:
            board.at[who][0] = Phase.IDLE
        if blameless:
            return Decision()
        member = participants[0]
        self._progressed(board, group, member, participants, stream)
        charged = {at.charged: at for at in ats if at.charged is not None}
        if overdue and any(at.phase is Phase.OPEN for at in ats):
            return Decision(given_up="was not ready in time: its step was still being loaded or built", kind="timeout")
        if overdue:  # by our own hand; of the other calls nobody died
            return Decision({call: ("timeout", 1) for call in charged if value_of(call) in overdue})
        for call in charged:
            self._deaths[group, call] += 1
        fatal = [call for call in charged if self._deaths[group, call] >= self.attempts]
        if len(fatal) == 1:  # of several it is not known which it was
            (call,) = fatal
            kind = "load" if charged[call].phase is Phase.LOAD else "died"
            return Decision({call: (kind, self._deaths[group, call])})
        suspects = frozenset(map(value_of, charged)) if len(charged) > 1 else frozenset()
        members = board.edges[group + 1].shape.producers // len(participants)
        return Decision(suspects=suspects, given_up=self._given_up(group, member, ats, members))

    def _progressed(self, board: Board, group: int, member: int, participants: Sequence[int], stream: bool) -> None:
        """Forget what a member died of before it claimed something, or its step committed something."""
        out = board.edges[group + 1]
        own = sum(board.job[who][0] for who in participants)
        workers = range(out.first, out.first + out.shape.producers)
        step = [(board.job[who][0], *out.head) if stream else _committed(board, out, who) for who in workers]
        if own != self._own.get(member):
            self._openings[member] = 0
        if step != self._step.get(group):
            self._storms[group] = 0
        self._own[member], self._step[group] = own, step

    def _given_up(self, group: int, member: int, ats: Sequence[At], members: int) -> str:
        if any(at.phase is Phase.OPEN for at in ats):
            self._openings[member] += 1
            if self._openings[member] >= self.attempts:
                return f"died {self._openings[member]} times while it was loaded or built"
        elif any(at.claimed for at in ats):
            self._storms[group] += 1
            if self._storms[group] >= max(STORM, self.attempts) + members - 1:  # all may have been killed at once
                return f"died as {self._storms[group] - 1} before it, without a result of the step between"
        return ""

    def hopeless(self, group: int) -> bool:
        """Whether another worker is not even to be tried that only says that its step gives up."""
        self._hopeless[group] += 1
        return self._hopeless[group] > HOPELESS

    def orders(self, base: Orders, group: int, name: str, decision: Decision, how: str, more: str, seconds: float = 0) -> Orders:
        """What the replacement is told; ``how`` the worker ended, and what ``more`` is known of it."""
        for call, (kind, deaths) in decision.condemned.items():
            self._verdicts.setdefault(group, {})[call] = _verdict(kind, deaths, how, more, seconds)
        fatal = None
        if decision.given_up:
            fatal = Verdict(decision.kind, f"A worker of step {name!r} {decision.given_up}; the last {how}.{more}")
        verdicts, suspects = self._verdicts.get(group, {}), set(decision.suspects)
        return base._replace(verdicts=verdicts, tries=self._tries(group), suspects=suspects, fatal=fatal)

    def _tries(self, group: int) -> dict[Value, int]:
        """For each value of a group, how often workers died of it."""
        found: Counter[Value] = Counter()
        for (number, call), deaths in self._deaths.items():
            if number == group:
                found[value_of(call)] += deaths
        return dict(found)


def _committed(board: Board, out: Edge, who: int) -> tuple[int, ...]:
    """What a worker of a step has committed: items, values without results, and entries and values of the item at work."""
    job = board.job[who]
    item = job[0] - 1
    head = out.head[item % out.window]
    if job[0] == job[7] or head >> SHIFT != item or not head & LOW:
        return job[7], job[8], 0, 0
    slot = item % out.window * out.depth + (head - 1 & LOW) % out.depth
    return job[7], job[8], head, out.grown[slot] & ~(ENDED | CLOSED)


def _verdict(kind: str, deaths: int, how: str, more: str, seconds: float) -> Verdict:
    """The error in the place of a call."""
    if kind == "timeout":
        return Verdict(kind, f"The step gave no result for {seconds:g} seconds (timeout={seconds:g}).{more}")
    times = "killed its worker" if deaths == 1 else f"killed its worker {deaths} times, the last one"
    what = f"could not be loaded: it {times}" if kind == "load" else times
    return Verdict(kind, f"The item {what}, which {how}.{more}", deaths)
