"""The catalogue of faults, scenario by scenario: what breaks pipelines, each with what must happen instead.

Oracles: the error within a second and then nothing left (the watch over what is left does that), the values
before the failing one in order and none after it, a message that names the step, item and worker, or the
very output that there would have been. What shows a scenario elsewhere:

    U1   test_around (the time), test_processes::test_the_values_before_a_failure_come_first_then_the_users_exception
    U2   test_processes::test_what_cannot_travel_as_it_is_becomes_a_step_error; U3, U4, U7, U8, U9 too
    U5   test_processes::test_a_result_that_cannot_be_sent_fails_at_its_item
    U6   test_policies::test_what_cannot_be_loaded_is_a_failure_of_its_maker,
         test_replay::test_an_item_that_kills_whoever_loads_it_is_charged_to_its_maker (not: a crash of the consumer)
    U10  test_replay::test_a_dead_worker_is_replaced_and_its_item_repeated
    U11  test_policies::test_children_that_were_given_do_not_come_again, test_replay::test_children_that_were_given_come_once
    U12  test_policies::test_fewer_children_at_the_second_try_are_an_error, ::test_other_children_at_the_second_try_are_an_error,
         test_replay::test_other_children_after_a_death_are_an_error_and_never_a_mix
    U13  test_processes::test_the_source_is_pulled_no_further_than_queues_and_workers_hold
    U14  test_processes::test_a_failing_source_tells_after_how_many_items
    U15  test_policies::test_a_failure_of_another_run_is_an_ordinary_value
    U16  test_bad_input::test_a_one_shot_generator_run_twice_is_an_error_on_that_line
    U17  test_processes::test_writing_into_an_input_says_how_to_do_it
    U18  test_processes::test_a_step_that_keeps_its_inputs_does_not_stall_and_sees_them_unchanged
    U19  test_processes::test_a_run_inside_a_step, ::test_a_program_that_a_step_starts_can_be_terminated,
         test_ends::test_a_program_in_a_session_of_its_own_goes_with_the_last_worker
    U20  test_processes::test_much_printing_does_not_block
    U22  test_processes::test_a_class_that_fails_to_build_says_so,
         test_replay::test_a_constructor_that_kills_its_worker_ends_the_run
    W1   test_replay::test_a_kill_costs_less_than_a_second, test_chaos
    W2   test_replay::test_a_worker_may_die_at_any_point_of_the_protocol
    W3   test_replay::test_an_item_that_kills_its_worker_twice_ends_the_run_in_its_turn
    W6   test_policies::test_only_the_item_that_takes_too_long_fails
    W8   test_replay::test_several_may_die_at_once
    W11  test_replay::test_what_a_stream_keeps_outlives_its_worker
    W14  test_policies::test_a_worker_that_holds_too_much_memory_is_replaced
    W5   test_oom (what the counts are read from)
    W6   test_seconds (the time), test_idle (nobody polls)
    C1, C9, C10, U13, U22, W7  test_seconds: the stated seconds, to the last worker gone
    C3   test_processes::test_two_runs_at_once_have_workers_of_their_own
    C8   test_processes::test_a_forked_copy_of_the_parent_ends_nothing
    C10  test_processes::test_ctrl_c_is_one_keyboard_interrupt_and_a_second_run_works
    C6   test_parents too
    C12  test_parents: states of the parent x states of the workers
    C14  test_processes::test_the_source_is_pulled_no_further_than_queues_and_workers_hold, test_idle, and C2 below
    C16  test_ends::test_a_result_that_does_not_come_in_time_comes_later
    T2   test_chaos, the slow ones
    T5   there is no fan-in: a flow is a line
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import copy
import ctypes
import fcntl
import gc
import itertools
import multiprocessing
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from test_processes import Counted, delivered, settled
from test_replay import first_try, kill

import qflow as qf
from qflow.engines.processes import Processes
from qflow.graph.attempt import NO_ITEM
from qflow.runtime.crew import Crew
from qflow.runtime.supervisor import Supervisor


def script(text, *, seconds=40, **options):
    """Run a program of its own; it says where it hangs, if it does."""
    program = f"import faulthandler; faulthandler.dump_traceback_later({seconds - 5}, exit=True)\n" + textwrap.dedent(text)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=seconds, **options)


def ends(done, code, out):
    assert (done.returncode, done.stdout, done.stderr) == (code, out, "")


def alive(pids):
    """Those that live, zombies aside."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(pid)
    return found


