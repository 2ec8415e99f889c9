"""Starts: seconds to the first item, in a fresh interpreter, in the next epoch, and after a while of doing nothing."""

from __future__ import annotations

from qflow.bench.throughput.workload import Workload
from qflow.bench.throughput.workloads.numbers import plus_one, sums

FIRST = Workload("seconds to the first item", (plus_one,), sums, least=50, most=50, checked=50, measure="first", quick=True)
