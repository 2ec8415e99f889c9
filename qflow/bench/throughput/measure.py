"""Measure: one measurement; ``main(REQUEST, FILE)`` is called in an interpreter of its own.

The request is JSON, and so is what is written to the file: the figures, or what went wrong, in words.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from qflow.bench.throughput.first import first
from qflow.bench.throughput.peers import peer_of
from qflow.bench.throughput.rate import Result, bare, rate
from qflow.bench.throughput.tally import Void
from qflow.bench.throughput.workloads import WORKLOADS

BARE = "bare"  # the system that is the workload's own bound


def measured(system: str, name: str, setting: dict[str, Any], seconds: float, born: float) -> Result:
    """The figures of a request."""
    workload = WORKLOADS[name]
    if system == BARE:
        return bare(workload, seconds)
    if workload.measure == "first":
        return first(peer_of(system), workload, setting, born)
    return rate(peer_of(system), workload, setting, seconds)


def main(request: str, file: str) -> int:
    """Measure in this process, or in a child of it that is held to the workload's memory."""
    asked = json.loads(request)
    if cap := WORKLOADS[asked["name"]].cap:
        from qflow.demo.cap import fork_capped

        limit = fork_capped(cap)
        if isinstance(limit, int):
            return limit
    try:
        found = measured(**asked)
    except Void as void:
        found = {"failed": f"void: {void}"}
    except Exception as error:
        found = {"failed": f"{type(error).__name__}: {error}"[:300]}
    if cap:
        found["limit"] = limit
    Path(f"{file}.part").write_text(json.dumps(found))
    os.replace(f"{file}.part", file)
    return 0