def gone(pids, seconds=2.0):
    """Whether all end within so many seconds."""
    end = time.monotonic() + seconds
    while alive(pids) and time.monotonic() < end:
        time.sleep(0.01)  # the end of another process's child, which tells nobody
    return not alive(pids)


def cpu(pid):
    """Seconds that a process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def fails_at(at, make):
    def step(x):
        if x == at:
            raise make()
        return x

    return step


def one_failure(step, source=range(6), **options):
    """Run a step, skipping: the one item that failed, after making sure that the others came."""
    with qf.run(step, source, on_error="skip", **options) as run:
        values = list(run)
        (failure,) = run.failures
    return values, failure


# ---- U: user code


class KeywordOnly(Exception):
    def __init__(self, *, code):
        super().__init__(f"code {code}")


class HoldsMuch(Exception):
    def __init__(self, text, *held):
        super().__init__(text)
        self.held = held


class NoRepr(Exception):
    def __repr__(self):
        raise RuntimeError

    def __str__(self):
        raise RuntimeError


class OwnBase(BaseException):
    pass


def cyclic():
    first, second = ValueError("first"), KeyError("second")
    first.__cause__, second.__cause__ = second, first
    return first


def deep():
    error = ValueError("outermost")
    inner = error
    for number in range(5000):
        inner.__context__ = KeyError(number)
        inner = inner.__context__
    return error


ERRORS = {
    "keyword-only arguments": (lambda: KeywordOnly(code=5), qf.StepError, "KeywordOnly: code 5"),
    "holds a socket": (lambda: HoldsMuch("open", socket.socket()), qf.StepError, "HoldsMuch: open"),
    "holds a lock": (lambda: HoldsMuch("locked", threading.Lock()), qf.StepError, "HoldsMuch: locked"),
    "holds 100 MB": (lambda: HoldsMuch("large", np.ones(100_000_000, np.uint8)), qf.StepError, "HoldsMuch: large"),
    "cannot be printed": (lambda: NoRepr(), qf.StepError, "NoRepr: <unprintable>"),
    "its causes go in a circle": (cyclic, ValueError, "first"),
    "its causes go deep": (deep, ValueError, "outermost"),
    "a group of 10 000": (lambda: ExceptionGroup("many", [ValueError(n) for n in range(10_000)]), qf.StepError, "many"),
    "CancelledError": (lambda: asyncio.CancelledError("x"), qf.StepError, "CancelledError: x"),
    "a BaseException": (lambda: OwnBase("mine"), qf.StepError, "OwnBase: mine"),
    "exit()": (lambda: SystemExit(None), qf.StepError, "called sys.exit"),
    "sys.exit(3)": (lambda: SystemExit(3), qf.StepError, r"called sys.exit\(3\)"),
    "StopAsyncIteration": (lambda: StopAsyncIteration(), qf.StepError, "StopAsyncIteration"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_U2_U3_U4_U8_U9_any_exception_is_reported_and_only_its_item_fails(case):
    make, kind, text = ERRORS[case]
    assert list(qf.run(qf.process(abs), [0])) == [0]  # what workers import has been read from the disk
    began = time.monotonic()
    values, failure = one_failure(qf.process(n=2)(fails_at(3, make)))
    assert time.monotonic() - began < 2  # one of 100 MB is pickled and thrown away, on a busy machine
    assert values == [0, 1, 2, 4, 5]
    assert type(failure.error) is kind
    with pytest.raises(kind, match=text):
        raise failure.error
    assert (failure.step, failure.index, failure.item) == ("step", (3,), "3")
    assert len(pickle.dumps((failure.error.args, str(failure.error.__cause__)))) < 200_000


@pytest.mark.parametrize("leave", [exit, quit, sys.exit, lambda: next(iter(()))], ids=["exit", "quit", "sys.exit", "next"])
def test_U7_U9_no_step_can_end_the_loop_or_the_program(leave):
    def step(x):
        if x == 3:
            leave()
        return x

    values, failure = one_failure(qf.process(n=2)(step))
    assert values == [0, 1, 2, 4, 5]
    assert type(failure.error) is qf.StepError


UNSENDABLE = {
    "socket": (lambda: [socket.socket()], r"item\[0\] is <socket"),
    "generator": (lambda: {"rows": (x for x in [1])}, r"item\['rows'\] is <generator"),
    "file": (lambda: (1, {"f": open(os.devnull)}), r"item\[1\]\['f'\] is <_io"),
    "frame": (lambda: sys._getframe(), "frame"),
}


@pytest.mark.parametrize("case", UNSENDABLE)
def test_U5_what_cannot_be_sent_is_named_with_its_path_inside_the_item(case):
    make, text = UNSENDABLE[case]
    values, failure = one_failure(qf.process(n=2)(lambda x: make() if x == 3 else x) | qf.process(lambda x: x))
    assert values == [0, 1, 2, 4, 5]
    with pytest.raises(qf.TransportError, match=text):
        raise failure.error
    assert (failure.step, failure.index) == ("lambda", (3,))


def test_U5_a_lambda_can_be_sent():
    double, again = qf.run(qf.process(n=2)(lambda k: lambda x: k * x) | qf.process(lambda f: f), [2, 3])
    assert (double(5), again(5)) == (10, 15)


def test_U10_a_program_that_c_code_ends_is_a_death():
    def step(x):
        if x == 3:
            ctypes.CDLL(None)._exit(0)
        return x

    values, failure = one_failure(qf.process(n=2)(step))
    assert values == [0, 1, 2, 4, 5]
    assert type(failure.error) is qf.WorkerDied
    assert "exited with code 0 without returning" in str(failure.error)


def test_U13_an_endless_generator_step_is_bounded_and_can_be_left():
    def endless(x):
        for k in itertools.count():
            yield k, np.zeros(100_000)

    with qf.process(endless) | qf.queue(4) as pipe:
        run = pipe(itertools.count())
        assert [next(run)[0] for _ in range(10)] == list(range(10))
        began = time.monotonic()
        run.close()
        assert time.monotonic() - began < 1.5


class BadSource:
    def __iter__(self):
        raise KeyError("not today")


def test_U14_a_source_that_cannot_begin_says_so(engine):
    values, error = [], None
    try:
        values += qf.run(qf.process(abs), BadSource(), engine=engine)
    except KeyError as raised:
        error = raised
    assert (values, type(error)) == ([], KeyError)
    with pytest.raises(qf.GraphError):
        qf.run(qf.process(abs), 5, engine=engine)


def test_U15_every_value_is_a_value(engine):
    values = [
        None,
        NotImplemented,
        ...,
        Exception("x"),
        StopIteration(),
        (0, None),
        qf.SKIP.__class__,
        NO_ITEM.__class__,
        b"",
        (),
    ]
    found = list(qf.run(qf.process(n=2)(lambda x: x) | qf.process(lambda x: x), values, engine=engine))
    assert [repr(value) for value in found] == [repr(value) for value in values]
    assert found[:3] == [None, NotImplemented, ...]


def test_U16_a_one_shot_source_cannot_be_run_twice(engine):
    flow = iter([1, 2]) | qf.process(lambda x: x)
    assert list(flow(engine=engine)) == [1, 2]
    with pytest.raises(qf.GraphError, match="iterator"):
        flow(engine=engine)


def test_U19_a_process_that_a_step_has_forked_ends_by_a_signal_at_any_time():
    def fork(count):
        for _ in range(count):
            pid = os.fork()
            if not pid:
                signal.pause()
                os._exit(0)
            os.kill(pid, signal.SIGTERM)  # it may have done nothing yet
            os.waitpid(pid, 0)
        return count

    assert list(qf.run(qf.process(fork, timeout=10), [20])) == [20]


def test_U19_a_step_may_have_threads_pools_and_data_loaders():
    def threads(x):
        out = []
        workers = [threading.Thread(target=out.append, args=(x + k,)) for k in range(3)]
        [worker.start() for worker in workers]
        [worker.join() for worker in workers]
        return sorted(out)

    def pool(x):
        with multiprocessing.get_context("fork").Pool(2) as pool:
            return pool.map(abs, x)

    def loader(x):
        from torch.utils.data import DataLoader

        return [batch.tolist() for batch in DataLoader(x, batch_size=2, num_workers=1)]

    flow = qf.process(threads) | qf.process(pool) | qf.process(loader)
    assert list(flow([-9, 5], timeout=5)) == [[[9, 8], [7]], [[5, 6], [7]]]


def test_U19_a_program_that_a_step_leaves_goes_with_its_worker():
    pipe = qf.Flow(qf.process(lambda x: subprocess.Popen(["sleep", "60"]).pid))
    with pipe:
        pids = list(pipe([1]))
    try:
        assert gone(pids, 1)
    finally:
        for pid in alive(pids):
            os.kill(pid, signal.SIGKILL)


def test_U20_what_a_step_does_to_its_process_does_not_reach_the_others(tmp_path):
    def step(x):
        os.closerange(0, 3)
        os.chdir("/")
        with contextlib.suppress(ValueError):  # in a thread
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        socket.setdefaulttimeout(0.01)
        sys.stdout = None
        return x

    here = os.getcwd()
    for mark in qf.process(n=2), qf.thread(n=2):
        assert list(qf.run(mark(step) | qf.process(lambda x: (x, os.getcwd())), range(9))) == [(x, here) for x in range(9)]


@pytest.mark.parametrize("mark", [qf.process, qf.thread])
def test_U21_a_copy_of_a_worker_that_a_step_makes_gives_nothing(mark):
    def step(x):
        yield x
        os.fork()
        yield -x

    def raising(x):
        if not os.fork():
            raise KeyError(x)
        return x

    with mark(n=2)(step) | mark(n=2)(raising) as pipe:
        assert list(pipe(range(5))) == [y for x in range(5) for y in (x, -x)]


class Hangs:
    def __init__(self):
        time.sleep(60)

    def __call__(self, x):
        return x


def test_U22_a_constructor_that_hangs_can_be_left():
    pipe = qf.Flow(qf.process(n=2)(Hangs))
    with pipe:
        run = pipe(range(3))
        began = time.monotonic()
        run.close()
        assert time.monotonic() - began < 1.5


def test_U22_a_constructor_that_hangs_is_a_timeout(monkeypatch):
    monkeypatch.setattr("qflow.runtime.clock.BUILDING", 0.3)
    with qf.process(timeout=0.2)(Hangs) | qf.queue(1) as pipe, pytest.raises(qf.StepTimeout, match="was not ready in time"):
        list(pipe([1]))


class RaisesWhenDropped:
    def __del__(self):
        raise RuntimeError("dropped")


class KillsWhenDropped:
    def __init__(self, x):
        self.x = x

    def __del__(self):
        if self.x == 3 and first_try():
            kill()


@pytest.mark.parametrize("n", [1, 2])
def test_U23_what_was_sent_stays_sent_whatever_its_worker_does_afterwards(n, capfd):
    def step(x):
        kept = RaisesWhenDropped(), KillsWhenDropped(x)
        return x, len(kept)

    assert list(qf.run(qf.process(n=n)(step), range(8))) == [(x, 2) for x in range(8)]

    class AtExit:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGSEGV)

        def __call__(self, x):
            return x

    pipe = qf.Flow(qf.process(n=n, max_items=2)(AtExit))
    with pipe:
        for _ in range(2):
            assert list(pipe(range(5))) == list(range(5))


# ---- W: deaths


@pytest.mark.parametrize(
    "number", [signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGABRT], ids=lambda n: n.name
)
@pytest.mark.parametrize("mark", [qf.process, qf.thread])
def test_W4_a_crash_is_named_with_its_stack(number, mark):
    def crashes_here(x):
        if x == 3:
            signal.raise_signal(number)
        return x

    began = time.monotonic()
    values, failure = one_failure(mark(n=2)(crashes_here))
    assert time.monotonic() - began < 2
    assert values == [0, 1, 2, 4, 5]
    assert (type(failure.error), failure.index, failure.attempts) == (qf.WorkerDied, (3,), 2)
    assert f"signal {int(number)} ({number.name})" in str(failure.error)
    assert "in crashes_here" in str(failure.error)


def test_W5_the_oom_killer_is_named_with_what_the_worker_held(monkeypatch):
    kills = itertools.count()
    monkeypatch.setattr("qflow.runtime.oom.killed", lambda: next(kills))
    values, failure = one_failure(qf.process(n=2)(lambda x: kill() if x == 3 else x))
    assert values == [0, 1, 2, 4, 5]
    assert "OOM killer ended 1 process(es) meanwhile; this one had held " in str(failure.error)
    assert "Use fewer workers" in str(failure.error)


def test_W5_a_worker_that_the_kernel_ends_for_want_of_memory_says_so():
    done = script(
        """
        import os, sys
        import qflow as qf
        from qflow.demo.cap import fork_capped

        limit = fork_capped(400 << 20)
        if isinstance(limit, int):
            sys.exit(limit)
        if "cgroup" not in limit.partition(";")[0]:
            print("no cgroup")
            sys.exit()

        def grows(x):
            held = bytearray(x << 20)
            held[::4096] = b"x" * len(held[::4096])
            return x

        with qf.run(qf.process(n=2)(grows), [1, 2, 2000, 3], on_error="skip") as run:
            print(list(run))
            print(run.failures[0].index, run.stats()[0].died, run.failures[0].error, flush=True)
        os._exit(0)  # at its end this copy would wait for the thread that watches the original
        """
    )
    if done.stdout.startswith("no cgroup"):
        pytest.skip("no memory cgroup can be made here")
    values, told = done.stdout.splitlines()[:2]
    assert values == "[1, 2, 3]"
    assert re.match(
        r"\(2,\) 2 The item killed its worker 2 times, the last one, which was killed by signal 9 \(SIGKILL\)\.", told
    )
    held = re.search(r"OOM killer ended \d+ process\(es\) meanwhile; this one had held (\d+)MB", told)
    assert held is not None
    assert 150 < int(held[1]) < 450


def test_W6_a_step_that_gives_nothing_for_long_is_told_of_again_and_again(monkeypatch, caplog):
    def dozes(x):
        time.sleep(1.2 * (x == 1))

    monkeypatch.setattr("qflow.runtime.clock.STALLED", 0.25)
    assert len(list(qf.run(qf.process(dozes), range(3)))) == 3
    stalled = [record.message for record in caplog.records if "has given no result" in record.message]
    assert 2 <= len(stalled) <= 4
    for text in stalled:
        assert re.match(
            r"Step 'dozes' has given no result for [01] seconds \(process \d+, at number 2 of the items that it took\)\.", text
        )
        assert text.count("in dozes") == 1
        assert "qflow/runtime" not in text


def test_W7_a_worker_that_is_stopped_for_a_while_is_not_dead():
    pipe = qf.process(n=2)(lambda x: (os.getpid(), x)) | qf.queue(2)
    with pipe, pipe(range(200)) as run:
        pid, first = next(run)
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(1, os.kill, (pid, signal.SIGCONT)).start()
        assert [first, *(x for _, x in run)] == list(range(200))
        assert [stats.died for stats in run.stats()] == [0]


def test_W7_a_stopped_worker_can_be_left():
    pipe = qf.Flow(qf.process(n=2)(lambda x: os.getpid()))
    with pipe:
        run = pipe(itertools.count())
        os.kill(next(run), signal.SIGSTOP)
        began = time.monotonic()
        run.close()
        assert time.monotonic() - began < 1.5
        assert len(list(pipe(range(3)))) == 3


def test_W8_the_same_place_may_be_killed_again_and_again():
    deaths = 0
    with qf.process(lambda x: (os.getpid(), x)) | qf.queue(1) as pipe, pipe(range(400), engine=Processes(attempts=1000)) as run:
        values = []
        for pid, x in run:
            values.append(x)
            if x % 10 == 0:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    deaths += 1
        assert values == list(range(400))
        assert 20 <= run.stats()[0].died <= deaths


@pytest.mark.parametrize("point", ["claimed", "tagged", "released"])
def test_W8_workers_that_die_at_once_again_and_again_end_the_run(point, monkeypatch):
    monkeypatch.setenv("QFLOW_FAILPOINTS", f"{point}=kill!")
    began = time.monotonic()
    values, error = delivered(qf.process(n=2)(abs) | qf.process(abs), range(30))
    assert values == list(range(len(values)))
    if point == "claimed":  # a replacement has its item already
        assert (len(values), error) == (30, None)
    else:
        assert type(error) is qf.WorkerDied
        assert "without a result of the step between" in str(error)
    assert time.monotonic() - began < 10


LIMITED = """
    import logging, os, resource, signal, threading, time
    import qflow as qf
    from qflow.runtime import nursery
    logging.getLogger("qflow").setLevel(logging.ERROR)
    pipe = qf.process(n=3)(lambda x: (time.sleep(0.002), os.getpid(), x)[1:]) | qf.process(lambda pair: pair)
    values = []
    def limit(number):
        hard = resource.prlimit(nursery._shared["forkserver"].nursery.pid, resource.RLIMIT_NOFILE)[1]
        resource.prlimit(nursery._shared["forkserver"].nursery.pid, resource.RLIMIT_NOFILE, (number, hard))
