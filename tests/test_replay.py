"""Replay: workers die in every way and at every point, and the output is what it would have been."""

from __future__ import annotations

import ast
import collections
import contextlib
import ctypes
import functools
import inspect
import itertools
import os
import signal
import subprocess
import time

import numpy as np
import pytest
from scenario import script
from test_processes import delivered

import qflow as qf
from qflow.engines.processes import Processes
from qflow.engines.warm import warm_of
from qflow.runtime import allocator, numbered, putter, side, streaming, taker, turn

pytestmark = pytest.mark.usefixtures("one_nursery")


def first_try():
    """Whether this is the first time that the item at work is tried."""
    return qf.worker().attempt == 1


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


DEATHS = {
    "SIGKILL": (kill, "was killed by signal 9 (SIGKILL)"),
    "segfault": (lambda: ctypes.string_at(0), "was killed by signal 11 (SIGSEGV)"),
    "abort": (os.abort, "was killed by signal 6 (SIGABRT)"),
    "exit 0": (lambda: os._exit(0), "exited with code 0 without returning"),
    "exit 7": (lambda: os._exit(7), "exited with code 7 without returning"),
}


@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize("mark", [qf.process, qf.thread])
def test_a_dead_worker_is_replaced_and_its_item_repeated(death, mark):
    die, _ = DEATHS[death]

    def step(x):
        if x % 7 == 5 and first_try():
            die()
        return x * x

    pipe = mark(n=3)(step) | qf.process(lambda x: x + 1)
    with pipe, pipe(range(30)) as run:
        assert list(run) == [x * x + 1 for x in range(30)]
        assert [stats.died for stats in run.stats()] == [4 if mark is qf.process else run.stats()[0].died, 0]
        assert 1 <= run.stats()[0].died <= 4


@pytest.mark.parametrize("death", DEATHS)
def test_an_item_that_kills_its_worker_twice_ends_the_run_in_its_turn(death):
    die, how = DEATHS[death]

    def poison(x):
        if x == 5:
            die()
        return x

    pipe = qf.process(n=3)(poison) | qf.process(lambda x: x) | qf.queue(4)
    with pipe:
        began = time.monotonic()
        values, error = delivered(pipe, range(20))
        assert time.monotonic() - began < 10
        assert values == list(range(5))
        assert type(error) is qf.WorkerDied
        assert "The item killed its worker 2 times" in str(error)
        assert how in str(error)
        assert (error.step, error.index, error.attempts) == ("poison", (5,), 2)
        assert any("in step 'poison', item 5 (5)" in note for note in error.__notes__)
        assert ("in die" in str(error) or "poison" in str(error)) == (death in ("segfault", "abort"))
        assert list(pipe([1, 2])) == [1, 2]


def test_attempts_are_an_option_of_the_engine():
    def step(x):
        if x == 2 and qf.worker().attempt < 4:
            kill()
        return qf.worker().attempt

    assert list(qf.run(qf.process(step), range(4), engine=Processes(attempts=4))) == [1, 1, 4, 1]
    with pytest.raises(qf.GraphError, match="attempts must be a whole number of at least 1"):
        Processes(attempts=0)


WORK = ("not ready", "holding", "jotted", "claimed", "filled", "tagged", "written", "committed", "released", "ended")
STREAM = ("not ready", "filled", "tagged", "written", "committed", "released", "slotted", "saved", "ended")
MAY = (
    "marked",
    "waking",
    "opened",
    "added",
    "grown",
    "closed",
    "finished",
    "done",
    "half skipped",
    "skipped",
)  # as it comes, in some pipeline
POINTS = [*dict.fromkeys((*WORK, "passed", *MAY, *STREAM))]
ONE = ("not ready", "ended")  # to which not each worker of a step must come


def named_points(module):
    """The names that a module's generators yield."""
    yields = [node.value for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.Yield)]
    return {value.value for value in yields if isinstance(value, ast.Constant) and isinstance(value.value, str)}


def test_the_points_are_all_that_there_are():
    assert set(POINTS) == set().union(*map(named_points, (side, taker, allocator, putter, numbered, turn, streaming)))


