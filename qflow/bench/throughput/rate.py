"""Rate: results per second in the steady state, of one system, workload and setting, in this process.

First a few results are looked at as a whole, which also tells how many fit into the time. Then the first results come,
and time counts from there to the last one; starting up is a figure of its own:

    open --start-up--> first result --warm--> mark --------- steady: time, CPU, faults --------> last result
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qflow.bench.throughput.counters import added, snapshot
from qflow.bench.throughput.peer import Peer, Setting
from qflow.bench.throughput.tally import Tally
from qflow.bench.throughput.workload import Step, Workload, same

Result = dict[str, Any]


class Void(Exception):
    """The results are not the right ones; nothing that was measured counts."""


def rate(peer: Peer, workload: Workload, setting: Setting, seconds: float) -> Result:
    """The figures of one measurement.

    Raises:
        Void: results are missing, wrong or doubled.
    """
    count = fitting(workload, look(peer, workload, setting), seconds)
    began = time.perf_counter()
    with peer.open(workload.job(count), **setting) as epoch:
        return steady(iter(epoch()), workload, count, began)


def look(peer: Peer, workload: Workload, setting: Setting) -> float:
    """Look at a few results as a whole -> about how many come per second."""
    count = workload.checked
    with peer.open(workload.job(count), **setting) as epoch:
        results, tally, times = iter(epoch()), Tally(workload.keys), list[float]()
        for result in results:
            times.append(time.perf_counter())
            tally.take([workload.look(result)])
    if wrong := tally.verdict(count):
        raise Void(wrong)
    return (count - 1) / max(times[-1] - times[0], 1e-6)


def fitting(workload: Workload, per_second: float, seconds: float) -> int:
    """How many items take about so long, within what the workload allows."""
    count = min(max(workload.least, math.ceil(per_second * seconds)), workload.most)
    return count // workload.multiple * workload.multiple


@dataclass(frozen=True)
class Mark:
    """A moment: the wall clock, the clocks of this thread and of this process."""

    at: float
    thread: float
    process: float

    @classmethod
    def now(cls) -> Mark:
        return cls(time.perf_counter(), time.thread_time(), time.process_time())


def steady(results: Iterator[Any], workload: Workload, count: int, began: float) -> Result:
    """Consume all results, and measure from the mark to the last."""
    tally = Tally(workload.keys)
    take(results, workload.glance, tally, 1, 1)
    first = time.perf_counter()
    take(results, workload.glance, tally, int(workload.warm * count) - tally.count, workload.block)
    marked, start, before = tally.count, Mark.now(), snapshot()
    counting = Mark.now()
    take(results, workload.glance, tally, count - marked, workload.block)
    end, spent = Mark.now(), added(before, snapshot())
    tally.take(list(map(workload.glance, results)))
    if wrong := tally.verdict(count):
        raise Void(wrong)
    measured = count - marked
    return {
        "count": count,
        "measured": measured,
        "seconds": end.at - start.at,
        "rate": measured / (end.at - start.at),
        "start": first - began,
        "ordered": tally.in_order,
        "cpu": spent.cpu / measured,
        "consumer": (end.thread - counting.thread) / measured,
        "parent": (end.process - counting.process) / measured,
        "faults": spent.faults / measured,
        "mappings": spent.mappings / measured,
    }


def take(results: Iterator[Any], glance: Step, tally: Tally, count: int, block: int) -> None:
    """Take so many results, block by block; none of them is kept."""
    while count > 0:
        some = itertools.islice(results, min(block, count))
        keys = list(some if glance is same else map(glance, some))
        if not keys:
            return
        tally.take(keys)
        count -= len(keys)


def bare(workload: Workload, seconds: float) -> Result:
    """The figures of what the machine could do."""
    assert workload.bare
    sample = max(1, workload.checked // 4)
    workload.bare.seconds(sample)
    count = fitting(workload, sample / max(workload.bare.seconds(sample), 1e-6), seconds)
    taken = workload.bare.seconds(count)
    return {"count": count, "seconds": taken, "rate": count / taken}
