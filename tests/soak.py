"""Soak: one process that runs epochs for a long time, and must not grow, hang or give one wrong output.

    python tests/soak.py --minutes 30 --seed 1 [--json FILE] [--leak cells|fds|threads|memory]

What each epoch is, the seed decides: which flow, one that stays warm or one made anew, and whether it completes,
is broken off, fails, skips, loses workers, is forked, or has its results kept. Every 5 s it comes to rest and samples
itself, its nursery and its warm workers; at the end each must have stayed as it was (`slopes`). ``--leak`` lets
the soak itself leak one thing an epoch, which must be seen.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import itertools
import json
import logging
import math
import os
import signal
import sys
import tempfile
import threading
import time
import warnings
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
from slopes import ENOUGH, Sample, Series, growing, sample, table
from toolz import partition, partition_all

import qflow as qf
from qflow.engines.processes import Processes
from qflow.engines.warm import warm_of
from qflow.runtime import nursery

SIZES = (0, 70_000, 500_000, 2_000_000)  # bytes of an item
EVERY = 5.0  # seconds between samples
HUNG = 120.0  # seconds after which an epoch is one that hangs
PATIENCE = 3.0  # seconds that what is on its way out has, before a sample
MOST_KEPT, MOST_BYTES = 4, 600_000  # of results that are kept beyond a sample, so that their memory hides no slope
LEAKS = ("cells", "fds", "threads", "memory")
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # of glibc's malloc.h
MISSING = object()

Seen = Callable[[int, Any], object]  # what happens at a result, of its number from 1

# ---- the steps


class Item(NamedTuple):
    """A number, bytes of payload, and what happens to it: "", "raise 0" or "die 1", with the number of the step."""

    n: int
    size: int
    fate: str = ""


class Refused(Exception):
    """A step does not want an item."""


def payload(n: int, size: int) -> np.ndarray:
    """The array of an item."""
    return np.arange(n, n + size // 8)


def meet(item: Item, step: int) -> None:
    """The item's fate."""
    if item.fate == f"raise {step}":
        raise Refused(item.n)
    if item.fate == f"die {step}" and qf.worker().attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def make(item: Item) -> tuple[Item, np.ndarray]:
    meet(item, 0)
    return item, payload(item.n, item.size)


def add(pair: tuple[Item, np.ndarray]) -> tuple[int, np.ndarray]:
    item, rows = pair
    meet(item, 1)
    return item.n, rows + 1


def parts(item: Item) -> Iterator[tuple[Item, np.ndarray]]:
    for k in range(item.n % 4):
        meet(item, 0)
        yield item, payload(item.n + k, item.size)


def chunk(item: Item) -> list[tuple[Item, np.ndarray]]:
    meet(item, 0)
    return [(item, payload(item.n + k, item.size)) for k in range(item.n % 5)]


def collate(pairs: Sequence[tuple[int, np.ndarray]]) -> tuple[list[int], np.ndarray]:
    return [n for n, _ in pairs], np.concatenate([rows for _, rows in pairs])


def columns(item: Item) -> dict[str, np.ndarray]:
    meet(item, 0)
    rows = item.n % 50
    return {"n": np.arange(item.n, item.n + rows), "x": np.full((rows, 2000), item.n)}


def double(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: 2 * column for key, column in batch.items()}


class Scale:
    """Multiplies, and keeps views on the last items that it had."""

    def __init__(self, factor: int) -> None:
        self.factor = factor
        self.last: deque[np.ndarray] = deque(maxlen=2)

    def __call__(self, pair: tuple[Item, np.ndarray]) -> tuple[int, np.ndarray]:
        item, rows = pair
        meet(item, 1)
        self.last.append(rows)
        return item.n, self.factor * rows


# ---- the flows, and what they give