"""


def test_W9_while_no_worker_can_be_started_the_others_go_on():
    ends(
        script(
            LIMITED
            + """
    with pipe, pipe(range(300)) as run:
        for pid, x in run:
            values.append(x)
            if x == 20:
                limit(4)
                threading.Timer(0.3, limit, (1000,)).start()
                os.kill(pid, signal.SIGKILL)
        print(values == list(range(300)), [stats.died for stats in run.stats()])
    """
        ),
        0,
        "True [1, 0]\n",
    )


def test_W9_when_none_can_be_started_for_long_the_run_ends_and_the_next_one_begins_anew():
    ends(
        script(
            LIMITED
            + """
    with pipe:
        try:
            for pid, x in pipe(range(10**6)):
                values.append(x)
                if x == 20:
                    limit(4)
                    os.kill(pid, signal.SIGKILL)
        except qf.ResourceError as error:
            print(values == list(range(len(values))), "none could be started for it" in str(error))
        print([x for _, x in pipe(range(3))])
    """
        ),
        0,
        "True True\n[0, 1, 2]\n",
    )


def test_W10_a_lock_of_a_file_goes_with_its_worker(tmp_path):
    path = tmp_path / "lock"

    def step(x):
        with open(path, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if x == 3 and first_try():
                kill()
        return x

    assert list(qf.run(qf.process(n=2)(step), range(8))) == list(range(8))


def test_W12_workers_are_signalled_by_descriptor_and_never_by_number():
    folder = Path(qf.__file__).parent
    for path in [*folder.glob("runtime/*.py"), *folder.glob("engines/*.py")]:
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        killing = [ast.unparse(call) for call in calls if ast.unparse(call.func) in ("os.kill", "os.killpg")]
        # The nursery is theirs until it is waited for, the workers are the server's; a child without a descriptor has a pipe.
        if path.name not in ("nursery.py", "server.py", "child.py"):
            assert all("os.getpid()" in call for call in killing), path


def test_W13_when_the_process_that_starts_workers_is_killed_another_one_does():
    ends(
        script(
            LIMITED
            + """
    with pipe:
        for _ in range(2):
            values = []
            with pipe(range(300)) as run:
                for _, x in run:
                    values.append(x)
                    if x == 20:
                        os.kill(nursery._shared["forkserver"].nursery.pid, signal.SIGKILL)
                print(values == list(range(300)), [stats.died for stats in run.stats()])
    """
        ),
        0,
        "True [3, 1]\nTrue [3, 1]\n",
    )


# ---- C: consumers


@pytest.fixture
def endless():
    """A warm pipe of this test alone: workers that are replaced, as when the machine stands still, would be left over."""
    with bounded() as pipe:
        list(pipe(range(3)))
        yield pipe


def bounded():
    step = qf.process(n=2)(lambda x: (os.getpid(), x))
    return qf.queue(2) | step | qf.queue(2) | qf.process(lambda pair: pair) | qf.queue(3)


def leave_by_return(run):
    for _ in run:
        return


def leave_by_zip(run):
    assert len(list(zip(range(3), run, strict=False))) == 3


def leave_by_error(run):
    with contextlib.suppress(ZeroDivisionError):
        for _, x in run:
            1 // (x - 2)


LEAVING = {
    "return": leave_by_return,
    "zip": leave_by_zip,
    "error": leave_by_error,
    "next": next,
    "never started": lambda run: None,
}


@pytest.mark.parametrize("how", LEAVING)
def test_C1_a_run_that_is_left_is_over_within_a_second(how, endless):
    source = Counted()
    run = endless(source)
    LEAVING[how](run)
    began = time.monotonic()
    del run
    gc.collect()
    assert [x for _, x in endless(range(4))] == list(range(4))  # waits until the one before is over
    assert time.monotonic() - began < 1.5
    pulled = settled(source)
    assert pulled <= endless.plan().most_alive() + 4


def test_C2_an_exception_that_keeps_its_frame_keeps_idle_workers_that_compute_nothing(endless):
    def loop():
        run = endless(itertools.count())
        for pid, x in run:
            pids.add(pid)
            if x == 20:
                raise KeyError(run)

    pids = set()
    with pytest.raises(KeyError) as kept:
        loop()
    time.sleep(0.2)  # until all queues are full
    before = {pid: cpu(pid) for pid in pids}
    time.sleep(0.5)
    assert all(cpu(pid) - before[pid] <= 0.02 for pid in pids)
    kept.value.args[0].close()


def test_C3_runs_in_two_threads_do_not_mix():
    found, pipe = {}, bounded()

    def run(first):
        found[first] = [x for _, x in pipe(range(first, first + 200))]

    threads = [threading.Thread(target=run, args=(first,)) for first in (0, 1000, 2000)]
    with pipe:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {first: list(range(first, first + 200)) for first in (0, 1000, 2000)}


def test_C4_nothing_grows_over_epochs_that_are_left_and_finished(endless):
    def epochs(count):
        for number in range(count):
            if number % 2:
                assert [x for _, x in endless(range(number, number + 5))] == list(range(number, number + 5))
            else:
                assert next(endless(itertools.count(number)))[1] == number
        gc.collect()
        return len(os.listdir("/proc/self/fd")), threading.active_count(), len(open("/proc/self/maps").readlines())

    epochs(4)
    list(endless([1]))
    before = epochs(6)
    list(endless([1]))
    after = epochs(40)
    list(endless([1]))
    assert after[0] <= before[0] + 2
    assert after[1] <= before[1] + 2
    assert after[2] <= before[2] + 20


def test_C5_a_run_of_a_thread_that_has_ended_goes_on_and_recovers(endless):
    runs = []
    with bounded() as pipe:
        thread = threading.Thread(target=lambda: runs.append(pipe(range(100))))
        thread.start()
        thread.join()
        (run,) = runs
        pid, first = next(run)
        os.kill(pid, signal.SIGKILL)
        assert [first, *(x for _, x in run)] == list(range(100))

    async def elsewhere():
        return await asyncio.to_thread(lambda: [x for _, x in endless(range(9))])

    assert asyncio.run(elsewhere()) == list(range(9))


def test_C6_a_run_inside_another_librarys_worker():
    program = """
    import multiprocessing
    import qflow as qf
    def inner(n):
        return list(qf.run(qf.process(n=2)(abs), range(-n, 0)))
    with multiprocessing.get_context("fork").Pool(1) as pool:
        print(pool.map(inner, [3, 0]))
        pool.close()
        pool.join()
    """
    ends(script(program), 0, "[[3, 2, 1], []]\n")


def test_C7_a_run_may_be_collected_in_any_thread(endless):
    for _ in range(3):
        box = [endless(itertools.count())]
        next(box[0])
        box.append(box)
        threads = [threading.Thread(target=f) for f in (box.clear, gc.collect, gc.collect)]
        del box
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        del threads
    assert [x for _, x in endless(range(4))] == list(range(4))


def test_C7_workers_stay_although_their_program_stands_still_while_a_run_is_left(endless, monkeypatch):
    """As in a garbage collection of millions of objects: nobody here can hear that the workers rest."""
    workers = {pid for pid, _ in endless(range(200))}
    stand_still = ctypes.PyDLL(None).usleep  # a PyDLL keeps the lock of the interpreter
    stands, unheard, wait, heard = [], [], Crew.wait, Supervisor.all_rest.fget
    monkeypatch.setattr(Crew, "wait", lambda *args: stand_still(stands.pop()) if stands else wait(*args))
    monkeypatch.setattr(Supervisor, "all_rest", property(lambda its: heard(its) and not (unheard and unheard.pop())))
    run = endless(itertools.count())
    next(run)
    stands.append(600_000)
    unheard.extend([True] * 4)
    run.close()
    assert {pid for pid, _ in endless(range(200))} == workers


ITERATING = """
    import itertools, os, signal, sys, threading, time
    import qflow as qf
    stuck = {stuck}
    pipe = qf.Flow(qf.process(n=2)(lambda x: (os.getpid(), time.sleep(60) if stuck and x > 40 else None)[0]))
    run = pipe(itertools.count())
    pids = {{next(run) for _ in range(40)}}
    print(*pids, flush=True)
