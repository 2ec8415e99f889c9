"""Failpoints: tests kill, stop, end or hold up real workers at named points of the coordination.

``QFLOW_FAILPOINTS="claimed=kill@3"`` kills each worker the third time it comes to ``claimed``; ``claimed=kill@3#2``
only participant 2; ``claimed=delay@3`` holds each up for a moment, from the third time on. Replacements are spared,
unless the rule ends in ``!``. The points are the strings that the generators of `turn`, and of what it uses, and of
`streaming` yield when their board is `watched`. Off, they cost one look at that.
"""

from __future__ import annotations

import os
import signal
import time
from typing import NamedTuple

DELAY = 0.005  # seconds


class Rule(NamedTuple):
    """What happens at a point: the action, at which occurrence, to whom (None: all), and whether to replacements, too."""

    action: str
    occurrence: int = 1
    who: int | None = None
    always: bool = False


def parse(text: str) -> dict[str, Rule]:
    """Rules by their points.

    >>> parse("claimed=kill@3#2")["claimed"]
    Rule(action='kill', occurrence=3, who=2, always=False)
    """
    rules = (rule.partition("=") for rule in text.split(";") if rule)
    return {name: _rule(action) for name, _, action in rules}


def _rule(text: str) -> Rule:
    rest, _, who = text.removesuffix("!").partition("#")
    action, _, occurrence = rest.partition("@")
    return Rule(action, int(occurrence or 1), int(who) if who else None, text.endswith("!"))


class Failpoints:
    """The rules for one participant, and how often it met each point."""

    def __init__(self, text: str, incarnation: int = 0, me: int = 0) -> None:
        rules = parse(text).items()
        self.rules = {n: rule for n, rule in rules if (rule.always or not incarnation) and rule.who in (None, me)}
        self._met: dict[str, int] = {}

    def meet(self, point: str) -> None:
        """Do what is set for this point."""
        if point not in self.rules:
            return
        action, occurrence, _, _ = self.rules[point]
        self._met[point] = self._met.get(point, 0) + 1
        if action == "delay" and self._met[point] >= occurrence:
            time.sleep(DELAY)
        elif self._met[point] == occurrence:
            if action == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif action == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            else:
                os._exit(7)