class Kind(NamedTuple):
    """A flow for a number of workers, what it gives for items, and the steps at which items may meet their fate."""

    flow: Callable[[int], qf.Flow[Any, Any]]
    expected: Callable[[list[Item], bool], Iterator[Any]]  # False: of a merging flow only what is full
    steps: tuple[int, ...] = (0, 1)
    source: Callable[[list[Item]], Iterable[Any]] = list


def added(items: list[Item], rest: bool = True) -> Iterator[Any]:
    return ((item.n, payload(item.n, item.size) + 1) for item in items)


def scaled(items: list[Item], rest: bool = True) -> Iterator[Any]:
    return ((item.n, 3 * payload(item.n, item.size)) for item in items)


def all_parts(items: list[Item], rest: bool = True) -> Iterator[Any]:
    return ((item.n, payload(item.n + k, item.size) + 1) for item in items for k in range(item.n % 4))


def collated(items: list[Item], rest: bool = True) -> Iterator[Any]:
    events = ((item.n, payload(item.n + k, item.size) + 1) for item in items for k in range(item.n % 5))
    return map(collate, (partition_all if rest else partition)(4, events))


def rebatched(items: list[Item], rest: bool = True) -> Iterator[Any]:
    rows = ((item.n, item.n + k) for item in items for k in range(item.n % 50))
    for batch in (partition_all if rest else partition)(32, rows):
        x, n = np.array(batch).T
        yield {"n": 2 * n, "x": np.repeat(2 * x, 2000).reshape(-1, 2000)}


KINDS = {
    "maps": Kind(lambda n: qf.process(n=n)(make) | qf.process(n=n)(add) | qf.queue(4), added),
    "arrays": Kind(
        lambda n: qf.Flow(qf.process(n=n)(add)), added, (1,), lambda items: ((i, payload(i.n, i.size)) for i in items)
    ),
    "generators": Kind(lambda n: qf.process(n=n)(parts) | qf.process(add), all_parts),
    "events": Kind(lambda n: qf.process(chunk) | qf.pool(n=n)(add) | qf.repack(4) | qf.process(collate), collated, (0,)),
    "threads": Kind(lambda n: qf.thread(n=n + 1)(make) | qf.process(add), added),
    "tables": Kind(lambda n: qf.process(n=n)(columns) | qf.rebatch(32) | qf.process(double), rebatched, (0,)),
    "classes": Kind(lambda n: qf.process(make) | qf.process(n=n)(Scale)(3), scaled),
    "recycled": Kind(lambda n: qf.process(n=n, max_items=7)(make) | qf.process(max_items=20)(add), added),
}
WARM = ("maps", "generators", "threads", "classes", "recycled")  # kept over the whole soak, and killed like those made anew
STEADY = ("maps", "arrays", "events", "tables")  # kept over the whole soak; nobody kills their workers


