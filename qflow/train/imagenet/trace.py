"""Trace: torch's profiler over some steps, and what qflow's steps did meanwhile.

    step         0 1 2 3 4     5       6 7 8 9 10
    profiler     waits         warms   records       then it writes the trace, and is done

The profiler sees this process. In it, waiting for a batch is the event ``qflow: next batch``. What the workers did is known
from ``run.stats()`` before and after each training step: the seconds of work in that time, by its length, are the workers that
were busy on average, a counter for each step of the flow (``qflow: decode``), from 0 to n. When in that time they were busy is
not known, and not shown. The serial engine counts nothing: there, all work is in ``qflow: next batch``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, final

import torch
from torch.profiler import ProfilerAction, ProfilerActivity, profile, record_function, schedule

from qflow.graph.run import Run

WAIT, WARM, ACTIVE = 5, 1, 5  # training steps
LEAST = 1 + WARM + 1  # of steps: one is not watched, so that the workers have started
NEXT = "qflow: next batch"
_STEP = "ProfilerStep#"

Event = dict[str, Any]


@final
class Trace:
    """The profiler of a training; as a context manager it is closed with the block.

    Attributes:
        path: the trace, for chrome://tracing or ui.perfetto.dev.
        written: it is there.
        busy: for each training step, how many workers of each step of the flow were busy on average.
    """

    def __init__(self, path: str | Path, steps: int) -> None:
        self.path, self.written = Path(path), False
        self.busy: list[dict[str, float]] = []
        active = min(ACTIVE, steps - 1 - WARM)
        wait = min(WAIT, steps - WARM - active)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        self._profiler = profile(
            activities=activities,
            schedule=schedule(wait=wait, warmup=WARM, active=active, repeat=1),
            on_trace_ready=self._write,
            record_shapes=True,
        )
        self._run: Run[Any] | None = None
        self._before: dict[str, float] = {}
        self._start = time.perf_counter()

    def __enter__(self) -> Trace:
        self._profiler.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._profiler.stop()

    def waiting(self) -> AbstractContextManager[object]:
        """A block in which the next batch is waited for."""
        return record_function(NEXT)

    @property
    def profiling(self) -> bool:
        """Whether the training step at work is slowed by the profiler."""
        return self._profiler.current_action is not ProfilerAction.NONE

    def step(self, run: Run[Any]) -> None:
        """A training step is done, with a batch of this run."""
        self._sample(run)
        self._profiler.step()
        self._start = time.perf_counter()

    def _sample(self, run: Run[Any]) -> None:
        """How busy the steps of the flow were since the last training step, or since this run began."""
        seconds = time.perf_counter() - self._start
        before = self._before if run is self._run else {}
        now = {step.name: step.busy for step in run.stats()}
        self.busy.append({name: (busy - before.get(name, 0.0)) / seconds for name, busy in now.items()})
        self._run, self._before = run, now

    def _write(self, profiler: profile) -> None:
        profiler.export_chrome_trace(str(self.path))
        content = json.loads(self.path.read_text())
        content["traceEvents"] += counters(content["traceEvents"], self.busy)
        self.path.write_text(json.dumps(content))
        self.written = True


def counters(events: list[Event], busy: list[dict[str, float]]) -> Iterator[Event]:
    """A counter for each step of the flow, beside a trace's own events of the training steps.

    >>> step = {"name": "ProfilerStep#1", "ts": 100.0, "dur": 50.0, "pid": 7, "tid": 7}
    >>> [(event["name"], event["ts"], *event["args"].values()) for event in counters([step], [{}, {"decode": 1.5}])]
    [('qflow: decode', 100.0, 1.5), ('qflow: decode', 150.0, 0.0)]

    Args:
        events: of the trace.
        busy: for each training step, from the first of the training on.
    """
    steps = sorted(
        (event for event in events if event["name"].startswith(_STEP) and "dur" in event), key=lambda event: event["ts"]
    )
    names: set[str] = set()
    for event in steps:
        now = busy[int(event["name"].removeprefix(_STEP))]
        names |= now.keys()
        for name, workers in now.items():
            yield _counter(name, workers, event["ts"], event["pid"])
    for name in sorted(names):
        yield _counter(name, 0.0, steps[-1]["ts"] + steps[-1]["dur"], steps[-1]["pid"])


def _counter(name: str, workers: float, at: float, pid: int) -> Event:
    return {"ph": "C", "cat": "qflow", "name": f"qflow: {name}", "ts": at, "pid": pid, "args": {"busy workers": workers}}
