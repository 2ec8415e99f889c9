"""The contract of the process engine, with real processes: order, errors, early stop, death, bounds, warm workers."""

from __future__ import annotations

import contextlib
import gc
import glob
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import warnings

import numpy as np
import pytest

import qflow as qf
from qflow.engines.warm import warm_of
from qflow.runtime.board import VIEWS
from qflow.testing import leaks

pytestmark = pytest.mark.usefixtures("one_nursery")


def pid_of(_):
    return os.getpid()


def delivered(flow, source, **options):
    """The values that came, and the error that ended them."""
    values = []
    try:
        for value in flow(source, **options):
            values.append(value)
    except Exception as error:
        return values, error
    return values, None


@pytest.mark.parametrize("step", [qf.process(pid_of), qf.process(n=3)(pid_of), qf.thread(n=2)(pid_of), qf.map(pid_of)], ids=repr)
@pytest.mark.parametrize("items", [1, 5])
def test_no_step_runs_in_the_callers_process(step, items):
    pids = set(qf.run(step, range(items)))
    assert os.getpid() not in pids
    assert len(pids) <= 3


def test_a_pools_elements_run_in_its_workers():
    ((pid,),) = qf.run(qf.pool(n=2)(pid_of), [[1]])
    assert pid != os.getpid()


def test_thread_steps_share_one_process_and_really_overlap():
    barrier_step = qf.thread(n=4)(Meet())
    values = list(qf.run(barrier_step, range(8)))
    assert len({pid for pid, _ in values}) == 1
    assert len({thread for _, thread in values}) == 4


class Meet:
    """Waits for four callers at a time; a class would be built per thread, an instance is shared by those of its process."""

    _barriers: dict = {}

    def __call__(self, item):
        barrier = self._barriers.setdefault(os.getpid(), threading.Barrier(4, timeout=10))
        barrier.wait()
        return os.getpid(), threading.get_ident()


def compute(x):
    until = time.perf_counter() + 0.0001
    while time.perf_counter() < until:
        pass
    return x


def wait(x):
    time.sleep(0.0001)
    return x


def most_claimed(step):
    """The most values that one of two workers has taken at once, as far as it was seen."""
    with qf.Flow(qf.process(n=2)(step)) as pipe:
        found = {1}
        with pipe(range(2000)) as run:
            (session,) = warm_of(pipe).sessions
            board = session.crew.channels.board
            for _ in run:
                found |= {board.job[worker][3] for worker in (1, 2)}
        return max(found)


def test_what_computes_is_taken_several_at_once_and_what_waits_alone():
    assert most_claimed(compute) > 2
    assert most_claimed(wait) == 1


def test_a_slow_item_keeps_its_place():
    def slow_first(x):
        if x == 0:
            time.sleep(0.3)
        return x

    step = qf.process(n=3)(slow_first)
    assert list(qf.run(step, range(20))) == list(range(20))
    first = next(qf.run(step, range(20), ordered=False))
    assert first != 0


def test_a_class_is_built_once_per_worker():
    class Counting:
        def __init__(self, start):
            self.calls = start

        def __call__(self, item):
            self.calls += 1
            return os.getpid(), self.calls

    step = qf.process(n=2)(Counting)
    values = list((step(100) | qf.queue(2))(range(10)))
    for pid in {pid for pid, _ in values}:
        assert [calls for each, calls in values if each == pid] == list(range(101, 101 + sum(each == pid for each, _ in values)))


# ---- errors


@pytest.mark.parametrize("at", [0, 1, 7, 19])
@pytest.mark.parametrize("n", [1, 3])
def test_the_values_before_a_failure_come_first_then_the_users_exception(at, n):
    def fail(x):
        if x == at:
            raise LookupError(f"no {x}")
        return x

    pipe = qf.process(n=n)(fail) | qf.process(lambda x: x) | qf.queue(2)
    with pipe:
        values, error = delivered(pipe, range(20))
        assert values == list(range(at))
        assert type(error) is LookupError
        (note,) = error.__notes__
        assert f"in step 'fail', item {at} ({at}), worker " in note
        assert 'raise LookupError(f"no {x}")' in str(error.__cause__)
        assert list(pipe([at + 1])) == [at + 1]