def same(a: Any, b: Any) -> bool:
    """Whether two results are equal, in type too."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return [*a] == [*b] and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def value_bytes(value: Any) -> int:
    """The bytes of the arrays of a result."""
    if isinstance(value, (tuple, list, dict)):
        return sum(map(value_bytes, value.values() if isinstance(value, dict) else value))
    return value.nbytes if isinstance(value, np.ndarray) else 0


def digest(value: Any) -> int:
    """A number that changes with the bytes of a result."""
    if isinstance(value, np.ndarray):
        return zlib.adler32(value.tobytes())
    if isinstance(value, dict):
        return digest([*value.values()])
    if isinstance(value, (tuple, list)):
        return hash(tuple(map(digest, value)))
    return hash(value)


# ---- the epochs


class Flow(NamedTuple):
    """A flow of a kind: "warm", "steady" or "new"."""

    kind: str
    life: str
    flow: qf.Flow[Any, Any]


class Kept(NamedTuple):
    """A result that the soak keeps until some time, and the digest that it must still have then."""

    until: float
    value: Any
    digest: int


class Soak:
    """The soak: its flows, its seed, what it has seen."""

    def __init__(self, seed: int, leak: str | None) -> None:
        self.rng, self.leak = Random(seed), leak
        lives = [*((kind, "warm") for kind in WARM), *((kind, "steady") for kind in STEADY)]
        self.flows = [Flow(kind, life, KINDS[kind].flow(2 if life == "warm" else 1)) for kind, life in lives]
        self.seen: Counter[str] = Counter()
        self.gaps: Counter[int] = Counter()  # of next(), powers of two in ms
        self.wrong: list[str] = []
        self.kept: list[Kept] = []
        self.leaked: list[Any] = []
        self.notes = tempfile.TemporaryFile("w+")  # samples, a line each: in memory they would be a slope
        self.least: tuple[int, ...] = ()  # threads, descriptors and children at rest
        self.began = time.monotonic()

    def run(self, minutes: float) -> None:
        """Epoch after epoch."""
        self.sample()
        sampled = told = self.began
        while (now := time.monotonic()) < self.began + 60 * minutes:
            with watched():
                self.epoch()
            if now > sampled + EVERY:
                self.sample()
                sampled = now
            if now > told + 60:
                told = now
                print(f"{(now - self.began) / 60:5.1f} min: {self.seen['epochs']} epochs, {len(self.wrong)} wrong", flush=True)
        self.sample()

    def epoch(self) -> None:
        """One epoch of a flow, as the seed wants it."""
        flow = self.rng.choice(self.flows) if self.rng.random() < 0.6 else self.made()
        does = self.rng.choice(DEADLY + PEACEFUL if flow.life != "steady" else PEACEFUL)
        number = self.seen["epochs"]
        self.seen.update(["epochs", does.__name__, flow.life])
        try:
            does(Epoch(self, flow, f"epoch {number} ({does.__name__}, {flow.life} {flow.kind})"))
        except Exception as error:
            self.say(f"epoch {number} ({does.__name__}, {flow.life} {flow.kind}): {type(error).__name__}: {error}")
        if self.rng.random() < 0.5 and flow.life == "new":  # the others are dropped
            flow.flow.close()
        if self.leak == "fds":
            self.leaked.append(os.open(os.devnull, os.O_RDONLY))
        if self.leak == "memory":
            self.leaked.append(np.ones(1 << 17))
        if self.leak == "threads":
            threading.Thread(target=threading.Event().wait, daemon=True).start()

    def made(self) -> Flow:
        """A flow that nobody had."""
        kind = self.rng.choice([*KINDS])
        return Flow(kind, "new", KINDS[kind].flow(self.rng.randint(1, 3)))

    def say(self, wrong: str) -> None:
        """Note a wrong output."""
        self.wrong.append(wrong)
        print(f"WRONG: {wrong}", flush=True)

    def keep(self, value: Any, flow: Flow) -> None:
        """Keep a result for a while; a large one, or that of a flow that goes, until the next sample."""
        self.seen["kept"] += 1
        stays = flow.life != "new" and value_bytes(value) < MOST_BYTES
        until = time.monotonic() + self.rng.uniform(0, 60) if stays else 0.0
        self.kept.append(Kept(until, value, digest(value)))

    def drop(self) -> None:
        """Let go of what was kept long enough, if it is as it was."""
        now = time.monotonic()
        stay = [kept for kept in self.kept if kept.until > now][-MOST_KEPT:]
        if any(digest(kept.value) != kept.digest for kept in self.kept):
            self.say("a result that was kept has changed")
        self.kept = stay

    # ---- samples

    def sample(self) -> None:
        """Come to rest, and sample every process."""
        with watched():
            self.rest()
        self.settle()
        minute, me = (time.monotonic() - self.began) / 60, os.getpid()
        self._note("soak", me, sample(me, minute, len(gc.get_objects())))
        shared = nursery._shared["forkserver"].nursery
        assert shared is not None
        self._note("nursery", shared.pid, sample(shared.pid, minute))
        for flow in self.flows:
            crew = warm_of(flow.flow)._resting
            for number, member in sorted(crew.members.items()) if crew is not None else ():
                with suppress(ProcessLookupError):
                    self._note(f"{flow.life} {flow.kind} {number}", member.child.pid, sample(member.child.pid, minute))

    def _note(self, name: str, pid: int, now: Sample) -> None:
        print(json.dumps([name, pid, now]), file=self.notes, flush=True)

    def rest(self) -> None:
        """Drop what is not to stay; every flow that stays has its workers afterwards."""
        self.drop()
        gc.collect()
        for flow in self.flows:
            items = [Item(n, SIZES[1]) for n in range(6)]
            Epoch(self, flow, f"rest ({flow.life} {flow.kind})").compare(items)

    def settle(self) -> None:
        """Wait for the end of what is on its way out."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what is free in between is no leak
        before, end = self.least or counts(), time.monotonic() + PATIENCE
        while any(map(int.__gt__, counts(), before)) and time.monotonic() < end:
            time.sleep(0.02)  # a thread that closes a crew tells nobody
        self.least = tuple(map(min, counts(), before))

    # ---- the end

    def series(self) -> list[Series]:
        """The samples of each process."""
        found: dict[tuple[str, int], Series] = {}
        self.notes.seek(0)
        for name, pid, numbers in map(json.loads, self.notes):
            found.setdefault((name, pid), Series(name, pid, [])).samples.append(Sample(*numbers))
        return [*found.values()]

    def report(self, everyone: list[Series], enough: float) -> bool:
        """Print what was seen -> whether all is well. Who lived for less than half of the soak is not judged."""
        minutes = max(series.minutes for series in everyone)
        rows = [series for series in everyone if series.minutes >= minutes / 2]
        print(", ".join(f"{count} {what}" for what, count in self.seen.most_common()))
        print("next() took, ms:", ", ".join(f"<{2**power}: {count}" for power, count in sorted(self.gaps.items())))
        print(table(rows))
        print(f"{len(everyone) - len(rows)} processes lived for less than half of the soak.")
        bad = [f"{series.name} ({series.pid}): {what}" for series in rows for what in growing(series, enough)]
        for line in [*self.wrong, *bad]:
            print(f"FAILED: {line}")
        print("FAILED" if self.wrong or bad else "passed")
        return not (self.wrong or bad)

    def as_json(self, everyone: list[Series]) -> dict[str, Any]:
        """All that was measured."""
        series = [{"name": s.name, "pid": s.pid, "samples": [sample._asdict() for sample in s.samples]} for s in everyone]
        return {"seen": self.seen, "gaps": self.gaps, "wrong": self.wrong, "series": series}


