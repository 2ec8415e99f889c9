"""Failpoints: tests kill, raise or wait at named points of the coordination, in real workers.

``QFLOW_FAILPOINTS="claimed=kill@3"`` kills the process the third time it comes to ``claimed``. The
points are the strings that the generators of `turn` yield. Off, they cost one look at a dict that is empty.
"""

from __future__ import annotations

import os
import signal


def parse(text: str) -> dict[str, tuple[str, int]]:
    """Point -> action and occurrence.

    >>> parse("claimed=kill@3;written=exit")
    {'claimed': ('kill', 3), 'written': ('exit', 1)}
    """
    rules = (rule.partition("=") for rule in text.split(";") if rule)
    return {name: (action.partition("@")[0], int(action.partition("@")[2] or 1)) for name, _, action in rules}


class Failpoints:
    """The rules of this process, and how often each point was met."""

    def __init__(self, text: str) -> None:
        self.rules = parse(text)
        self._met: dict[str, int] = {}

    def meet(self, point: str) -> None:
        """Do what is set for this point."""
        if point not in self.rules:
            return
        action, occurrence = self.rules[point]
        self._met[point] = self._met.get(point, 0) + 1
        if self._met[point] == occurrence:
            if action == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif action == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            else:
                os._exit(7)