def test_children_before_the_failing_one_come_and_the_index_path_tells_which():
    def children(x):
        yield x
        yield x + 1
        if x == 10:
            raise ValueError("third")

    values, error = delivered(qf.process(n=2)(children) | qf.process(lambda x: x), [0, 10, 20])
    assert values == [0, 1, 10, 11]
    assert "item 1.2 (10)" in error.__notes__[0]
    values, error = delivered(qf.process(children) | qf.process(lambda x: 1 // (x - 1)), [0, 5])
    assert values == [-1]
    assert "item 0.1 (1)" in error.__notes__[0]


class TwoArguments(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


class Lying(Exception):
    def __reduce__(self):
        return (str, ("not an exception",))


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: TwoArguments(1, 2), "TwoArguments: 1 and 2"),
        (lambda: Lying("x"), "Lying: x"),
        (lambda: ValueError(threading.Lock()), "ValueError: <unlocked"),
        (lambda: Unprintable("x"), "Unprintable: <unprintable>"),
        (lambda: StopIteration(5), "raised StopIteration"),
        (lambda: GeneratorExit(), "GeneratorExit"),
        (lambda: KeyboardInterrupt(), "KeyboardInterrupt"),
        (lambda: SystemExit(0), r"called sys.exit\(0\)"),
    ],
)
@pytest.mark.parametrize("mark", [qf.process, qf.thread])
def test_what_cannot_travel_as_it_is_becomes_a_step_error(make, text, mark):
    def fail(x):
        if x == 2:
            raise make()
        return x

    values, error = delivered(qf.Flow(mark(n=2)(fail)), range(5))
    assert values == [0, 1]
    assert type(error) is qf.StepError
    with pytest.raises(qf.StepError, match=text):
        raise error
    assert (error.step, error.index) == ("fail", (2,))


def test_a_result_that_cannot_be_sent_fails_at_its_item():
    values, error = delivered(qf.Flow(qf.process(n=2)(lambda x: {"fn": threading.Lock()} if x == 3 else x)), range(6))
    assert values == [0, 1, 2]
    assert isinstance(error, qf.TransportError)
    assert "item['fn'] is <unlocked" in str(error)
    assert "item 3" in error.__notes__[0]


def test_a_step_that_cannot_be_sent_names_what_it_captures():
    handle = threading.Lock()

    def use(x):
        return handle, x

    pipe = qf.Flow(qf.process(use))
    with pytest.raises(qf.GraphError, match="'use' can't be sent to a worker: it captures `handle`"):
        pipe([1])


def test_a_failing_source_tells_after_how_many_items():
    def source():
        yield 1
        yield 2
        raise KeyError("gone")

    values, error = delivered(qf.Flow(qf.process(lambda x: x)), source())
    assert values == [1, 2]
    assert type(error) is KeyError
    assert "in step 'source', item 2" in error.__notes__[0]


@pytest.mark.parametrize("error", [SystemExit(2), GeneratorExit(), KeyboardInterrupt()])
def test_nothing_a_source_raises_ends_the_loop_quietly(error):
    def source():
        yield 1
        raise error

    values, raised = delivered(qf.Flow(qf.process(lambda x: x)), source())
    assert values == [1]
    assert isinstance(raised, qf.StepError)


def test_an_item_larger_than_a_cell_is_an_error_and_not_a_hang(monkeypatch):
    monkeypatch.setattr("qflow.runtime.memory.MOST_SPACE", 1 << 24)
    pipe = qf.Flow(qf.process(lambda n: bytes(n)))
    with pipe:
        _, error = delivered(pipe, [10_000_000])
        assert isinstance(error, qf.TransportError)
        _, error = delivered(pipe, [b"x" * 10_000_000])
        assert isinstance(error, qf.TransportError)
        assert [len(value) for value in pipe([5])] == [5]


