"""Small runs: flows of every kind in real processes, whose workers die or are held up at every point.

    python tests/small_runs.py

Compares what each gives with what the serial engine gives; the first that differs, fails or hangs ends the
program with a line that says which.
"""

from __future__ import annotations

import collections
import faulthandler
import itertools
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

import qflow as qf
from qflow.engines.processes import Processes

HUNG = 8  # seconds after which a run is one that hangs
POINTS = (
    "not ready",
    "marked",
    "holding",
    "half skipped",
    "skipped",
    "jotted",
    "claimed",
    "passed",
    "opened",
    "waking",
    "filled",
    "tagged",
    "written",
    "committed",
    "added",
    "grown",
    "closed",
    "finished",
    "done",
    "released",
    "slotted",
    "saved",
    "ended",
)


def first_try():
    return qf.worker() is None or qf.worker().attempt == 1


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def add(x):
    return x + 1


def flip(x):
    return -x


def several(x):
    return iter(range(x % 4))


def one_in_three(x):
    return x if x % 3 == 0 else qf.SKIP


def many(x):
    return (np.full(600 + k, float(1000 * x + k)) for k in range(150))  # too large to share a cell, and not alike


def full(x):
    return np.full(20_000, float(x))


class Keeps:
    """Keeps its last arrays, or all, and says whether each is as it was."""

    def __init__(self, most=None):
        self.kept = collections.deque(maxlen=most)

    def __call__(self, rows):
        self.kept.append((rows, float(rows[0])))
        return all((rows == first).all() for rows, first in self.kept)


def poison(x):
    if x == 7:
        die()
    return x


def slow_poison(x):
    """Others are amid it when one dies of it."""
    time.sleep(0.02)
    return poison(x)


def part_of_three(x):
    yield x
    yield -x
    if x == 7:
        die()
    yield 2 * x


def fewer(x):
    yield from range(4 if first_try() else 2)
    die()


def other(x):
    yield from ("ab" if first_try() else "cd")
    die()


def loses(x):
    if first_try() and x == [3]:
        die()
    return first_try()


class Moody:
    """Kills whoever loads it after the first try."""

    def __init__(self, x):
        self.x = x

    def __reduce__(self):
        return moody, (self.x,)


def moody(x):
    if not first_try():
        die()
    return Moody(x)


def two_and_die(item):
    yield item.x
    yield -item.x
    die()


class Small(NamedTuple):
    """A flow, its input, what comes of it, also in another order, and failures."""

    flow: qf.Flow
    source: Sequence
    expected: list
    failures: Sequence[type] = ()
    ordered: bool = True
    attempts: int = 2
    rules: Sequence[str] = ("", "not ready=delay")


def serial(flow, source, **rest):
    flow = qf.Flow(flow)
    return Small(flow, source, list(flow(source, engine="serial")), **rest)


def under_fire():
    """Whose workers may die anywhere."""
    return [
        serial(qf.process(n=3)(add) | qf.queue(1) | qf.process(n=2)(flip) | qf.queue(1), range(20), attempts=100),
        serial(qf.process(n=2)(several) | qf.pack(4) | qf.process(sum) | qf.queue(1), range(30), attempts=100),
        serial(qf.process(n=2)(several) | qf.pack(3) | qf.map(sum) | qf.pack(2) | qf.queue(1), range(30), attempts=100),
        serial(qf.process(one_in_three) | qf.queue(1) | qf.pack(2) | qf.queue(1), range(40), attempts=100),
        serial(qf.process(n=2)(several) | qf.process(n=3)(flip), range(100), ordered=False, attempts=100),
        serial(qf.process(full) | qf.queue(1) | qf.process(n=2)(Keeps)(3) | qf.queue(1), range(20), attempts=100),
        serial(qf.process(n=2)(several) | qf.queue(40) | qf.process(n=2)(one_in_three) | qf.queue(40), range(200), attempts=100),
    ]


def alone():
    """Whose workers die by themselves, or not at all."""
    failing = {"failures": [qf.WorkerDied]}
    children = [y for x in range(10) for y in ((x, -x) if x == 7 else (x, -x, 2 * x))]
    numbers = [x for x in range(20) if x != 7]
    return [
        serial(qf.process(n=2)(many) | qf.queue(300) | qf.process(flip), range(6)),
        serial(qf.process(n=2)(add) | qf.queue(40) | qf.process(n=2)(flip) | qf.queue(40), range(2000)),
        serial(qf.process(n=2)(add) | qf.process(n=2)(flip), range(20_000)),
        serial(qf.process(full) | qf.queue(1) | qf.process(Keeps), range(40)),
        serial(qf.process(n=2)(full) | qf.queue(2), range(40)),
        serial(qf.process(n=2, max_items=3)(add), range(40)),
        serial(qf.process(n=3)(add), range(300)),
        Small(qf.Flow(qf.process(n=2)(poison)), range(20), numbers, **failing),
        serial(qf.process(add), range(30), rules=["released=kill@2!"]),
        Small(qf.Flow(qf.thread(n=3)(slow_poison)), range(20), numbers, **failing),
        Small(qf.Flow(qf.process(n=2)(part_of_three)), range(10), children, **failing),
        Small(qf.Flow(qf.process(two_and_die)), [Moody(1)], [1, -1], [qf.TransportError]),
        Small(qf.Flow(qf.process(fewer)), [1], [0, 1, 2, 3], [qf.NondeterministicStep]),
        Small(qf.Flow(qf.process(other)), [1], ["a", "b"], [qf.NondeterministicStep]),
        Small(qf.repack(1) | qf.filter(loses), [[1, 2, 3]], [[1], [2]], [qf.NondeterministicStep]),
    ]


def same(small, given):
    if isinstance(small.expected[0], np.ndarray):
        return len(given) == len(small.expected) and all(map(np.array_equal, given, small.expected))
    return given == small.expected if small.ordered else sorted(given) == sorted(small.expected)


def run(small, rules):
    """Run it under these rules twice, keeping what the first gave, and compare."""
    os.environ["QFLOW_FAILPOINTS"] = rules
    given = []
    for _ in range(2):
        faulthandler.dump_traceback_later(HUNG, exit=True)
        with small.flow(small.source, engine=Processes(attempts=small.attempts), on_error="skip", ordered=small.ordered) as run:
            given.append(list(itertools.islice(run, len(small.expected) + 1)))
            found = [type(failure.error) for failure in run.failures]
        if found != list(small.failures):
            raise SystemExit(f"{small.flow!r} under {rules!r}: failures {found}")
        if any(stats.died for stats in run.stats()) and not rules and not small.failures:
            raise SystemExit(f"{small.flow!r}: workers died")
    for each in given:
        if not same(small, each):
            raise SystemExit(f"{small.flow!r} under {rules!r}: {each}")


def main():
    logging.getLogger("qflow").setLevel(logging.ERROR)  # each death is a warning
    for small in alone():
        with small.flow:
            for rules in small.rules:
                run(small, rules)
    for small in under_fire():
        with small.flow:
            run(small, "")
            for point, (action, occurrence) in itertools.product(POINTS, [("delay", 1), ("kill", 1), ("kill", 3)]):
                run(small, f"{point}={action}@{occurrence}")
            for rule in ("tagged=kill@2!", "committed=kill@2!", "released=kill@2!", "saved=kill@1!"):
                run(small, rule)
            for occurrence in (*range(4, 12), 26, 29):
                run(small, f"slotted=kill@{occurrence}")
    print("all the same")


if __name__ == "__main__":
    sys.exit(main())
