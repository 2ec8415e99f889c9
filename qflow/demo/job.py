"""Job: make the data, train through the pipeline, hold the result against held-out data."""

from __future__ import annotations

import dataclasses
import os
import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

import qflow as qf
from qflow import h5
from qflow.demo import folder, report
from qflow.demo.memory import Peak
from qflow.demo.model import Learner, learner
from qflow.demo.report import Epoch, say
from qflow.demo.steps import Batch, pipeline
from qflow.demo.writing import write
from qflow.graph import bytesizes

SAMPLE = 4096  # events of the serial comparison
LARGE = 10**9  # bytes of data from which one epoch is enough unless said otherwise
_WRITERS = 2  # more of them wait for the disk, and take 150 MB each


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of the command; see `qflow.demo.command`."""

    size: int
    memory: int | None
    folder: Path | None
    rows: int
    batch: int
    epochs: int | None
    engine: str
    workers: int


def run(options: Options, root: int, limit: str) -> int:
    """The demo; 0, or 1 if it took more memory than it may.

    Args:
        root: the process whose tree is measured.
        limit: what caps the memory, as text.
    Raises:
        OSError: the data can't be written.
    """
    layout = folder.layout(options.folder or folder.default_folder(), options.size)
    with Peak(root) as peak:
        _prepare(layout, options)
        device = _device(options.workers)
        report.introduce(layout, device, limit)
        _train(layout, options, device)
    return report.judge(peak, options.memory)


def _device(workers: int) -> torch.device:
    """CUDA if there is one. On the CPU, only the threads that the workers leave free.

    Two threads beside two busy workers on 2 cores take 20 times as long as one: they spin while they
    wait for each other. [torch 2.13: 0.2 and 4 ms an event]
    """
    torch.set_num_threads(max(1, (os.cpu_count() or 1) - workers))
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _prepare(layout: folder.Layout, options: Options) -> None:
    """Write the files that are not there."""
    missing, where = folder.incomplete(layout), layout.parts[0].path.parent
    if not missing:
        return say("data", f"{where}: all {len(layout.parts)} files are there from an earlier run")
    start, total = time.perf_counter(), folder.events(missing)
    with qf.Flow(write.using(n=min(_WRITERS, options.workers))) as pipe, _bar(total, "writing") as bar:
        for events in pipe(missing, engine=options.engine, ordered=False):
            bar.update(events)
    size = bytesizes.show(sum(part.path.stat().st_size for part in missing))
    say("data", f"{where}: {len(missing)} of {len(layout.parts)} files written, {size} in {time.perf_counter() - start:.1f} s")


def _train(layout: folder.Layout, options: Options, device: torch.device) -> None:
    """Train, measure and report."""
    train, heldout = (_chunks(parts, options.rows) for parts in (layout.train, layout.heldout))
    total, epochs = folder.events(layout.train), options.epochs or (4 if options.size < LARGE else 1)
    student = learner(epochs * -(-total // options.batch), device)
    with pipeline(options.batch, options.workers) as pipe:
        for number in range(1, epochs + 1):
            epoch = _epoch(pipe(_shuffled(train, number), engine=options.engine), student, total, f"epoch {number}/{epochs}")
            say(f"epoch {number}/{epochs}", f"loss {epoch.loss:.3f}, {epoch.seconds:.1f} s, {epoch.rate:.0f} events/s")
        with pipe(heldout, engine=options.engine) as batches:
            accuracy = student.accuracy(batches)
    serial = None if options.engine == "serial" else _serially(pipe, train[: -(-SAMPLE // options.rows)], device)
    report.conclude(pipe, epoch, serial, accuracy, folder.events(layout.heldout), options.engine)


def _chunks(parts: Iterable[folder.Part], rows: int) -> h5.Chunks:
    return h5.chunks([part.path for part in parts], rows, key="label")


def _shuffled(chunks: h5.Chunks, seed: int) -> list[h5.Chunk]:
    """The chunks in another order; within the files, the events are in random order already."""
    return random.Random(seed).sample(chunks, len(chunks))


def _serially(pipe: qf.Flow[h5.Chunk, Batch], chunks: h5.Chunks, device: torch.device) -> Epoch:
    """The same work in this process alone, on the first chunks, by a fresh network."""
    events = sum(stop - start for chunk in chunks for _, start, stop in chunk)
    return _epoch(pipe(chunks, engine="serial"), learner(events, device), events, "serially")


def _epoch(run: qf.Run[Batch], student: Learner, total: int, title: str) -> Epoch:
    """Train on all batches of a run."""
    start, waited, events, loss = time.perf_counter(), 0.0, 0, torch.zeros((), device=student.device)
    with run as batches, _bar(total, title) as bar:
        for batch, seconds in _timed(batches):
            loss += student.learn(batch)
            waited, events = waited + seconds, events + len(batch[1])
            bar.update(len(batch[1]))
        mean = loss.item() / events
        return Epoch(events, time.perf_counter() - start, waited, mean, batches.stats())


def _timed(batches: Iterable[Batch]) -> Iterator[tuple[Batch, float]]:
    """Each batch, and the seconds until it came."""
    start = time.perf_counter()
    for batch in batches:
        yield batch, time.perf_counter() - start
        start = time.perf_counter()


def _bar(total: int, title: str) -> Any:
    return tqdm(total=total, desc=title, unit=" events", unit_scale=True, leave=False, mininterval=0.5)