def test_a_source_item_that_cannot_be_sent_fails_in_its_turn():
    values, error = delivered(qf.Flow(qf.process(lambda x: x)), [1, [threading.Lock()]])
    assert values == [1]
    assert isinstance(error, qf.TransportError)
    assert "item of the source" in str(error)


def test_writing_into_an_input_says_how_to_do_it():
    def scale(x):
        x *= 2
        return x

    _, error = delivered(qf.Flow(qf.process(scale)), [np.ones(100_000)])
    assert type(error) is ValueError
    assert any("copy" in note for note in error.__notes__)
    _, error = delivered(qf.Flow(qf.process(scale)), [np.ones(3)])
    assert type(error) is ValueError  # small or large, the rule is the same


def test_a_class_that_fails_to_build_says_so():
    class Broken:
        def __init__(self):
            raise OSError("no weights")

        def __call__(self, x):
            return x

    values, error = delivered(qf.Flow(qf.process(n=2)(Broken)), range(3))
    assert values == []
    assert type(error) is OSError


# ---- death


@pytest.mark.parametrize(
    ("die", "how"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "killed by signal 9"),
        (lambda: signal.raise_signal(signal.SIGSEGV), "killed by signal 11"),
        (lambda: os._exit(0), "exited with code 0"),
        (lambda: os._exit(7), "exited with code 7"),
    ],
)
@pytest.mark.parametrize("mark", [qf.process, qf.thread])
def test_a_dead_worker_is_an_error_that_names_the_item(die, how, mark):
    def step(x):
        if x == 5:
            die()
        return x

    pipe = qf.Flow(mark(n=2)(step))
    assert list(pipe([1])) == [1]  # warm, so that only the death is timed
    began = time.monotonic()
    values, error = delivered(pipe, range(20))
    assert time.monotonic() - began < 5
    assert isinstance(error, qf.WorkerDied)
    assert how in str(error)
    assert error.step == "step"
    if mark is qf.process:  # threads die together, with what they all were at
        assert (values, error.index) == (list(range(5)), (5,))
    else:
        assert values == list(range(5))[: len(values)]
    assert list(pipe([1, 2])) == [1, 2]


# ---- early stop


@pytest.fixture
def forever():
    pipe = qf.process(n=2)(lambda x: x + 1) | qf.process(lambda x: x) | qf.queue(3)
    with pipe:
        yield pipe


def test_endless_sources_and_early_breaks(forever):
    for _ in range(5):
        taken = list(itertools.islice(forever(itertools.count()), 10))
        assert taken == list(range(1, 11))
        for value in forever(itertools.count(100)):
            if value > 105:
                break
        with forever(itertools.count()) as run:
            next(run)


def test_workers_stay_warm_between_runs_and_go_with_the_pipe():
    pipe = qf.Flow(qf.process(n=2)(pid_of))
    with pipe:
        before = {pid for _ in range(5) for pid in pipe(range(50))}
        assert len(before) <= 2
    assert not [pid for pid in before if os.path.exists(f"/proc/{pid}")]
    assert list(qf.Flow(qf.process(abs))([-1])) == [1]


def test_many_short_epochs(forever):
    for size in [0, 1, 2, 0, 3] * 20:
        assert list(forever(range(size))) == [x + 1 for x in range(size)]


def test_two_runs_at_once_have_workers_of_their_own(forever):
    pairs = list(zip(forever(range(5)), forever(range(10, 15)), strict=True))
    assert pairs == [(x + 1, x + 11) for x in range(5)]