@contextmanager
def watched() -> Iterator[None]:
    """End this process, with its stacks, if what follows hangs."""
    faulthandler.dump_traceback_later(HUNG, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()  # it is a thread, which would be counted


def counts() -> tuple[int, int, int]:
    """Threads, descriptors and children of this process."""
    now = sample(os.getpid(), 0)
    return now.threads, now.descriptors, now.children


class Epoch:
    """One epoch of a flow: runs it and compares what it gives."""

    def __init__(self, soak: Soak, flow: Flow, name: str) -> None:
        self.soak, self.flow, self.name, self.rng = soak, flow, name, soak.rng
        self.kind = KINDS[flow.kind]

    def items(self) -> list[Item]:
        """Some items, all of one size or of any."""
        sizes = SIZES if self.rng.random() < 0.5 else (self.rng.choice(SIZES),)
        first = self.rng.randrange(1000)
        return [Item(n, self.rng.choice(sizes)) for n in range(first, first + self.rng.randint(6, 30))]

    def doomed(self, items: list[Item], word: str, count: int) -> list[Item]:
        """The same items, but some have a fate."""
        fate = f"{word} {self.rng.choice(self.kind.steps)}"
        chosen = {*self.rng.sample(range(len(items)), count)}
        return [item._replace(fate=fate) if number in chosen else item for number, item in enumerate(items)]

    def start(self, items: list[Item], **options: Any) -> qf.Run[Any]:
        """The run of these items."""
        ways = ["fork"] * 2 + ["spawn"] + ["forkserver"] * 27 if self.flow.life == "new" else ["forkserver"]
        return self.flow.flow(self.kind.source(items), engine=Processes(start=self.rng.choice(ways), attempts=1000), **options)

    def compare(
        self,
        items: list[Item],
        *,
        survive: list[Item] | None = None,
        until: int | None = None,
        seen: Seen = lambda number, value: None,
        **options: Any,
    ) -> qf.Run[Any]:
        """Run these items, at most ``until`` some result, and compare with what those give that ``survive``."""
        run = self.start(items, **options)
        self.take(run, self.kind.expected(items if survive is None else survive, True), until, seen)
        return run

    def take(
        self,
        run: qf.Run[Any],
        expected: Iterator[Any],
        until: int | None = None,
        seen: Seen = lambda number, value: None,
    ) -> None:
        """Compare the results of a run with what is expected; stops after ``until`` of them."""
        try:
            self._take(run, expected, until, seen)
        finally:
            for stats in run.stats():
                self.soak.seen.update(died=stats.died, recycled=stats.recycled)

    def _take(self, run: qf.Run[Any], expected: Iterator[Any], until: int | None, seen: Seen) -> None:
        for number in itertools.count(1):
            began = time.monotonic()
            value = next(run, MISSING)
            self.soak.gaps[math.ceil(math.log2(max(1, 1000 * (time.monotonic() - began))))] += 1
            wanted = next(expected, MISSING)
            if value is MISSING or wanted is MISSING or not same(value, wanted):
                if value is not wanted:
                    self.soak.say(f"{self.name}: result {number} is {_shown(value)}, not {_shown(wanted)}")
                return
            self.soak.seen["results"] += 1
            if number == 1 and self.soak.leak == "cells":
                self.soak.leaked.append(value)
            seen(number, value)
            if number == until:
                return

    def kill(self, count: int = 1) -> int:
        """Kill workers of the flow from outside, at work or at rest -> of how many."""
        warm = warm_of(self.flow.flow)
        crews = [session.crew for session in warm.sessions] + [crew for crew in [warm._resting] if crew is not None]
        members = [member for crew in crews for member in [*crew.members.values()]]
        chosen = self.rng.sample(members, min(count, len(members)))
        for member in chosen:
            with suppress(OSError):  # it has died meanwhile
                signal.pidfd_send_signal(member.child.pidfd, signal.SIGKILL)
                self.soak.seen["killed"] += 1
        return len(chosen)


def _shown(value: Any) -> str:
    return "missing" if value is MISSING else repr(value)[:200]


def completes(epoch: Epoch) -> None:
    epoch.compare(epoch.items())


def breaks_off(epoch: Epoch) -> None:
    run = epoch.compare(epoch.items(), until=epoch.rng.randint(1, 8))
    if epoch.rng.random() < 0.5:
        run.close()  # else it is dropped


def never_begins(epoch: Epoch) -> None:
    epoch.start(epoch.items())


def fails(epoch: Epoch) -> None:
    items = epoch.doomed(epoch.items(), "raise", 1)
    if epoch.flow.kind == "generators":  # one with parts
        items = [item._replace(n=4 * item.n + 1) for item in items]
    at = next(number for number, item in enumerate(items) if item.fate)
    expected = epoch.kind.expected(items[:at], False)
    try:
        epoch.take(epoch.start(items), itertools.chain(expected, [Refused]))
    except Refused as error:
        if error.args != (items[at].n,) or next(expected, MISSING) is not MISSING:
            epoch.soak.say(f"{epoch.name}: {error!r} of item {items[at]} came too early, or is another's")
    else:
        epoch.soak.say(f"{epoch.name}: {items[at]} did not fail")


def skips(epoch: Epoch) -> None:
    items = epoch.doomed(epoch.items(), "raise", 3)
    policy = epoch.rng.choice(["skip", "collect"])
    epoch.compare(items, survive=[item for item in items if not item.fate], on_error=policy)


def keeps(epoch: Epoch) -> None:
    keep = epoch.soak.keep
    epoch.compare(epoch.items(), seen=lambda number, value: number % 4 == 1 and keep(value, epoch.flow))


def forks(epoch: Epoch) -> None:
    """A copy of the soak keeps some results, and looks at them when the run is over."""
    held: list[Any] = []
    children: list[int] = []
    ends, go = os.pipe()

    def seen(number: int, value: Any) -> None:
        if number <= 3:
            held.append((value, digest(value)))
        if number == 3:
            children.append(_forked(ends, go, held))
            held.clear()

    try:
        epoch.compare(epoch.items(), seen=seen)
    finally:
        os.write(go, b".")  # its end alone would not do: a nursery that is a copy of the soak has it, too
        os.close(go)
        if any(os.waitpid(child, 0)[1] for child in children):
            epoch.soak.say(f"{epoch.name}: what a forked copy sees has changed")
        os.close(ends)


def _forked(ends: int, go: int, held: list[tuple[Any, int]]) -> int:
    """A copy of this process that waits for the end of a pipe -> its number."""
    pid = os.fork()
    if not pid:
        status = 2
        try:
            os.close(go)
            os.read(ends, 1)
            status = 0 if all(digest(value) == before for value, before in held) else 1
        finally:
            os._exit(status)
    return pid


def dies(epoch: Epoch) -> None:
    items = epoch.items()
    epoch.compare(epoch.doomed(items, "die", epoch.rng.randint(1, 3)))


def is_killed(epoch: Epoch) -> None:
    when = epoch.rng.randint(1, 8)
    epoch.compare(epoch.items(), seen=lambda number, value: number % when == 0 and epoch.kill())


def is_killed_and_breaks_off(epoch: Epoch) -> None:
    epoch.compare(epoch.items(), until=4, seen=lambda number, value: number == 3 and epoch.kill(2)).close()


def is_killed_at_rest(epoch: Epoch) -> None:
    epoch.compare(epoch.items())
    epoch.kill()
    epoch.compare(epoch.items())


PEACEFUL = [completes, completes, breaks_off, breaks_off, never_begins, fails, skips, keeps, forks]
DEADLY = [dies, is_killed, is_killed_and_breaks_off, is_killed_at_rest]


def keep_no_free_memory() -> None:
    """Let this process's memory be what it uses: glibc keeps what was freed, in one arena for each of many threads.

    Without it, 30 minutes gave steps of 2 MB, the largest payload, until all 16 arenas had held one.
    """
    libc = ctypes.CDLL(None)
    for option, value in ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, 1 << 16)):
        if not libc.mallopt(option, value):
            raise OSError(f"mallopt({option}, {value}) was refused")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="a file for all samples")
    parser.add_argument("--leak", choices=LEAKS)
    parser.add_argument("--enough", type=float, default=ENOUGH, help="minutes from which on memory is judged")
    options = parser.parse_args()
    faulthandler.register(signal.SIGUSR1)
    warnings.simplefilter("ignore", RuntimeWarning)  # start="fork" beside threads
    logging.getLogger("qflow").setLevel(logging.ERROR)  # every death is a warning
    keep_no_free_memory()
    soak = Soak(options.seed, options.leak)
    soak.run(options.minutes)
    everyone = soak.series()
    passed = soak.report(everyone, options.enough)
    if options.json:
        options.json.write_text(json.dumps(soak.as_json(everyone)))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
