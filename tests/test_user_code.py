"""User code that does what it should not: to its process, to its descriptors, to the reading of a source."""

from __future__ import annotations

import concurrent.futures
import contextlib
import locale
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback

import pytest
from scenario import Ends, assert_gone, lives, program, script

import qflow as qf

pytestmark = pytest.mark.usefixtures("one_nursery")

# ---- U14: sources that cannot begin, or stop in the middle


class Begins:
    """A source whose ``__iter__`` does what it is told."""

    def __init__(self, how):
        self.how = how

    def __iter__(self):
        return self.how()


class Rows:
    """A data set of three rows, of which the last can't be read."""

    def __init__(self, how):
        self.how = how

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return index if index < 2 else self.how()


def gone():
    raise KeyError("gone")


def stops():
    raise StopIteration("early")


def begun(source, engine):
    """What starting a run raises."""
    with pytest.raises(BaseException) as raised:
        qf.run(qf.process(abs), source, engine=engine)
    return raised.value


def test_U14_what_iter_raises_is_raised_as_it_is_where_the_run_is_started(engine):
    error = begun(Begins(gone), engine)
    assert (type(error), error.args) == (KeyError, ("gone",))
    assert "in gone" in "".join(traceback.format_exception(error))
    assert type(begun(Begins(lambda: 5), engine)) is TypeError


def test_U14_what_iter_raises_says_that_it_was_in_the_source(engine):
    assert "in step 'source'" in "".join(getattr(begun(Begins(gone), engine), "__notes__", []))


def test_U14_a_source_that_cannot_begin_never_ends_a_loop_quietly(engine):
    """As a StopIteration in a step, it is an error and not an end."""
    try:
        sums = [*map(lambda source: sum(qf.run(qf.process(abs), source, engine=engine)), [[1], Begins(stops), [2]])]  # noqa: C417
    except qf.StepError:
        return
    assert len(sums) == 3


@pytest.mark.parametrize("how", [gone, stops], ids=["KeyError", "StopIteration"])
def test_U14_rows_that_cannot_be_read_come_in_their_turn(how, engine):
    values, error = [], None
    try:
        for value in qf.run(qf.process(abs), Rows(how), engine=engine):
            values.append(value)
    except (KeyError, RuntimeError) as raised:
        error = raised
    assert values == [0, 1]
    assert "in step 'source', item 2" in error.__notes__[0]


def test_U14_a_pipe_runs_again_after_a_source_that_could_not_begin():
    with qf.process(n=2)(abs) | qf.queue(2) as pipe:
        for _ in range(3):
            with pytest.raises(KeyError):
                pipe(Begins(gone))
            assert list(pipe([-1, -2])) == [1, 2]


# ---- U19: what a step starts, it may leave behind


def pool_left(x):
    pool = multiprocessing.get_context("fork").Pool(2)
    found = pool.map(abs, [-x, x])
    left.append(pool)  # nobody closes it
    return found, [child.pid for child in pool._pool]


def executor_left(x):
    executor = concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("fork"))
    left.append(executor)
    return [*executor.map(abs, [-x, x])], [*executor._processes]


def threads_left(x):
    executor = concurrent.futures.ThreadPoolExecutor(2)
    left.append(executor)
    executor.submit(time.sleep, 60)
    return [*executor.map(abs, [-x])], [os.getpid()]


def loader_left(x):
    from torch.utils.data import DataLoader

    batches = iter(DataLoader(range(100), batch_size=2, num_workers=2))
    left.append(batches)
    return next(batches).tolist(), [worker.pid for worker in batches._workers]


def flow_left(x):
    run = qf.run(qf.process(n=2)(lambda x: os.getpid()) | qf.queue(1), range(10**6))
    left.append(run)
    return 0, [next(run)]


left = []
LEAVES = [pool_left, executor_left, threads_left, loader_left, flow_left]


@pytest.mark.parametrize("leaves", LEAVES, ids=lambda leaves: leaves.__name__)
def test_U19_what_a_step_left_running_ends_with_the_pipe(leaves):
    with qf.process(n=2)(leaves) | qf.queue(1) as pipe:
        pids = {pid for _, made in pipe([3, 4], timeout=60) for pid in made}
        assert all(map(lives, pids))
        ends = Ends(pids)
        began = time.monotonic()
    assert ends.last() - began < 2


@pytest.mark.parametrize("leaves", [pool_left, loader_left], ids=lambda leaves: leaves.__name__)
def test_U19_what_a_step_left_running_ends_with_a_worker_that_dies(leaves, tmp_path):
    def step(x):
        made = leaves(x)[1]
        if qf.worker().attempt == 1:
            tmp_path.joinpath("pids").write_text(" ".join(map(str, made)))
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    with qf.process(n=2)(step) | qf.queue(1) as pipe:
        assert list(pipe([3])) == [3]
        assert_gone([*map(int, tmp_path.joinpath("pids").read_text().split())])


