"""Clock: what user code takes too long, from the words of the workers that run it: calls, sending, loading, and its making."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from qflow.runtime.board import OFFSET, Board, Phase

STALLED = 60.0  # seconds after which a step that gives no result is told of, and again after as many
PAUSE = 10**9  # nanoseconds too late for a look that mean that the machine was paused, and so everybody's time begins anew
BUILDING = 60.0  # seconds that a worker may take at least to load and build its step, or to load an item, imports and all
SECOND_LOOK = 0.05  # seconds between the two looks at a call whose time is up, in which its stack is written
IMPORTS = (Phase.LOAD, Phase.OPEN)  # phases in which what is loaded may have to be imported first


class Running(NamedTuple):
    """Work of a participant that goes on: on the value at a place and offset, since nanoseconds of the monotonic clock."""

    who: int
    place: int
    since: int
    offset: int = 0

    @property
    def value(self) -> tuple[int, int]:
        """What it works on."""
        return self.place, self.offset


class Due(NamedTuple):
    """What to do about a participant's work: write down its stack and ``"look"`` again, ``"end"`` it, or ``"tell"`` of it."""

    action: str
    running: Running
    seconds: float


class Clock:
    """The clock of one run. ``limits``: of participants with a ``timeout``, in seconds; ``participants``: all workers."""

    def __init__(self, board: Board, participants: range, limits: Mapping[int, float]) -> None:
        self._board, self._participants, self._limits = board, participants, limits
        self._looked: set[Running] = set()
        self._expected, self._awake = time.monotonic_ns(), 0
        self._told: dict[int, tuple[int, int]] = {}  # participant -> since when, and how often
        self._excused: dict[int, int] = {}  # participant -> nanoseconds from which on its time counts

    def excuse(self, who: int) -> None:
        """It was not the user's code that took so long: its time begins anew."""
        self._excused[who] = time.monotonic_ns()

    def _running(self) -> Iterator[tuple[Running, float, float]]:
        """What goes on, for how many seconds, and how many it may take."""
        now = time.monotonic_ns()
        for who in self._participants:
            state, (_, place, since) = self._board.state(who), self._board.at[who]
            if state & 7 != Phase.IDLE:
                limit = self._limits.get(who, math.inf)
                limit = max(limit, BUILDING) if state & 7 in IMPORTS else limit
                yield (
                    Running(who, place - 1, since, state >> OFFSET),
                    (now - max(since, self._excused.get(who, 0), self._awake)) / 1e9,
                    limit,
                )

    def wait(self) -> float:
        """Milliseconds until something may be due."""
        left = [limit - seconds for _, seconds, limit in self._running()]
        seconds = SECOND_LOOK if self._looked else max(0.001, min([STALLED, *self._limits.values(), *left]))
        self._expected = time.monotonic_ns() + int(seconds * 1e9)
        return 1000 * seconds

    def due(self) -> list[Due]:
        """What is to be done now. Work whose time is up is looked at twice."""
        found = []
        now = time.monotonic_ns()
        if now > self._expected + PAUSE:
            self._awake = now
        looked, self._looked = self._looked, set()
        for running, seconds, limit in self._running():
            since, told = self._told.get(running.who, (0, 0))
            told = told if since == running.since else 0
            over = seconds >= limit
            if not over and seconds < STALLED * (told + 1):
                continue
            if running not in looked:
                self._looked.add(running)
                found.append(Due("look", running, seconds))
            elif over:
                found.append(Due("end", running, seconds))
            else:
                self._told[running.who] = running.since, int(seconds // STALLED)
                found.append(Due("tell", running, seconds))
        return found
