"""Peers for the bench of throughput that do one thing wrong each, on purpose."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from qflow.bench.throughput.peer import Epoch, Peer
from qflow.bench.throughput.workload import Job


@contextmanager
def _loses(job: Job) -> Iterator[Epoch]:
    yield lambda count: map(job.step, itertools.islice(job.items(count), count - 1))


@contextmanager
def _doubles(job: Job) -> Iterator[Epoch]:
    yield lambda count: map(job.step, [*job.items(count), job.items(count)[0]])


@contextmanager
def _is_wrong(job: Job) -> Iterator[Epoch]:
    yield lambda count: (-job.step(item) for item in job.items(count))


@contextmanager
def _shuffles(job: Job) -> Iterator[Epoch]:
    yield lambda count: map(job.step, reversed(job.items(count)))


@contextmanager
def _raises(job: Job) -> Iterator[Epoch]:
    raise OSError("no more of it")
    yield


@contextmanager
def _dies(job: Job) -> Iterator[Epoch]:
    os._exit(3)
    yield


@contextmanager
def _hangs(job: Job) -> Iterator[Epoch]:
    time.sleep(3600)
    yield


@contextmanager
def _tuned(job: Job, *, speed: str) -> Iterator[Epoch]:
    """One of its settings is slow, one doesn't work."""
    if speed == "none":
        raise ValueError("this setting doesn't work")
    pause = 0.001 if speed == "low" else 0.0
    yield (
        lambda count: (
            (time.sleep(pause) or job.step(item) for item in job.items(count)) if pause else map(job.step, job.items(count))
        )
    )


LOSES = Peer("loses", _loses)
DOUBLES = Peer("doubles", _doubles)
WRONG = Peer("wrong", _is_wrong)
SHUFFLES = Peer("shuffles", _shuffles)
RAISES = Peer("raises", _raises)
DIES = Peer("dies", _dies)
HANGS = Peer("hangs", _hangs)
TUNED = Peer("tuned", _tuned, lambda workload: [{"speed": "low"}, {"speed": "high"}, {"speed": "none"}])
ABSENT = Peer("absent", _loses, package="no_such_package")
UNBUILT = Peer("unbuilt", _loses, lambda workload: "it is for other things")
