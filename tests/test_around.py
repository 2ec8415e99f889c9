"""What lies around a run: the process's own state, the interpreter's options, the clock; and the suite in other worlds."""

from __future__ import annotations

import ctypes
import functools
import locale
import math
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch
from scenario import script, state_of
from test_processes import delivered
from test_seconds import workers_of

import qflow as qf


def around():
    """What a library may change by accident, beside what the watch over leaks looks at."""
    umask = os.umask(0o22)
    os.umask(umask)
    sharing = torch.multiprocessing.get_sharing_strategy()
    hooks = sys.excepthook, sys.unraisablehook, threading.excepthook, signal.set_wakeup_fd(-1)
    return dict(os.environ), [*sys.path], [*warnings.filters], sharing, locale.setlocale(locale.LC_ALL), umask, hooks


@pytest.mark.parametrize("start", ["forkserver", "spawn", "fork"])
def test_S11_a_run_changes_nothing_of_the_process(start):
    before = around()
    with qf.process(n=2)(abs) | qf.queue(2) as pipe, pipe(range(9), engine=qf.engines.Processes(start=start)) as run:
        next(run)
        assert around() == before
    with pytest.raises(ValueError), qf.run(qf.process(math.sqrt), [-1]) as run:
        list(run)
    assert around() == before


OPTIONS = {
    "hash seed 0": {"PYTHONHASHSEED": "0"},
    "hash seed 7": {"PYTHONHASHSEED": "7"},
    "optimised": {"PYTHONOPTIMIZE": "1"},
    "without docstrings": {"PYTHONOPTIMIZE": "2"},
    "safe path": {"PYTHONSAFEPATH": "1"},
    "no user site": {"PYTHONNOUSERSITE": "1"},
}


@pytest.mark.parametrize("start", ["forkserver", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.parametrize("options", OPTIONS)
def test_S8_the_interpreters_options_change_nothing(options, start):
    done = script(
        f"""
        import qflow as qf
        def step(x):
            if x == 5:
                raise KeyError(x)
            return x, hash("text") % 1
        with qf.run(qf.process(n=2)(step), range(9), engine=qf.engines.Processes(start={start!r}), on_error="skip") as run:
            print([x for x, _ in run], *[failure.index for failure in run.failures])
        """,
        **OPTIONS[options],
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[0, 1, 2, 3, 4, 6, 7, 8] (5,)\n", "")


class Scaled:
    def __init__(self, k):
        self.k = k

    def times(self, x):
        return self.k * x


@pytest.mark.parametrize("start", ["forkserver", pytest.param("spawn", marks=pytest.mark.slow), "fork"])
def test_S5_partials_bound_methods_and_c_functions_are_steps(start):
    partial = functools.partial(pow, 2)
    flow = qf.process(partial) | qf.process(n=2)(Scaled(10).times) | qf.process(math.sqrt) | qf.process(str)
    assert list(flow(range(4), engine=qf.engines.Processes(start=start))) == [str(math.sqrt(10 * 2**x)) for x in range(4)]


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("at", [0, 1, 10, 19])
def test_U1_the_failure_comes_within_a_second_in_its_turn(n, at):
    failed = time.monotonic  # the same clock in all processes

    def step(x):
        if x == at:
            raise ValueError("boom", failed())
        return x

    with qf.Flow(qf.process(n=n)(step)) as pipe:
        values, error = delivered(pipe, range(20))
        assert time.monotonic() - error.args[1] < 1
    assert (values, type(error), error.args[0]) == ([*range(at)], ValueError, "boom")
    assert f"in step 'step', item {at} ({at})" in error.__notes__[0]


def test_U10_a_program_that_libc_exits_is_a_death():
    def step(x):
        if x == 3:
            ctypes.CDLL(None).exit(0)
        return x

    with qf.run(qf.process(n=2)(step), range(6), on_error="skip") as run:
        assert list(run) == [0, 1, 2, 4, 5]
        (failure,) = run.failures
    assert type(failure.error) is qf.WorkerDied
    assert "exited with code 0 without returning" in str(failure.error)


@pytest.mark.parametrize("everyone", [False, True])
def test_R10_a_pause_of_some_workers_is_no_timeout_of_those_that_wait(everyone):
    """Workers that are stopped between two items have no call whose time could be up."""
    with qf.process(n=2, timeout=0.3)(lambda x: x) | qf.queue(1) as pipe, pipe(range(100)) as run:
        first = next(run)
        time.sleep(0.05)  # until the queue is full
        pids = workers_of(pipe)[: 2 if everyone else 1]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        while any(state_of(pid) != "T" for pid in pids):
            time.sleep(0.001)
        time.sleep(0.6)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        assert [first, *run] == [*range(100)]
        assert [stats.died for stats in run.stats()] == [0]


@pytest.mark.parametrize("n", [1, 2])
def test_R10_one_pause_in_the_middle_of_a_call_is_no_timeout(n, tmp_path):
    def step(x):
        tmp_path.joinpath(str(os.getpid())).touch()
        time.sleep(0.2)
        return x

    with qf.process(n=n, timeout=0.5)(step) | qf.queue(1) as pipe, pipe(range(n)) as run:
        while len(pids := os.listdir(tmp_path)) < n:
            time.sleep(0.001)
        for pid in pids:
            os.kill(int(pid), signal.SIGSTOP)
        timer = threading.Timer(1, lambda: [os.kill(int(pid), signal.SIGCONT) for pid in pids if state_of(pid) == "T"])
        timer.start()
        try:
            assert [*run] == [*range(n)]
        finally:
            timer.join()


def suite(files, **variables):
    """Run tests of these files in another world."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
    folder = Path(__file__).parent
    done = subprocess.run(command, cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("lacking", ["memfd", "pidfd", "prctl", "memfd,pidfd,prctl"])
@pytest.mark.parametrize("file", ["test_laws.py", "test_replay.py", "test_policies.py"])
def test_R9_the_suite_passes_where_calls_of_the_kernel_are_missing(file, lacking):
    suite([file], QFLOW_WITHOUT=lacking)