def test_a_run_in_a_thread(forever):
    out = []
    thread = threading.Thread(target=lambda: out.extend(forever(range(9))))
    thread.start()
    thread.join(20)
    assert out == list(range(1, 10))


def test_a_run_inside_a_step():
    inner = lambda x: list(qf.run(qf.process(n=2)(lambda y: y * 2), range(x)))
    assert list(qf.run(qf.process(inner), [3, 0])) == [[0, 2, 4], []]


def test_user_code_that_does_not_stop_is_killed_after_the_grace():
    started = qf.process(lambda x: time.sleep(60) if x else x)
    run = qf.run(started, range(5))
    assert next(run) == 0
    time.sleep(0.1)  # so that it is asleep
    began = time.monotonic()
    run.close()
    run.close()
    assert time.monotonic() - began < 3


def test_an_exhausted_run_cannot_be_iterated_again(engine):
    run = qf.run(qf.process(abs), [1], engine=engine)
    assert list(run) == [1]
    assert next(run, None) is None
    with pytest.raises(qf.GraphError, match="exhausted"):
        iter(run)


def test_a_dropped_run_and_a_dropped_pipe_leave_nothing():
    pipe = qf.Flow(qf.process(n=2)(lambda x: x))
    run = pipe(itertools.count())
    next(run)
    cycle = [run]
    cycle.append(cycle)
    del run, cycle, pipe
    gc.collect()  # the watch over what is left does the rest


def test_an_exception_in_the_loop_leaves_the_pipe_usable(forever):
    with pytest.raises(ZeroDivisionError):
        for value in forever(range(10)):
            1 // (value - 2)
    assert list(forever(range(3))) == [1, 2, 3]


# ---- bounds


class Counted:
    """A source that counts what was pulled."""

    def __init__(self, make=lambda i: i):
        self.pulled, self.make = 0, make

    def __iter__(self):
        while True:
            self.pulled += 1
            yield self.make(self.pulled - 1)


def settled(source):
    """The count once it no longer grows."""
    last = -1
    while source.pulled != last:
        last = source.pulled
        time.sleep(0.1)
    return last


@pytest.mark.parametrize(("bound", "n"), [(1, 1), (1, 3), (4, 2), (3, 1)])
def test_the_source_is_pulled_no_further_than_queues_and_workers_hold(bound, n):
    source = Counted()
    pipe = qf.queue(bound) | qf.process(n=n)(lambda x: x) | qf.queue(bound) | qf.process(n=n)(lambda x: x) | qf.queue(bound)
    most = pipe.plan().most_alive()
    assert most == 3 * bound + 2 * n + 1
    with pipe, pipe(source) as run:
        assert settled(source) <= most
        for taken in range(1, 4):
            next(run)
            assert settled(source) <= most + taken


