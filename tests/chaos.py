"""Chaos: workers are killed, and stopped for a while, at random times, and the output is what it would have been.

    python tests/chaos.py --seed 7 --seconds 60 [--start spawn] [--large]

A thread sends SIGKILL, SIGSEGV or SIGABRT, or SIGSTOP and later SIGCONT, to random workers at random gaps, while a flow with
every kind of step carries items of 0 bytes to half a megabyte, run after run on the same warm pipe. What a
run gives is compared with the serial engine. Prints one line; the exit code is 1 if an output differs.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import faulthandler
import logging
import os
import random
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import qflow as qf
from qflow.engines.processes import Processes
from qflow.runtime import nursery

SIZES = (0, 70_000, 3, 500_000, 20_000)
LARGE = 40_000_000
DEADLY = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT)
ITEMS = 60


def make(x):
    """Payloads of all sizes, small and large, in one item or none."""
    return {"n": x, "data": np.full(SIZES[x % len(SIZES)], x % 251, np.uint8), "text": "x" * (x % 7)}


def make_large(x):
    """The same, but some payloads are very large."""
    return {**make(x), "data": np.full(LARGE, x % 251, np.uint8)} if x % 20 == 2 else make(x)


def children(item):
    """None, one or several results of an item."""
    for k in range(item["n"] % 4):
        yield {**item, "k": k}


def change(item):
    """A new array for each element."""
    return {**item, "data": item["data"] + np.uint8(item["k"])}


def digest(items):
    """What a thread makes of a list."""
    return [
        (item["n"], item["k"], item["data"].size, int(item["data"].sum(dtype=np.int64)), item["text"]) for item in items
    ], items[0]["data"]


def flow(make=make):
    """Every kind of step in a line."""
    made = qf.process(n=2)(make) | qf.process(n=2)(children) | qf.pack(3)
    return made | qf.pool(n=2)(change) | qf.repack(4) | qf.thread(n=2)(digest) | qf.process(lambda pair: pair) | qf.queue(3)


def plain(results):
    """Results as values that can be compared."""
    return [(rows, array.shape, int(array.sum(dtype=np.int64))) for rows, array in results]


@dataclasses.dataclass
class Killer:
    """Sends signals to random workers of this process until it is told to stop.

    Attributes:
        rng: chooses whom, what and when.
        gap: mean seconds between two signals.
        sent: how many of each kind.
    """

    rng: random.Random
    gap: float
    sent: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def __post_init__(self):
        self._over = threading.Event()
        self._stopped: dict[int, float] = {}  # pidfd -> when it goes on
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _run(self):
        while not self._over.wait(self.rng.expovariate(1 / self.gap)):
            self._go_on(time.monotonic())
            found = [*workers()]
            if found:
                self._strike(self.rng.choice(found))
        self._go_on(float("inf"))

    def _strike(self, pid):
        try:
            fd = os.pidfd_open(pid)
        except OSError:
            return
        stop = self.rng.random() < 0.3
        if pid in workers():  # the number is still that of a worker, and cannot become another's while we hold it
            send(fd, signal.SIGSTOP if stop else self.rng.choice(DEADLY))
            self.sent["stopped" if stop else "killed"] += 1
        if stop:
            self._stopped[fd] = time.monotonic() + self.rng.expovariate(1 / 0.1)
        else:
            os.close(fd)

    def _go_on(self, now):
        for fd in [fd for fd, when in self._stopped.items() if when <= now]:
            del self._stopped[fd]
            send(fd, signal.SIGCONT)
            os.close(fd)


def send(fd, signum):
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(fd, signum)


def workers() -> Iterator[int]:
    """The processes that the nursery has made."""
    for made in [*nursery._nurseries]:
        with contextlib.suppress(OSError):
            pid = made.pid
            yield from map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def chaos(seed, seconds, gap=0.02, start="forkserver", make=make):
    """Runs under fire for so many seconds -> what happened, and what differed."""
    expected = plain(flow(make)(range(ITEMS), engine="serial"))
    found = collections.Counter()
    pipe, end = flow(make), time.monotonic() + seconds
    with pipe, Killer(random.Random(seed), gap) as killer:
        while time.monotonic() < end:
            with pipe(range(ITEMS), engine=Processes(start=start, attempts=1000)) as run:
                same = plain(run) == expected
                found["died"] += sum(stats.died for stats in run.stats())
            found["runs"] += 1
            found["different"] += not same
    return found + killer.sent


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=int(os.environ.get("QFLOW_SEED", "0")) or random.randrange(10**6))
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--gap", type=float, default=0.02)
    parser.add_argument("--start", default="forkserver")
    parser.add_argument("--large", action="store_true", help="some payloads of 40 MB")
    given = parser.parse_args()
    logging.getLogger("qflow").setLevel(logging.ERROR)  # each death is a warning
    warnings.simplefilter("ignore", RuntimeWarning)  # start="fork" beside the killer
    faulthandler.dump_traceback_later(given.seconds + 60, exit=True)
    print(f"seed {given.seed}", flush=True)
    found = chaos(given.seed, given.seconds, given.gap, given.start, make_large if given.large else make)
    print(", ".join(f"{found[word]} {word}" for word in ("runs", "different", "killed", "stopped", "died")))
    raise SystemExit(found["different"] > 0)


if __name__ == "__main__":
    main()
