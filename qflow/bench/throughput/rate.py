"""Rate: results per second of one system, workload and setting, in this process.

The first epoch starts the workers, and each of its results is looked at as a whole. The next ones find out how many
items take the time that was asked for. Then an epoch counts, as a whole:

    first epoch: start, look | a few longer ones | from the call to the last result
                                                   time, CPU

The workers are warm where a system keeps them. Nothing is done ahead at either end. In the midst of an epoch much may be, all
results of large chunks: who does it has less to do from there on, and was flattered by up to twice. Page faults and
mappings are counted in the midst, for they are said of the steady state.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from qflow.bench.throughput.counters import added, snapshot
from qflow.bench.throughput.peer import Epoch, Peer, Setting
from qflow.bench.throughput.tally import Tally
from qflow.bench.throughput.workload import Step, Workload, same

Result = dict[str, Any]

_TRIAL, _GROWTH = 0.1, 8
_MIDST = 0.2, 0.9  # from which part of an epoch's results to which it is in its steady state


def rate(peer: Peer, workload: Workload, setting: Setting, seconds: float) -> Result:
    """The figures of one measurement.

    Raises:
        Void: results are missing, wrong or doubled.
    """
    began = time.perf_counter()
    with peer.open(workload.job(), **setting) as epoch:
        start = look(epoch, workload) - began
        count = count_for(lambda count: float(steady(epoch, workload, count)["seconds"]), workload, seconds)
        return {"start": start, **steady(epoch, workload, count)}


def look(epoch: Epoch, workload: Workload) -> float:
    """Look at a few results as a whole -> when the first came."""
    at, tally = 0.0, Tally(workload.keys)
    for result in epoch(workload.checked):
        at = at or time.perf_counter()
        tally.take([workload.look(result)])
    tally.demand(workload.checked)
    return at


def per_second(seconds_of: Callable[[int], float], workload: Workload, seconds: float) -> float:
    """About how many results come per second, from growing numbers of items until one takes a tenth of the time."""
    count = workload.least
    while True:
        taken = seconds_of(count)
        if taken >= _TRIAL * seconds or count == workload.most:
            return count / taken
        count = whole_number(workload, min(count * _GROWTH, workload.most))


def count_for(seconds_of: Callable[[int], float], workload: Workload, seconds: float) -> int:
    """How many items take about so long."""
    if workload.least == workload.most:
        return workload.most
    return fitting(workload, per_second(seconds_of, workload, seconds), seconds)


def fitting(workload: Workload, per_second: float, seconds: float) -> int:
    """How many items take about so long, within what the workload allows."""
    return whole_number(workload, min(max(workload.least, math.ceil(per_second * seconds)), workload.most))


def whole_number(workload: Workload, count: int) -> int:
    """The next smaller number of items that the workload can have."""
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


def steady(epoch: Epoch, workload: Workload, count: int) -> Result:
    """Consume an epoch, and measure."""
    tally, places, moments = Tally(workload.keys), [int(part * count) for part in _MIDST], [snapshot()]
    start = Mark.now()
    results = iter(epoch(count))
    for place in places:
        take(results, workload.glance, tally, place - tally.count, workload.block)
        moments.append(snapshot())
    take(results, workload.glance, tally, count - tally.count, workload.block)
    end = Mark.now()
    moments.append(snapshot())
    tally.take(list(map(workload.glance, results)))
    tally.demand(count)
    whole, midst, steady_ones = added(moments[0], moments[-1]), added(*moments[1:3]), max(1, places[1] - places[0])
    return {
        "count": count,
        "seconds": end.at - start.at,
        "rate": count / (end.at - start.at),
        "ordered": tally.in_order,
        "cpu": whole.cpu / count,
        "consumer": (end.thread - start.thread) / count,
        "parent": (end.process - start.process) / count,
        "faults": midst.faults / steady_ones,
        "mappings": midst.mappings / steady_ones,
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
    workload.bare.seconds(1)
    count = count_for(workload.bare.seconds, workload, seconds)
    taken = workload.bare.seconds(count)
    return {"count": count, "seconds": taken, "rate": count / taken}
