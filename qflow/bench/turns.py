"""Turns: systems measured one after another, each time in an interpreter of its own, and that over and over."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

Figures = dict[str, float]


def in_turns(systems: Sequence[str], repeats: int) -> Iterator[tuple[int, str]]:
    """The number of a turn, and a system; each turn begins with another one, for what ran just before is felt.

    >>> list(in_turns(["a", "b"], 2))
    [(0, 'a'), (0, 'b'), (1, 'b'), (1, 'a')]
    """
    for turn in range(repeats):
        for number in range(len(systems)):
            yield turn, systems[(turn + number) % len(systems)]


def figures_of(module: str, arguments: Sequence[str], *, first: Sequence[str] = (), cwd: Path | None = None) -> Figures:
    """Run a module, whose last line is JSON -> that; ``first`` stands first on its path."""
    path = os.pathsep.join([*first, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path} if path else None
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    found: Figures = json.loads(done.stdout.splitlines()[-1])
    return found


def medians(turns: Sequence[Figures]) -> Figures:
    """Of the figures of some turns."""
    return {word: statistics.median(turn[word] for turn in turns) for word in turns[0]}
