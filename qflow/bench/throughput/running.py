"""Running: one measurement in a fresh interpreter, with a time limit, and with nothing left of it at its end."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qflow.bench import tagged
from qflow.bench.cell import own_shm
from qflow.bench.marks import TAG
from qflow.bench.throughput.rate import Result
from qflow.bench.throughput.workloads import WORKLOADS
from qflow.bench.throughput.workloads.hdf5 import FOLDER
from qflow.demo.memory import Peak

ONE_THREAD = dict.fromkeys(
    ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "TORCH_NUM_THREADS"], "1"
)

MEASURE = "qflow.bench.throughput.measure"

_GRACE = 5.0  # seconds for a script with figures to end by itself, and to remove what its peer has in /dev/shm

_LONG = 10  # times the limit where memory is what is asked for, on as much data as it takes


@dataclass(frozen=True)
class Running:
    """How measurements run.

    Attributes:
        folder: where the workloads' files are.
        seconds: how long an epoch should take.
        limit: seconds after which it hangs.
        path: what stands first on the path of the measured interpreters.
    """

    folder: Path
    seconds: float
    limit: float
    path: Sequence[str] = ()

    def run(self, system: str, name: str, setting: Any, *, watched: bool = False) -> Result:
        """The figures of one measurement, or ``{"failed": words}``; with the peak of its memory if it is watched."""
        tag, limit = uuid.uuid4().hex, self.limit * (_LONG if WORKLOADS[name].watched else 1)
        with tempfile.TemporaryDirectory(prefix="qflow-bench-", ignore_cleanup_errors=True) as folder:
            request = {
                "system": system,
                "name": name,
                "setting": dict(setting),
                "seconds": self.seconds,
                "born": time.perf_counter(),
            }
            file, log = Path(folder, "result"), Path(folder, "output")
            code = f"import sys; sys.path[:0] = {[*self.path]!r}; from {MEASURE} import main; sys.exit(main(*sys.argv[1:]))"
            command = [*own_shm(), sys.executable, "-c", code, json.dumps(request), str(file)]
            environment = {**os.environ, **ONE_THREAD, TAG: tag, FOLDER: str(self.folder)}
            with log.open("wb") as output:
                script = subprocess.Popen(
                    command, env=environment, start_new_session=True, stdin=subprocess.DEVNULL, stdout=output, stderr=output
                )
            try:
                with Peak(script.pid) if watched else contextlib.nullcontext() as peak:
                    ended = _wait(script, file, limit)
                found = json.loads(file.read_text()) if file.exists() else {"failed": _why(script, log, ended, limit)}
            finally:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    script.wait(_GRACE if file.exists() else 0)
                script.kill()
                script.wait()
                tagged.end(tag)
        return found | ({"pss": peak.bytes} if peak else {})


def _wait(script: subprocess.Popen[bytes], file: Path, limit: float) -> bool:
    """Wait until a measurement has ended or has told its figures; what its shutdown takes is nobody's time."""
    last = time.monotonic() + limit
    while script.poll() is None and not file.exists():
        if time.monotonic() > last:
            return False
        time.sleep(0.01)
    return True


def _why(script: subprocess.Popen[bytes], log: Path, ended: bool, limit: float) -> str:
    """What went wrong with a measurement without figures."""
    if not ended:
        return f"hung: no result after {limit:g} s"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"died with status {script.poll()}: {lines[-1][:200] if lines else ''}"
