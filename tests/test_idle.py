"""Who waits sleeps: nobody looks every few milliseconds whether something has happened (C14).

Counted are the context switches of all threads of the parent, the nursery and the workers; a process that looks 20
times a second would have 40 of them in two seconds.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from pathlib import Path

import pytest
from test_policies import sleeps
from test_seconds import workers_of

import qflow as qf
from qflow.runtime import nursery

SECONDS = 2.0
FEW = 3  # of all processes together


def switches(pids):
    """How often each thread of these processes was switched, but for this one."""
    found = {}
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            if int(task.name) != threading.get_native_id():
                lines = task.joinpath("status").read_text().splitlines()
                found[task.name] = sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
    return found


def quiet(pids):
    """Once nothing happens any more: the switches of two seconds."""
    before, end = {}, time.monotonic() + SECONDS
    while before != (before := switches(pids)) and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(SECONDS)
    after = switches(pids)
    assert after.keys() == before.keys()
    return sum(after.values()) - sum(before.values())


@contextlib.contextmanager
def consumer_waits(pipe):
    with pipe(itertools.count()) as run:
        thread = threading.Thread(target=taking, args=(run,))
        thread.start()
        yield
        run.close()
        thread.join()


def taking(run):
    with contextlib.suppress(qf.QFlowError):
        list(run)


@contextlib.contextmanager
def queues_are_full(pipe):
    with pipe(itertools.count()) as run:
        next(run)
        yield


@contextlib.contextmanager
def pipe_is_warm(pipe):
    assert list(pipe(range(3))) == [0, 1, 2]
    yield


@contextlib.contextmanager
def source_is_stuck(pipe):
    go = threading.Event()

    def source():
        yield from range(4)
        go.wait()

    with pipe(source()) as run:
        assert [next(run) for _ in range(4)] == [0, 1, 2, 3]
        yield
        go.set()


STATES = [
    consumer_waits,
    pytest.param(queues_are_full, marks=pytest.mark.slow),
    pipe_is_warm,
    pytest.param(source_is_stuck, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("timeout", [None, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_who_waits_sleeps(state, timeout):
    def step(x):
        if state is consumer_waits and x == 5:
            sleeps()
        return x

    mark = qf.process(n=3, timeout=timeout)
    pipe = mark(step) | qf.thread(n=2)(lambda x: x) | qf.pack(2) | qf.unpack() | mark(lambda x: x) | qf.queue(2)
    with pipe, state(pipe):
        assert quiet([os.getpid(), nursery._shared["forkserver"].nursery.pid, *workers_of(pipe)]) <= FEW
