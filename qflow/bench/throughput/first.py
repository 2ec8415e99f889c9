"""First: seconds to the first result in a fresh interpreter, in the next epoch, and after a while of doing nothing."""

from __future__ import annotations

import itertools
import time

from qflow.bench.throughput.peer import Epoch, Peer, Setting
from qflow.bench.throughput.rate import Result
from qflow.bench.throughput.tally import Tally
from qflow.bench.throughput.workload import Workload

IDLE = 0.5  # seconds without a run before the warm one


def first(peer: Peer, workload: Workload, setting: Setting, born: float) -> Result:
    """The figures.

    Args:
        born: when this interpreter was started, as ``time.perf_counter()``, which is the machine's.
    """
    called = time.perf_counter()
    with peer.open(workload.job(), **setting) as epoch:
        cold = _seconds(epoch, workload, born)
        again = _seconds(epoch, workload, time.perf_counter())
        time.sleep(IDLE)
        warm = _seconds(epoch, workload, time.perf_counter())
    return {"cold": cold, "call": cold - (called - born), "second": again, "warm": warm, "count": workload.least}


def _seconds(epoch: Epoch, workload: Workload, began: float) -> float:
    """Until the first result; the others are taken, too."""
    tally, results = Tally(workload.keys), iter(epoch(workload.least))
    tally.take(list(itertools.islice(results, 1)))
    taken = time.perf_counter() - began
    tally.take(list(results))
    tally.demand(workload.least)
    return taken
