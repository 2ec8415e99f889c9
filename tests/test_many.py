"""Many: epochs, graphs (C4), workers, edges and items (R11)."""

from __future__ import annotations

import gc
import itertools
import os
import threading
import time
from typing import NamedTuple

import numpy as np
import pytest
from slopes import sample
from test_seconds import rests

import qflow as qf
from qflow.runtime import nursery

pytestmark = pytest.mark.slow


class Held(NamedTuple):
    """What this process and its nursery hold, at rest."""

    descriptors: int
    threads: int
    children: int
    mappings: int
    of_nursery: int
    anonymous: float


def look():
    gc.collect()
    now = sample(os.getpid(), 0.0)
    of_nursery = len(os.listdir(f"/proc/{nursery._shared['forkserver'].nursery.pid}/fd"))
    return Held(now.descriptors, threading.active_count(), now.children, now.mappings, of_nursery, now.anonymous)


def held():
    """At rest: nothing has changed for a while, for what is on its way out tells nobody."""
    found, since = look(), time.monotonic()
    end = since + 10
    while time.monotonic() < min(end, since + 0.7):
        time.sleep(0.05)
        now = look()
        if now[:-1] != found[:-1]:
            since = time.monotonic()
        found = now
    return found


MOST_MB = 3.0  # that the memory may grow: less than one of the arrays that each epoch makes times the epochs


def flat(before, after):
    assert after[:-1] == before[:-1]
    assert after.anonymous - before.anonymous < MOST_MB, (before, after)


def step(x):
    return np.full((1, 20_000), x)


@pytest.mark.parametrize("engine", ["processes", "serial"])
def test_C4_a_hundred_epochs_that_are_finished_and_left_by_turns_leave_nothing(engine):
    flow = qf.process(n=2)(step) | qf.queue(2) | qf.process(lambda a: a) | qf.pack(2) | qf.queue(2)

    def epochs(count):
        for number in range(count):
            if number % 2:
                found = [int(a[0, 0]) for pair in pipe(range(number, number + 6), engine=engine) for a in pair]
                assert found == list(range(number, number + 6))
            else:
                assert next(pipe(itertools.count(number), engine=engine))[0][0, 0] == number
        rests(pipe)

    with flow as pipe:
        epochs(20)
        before = held()
        epochs(100)
        flat(before, held())


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "dropped"])
def test_C4_two_hundred_graphs_that_are_made_and_dropped_leave_nothing(closed):
    def graphs(count):
        for number in range(count):
            pipe = qf.process(n=2)(step) | qf.pool(lambda a: a.sum()) | qf.queue(2)
            run = pipe([number] * 3)
            assert next(run) == [20_000 * number]
            if closed:
                pipe.close()
            elif number % 2:
                list(run)
            del run, pipe

    graphs(20)
    before = held()
    graphs(200)
    flat(before, held())


def test_C4_two_hundred_graphs_that_never_run_leave_nothing():
    def graphs(count):
        for number in range(count):
            flow = qf.process(n=number + 1)(step) | qf.repack(3) | qf.queue(2)
            assert repr(flow.plan())
            del flow

    graphs(20)
    before = held()
    graphs(200)
    flat(before, held())


# ---- R11


WORKERS_START = 15.0  # seconds on a busy machine of two cores; the catalogue says 5


def test_R11_two_hundred_and_fifty_six_workers_start_in_seconds(record_property):
    with qf.process(n=256)(lambda x: (os.getpid(), x)) | qf.queue(2) as pipe:
        began = time.monotonic()
        run = pipe(range(1024))
        first = next(run)
        took = time.monotonic() - began
        found = [first, *run]
        ended = time.monotonic() - began
        assert [x for _, x in found] == list(range(1024))
        descriptors = len(os.listdir("/proc/self/fd"))
        began = time.monotonic()
    record_property(
        "seconds", f"{took:.2f} to the first result, {ended:.2f} to the last, {time.monotonic() - began:.2f} to the end"
    )
    print(f"256 workers: {took:.2f} s to the first result, {ended:.2f} s to the last; {descriptors} descriptors")
    assert took < WORKERS_START
    assert descriptors < 6 * 256


def test_R11_no_worker_of_many_inherits_the_others_descriptors():
    """Each a few of its own, and a bell of everybody in its crew."""

    def count(n):
        with qf.process(n=n)(lambda x: len(os.listdir("/proc/self/fd"))) | qf.queue(2) as pipe:
            return max(pipe(range(4 * n)))

    few, many = count(4), count(64)
    assert many - few <= 64 - 4 + 2


def test_R11_forty_edges_in_a_row():
    flow = qf.queue(1)
    for number in range(40):
        flow = flow | qf.process(lambda x, number=number: (*x, number)) | qf.queue(1)
    with flow as pipe:
        assert len(pipe.plan().groups) == 40
        for _ in range(2):
            assert list(pipe((x,) for x in range(100))) == [(x, *range(40)) for x in range(100)]
            assert next(pipe((x,) for x in itertools.count(7))) == (7, *range(40))


def test_R11_a_million_small_items_go_through_one_step():
    with qf.process(n=2)(abs) | qf.queue(64) as pipe:
        began = time.monotonic()
        with pipe(-x for x in range(1_000_000)) as run:
            for number, x in enumerate(run):
                assert x == number
            (stats,) = run.stats()
        print(f"1e6 items: {time.monotonic() - began:.1f} s")
        assert (number, stats.items, stats.results) == (999_999, 1_000_000, 1_000_000)