"""
ENDINGS = {
    "an error": ("raise KeyError('mine')", 1, "KeyError: 'mine'"),
    "sys.exit": ("sys.exit(5)", 5, ""),
    "os._exit": ("os._exit(0)", 0, ""),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(5)", -signal.SIGTERM, ""),
}


@pytest.mark.parametrize("stuck", [False, True], ids=["busy", "stuck"])
@pytest.mark.parametrize("how", ENDINGS)
def test_C9_C11_the_end_of_a_program_is_its_own_and_quick(how, stuck):
    line, code, says = ENDINGS[how]
    done = script(ITERATING.format(stuck=stuck) + f"    {line}\n")
    assert gone(done.stdout.split())
    assert done.stdout.split()
    assert done.returncode == code
    assert done.stderr.splitlines()[-1:] == ([says] if says else [])
    assert done.stderr.count("Traceback") == bool(says)


def test_C10_a_second_ctrl_c_while_it_closes_ends_the_workers_at_once():
    done = script(
        ITERATING.format(stuck=True)
        + """
    def interrupt():
        for wait in (0.3, 0.1):
            time.sleep(wait)
            os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=interrupt).start()
    try:
        try:
            for _ in run: pass
        except KeyboardInterrupt:
            time.sleep(0.2)
            raise
    except KeyboardInterrupt:
        began = time.monotonic()
        pipe.close()
        print(time.monotonic() - began < 1, not [pid for pid in pids if os.path.exists(f"/proc/{pid}")])
    """
    )
    assert (done.returncode, done.stdout.splitlines()[1:], done.stderr) == (0, ["True True"], "")


def test_C11_workers_ignore_what_a_scheduler_sends_to_the_whole_group():
    done = script(
        """
    import os, signal, time
    import qflow as qf
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    values = []
    with qf.process(n=2)(lambda x: (os.getpid(), x)) | qf.queue(2) as pipe, pipe(range(200)) as run:
        for pid, x in run:
            values.append(x)
            if x == 20:
                os.killpg(0, signal.SIGTERM)
                os.kill(pid, signal.SIGTERM)
                os.kill(pid, signal.SIGINT)
        print(values == list(range(200)), told, run.stats()[0].died)
    """,
        start_new_session=True,
    )
    ends(done, 0, "True [1] 0\n")


PARENTS = {
    "in C code": "__import__('re').match(r'(a|aa)+$', 'a' * 60 + 'b') if x > 40 else None",
    "stopped": "os.kill(os.getpid(), signal.SIGSTOP) if x > 40 else None",
    "writing": "bytes(10**6)",
}


@pytest.mark.parametrize("state", PARENTS)
def test_C12_workers_in_any_state_go_when_their_parent_is_killed(state):
    program = f"""
    import itertools, os, signal, time
    import qflow as qf
    pipe = qf.Flow(qf.process(n=2)(lambda x: (os.getpid(), {PARENTS[state]})[0]))
    run = pipe(itertools.count())
    print(*{{next(run) for _ in range(40)}}, flush=True)
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    done = script(program)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.split()
    assert gone(done.stdout.split())


