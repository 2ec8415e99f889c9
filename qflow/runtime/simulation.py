"""Simulation: the actors of a run in one thread, in any order that a seed chooses.

Actors are the generators of `turn` and `streaming` that real workers run. Bells, cursors and words are
plain values here, and whoever can act may be the next to act; nothing else is different.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

from qflow.errors import InternalError
from qflow.runtime.board import Board
from qflow.runtime.side import Acting

Effects = Mapping[str, Callable[..., Any]]


@dataclasses.dataclass
class Actor:
    """A participant at work: its generator, how its effects are played, and the action it is at."""

    acting: Acting
    effects: Effects
    step: int | None = None
    action: Any = None


class Simulation:
    """Actors over a board. ``cursors``: the content of each step's pipe."""

    def __init__(self, board: Board, steps: int, rng: random.Random) -> None:
        self.board, self.rng = board, rng
        board.watched = True
        self.bells = [0] * board.shape.participants
        self.cursors: list[deque[tuple[int, int, int]]] = [deque([(1, 0, 0)]) for _ in range(steps)]
        self.actors: dict[int, Actor] = {}
        self._met: Counter[str] = Counter()  # points, how often workers came to them

    def able(self) -> list[int]:
        """Who can act now."""
        return [who for who, actor in self.actors.items() if self._able(who, actor)]

    def _able(self, who: int, actor: Actor) -> bool:
        if actor.action == ("wait",):
            return self.bells[who] > 0
        return actor.action != ("cursor",) or actor.step is None or bool(self.cursors[actor.step])

    def choose(self) -> int:
        """One of those who can act."""
        able = self.able()
        if not able:
            raise InternalError(f"Nobody can act: { ({who: actor.action for who, actor in self.actors.items()}) }.")
        return self.rng.choice(able)

    def victim(self) -> int:
        """A worker that is to die: rather one at a point where few have been."""
        points = {who: str(actor.action) for who, actor in self.actors.items() if actor.step is not None}
        return self.rng.choices([*points], [1 / (1 + self._met[point]) for point in points.values()])[0]

    def act(self, who: int) -> None:
        """Let an actor do what it is at, and come to its next action; it goes at its end."""
        actor = self.actors[who]
        try:
            actor.action = actor.acting.send(self._outcome(who, actor))
            if type(actor.action) is str:
                self._met[actor.action] += 1
        except StopIteration:
            del self.actors[who]

    def _outcome(self, who: int, actor: Actor) -> Any:
        """What an actor's action gives it."""
        match actor.action:
            case None | str():
                return None
            case ("wait",):
                self.bells[who] = 0
            case ("ring", other):
                self.bells[other] += 1
            case ("cursor",):
                assert actor.step is not None
                self.board.hand[who][0], self.board.hand[who][1], self.board.hand[who][2] = self.cursors[actor.step].popleft()
            case ("pass", number, place, offset):
                assert actor.step is not None
                self.cursors[actor.step].append((number, place, offset))
            case ("passed?",):
                assert actor.step is not None
                return bool(self.cursors[actor.step])
            case (word, *arguments):
                return actor.effects[word](*arguments)
        return None