# ---- U20: what a step does to its process


def closes(x):
    os.closerange(0, 3)


def closes_and_opens(x):
    os.closerange(0, 3)
    assert os.open(os.devnull, os.O_RDWR) < 2  # what libraries log to is now another file; 1: after another thread's


def changes_locale(x):
    for name in ("C", "POSIX", "C.UTF-8"):
        with contextlib.suppress(locale.Error):
            locale.setlocale(locale.LC_ALL, name)


def takes_signals(x):
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def hurries_sockets(x):
    socket.setdefaulttimeout(1e-6)


def leaves_its_folder(x):
    os.chdir("/")
    os.umask(0o777)
    os.environ.clear()


def hides_its_streams(x):
    sys.stdout = sys.stderr = sys.stdin = None


def takes_the_recursion(x):
    sys.setrecursionlimit(120)
    threading.settrace(None)
    sys.setswitchinterval(10)


RUDE = [closes, closes_and_opens, changes_locale, takes_signals, hurries_sockets, leaves_its_folder, hides_its_streams]
RUDE += [takes_the_recursion]


@pytest.mark.parametrize("rude", RUDE, ids=lambda rude: rude.__name__)
@pytest.mark.parametrize("mark", [qf.process, qf.thread])
def test_U20_what_a_step_does_to_its_process_reaches_no_item(rude, mark):
    def step(x):
        if rude is not takes_signals or threading.current_thread() is threading.main_thread():
            rude(x)
        if x % 5 == 3:
            raise LookupError(f"no {x}")
        return x, bytes(100_000)

    here = os.getcwd()
    with mark(n=2)(step) | qf.process(lambda pair: (pair[0], len(pair[1]), os.getcwd())) | qf.queue(2) as pipe:
        for _ in range(2):
            with pipe(range(20), on_error="skip") as run:
                assert list(run) == [(x, 100_000, here) for x in range(20) if x % 5 != 3]
                assert [(failure.index, failure.error.args) for failure in run.failures] == [
                    ((x,), (f"no {x}",)) for x in range(3, 20, 5)
                ]


@pytest.mark.parametrize("rude", RUDE, ids=lambda rude: rude.__name__)
def test_U20_a_rude_worker_still_dies_is_replaced_and_ends(rude, tmp_path):
    def step(x):
        rude(x)
        if x == 3 and qf.worker().attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        tmp_path.joinpath(str(os.getpid())).touch() if rude is not leaves_its_folder else None
        return x, os.getpid()

    with qf.process(n=2, timeout=20)(step) | qf.queue(2) as pipe:
        with pipe(range(9)) as run:
            found = list(run)
            assert [x for x, _ in found] == list(range(9))
            assert run.stats()[0].died == 1
        ends = Ends(pid for _, pid in found)
        began = time.monotonic()
    assert ends.last() - began < 1


@pytest.mark.parametrize("rude", RUDE, ids=lambda rude: rude.__name__)
def test_U20_a_rude_step_that_is_late_is_still_a_timeout(rude):
    def step(x):
        rude(x)
        if x == 3:
            time.sleep(60)
        return x

    with qf.run(qf.process(n=2, timeout=0.5)(step), range(6), on_error="skip") as run:
        assert list(run) == [0, 1, 2, 4, 5]
        (failure,) = run.failures
    assert (type(failure.error), failure.index) == (qf.StepTimeout, (3,))


@pytest.mark.parametrize("rude", [closes, takes_signals, hurries_sockets], ids=lambda rude: rude.__name__)
def test_U20_a_rude_worker_goes_when_its_parent_is_killed(rude):
    with program(
        f"""
        import itertools, os, sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        import qflow as qf
        from test_user_code import {rude.__name__} as rude
        def step(x):
            rude(x)
            return os.getpid()
        run = qf.run(qf.process(n=2)(step) | qf.queue(2), itertools.count())
        print(*{{next(run) for _ in range(40)}}, flush=True)
        sys.stdin.readline()
        """
    ) as child:
        ends = Ends(child.stdout.readline().split())
        began = time.monotonic()
        child.kill()
        assert ends.last() - began < 1


@pytest.mark.slow
@pytest.mark.parametrize("mark", ["process", "thread"])
def test_U20_a_hundred_megabytes_of_print_reach_the_terminal_and_disturb_nobody(mark):
    """Every line of it, behind the step's name, while the items come in order and none waits for it for ever."""
    done = script(
        f"""
        import qflow as qf
        def shouts(x):
            if x < 10:
                for number in range(10_000):
                    print(f"{{x}} {{number}} " + "x" * 990)
            return x
        with qf.{mark}(n=2)(shouts) | qf.queue(2) as pipe:
            assert list(pipe(range(40))) == list(range(40))
        """,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 100_000
    for x in range(10):
        numbers = [line.split()[2] for line in lines if line.startswith(f"[shouts] {x} ")]
        assert numbers == [str(number) for number in range(10_000)]