def test_C12_workers_that_are_being_built_go_when_their_parent_is_killed(tmp_path):
    program = f"""
    import os, signal, time
    import qflow as qf
    class Slow:
        def __init__(self):
            open({str(tmp_path)!r} + f"/{{os.getpid()}}", "w").close()
            time.sleep(60)
        def __call__(self, x):
            return x
    run = qf.run(qf.process(n=2)(Slow), [1])
    while len(os.listdir({str(tmp_path)!r})) < 2:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    assert script(program).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    assert gone([path.name for path in tmp_path.iterdir()])


def test_C13_a_running_iterator_says_why_it_cannot_be_copied(endless):
    with endless(range(5)) as run:
        assert len(run) == 5
        for copied in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="can't be copied or pickled"):
                copied(run)
        assert len(list(run)) == 5


def test_C15_the_loop_may_run_others_and_close_its_own():
    with bounded() as pipe:
        taken, run = [], pipe(range(100))
        for _, x in run:
            taken.append(x)
            assert [y for _, y in pipe(range(3))] == [0, 1, 2]
            assert list(qf.run(qf.process(abs), [-x])) == [x]
            if x == 2:
                run.close()
                run.close()
        assert taken == [0, 1, 2]
        assert [x for _, x in pipe(range(3))] == [0, 1, 2]


# ---- T: time and load


def test_T1_slow_steps_quick_switches_and_one_core_change_nothing():
    ends(
        script(
            """
    import os, random, sys, time
    import qflow as qf
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    sys.setswitchinterval(1e-6)
    def slow(x):
        time.sleep(random.random() * 0.004)
        return x
    pipe = qf.process(n=3)(slow) | qf.thread(n=3)(slow) | qf.map(lambda x: [x]) | qf.repack(3) | qf.process(n=2)(slow)
    with pipe:
        for _ in range(2):
            assert [x for xs in pipe(range(100)) for x in xs] == list(range(100))
    print("same")
    """
        ),
        0,
        "same\n",
    )


def test_T3_a_straggler_holds_a_bounded_number_of_others_back():
    source = Counted()
    pipe = qf.queue(2) | qf.process(n=3)(lambda x: time.sleep(0.8) if x == 0 else x) | qf.queue(4)
    with pipe, pipe(source) as run:
        assert settled(source) <= pipe.plan().most_alive()
        assert [next(run) for _ in range(50)] == [None, *range(1, 50)]


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("bound", [1, 5])
def test_T4_the_smallest_streams(bound, n):
    step = qf.process(n=n)(lambda x: x)
    pipe = qf.queue(bound) | step | qf.queue(bound) | qf.pack(100) | qf.unpack() | step | qf.pack(3) | qf.queue(bound)
    with pipe:
        for size in (0, 1, 2, 3, 7):
            expected = [list(range(k, min(k + 3, size))) for k in range(0, size, 3)]
            assert list(pipe(range(size))) == expected
