"""Tabling: one loop over a table by one system, for `tables`; its figures are printed as JSON.

python -m qflow.bench.tabling SYSTEM INPUT OUTPUT SECONDS
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from qflow.demo.memory import Peak


def busy(seconds: float) -> None:
    """Keep the interpreter busy."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def calibrate(hits: Any, work: float) -> Any:
    """The stage."""
    if work:
        busy(work)
    return np.float32(0.5) * hits


def by_qflow(input: str, output: str, work: float, n: int | None) -> None:
    """`qflow.h5`; None: in this process."""
    from qflow import h5

    flow = h5.rows("hits") | calibrate | h5.append("calib", refs="1:1")
    engine = {"engine": "serial"} if n is None else {"n": n}
    h5.run(flow, input, output, params={"work": work}, **engine)


STAGE = """
import numpy as np
from h5flow.core import H5FlowStage
from qflow.bench.tabling import calibrate

class Calibrate(H5FlowStage):
    class_version = "0.0.0"

    def __init__(self, **params):
        super().__init__(**params)
        self.work = params["work"]

    def init(self, source_name):
        super().init(source_name)
        self.data_manager.create_dset("calib", "f4")
        self.data_manager.create_ref(source_name, "calib")

    def run(self, source_name, source_slice, cache):
        super().run(source_name, source_slice, cache)
        rows = calibrate(cache[source_name], self.work)
        place = self.data_manager.reserve_data("calib", len(rows))
        self.data_manager.write_data("calib", place, rows)
        here, there = np.r_[source_slice], np.r_[place]
        self.data_manager.write_ref(source_name, "calib", np.stack([here, there], axis=1))
"""
FLOW = """
flow:
  source: hits
  stages: [calibrate]
calibrate:
  classname: Calibrate
  path: bench_stage
  params: {{work: {work}}}
"""


def by_h5flow(input: str, output: str, work: float) -> None:
    """h5flow, in one process, as its document has it."""
    Path("bench_stage.py").write_text(STAGE)
    Path("flow.yaml").write_text(FLOW.format(work=work))
    os.environ["H5FLOW_NOMPI"] = "1"
    sys.path.insert(0, os.getcwd())
    import h5flow

    h5flow.run(["flow.yaml"], output, input_filename=input, nompi=True)


def in_a_loop(input: str, output: str, work: float) -> None:
    """h5py, as one writes it by hand, without regions."""
    import h5py  # type: ignore[import-untyped]

    shutil.copyfile(input, output)
    with h5py.File(output, "r+") as file:
        hits = file["hits/data"]
        calib = file.create_dataset("calib/data", (0,), "f4", maxshape=(None,), chunks=hits.chunks)
        ref = file.create_dataset("hits/ref/calib/ref", (0, 2), "u4", maxshape=(None, 2), chunks=(8192, 2))
        for start in range(0, len(hits), hits.chunks[0]):
            rows = calibrate(hits[start : start + hits.chunks[0]], work)
            stop = start + len(rows)
            calib.resize(stop, axis=0)
            calib[start:stop] = rows
            ref.resize(stop, axis=0)
            ref[start:stop] = np.arange(start, stop)[:, None]


SYSTEMS: dict[str, Callable[[str, str, float], None]] = {
    "qflow-1": lambda input, output, work: by_qflow(input, output, work, 1),
    "qflow-2": lambda input, output, work: by_qflow(input, output, work, 2),
    "qflow-serial": lambda input, output, work: by_qflow(input, output, work, None),
    "h5flow": by_h5flow,
    "loop": in_a_loop,
}


def main(system: str, input: str, output: str, work: str) -> None:
    """Run once, and print what it took."""
    with Peak(os.getpid()) as peak:
        begun = time.monotonic()
        SYSTEMS[system](input, output, float(work))
        end = time.monotonic()
    print(json.dumps({"seconds": end - begun, "peak": peak.bytes}))


if __name__ == "__main__":
    main(*sys.argv[1:])
