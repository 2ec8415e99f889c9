"""Scenario: the script of one cell, ``python -m qflow.bench.scenario SYSTEM ROW``.

It consumes a system's results as a training loop would, and writes one line of JSON: what came, how
it ended, and when.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from qflow.bench import systems
from qflow.bench.marks import folder, mark, wait
from qflow.bench.row import TAKEN, Row, same
from qflow.bench.rows import ROWS

RESULT, STACKS = "result", "stacks"
PATIENCE = 10.0  # seconds until a fault that the consumer waits for must have happened


@dataclass
class Consumer:
    """The loop over the results; keeps them all."""

    row: Row
    results: list[Any] = field(default_factory=list)

    def __call__(self, results: Iterable[Any]) -> None:
        for result in results:
            self.results.append(result)
            if len(self.results) == TAKEN:
                if self.row.leaves:
                    self._leave()
                    break
                mark("ready")

    def _leave(self) -> None:
        """Wait for what is to happen before the break; still in the loop, since a break ends some systems."""
        if self.row.awaited and not wait(self.row.awaited, patience=PATIENCE):
            raise RuntimeError(f"{self.row.awaited!r} did not happen")
        mark("left")


def judge(results: Sequence[Any], row: Row) -> tuple[str, str]:
    """How results compare with the right ones, and in words what is different.

    >>> judge([0, 10], ROWS["none"]), judge(range(0, 200, 10), ROWS["none"])
    (('short', ''), ('ok', ''))
    """
    if row.differs is None:
        return _compare(results, row), ""
    if len(results) != row.items:
        return "short", ""
    words = next(filter(None, map(row.differs, results)), "")
    return ("differs" if row.mild else "changed") if words else "ok", words


def _compare(results: Sequence[Any], row: Row) -> str:
    items = range(row.items)
    if len(results) == row.items and all(same(result, item, row) for result, item in zip(results, items, strict=True)):
        return "ok"
    open_items = Counter(items)
    for result in results:
        match = next((item for item in open_items if same(result, item, row)), None)
        if match is None:
            return "wrong"
        del open_items[match]
    return "short" if open_items else "unordered"


def main(system: str, name: str) -> None:
    """Run one cell in this process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    faulthandler.register(signal.SIGUSR1, (folder() / STACKS).open("w"))
    row = ROWS[name]
    consumer = Consumer(row)
    adapter = systems.named(system).load()
    row.prepare()
    mark("begun")
    try:
        adapter(row.step, list(range(row.items)), consumer)
    except BaseException as error:
        write(consumer, "raised", f"{type(error).__name__}: {error}")
    else:
        write(consumer, *(("left", "") if row.leaves else judge(consumer.results, row)))


def write(consumer: Consumer, ending: str, text: str) -> None:
    """The result, complete or not there at all."""
    line = {"ending": ending, "count": len(consumer.results), "at": time.time(), "text": text[:300]}
    (folder() / "writing").write_text(json.dumps(line) + "\n")
    os.replace(folder() / "writing", folder() / RESULT)


if __name__ == "__main__":
    main(*sys.argv[1:])