def comes_to(point, group):
    """Whether the workers of a pipeline's group come to a point."""
    if point == "passed":
        return group.n > 1
    return point in (STREAM if group.stream else WORK)


def split(x):
    yield from range(x % 4)


def as_awaited(pipe, values):
    """Each value comes when the first step waits for one."""
    for value in values:
        (session,) = warm_of(pipe).sessions
        until = time.monotonic() + 30
        while not session.crew.channels.board.edges[0].taker_wait[0] and time.monotonic() < until:
            time.sleep(0.0005)  # it rings no bell of ours
        yield value


def shared(function):
    """The same, but it leaves each worker of a step something to do."""

    @functools.wraps(function)
    def unhurried(x):
        time.sleep(0.001)
        return function(x)

    return unhurried


def pipelines():
    """Flows with every kind of step, and what they give for range(40)."""
    two = qf.process(n=2)
    yield "maps", two(shared(lambda x: x + 1)) | two(shared(lambda x: 2 * x)), [2 * x + 2 for x in range(40)]
    yield "iterators", two(shared(split)) | two(shared(lambda x: -x)), [-y for x in range(40) for y in range(x % 4)]
    pool = qf.process(lambda x: [x] * (x % 3)) | qf.pool(n=2)(shared(lambda x: x + 1)) | qf.repack(4) | qf.process(sum)
    flat = [x + 1 for x in range(40) for _ in range(x % 3)]
    texts = two(lambda x: [str(x) * 28000] * 30 * (x % 4 == 0)) | qf.unpack() | qf.process(shared(len))
    yield "more than may wait", texts, [28000 * len(str(x)) for x in range(0, 40, 4) for _ in range(30)]
    yield "pools and repack", pool, [sum(flat[at : at + 4]) for at in range(0, len(flat), 4)]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("occurrence", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_all_workers_may_die_at_any_point_of_the_protocol(point, occurrence, monkeypatch):
    monkeypatch.setenv("QFLOW_FAILPOINTS", f"{point}=kill@{occurrence}")
    seen = False
    for name, pipe, expected in pipelines():
        source = as_awaited(pipe, range(40)) if point == "not ready" else range(40)
        with pipe, pipe(source) as run:
            assert (name, list(run)) == (name, expected)
            died = any(stats.died for stats in run.stats())
            met = any(comes_to(point, group) for group in pipe.plan().groups)
            seen = seen or died
            if point not in MAY and (occurrence == 1 or point not in ONE):
                assert died == met
    assert seen or (point in (*MAY, *ONE) and occurrence > 1)


def test_other_results_at_the_second_try_are_told_however_those_of_the_first_were_sent():
    """A worker that has seen many alike sends them as rows of a table, its replacement the first ones one by one."""

    def other(x):
        yield from "ab" if first_try() else "cd"
        kill()

    with qf.Flow(qf.process(other)) as pipe:
        for _ in range(3):
            with pipe([1], on_error="skip") as run:
                assert list(run) == ["a", "b"]
                assert [type(failure.error) for failure in run.failures] == [qf.NondeterministicStep]


@pytest.mark.slow
@pytest.mark.parametrize("start", ["forkserver", "fork", "spawn"])
@pytest.mark.parametrize("point", POINTS)
def test_each_worker_may_die_at_each_point_at_each_occurrence(point, start, monkeypatch):
    wrong, seen = [], False
    for name, pipe, expected in pipelines():
        first = 1
        with pipe:
            assert list(pipe(range(40), engine=Processes(start=start))) == expected  # all of them have begun
            for number, group in enumerate(pipe.plan().groups):
                died = dict.fromkeys(range(first, first + group.n), 0)
                for who, occurrence in itertools.product(died, range(1, 3 if start == "spawn" else 7)):
                    monkeypatch.setenv("QFLOW_FAILPOINTS", f"{point}=kill@{occurrence}#{who}")
                    source = as_awaited(pipe, range(40)) if point == "not ready" else range(40)
                    with pipe(source, engine=Processes(start=start)) as run:
                        assert (who, occurrence, list(run)) == (who, occurrence, expected)
                        died[who] += run.stats()[number].died
                        assert sum(stats.died for stats in run.stats()) <= 1
                met = any(died.values()) if point in ONE else all(died.values())
                seen = seen or any(died.values())
                if point not in MAY and met != comes_to(point, group):
                    wrong.append((name, number, died))
                first += group.n
    assert wrong == []
    assert seen


def test_a_repeated_item_is_as_it_came():
    def change(x):
        x["list"].append(1)
        x["tensor"].add_(1)
        if x["n"] % 5 == 2 and first_try():
            kill()
        return x["list"], x["tensor"].tolist(), float(x["array"].sum())

    import torch

    items = [{"n": n, "list": [n], "tensor": torch.full((3,), n), "array": np.full(50_000, n)} for n in range(12)]
    expected = [([n, 1], [n + 1] * 3, 50_000.0 * n) for n in range(12)]
    assert list(qf.run(qf.process(n=2)(change), items)) == expected


def test_children_that_were_given_come_once():
    def children(x):
        for k in range(5):
            if k == 3 and x % 3 == 1 and first_try():
                kill()
            yield x, k

    assert list(qf.run(qf.process(n=2)(children), range(9))) == [(x, k) for x in range(9) for k in range(5)]


def test_other_results_at_the_second_try_are_an_error():
    def children(x):
        yield from range(4) if first_try() else range(2)
        if first_try():
            kill()

    values, error = delivered(qf.Flow(qf.process(children)), [0])
    assert values == [0, 1, 2, 3]
    assert type(error) is qf.NondeterministicStep


class Weights:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        if x == 4 and first_try():
            kill()
        return self.factor * x


def test_a_class_is_built_again():
    assert list(qf.run(qf.process(n=2)(Weights)(3), range(9))) == [3 * x for x in range(9)]


def test_several_may_die_at_once():
    """All workers of all steps, killed from outside, again and again."""
    first, second = qf.process(n=2)(lambda x: (os.getpid(), x)), qf.process(n=2)(lambda pair: (*pair, os.getpid()))
    pipe = first | qf.queue(1) | second | qf.queue(1) | qf.pack(3) | qf.queue(1)
    collected = []
    with pipe, pipe(range(300), engine=Processes(attempts=100)) as run:
        for number, batch in enumerate(run):
            collected += [x for _, x, _ in batch]
            if number % 20 == 10:
                for pid in {pid for first, _, second in batch for pid in (first, second)}:
                    try_kill(pid)
        assert collected == list(range(300))
        assert sum(stats.died for stats in run.stats()) >= 4


def try_kill(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("stream", [qf.pack(7), qf.repack(5), qf.rebatch(6)], ids=repr)
def test_what_a_stream_keeps_outlives_its_worker(stream):
    """The worker of the stream dies at every third of its results."""

    def die_sometimes(batch):
        if qf.worker().attempt == 1 and int(np.asarray(batch).flat[0]) % 3 == 0:
            kill()
        return np.asarray(batch).tolist()

    items = [np.arange(n, n + 3 + n % 4) for n in range(0, 100, 7)]
    if stream == qf.pack(7):
        items = [np.int64(n) for n in range(50)]
    expected = [np.asarray(batch).tolist() for batch in qf.run(stream, items, engine="serial")]
    step = qf.process(die_sometimes)
    with stream | step as pipe, pipe(items) as run:
        assert list(run) == expected
        assert run.stats()[0].died >= 3


def test_a_poisonous_batch_is_one_failure_and_the_others_come():
    def collate(batch):
        if batch[0] == 8:
            kill()
        return sum(batch)

    pipe = qf.process(lambda x: [x, x + 1]) | qf.repack(4) | qf.process(collate)
    with pipe, pipe(range(0, 20, 2), on_error="skip") as run:
        assert list(run) == [sum(range(n, n + 4)) for n in range(0, 20, 4) if n != 8]
        (failure,) = run.failures
        assert isinstance(failure.error, qf.WorkerDied)
        assert (failure.step, failure.index) == ("collate", (2,))


def test_a_constructor_that_kills_its_worker_ends_the_run():
    class Broken:
        def __init__(self):
            kill()

        def __call__(self, x):
            return x

    began = time.monotonic()
    values, error = delivered(qf.Flow(qf.process(n=2)(Broken)), range(5))
    assert (values, type(error)) == ([], qf.WorkerDied)
    assert "died 2 times while it was loaded or built" in str(error)
    assert time.monotonic() - began < 10


class Hoarder:
    """Keeps the last arrays that it had, from run to run."""

    def __init__(self):
        self.last = collections.deque(maxlen=3)

    def __call__(self, rows):
        self.last.append(rows)
        return os.getpid(), float(rows[0])


@pytest.mark.parametrize("mark", [qf.process, qf.thread])
def test_what_a_worker_kept_since_the_last_run_goes_with_it(mark):
    """It dies before it has taken anything of this one; its cells would be missing for ever."""
    pipe = qf.process(lambda x: np.full(50_000, float(x))) | mark(n=1)(Hoarder)
    with pipe:
        (pid,) = {pid for pid, _ in pipe(range(8))}
        os.kill(pid, signal.SIGSTOP)
        with pipe(range(20)) as run:
            try_kill(pid)
            assert [value for _, value in run] == list(range(20))
            assert [stats.died for stats in run.stats()] == [0, 1]


class CrashesWhenBuilt:
    def __reduce__(self):
        return kill, ()


def test_an_item_that_kills_whoever_loads_it_is_charged_to_its_maker():
    def make(x):
        return CrashesWhenBuilt() if x == 3 else x

    values, error = delivered(qf.process(make) | qf.process(name="innocent")(lambda x: x), range(6))
    assert (values, type(error)) == ([0, 1, 2], qf.TransportError)
    assert "The item could not be loaded: it killed its worker 2 times" in str(error)
    assert (error.step, error.index) == ("make", (3,))


def test_a_kill_costs_less_than_a_second():
    step = qf.process(lambda x: (time.monotonic(), os.getpid()))
    with step | qf.queue(1) as pipe, pipe(itertools.count()) as run:
        _, pid = next(run)
        try_kill(pid)
        killed = time.monotonic()
        again = next(when for when, now in run if now != pid)
        assert again - killed < 1


def test_programs_that_a_dead_worker_started_end_with_it(tmp_path):
    note = tmp_path / "pid"

    def start_and_die(x):
        if first_try():
            program = subprocess.Popen(["sleep", "60"])
            note.write_text(str(program.pid))
            kill()
        return x

    with qf.run(qf.process(start_and_die), [1]) as run:
        assert list(run) == [1]
        pid = int(note.read_text())
        assert not os.path.exists(f"/proc/{pid}") or "Z" in open(f"/proc/{pid}/stat").read().rpartition(")")[2]


@pytest.mark.parametrize(
    "kind", [bool, int, lambda mine: {"mine": mine}, lambda mine: [1, 2][5 + mine]], ids=["bool", "int", "dict", "error"]
)
def test_a_copy_of_a_worker_that_user_code_forks_gives_no_results(kind):
    def fork(x):
        mine = os.getpid()
        if x:
            os.fork()
        try:
            return kind(mine == os.getpid())
        except IndexError:
            return -1 if mine == os.getpid() else kind(9)

    expected = {bool: True, int: 1}.get(kind)
    with qf.run(qf.process(n=2)(fork), [0] * 4 + [1] * 30) as run:
        found = list(run)
    assert len(found) == 34
    assert found == [found[0]] * 34
    assert expected is None or found[0] is expected


def test_what_a_forked_copy_of_the_parent_sees_never_changes():
    """The child holds views on cells that the parent's run would use again."""
    pipe = qf.process(lambda x: x + 1) | qf.queue(1)
    with pipe, pipe(np.full(20_000, float(i)) for i in range(40)) as run:
        kept = [next(run) for _ in range(3)]
        read, write = os.pipe()
        ready, go = os.pipe()
        pid = os.fork()
        if not pid:
            os.read(ready, 1)
            os.write(write, b"same" if [float(k[0]) for k in kept] == [1.0, 2.0, 3.0] else b"changed")
            os._exit(0)
        del kept
        assert [float(x[-1]) for x in run] == [float(i) for i in range(4, 41)]
        os.write(go, b".")
        assert os.read(read, 10) == b"same"
        os.waitpid(pid, 0)
        for fd in (read, write, ready, go):
            os.close(fd)


def test_other_children_after_a_death_are_an_error_and_never_a_mix():
    def others(x):
        first = qf.worker().attempt == 1
        yield 10 if first else 20
        yield 11 if first else 21
        if first:
            kill()
        yield 12

    with qf.run(qf.process(others), [0]) as run:
        assert [next(run), next(run)] == [10, 11]
        with pytest.raises(qf.NondeterministicStep, match="other results") as caught:
            next(run)
    assert "in step 'others', item 0" in caught.value.__notes__[0]


def test_the_same_children_after_a_death_are_no_error():
    def children(x):
        for k in range(300):
            if k in (1, 250) and qf.worker().attempt == 1 + (k > 1):
                kill()
            yield np.full(10_000, k), {"k": k}

    found = list(qf.run(qf.process(children), [0, 1]))
    assert [pair[1]["k"] for pair in found] == [*range(300)] * 2
    assert all((array == each["k"]).all() for array, each in found)


@pytest.mark.parametrize("n", [1, 4, 8])
def test_a_step_that_never_commits_gives_up_soon(n):
    done = script(
        f"""
        import qflow as qf
        run = qf.run(qf.process(n={n})(abs), range(20))
        try:
            list(run)
        except qf.WorkerDied as error:
            print(run.stats()[0].died, error)
        """,
        QFLOW_FAILPOINTS="tagged=kill!",
    )
    died, _, text = done.stdout.partition(" ")
    assert text.startswith("A worker of step 'abs' died as"), done
    assert int(died) <= 5 + (n - 1) + n + 3


def in_parts(pipe, *parts):
    """Each part of a source comes when the stream that takes it has committed all before: it waits for more."""
    taken = 0
    for part in parts:
        yield from part
        taken += len(part)
        (session,) = warm_of(pipe).sessions
        board = session.crew.channels.board
        while not (board.counts[1][1] >= taken and board.edges[0].taker_wait[0]):
            time.sleep(0.001)


def test_user_code_between_two_streams_is_not_called_again_for_what_was_committed(tmp_path):
    """It has failed once and would not fail again: what it gives then belongs to nobody."""
    mark = tmp_path / "failed"

    def moody(rows):
        if rows[0] == 2 and not mark.exists():
            mark.touch()
            raise OSError("once")
        if rows[0] == 4 and first_try():
            kill()
        return rows[:1]

    flow = qf.process(lambda x: x) | qf.pack(2) | qf.map(moody) | qf.repack(2)
    with flow as pipe, pipe(in_parts(pipe, range(2), range(2, 4), range(4, 20)), on_error="skip") as run:
        assert list(run) == [[0, 4], [6, 8], [10, 12], [14, 16], [18]]
    assert [failure.index for failure in run.failures] == [(1,)]


class Unsendable:
    """Three numbers that stay in their process."""

    def __init__(self, x):
        self.x = x

    def __iter__(self):
        return iter(range(3 * self.x, 3 * self.x + 3))

    def __reduce__(self):
        raise TypeError("it stays here")


@pytest.mark.parametrize("fatal", [1, 2, 3])
def test_a_stream_that_takes_what_can_not_be_sent_goes_on_if_what_it_keeps_can(fatal):
    def three(x):
        if x == fatal and first_try():
            kill()
        return Unsendable(x)

    flow = qf.process(three) | qf.repack(2)
    with flow as pipe:
        found = list(pipe(in_parts(pipe, *([x] for x in range(6)))))
    assert [each for some in found for each in some] == list(range(18))