def test_large_items_hold_bounded_memory():
    size = 100_000_000
    source = Counted(lambda i: np.full(size // 8, float(i)))
    pipe = qf.queue(1) | qf.process(lambda x: x + 1) | qf.queue(1)
    with pipe, pipe(source) as run:
        taken = [float(next(run)[0]) for _ in range(8)]
        settled(source)
        pages = shared_bytes()
    assert taken == [float(i + 1) for i in range(8)]
    # 2 cells before the step and 2 after it, and those that the consumer's views may hold
    assert pages <= (2 + 2 + VIEWS) * size * 1.1


def shared_bytes():
    """Shared memory of qflow in this process: resident bytes of its channels."""
    total, inside = 0, False
    for line in open("/proc/self/smaps"):
        if "-" in line.split(" ")[0] and not line.startswith(" "):
            inside = "memfd:qflow-edge" in line
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def test_kept_values_never_change_and_keeping_them_never_stalls():
    arrays = [np.full(50_000, float(i)) for i in range(30)]
    kept = list(qf.run(qf.process(n=2)(lambda x: x + 1), arrays))
    assert [float(a[0]) for a in kept] == [float(i + 1) for i in range(30)]
    assert all((a == a[0]).all() for a in kept)
    kept[0][:] = -1
    assert float(kept[1][0]) == 2.0


def test_values_kept_from_an_earlier_run_never_change():
    class Keeping:
        def __init__(self):
            self.kept = []

        def __call__(self, x):
            self.kept.append(x)
            return x + 1, [float(k[0]) for k in self.kept]

    pipe = qf.Flow(qf.process(Keeping))
    with pipe:
        kept = []
        for epoch in range(4):
            source = [np.full(50_000, 1000.0 * epoch + i) for i in range(5)]
            kept += [value for value, _ in pipe(source)]
            next(iter(pipe(source)))  # a run cut short
        *_, (_, seen) = pipe([np.zeros(50_000)])
    assert [float(a[0]) for a in kept] == [1000.0 * epoch + i + 1 for epoch in range(4) for i in range(5)]
    assert seen[:5] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert sorted(seen)[-1] == 3004.0


def test_many_short_runs_that_keep_a_value_each():
    pipe = qf.Flow(qf.process(n=2)(lambda x: x + 1))
    with pipe:
        kept = [next(iter(pipe([np.full(50_000, float(i))] * 3))) for i in range(30)]
    assert [float(a[-1]) for a in kept] == [i + 1.0 for i in range(30)]


def test_closing_from_another_thread_ends_the_loop():
    pipe = qf.Flow(qf.process(lambda x: time.sleep(0.01)))
    run = pipe(itertools.count())
    threading.Timer(0.5, run.close).start()
    with pipe, pytest.raises(qf.GraphError, match="closed"):
        for _ in run:
            pass
    assert list(pipe([1])) == [None]


def test_a_stream_that_ends_before_its_input(engine):
    from qflow.graph.accumulator import Accumulator
    from qflow.graph.flow import Stream

    class First(Stream):
        name = "first"

        def accumulator(self, state=None):
            return Firsts(state)

    class Firsts(Accumulator):
        ends = True

        def __init__(self, state):
            self.state = state or 0

        def add(self, value):
            self.state += 1
            yield value

        @property
        def done(self):
            return self.state == 3

        state = 0

    assert list((qf.process(n=2)(abs) | First() | qf.process(abs))(range(1000), engine=engine)) == [0, 1, 2]


def test_a_program_that_a_step_starts_can_be_terminated():
    def step(x):
        with subprocess.Popen(["sleep", "20"]) as program:
            program.terminate()
            return program.wait(5)

    assert list(qf.run(qf.process(step), [1])) == [-signal.SIGTERM]


def test_a_program_with_many_open_files_can_run_and_close():
    done = script(
        """
        import os
        import qflow as qf
        files = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
        print(list(qf.run(qf.process(n=2)(abs), [-1])))
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[1]\n", "")


def test_too_few_descriptors_are_an_error_that_leaves_nothing():
    done = script(
        """
        import os, resource
        import qflow as qf
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            try:
                list(qf.run(qf.process(n=30)(abs), [-1]))
            except qf.ResourceError as error:
                print(len(os.listdir("/proc/self/fd")) - before)
        print(list(qf.run(qf.process(n=2)(abs), [-1])))
        """
    )
    assert (done.returncode, done.stdout) == (0, "0\n0\n0\n[1]\n")


@pytest.mark.parametrize("seconds", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_an_interrupted_start_does_not_spoil_the_next(seconds):
    done = script(
        """
        import os, random, signal, threading, time
        import qflow as qf
        rng = random.Random(1)
        pipe = qf.process(n=2)(abs) | qf.queue(2)
        list(pipe(range(3)))
        before = len(os.listdir("/proc/self/fd"))
        deadline = time.monotonic() + SECONDS
        failures = 0
        while time.monotonic() < deadline:
            timer = threading.Timer(rng.uniform(0, 0.02), os.kill, (os.getpid(), signal.SIGINT))
            try:
                timer.start()
                fresh = qf.Flow(qf.process(n=2)(abs))
                assert list(fresh(range(3))) == [0, 1, 2]
                timer.join()
                time.sleep(0.001)
            except KeyboardInterrupt:
                pass
            except qf.QFlowError as error:
                failures += 1
        time.sleep(1)
        assert list(pipe(range(3))) == [0, 1, 2]
        pipe.close()
        print(failures < 5)
        """.replace("SECONDS", str(seconds))
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_a_step_that_keeps_its_inputs_does_not_stall_and_sees_them_unchanged():
    class Keeping:
        def __init__(self):
            self.kept = []

        def __call__(self, x):
            self.kept.append(x)
            return [float(k[0]) for k in self.kept]

    step = qf.process(Keeping)
    *_, last = qf.run(step, [np.full(50_000, float(i)) for i in range(20)])
    assert last == [float(i) for i in range(20)]


# ---- what workers say


def test_print_warnings_and_logging_of_workers_appear_with_the_steps_name(capsys, caplog):
    def talk(x):
        print("hello", x)
        os.write(1, b"raw\n")
        warnings.warn("careful", stacklevel=1)
        logging.getLogger("my.step").info("logged %d", x)
        logging.getLogger("my.step").debug("not this")
        return x

    with caplog.at_level(logging.INFO):
        assert list(qf.run(qf.process(talk), [7])) == [7]
    out, err = capsys.readouterr()
    assert "[talk] hello 7\n" in out
    assert "[talk] raw\n" in out
    assert "careful" in err
    assert ("my.step", logging.INFO, "[talk] logged 7") in caplog.record_tuples
    assert "not this" not in caplog.text


def test_much_printing_does_not_block():
    def shout(x):
        print("x" * 1000 + "\n" + "y" * 100_000)
        return x

    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        assert list(qf.run(qf.process(n=2)(shout), range(30))) == list(range(30))


def test_workers_see_the_surroundings_of_the_run(tmp_path, monkeypatch):
    pipe = qf.Flow(qf.process(lambda name: (os.environ.get(name), os.getcwd())))
    with pipe:
        assert list(pipe(["QFLOW_SEEN"]))[0][0] is None
        monkeypatch.setenv("QFLOW_SEEN", "yes")
        monkeypatch.chdir(tmp_path)
        assert list(pipe(["QFLOW_SEEN"])) == [("yes", str(tmp_path))]


def test_a_changed_closure_is_shipped_again():
    box = {"k": 1}
    pipe = qf.Flow(qf.process(lambda x: x + box["k"]))
    with pipe:
        assert list(pipe([1])) == [2]
        box["k"] = 10
        assert list(pipe([1])) == [11]


@pytest.mark.parametrize("way", ["a step", "in a chain", "in a marked chain"])
def test_an_imported_function_is_read_anew_when_its_file_has_changed(way, tmp_path, monkeypatch):
    module = tmp_path / "steps_that_change.py"
    module.write_text("def f(x):\n    return x + 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "steps_that_change", raising=False)
    import steps_that_change

    f = qf.map(steps_that_change.f)
    pipe = {"a step": qf.process(f), "in a chain": qf.process(abs) | f, "in a marked chain": qf.process(qf.map(abs) | f)}[way]
    with qf.Flow(pipe) as pipe:
        assert list(pipe([1])) == [2]
        module.write_text("def f(x):\n    return x + 20\n")
        os.utime(module, ns=(1, 10**18))
        assert list(pipe([1])) == [21]


def test_stats_count_items_results_and_busy_time():
    pipe = qf.process(n=2, name="slow")(lambda x: time.sleep(0.02)) | qf.process(name="quick")(lambda x: x)
    with pipe:
        run = pipe(range(20))
        list(run)
        slow, quick = run.stats()
    assert (slow.name, slow.n, slow.items, slow.results) == ("slow", 2, 20, 20)
    assert slow.busy >= 0.4
    assert quick.busy < slow.busy
    assert 0 < slow.share <= 1.05


# ---- the ends of processes


def script(text, **options):
    return subprocess.run([sys.executable, "-c", textwrap.dedent(text)], capture_output=True, text=True, timeout=60, **options)


def test_a_script_needs_no_main_guard_and_its_exit_is_clean():
    done = script(
        """
        import dataclasses, os, sys
        import qflow as qf

        @dataclasses.dataclass
        class Event:
            x: int

        @qf.process(n=2)
        def step(event):
            return Event(event.x + 1)

        pipe = step | qf.queue(2)
        for event in pipe(Event(i) for i in range(3)):
            assert isinstance(event, Event)
            print(event.x)
        run = pipe(Event(i) for i in range(10**9))
        next(run)
        sys.exit(3)
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "1\n2\n3\n", "")


@pytest.mark.parametrize("state", ["iterating", "idle", "stuck"])
def test_workers_go_when_their_parent_is_killed(state):
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(
                f"""
                import itertools, os, time
                import qflow as qf
                pipe = qf.Flow(qf.process(n=2)(lambda x: time.sleep(60) if {state == "stuck"} and x > 50 else os.getpid()))
                run = pipe(itertools.count() if {state != "idle"} else range(40))
                pids = {{next(run) for _ in range(40)}}
                if {state == "idle"}:
                    list(run)
                print(*pids, flush=True)
                time.sleep(60)
                """
            ),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    pids = child.stdout.readline().split()
    assert pids
    child.kill()
    child.wait()
    child.stdout.close()
    end = time.monotonic() + 2
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < end:
        time.sleep(0.01)
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


def test_ctrl_c_is_one_keyboard_interrupt_and_a_second_run_works():
    done = script(
        """
        import os, signal, threading, time
        import qflow as qf
        pipe = qf.Flow(qf.process(n=2)(lambda x: time.sleep(0.05)))
        def interrupt():
            time.sleep(1)
            os.killpg(0, signal.SIGINT)
        threading.Thread(target=interrupt).start()
        try:
            for _ in pipe(range(10**6)): pass
        except KeyboardInterrupt:
            print("interrupted", len(list(pipe(range(3)))))
        """,
        start_new_session=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted 3\n", "")


def test_a_forked_copy_of_the_parent_ends_nothing():
    done = script(
        """
        import os
        import qflow as qf
        pipe = qf.Flow(qf.process(n=2)(abs))
        run = pipe(range(100))
        next(run)
        if not os.fork():
            del run, pipe
            raise SystemExit(0)
        os.wait()
        print(len(list(run)))
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "99\n", "")


def listening():
    """Sockets on which this process or one below it waits for connections, as the kernel lists them."""
    inodes = {line.split()[6] for line in open("/proc/net/unix").readlines()[1:] if int(line.split()[3], 16) & 0x10000}
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            inodes |= {line.split()[9] for line in open(f"/proc/net/{name}").readlines()[1:] if line.split()[3] == "0A"}
    ours = [os.getpid(), *(pid for (pid, _), _ in leaks._processes())]
    links = [os.readlink(fd) for pid in ours for fd in glob.glob(f"/proc/{pid}/fd/*") if os.path.islink(fd)]
    return [link for link in links if link.removeprefix("socket:[").removesuffix("]") in inodes]


def test_no_signal_handler_is_touched_and_nothing_listens():
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    pipe = qf.Flow(qf.process(abs))
    with pipe, pipe(itertools.count()) as run:
        next(run)
        assert handlers == {number: signal.getsignal(number) for number in signal.valid_signals()}
        assert not listening()


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_a_listening_socket_would_be_noticed(family):
    with socket.socket(family) as line:
        line.bind("" if family == socket.AF_UNIX else ("127.0.0.1", 0))
        line.listen()
        assert listening()
