"""Crashes by natural causes (W4), and what happens to workers whose nursery is killed (W13)."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import signal
import subprocess
import threading
import time

import pytest
from scenario import Ends, lives, program
from test_catalogue import one_failure

import qflow as qf
from qflow.engines.warm import warm_of

C = r"""
#include <csignal>
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <cassert>

extern "C" {
int divide(int a, int b) { volatile int c = b; return a / c; }
long deep(long n) { volatile char page[4096]; page[0] = (char)n; return n + deep(n + 1) + page[0]; }
void ends() { std::terminate(); }
void throws() noexcept { throw std::runtime_error("from C++"); }
void aborts() { std::abort(); }
void traps() { __builtin_trap(); }
void asserts() { assert(1 == 2); }
long spins() { for (volatile long k = 0;; k++) {} }
}
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """Crashes in C++, compiled here."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ here")
    folder = tmp_path_factory.mktemp("crashes")
    (folder / "crashes.cc").write_text(C)
    command = ["g++", "-O0", "-shared", "-fPIC", "-o", "crashes.so", "crashes.cc"]
    subprocess.run(command, cwd=folder, check=True)
    return str(folder / "crashes.so")


IN_C = {
    "divide": ((1, 0), signal.SIGFPE),
    "deep": ((0,), signal.SIGSEGV),
    "ends": ((), signal.SIGABRT),
    "throws": ((), signal.SIGABRT),
    "aborts": ((), signal.SIGABRT),
    "traps": ((), signal.SIGILL),
    "asserts": ((), signal.SIGABRT),
}


def crashes_with(failure, number, name):
    """The verdict is the item's own, with signal and stack."""
    assert (type(failure.error), failure.step, failure.index) == (qf.WorkerDied, "step", (3,))
    assert failure.attempts in (2, 3)  # with threads the first deaths may be another item's as well
    assert f"signal {int(number)} ({number.name})" in str(failure.error)
    assert f"in {name}" in str(failure.error)


MARKS = [qf.process, qf.thread]
EVERYWHERE = [(how, mark) for how in IN_C for mark in MARKS if (how, mark) != ("deep", qf.thread)]  # see `in_a_thread` below


@pytest.mark.parametrize(("function", "mark"), EVERYWHERE)
def test_W4_a_crash_in_c_is_named_with_its_signal_and_the_python_stack_above_it(function, mark, library):
    arguments, number = IN_C[function]

    def calls_c(x):
        getattr(ctypes.CDLL(library), function)(*arguments)

    def step(x):
        if x == 3:
            calls_c(x)
        return x

    values, failure = one_failure(mark(n=2)(step))
    assert values == [0, 1, 2, 4, 5]
    crashes_with(failure, number, "calls_c")


def overflows(x, folder):
    """Python calls C calls Python, without end."""

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)
    def again(n):
        return again(n + 1)

    import sys

    sys.setrecursionlimit(10**9)
    return again(0)


def writes_behind_the_end(x, folder):
    path = folder / str(os.getpid())
    path.write_bytes(bytes(1 << 16))
    with open(path, "r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
        os.truncate(path, 0)
        mapped[1 << 15] = 1


def reads_behind_the_end(x, folder):
    path = folder / str(os.getpid())
    path.write_bytes(bytes(1 << 16))
    with open(path, "r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        os.truncate(path, 0)
        return mapped[1 << 15]


def writes_nowhere(x, folder):
    ctypes.memset(16, 0, 8)


def runs_data(x, folder):
    ctypes.CFUNCTYPE(None)(16)()


def frees_twice(x, folder):
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    block = libc.malloc(ctypes.c_size_t(100_000))
    libc.free(ctypes.c_void_p(block))
    libc.free(ctypes.c_void_p(block + 8))


def fails_fatally(x, folder):
    import faulthandler

    faulthandler._fatal_error_c_thread()


def divides(x, folder):
    import faulthandler

    faulthandler._sigfpe()


CAUSES = {
    overflows: signal.SIGSEGV,
    writes_behind_the_end: signal.SIGBUS,
    reads_behind_the_end: signal.SIGBUS,
    writes_nowhere: signal.SIGSEGV,
    runs_data: signal.SIGSEGV,
    frees_twice: signal.SIGABRT,
    divides: signal.SIGFPE,
}


@pytest.mark.parametrize(
    ("cause", "mark"), [(how, mark) for how in CAUSES for mark in MARKS if how is not overflows or mark is qf.process]
)
def test_W4_a_crash_by_a_natural_cause_is_named_with_its_signal(cause, mark, tmp_path):
    def step(x):
        if x == 3:
            cause(x, tmp_path)
        return x

    values, failure = one_failure(mark(n=2)(step))
    assert values == [0, 1, 2, 4, 5]
    crashes_with(failure, CAUSES[cause], "again" if cause is overflows else cause.__name__)  # the innermost hundred


def in_a_thread(library):
    """The failure of an item for which the stack overflows in a thread of the step."""

    def step(x):
        if x == 3:
            thread = threading.Thread(target=ctypes.CDLL(library).deep, args=(0,))
            thread.start()
            thread.join()
        return x

    values, failure = one_failure(qf.process(n=2)(step))
    assert values == [0, 1, 2, 4, 5]
    return failure


def test_W4_a_stack_that_overflows_in_a_thread_is_a_crash_with_its_signal(library):
    failure = in_a_thread(library)
    assert (type(failure.error), failure.index) == (qf.WorkerDied, (3,))
    assert "signal 11 (SIGSEGV)" in str(failure.error)


@pytest.mark.xfail(
    reason="the fault handler needs a stack of its own (sigaltstack), which Python gives to the main thread only",
    strict=True,
    raises=AssertionError,
)
def test_W4_a_stack_that_overflows_in_a_thread_is_in_the_exception(library):
    """So it is for every worker of `qf.thread` but the first."""
    assert "in step" in str(in_a_thread(library).error)


def fatal(x):
    if x == 3:
        ctypes.pythonapi.Py_FatalError(b"this is the end")
    return x


def test_W4_a_fatal_error_of_python_is_an_abort_that_is_printed(capfd):
    values, failure = one_failure(qf.process(n=2)(fatal))
    assert values == [0, 1, 2, 4, 5]
    assert (type(failure.error), failure.index) == (qf.WorkerDied, (3,))
    assert "signal 6 (SIGABRT)" in str(failure.error)
    assert capfd.readouterr().err.count("[fatal] Fatal Python error: this is the end") == 2


@pytest.mark.xfail(
    reason="Python writes a fatal error to standard error, not to the fault handler", strict=True, raises=AssertionError
)
def test_W4_the_stack_of_a_fatal_error_of_python_is_in_the_exception():
    assert "in fatal" in str(one_failure(qf.process(fatal))[1].error)


def test_W4_an_endless_recursion_of_python_is_an_ordinary_error():
    def step(x):
        return step(x) if x == 3 else x

    values, failure = one_failure(qf.process(n=2)(step))
    assert values == [0, 1, 2, 4, 5]
    assert isinstance(failure.error, RecursionError)


# ---- W13: the nursery is killed


def crew_of(pipe):
    (session,) = warm_of(pipe).sessions
    return session.crew


@pytest.mark.slow
@pytest.mark.parametrize("start", ["forkserver", "spawn", "fork"])
@pytest.mark.parametrize("at", [0, 20, 290])
@pytest.mark.filterwarnings("ignore:`start='fork'`:RuntimeWarning")
def test_W13_a_run_whose_nursery_is_killed_goes_on_with_another(start, at):
    flow = qf.process(n=3)(lambda x: (time.sleep(0.002), x)[1]) | qf.pack(7) | qf.process(lambda xs: xs) | qf.queue(2)
    with flow as pipe:
        for _ in range(2):
            values = []
            with pipe(range(300), engine=qf.engines.Processes(start=start)) as run:
                for xs in run:
                    if values == [*range(at // 7 * 7)]:
                        crew = crew_of(pipe)
                        nursery, pids = crew.nursery.pid, [member.child.pid for member in crew.members.values()]
                        os.kill(nursery, signal.SIGKILL)
                        ends = Ends([nursery, *pids])
                    values += xs
                assert values == list(range(300))
                ends.last(2)  # the workers went with it
                assert sum(stats.died for stats in run.stats()) <= 4


@pytest.mark.slow
@pytest.mark.parametrize("start", ["forkserver", "spawn", "fork"])
@pytest.mark.filterwarnings("ignore:`start='fork'`:RuntimeWarning")
def test_W13_a_nursery_that_is_killed_again_and_again_loses_nothing(start):
    """Each item runs long enough that it may be hit more than once."""
    engine = qf.engines.Processes(start=start, attempts=100)
    flow = qf.process(n=2)(lambda x: (time.sleep(0.02), x)[1]) | qf.queue(1)
    with flow as pipe, pipe(range(100), engine=engine) as run:
        values = []
        for x in run:
            values.append(x)
            if x % 25 == 10:
                os.kill(crew_of(pipe).nursery.pid, signal.SIGKILL)
        assert values == list(range(100))


@pytest.mark.parametrize("start", ["forkserver", *(pytest.param(s, marks=pytest.mark.slow) for s in ("spawn", "fork"))])
@pytest.mark.filterwarnings("ignore:`start='fork'`:RuntimeWarning")
def test_W13_the_next_run_after_its_nursery_was_killed_at_rest(start):
    with qf.process(n=2)(abs) | qf.queue(2) as pipe:
        for number in range(3):
            assert list(pipe([-1, -2], engine=qf.engines.Processes(start=start))) == [1, 2]
            crew = warm_of(pipe)._resting  # none if one of its workers died just when it had finished
            assert crew is not None or number
            if crew is not None:
                os.kill(crew.nursery.pid, signal.SIGKILL)


@pytest.mark.parametrize("start", ["forkserver", *(pytest.param(s, marks=pytest.mark.slow) for s in ("spawn", "fork"))])
@pytest.mark.parametrize("how", ["ctypes.CDLL({library!r}).spins()", "__import__('re').match(r'(a|aa)+$', 'a' * 60 + 'b')"])
def test_W13_a_worker_that_is_stuck_in_c_code_goes_within_a_second_of_its_nursery(how, start, library, tmp_path):
    """It has the interpreter to itself, so that no thread of it can look: the kernel must see to it (PR_SET_PDEATHSIG).

    The whole program is stopped first, so that nobody else can end the worker.
    """
    with program(
        f"""
        import ctypes, os, sys, warnings
        import qflow as qf
        from qflow.engines.warm import warm_of
        warnings.simplefilter("ignore")
        def step(x):
            if x == 1:
                open({str(tmp_path / "stuck")!r}, "w").write(str(os.getpid()))
                {how.format(library=library)}
            return x
        pipe = qf.process(step) | qf.queue(1)
        run = pipe(range(3), engine=qf.engines.Processes(start={start!r}))
        next(run)
        print(next(iter(warm_of(pipe).sessions)).crew.nursery.pid, flush=True)
        sys.stdin.readline()
        """
    ) as child:
        nursery = int(child.stdout.readline())
        while not (text := tmp_path.joinpath("stuck").read_text() if tmp_path.joinpath("stuck").exists() else ""):
            time.sleep(0.001)
        time.sleep(0.1)  # until it is inside
        worker = int(text)
        os.kill(child.pid, signal.SIGSTOP)
        assert lives(worker)
        ends = Ends([worker])
        killed = time.monotonic()
        os.kill(nursery, signal.SIGKILL)
        try:
            assert ends.last(5) - killed < 1
        finally:
            if lives(worker):
                os.kill(worker, signal.SIGKILL)
