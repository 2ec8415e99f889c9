"""How runs end when two things happen at once: an interrupt in an end, a second thread, a fork, the next run."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from scenario import assert_gone, lives, script

import qflow as qf
from qflow.engines import warm
from qflow.runtime import crew, memory, nursery
from qflow.runtime.crew import Crew
from qflow.runtime.output import MOST, _line


def same(x: Any) -> Any:
    return x


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def interrupted_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, after: bool = False) -> list[bool]:
    """Let a Ctrl-C arrive in a method, once -> whether it has."""
    original, hits = getattr(owner, name), []

    def method(self: Any, *arguments: Any, **options: Any) -> Any:
        if after:
            original(self, *arguments, **options)
        if not hits:
            hits.append(True)
            raise KeyboardInterrupt
        return original(self, *arguments, **options)

    monkeypatch.setattr(owner, name, method)
    return hits


# ---- Ctrl-C


@pytest.mark.parametrize(("owner", "name"), [(Crew, "end_run"), (warm.Warm, "give"), (Crew, "rest")])
def test_an_interrupted_end_is_taken_up_by_the_next_close(monkeypatch, owner, name):
    pipe = qf.Flow(qf.process(n=2)(same))
    before = descriptors()
    assert interrupted_once(monkeypatch, owner, name) == []
    with pytest.raises(KeyboardInterrupt):
        list(pipe([1, 2]))
    pipe.close()
    assert descriptors() <= before
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("qflow-")]
    assert list(pipe([3])) == [3]
    pipe.close()


def test_a_source_that_an_interrupted_start_began_to_read_gives_nothing_to_the_next_run(monkeypatch):
    gate, read = threading.Event(), threading.Event()

    def first():
        gate.wait(10)
        yield from (100, 101, 102)
        read.set()

    started, hits = threading.Thread.start, []

    def start(self):
        started(self)
        if self.name == "qflow-feeder" and not hits:
            hits.append(True)
            raise KeyboardInterrupt

    with qf.Flow(qf.process(same)) as pipe:
        assert list(pipe([0])) == [0]
        monkeypatch.setattr(threading.Thread, "start", start)
        with pytest.raises(KeyboardInterrupt):
            pipe(first())
        run = pipe(range(6))
        gate.set()
        read.wait(1)
        assert list(run) == [*range(6)]


def test_an_interrupted_question_to_the_nursery_leaves_no_program_of_a_step(monkeypatch):
    def starts(x):
        return subprocess.Popen(["sleep", "60"]).pid

    pipe = qf.Flow(qf.process(starts))
    run = pipe([1, 2], engine=qf.engines.Processes(start="fork"))
    first = next(run)
    interrupted_once(monkeypatch, nursery.Nursery, "_receive")
    run.close()
    with pytest.raises(KeyboardInterrupt):
        pipe.close()
    pipe.close()
    assert_gone([first])


# ---- threads


def test_a_second_thread_may_close_a_run_that_is_at_its_end(monkeypatch):
    at_end, closed = threading.Event(), threading.Event()
    original = Crew.rest

    def rest(self, seconds):
        if threading.current_thread() is threading.main_thread() and not at_end.is_set():
            at_end.set()
            time.sleep(0.2)  # the other thread is on its way into `close`, which nobody tells
        return original(self, seconds)

    monkeypatch.setattr(Crew, "rest", rest)
    problems = []

    def close():
        at_end.wait(10)
        try:
            run.close()
        except BaseException as error:
            problems.append(error)
        closed.set()

    with qf.Flow(qf.process(n=2)(same)) as pipe:
        run = pipe([1, 2, 3])
        threading.Thread(target=close).start()
        with contextlib.suppress(qf.GraphError):
            assert list(run) == [1, 2, 3]
        assert closed.wait(10)
        assert not problems
        assert list(pipe([4])) == [4]


def test_a_stuck_run_is_closed_within_a_second_in_any_thread():
    took = []

    def stuck(x):
        if x:
            threading.Event().wait()
        return x

    def close():
        run = pipe([0, 1, 2])
        assert next(run) == 0
        began = time.monotonic()
        run.close()
        took.append(time.monotonic() - began)

    with qf.Flow(qf.process(stuck)) as pipe:
        thread = threading.Thread(target=close)
        thread.start()
        thread.join()
        for _ in range(4):
            close()
    assert statistics.median(took) < 1, took  # half a second is grace
    assert max(took) < 1.5


def test_two_threads_that_run_a_flow_first_share_its_workers(monkeypatch):
    barrier, made = threading.Barrier(2, timeout=10), []

    class Slow(warm.Warm):
        def __init__(self):
            super().__init__()
            barrier.wait()

    monkeypatch.setattr(warm, "Warm", Slow)
    pipe = qf.Flow(qf.process(same))
    threads = [threading.Thread(target=lambda: made.append(warm.warm_of(pipe))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made[0] is made[1]


# ---- forks


def test_a_forked_copy_can_not_iterate_the_run_and_takes_nothing_from_it():
    with qf.process(n=2)(same) | qf.queue(4) as pipe:
        run, got = pipe(range(40)), []
        for x in run:
            got.append(x)
            if x == 5:
                read, write = os.pipe()
                child = os.fork()
                if not child:
                    with contextlib.suppress(BaseException):
                        try:
                            next(run)
                        except qf.GraphError as error:
                            os.write(write, str(error).encode())
                    os._exit(0)
                os.close(write)
                with open(read) as told:
                    assert "belongs to the process that started it" in told.read()
                os.waitpid(child, 0)
        assert got == [*range(40)]


def test_a_step_that_forks_is_still_watched():
    def forks_and_stays(x):
        if x == 1 and os.fork():
            time.sleep(60)
        return x

    began = time.monotonic()
    run = qf.run(qf.process(timeout=0.5)(forks_and_stays), range(3), on_error="skip")
    assert list(run) == [0, 2]
    assert [type(failure.error) for failure in run.failures] == [qf.StepTimeout]
    assert time.monotonic() - began < 10


def test_an_item_that_forks_and_then_kills_is_charged():
    def forks_and_dies(x):
        if x == 1 and (child := os.fork()):
            os.waitpid(child, 0)
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    run = qf.run(qf.process(forks_and_dies), range(3), on_error="skip")
    assert list(run) == [0, 2]
    assert [(type(failure.error), failure.index) for failure in run.failures] == [(qf.WorkerDied, (1,))]
    assert run.stats()[0].died == 2


# ---- the next run


def crew_of(pipe: qf.Flow[Any, Any]) -> set[int]:
    (session,) = warm.warm_of(pipe).sessions
    return {member.child.pid for member in session.crew.members.values()}


def test_a_pipe_runs_again_after_a_step_was_given_up(tmp_path):
    flag = tmp_path / "dies"
    flag.touch()

    class Dies:
        def __init__(self):
            if flag.exists():
                os._exit(3)

        def __call__(self, x):
            return x

    with qf.Flow(qf.process(Dies)) as pipe:
        with pytest.raises(qf.WorkerDied, match="while it was loaded or built"):
            list(pipe([1, 2]))
        flag.unlink()
        for _ in range(2):
            assert list(pipe([1, 2])) == [1, 2]


def test_the_time_of_an_item_is_that_of_the_run():
    def slow(x):
        time.sleep(x)
        return x

    with qf.Flow(qf.process(slow)) as pipe:
        assert list(pipe([0])) == [0]
        run = pipe([5, 0], timeout=0.3, on_error="skip")
        assert (list(run), len(run.failures)) == ([0], 1)
        run = pipe([1, 0], on_error="skip")
        assert (list(run), run.failures) == ([1, 0], [])


def test_a_generator_that_is_dropped_may_say_what_it_likes():
    def children(x):
        try:
            for k in range(10_000):
                yield x + k
        finally:
            sys.exit(3)

    with qf.process(children) | qf.queue(1) as pipe:
        run = pipe([0])
        assert [next(run) for _ in range(3)] == [0, 1, 2]
        workers = crew_of(pipe)
        run.close()
        assert next(pipe([7])) == 7
        assert crew_of(pipe) == workers


def test_an_interrupt_that_is_kept_holds_no_memory_of_the_channels():
    def stuck(x):
        if x:
            threading.Event().wait()
        return x

    kept = None
    with qf.process(stuck) | qf.queue(2) as pipe:
        run = pipe(range(3))
        assert next(run) == 0
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            next(run)
        except KeyboardInterrupt as interrupt:
            kept = interrupt
    assert kept is not None
    assert "memfd:qflow" not in Path("/proc/self/maps").read_text()


def test_a_run_that_is_kept_for_its_counts_holds_no_memory_of_the_channels():
    with qf.process(same) | qf.queue(2) as pipe:
        run = pipe(range(3))
        assert list(run) == [0, 1, 2]
    assert run.stats()[0].items == 3
    assert "memfd:qflow" not in Path("/proc/self/maps").read_text()


# ---- what is started and stopped


def test_a_nursery_that_dies_when_it_is_asked_is_replaced(monkeypatch):
    original, hits = nursery.Nursery._order, []

    def order(self, *arguments):
        if not hits:
            hits.append(self.pid)
            os.kill(self.pid, signal.SIGKILL)
        return original(self, *arguments)

    monkeypatch.setattr(nursery.Nursery, "_order", order)
    assert list(qf.run(qf.process(n=2)(same), [1, 2])) == [1, 2]
    assert hits


def test_the_nursery_ends_when_its_parent_goes_in_the_middle_of_an_order():
    held = nursery.Nursery()
    try:
        held._send(("fork", [0], 1 << 20))
        held._socket.send(b"half")
        held._socket.shutdown(socket.SHUT_WR)
        assert held._ended(2)
    finally:
        held.close()


def test_too_few_descriptors_for_the_stacks_of_workers_lose_none(monkeypatch):
    assert list(qf.run(qf.process(n=4)(same), [1])) == [1]
    before, calls = descriptors(), []
    original = memory.anonymous

    def anonymous(name: str, *arguments: Any, **options: Any) -> int:
        calls.append(name)
        if name == "stack" and calls.count("stack") == 3:
            raise qf.ResourceError("no more")
        return original(name, *arguments, **options)

    monkeypatch.setattr(crew, "anonymous", anonymous)
    pipe = qf.Flow(qf.process(n=4)(same))
    with pytest.raises(qf.ResourceError, match="no more"):
        pipe([1])
    pipe.close()
    gc.collect()
    assert descriptors() <= before


def test_a_program_in_a_session_of_its_own_goes_with_the_last_worker():
    def starts(x):
        return subprocess.Popen(["sleep", "60"], start_new_session=True).pid

    with qf.Flow(qf.process(starts)) as pipe:
        pids = list(pipe([1, 2], engine=qf.engines.Processes(start="fork")))
        assert all(map(lives, pids))
    assert_gone(pids)


def test_without_pidfd_a_worker_that_closes_everything_is_replaced_at_once():
    done = script(
        """
        import os, time
        import qflow as qf

        def closes(x):
            if x == 1 and qf.worker().attempt == 1:
                os.closerange(3, 500)
                time.sleep(60)
            return x

        began = time.monotonic()
        print(list(qf.run(qf.process(closes), range(3))), time.monotonic() - began < 5)
        """,
        QFLOW_WITHOUT="pidfd",
    )
    assert done.stdout == "[0, 1, 2] True\n", done.stderr


# ---- output


def test_a_step_that_prints_much_is_not_late_because_nobody_reads(capfd):
    def chatty(x):
        for _ in range(40):
            print("x" * 4000)
        return x

    run = qf.run(qf.process(timeout=0.5)(chatty), range(6), on_error="skip")
    got = [next(run)]
    time.sleep(1.5)  # longer than the step may take
    got += run
    assert (got, run.failures) == ([*range(6)], [])
    assert capfd.readouterr().out.count("x" * 4000) == 240


def test_records_of_several_workers_arrive_whole(caplog):
    def logs(x):
        import logging

        logging.getLogger("steps").warning("%d %s", x, "ü" * 5000)
        return x

    with caplog.at_level("WARNING", "steps"):
        assert list(qf.run(qf.process(n=4)(logs), range(200))) == [*range(200)]
    told = [record.getMessage() for record in caplog.records if record.name == "steps"]
    assert sorted(int(text.split()[1]) for text in told) == [*range(200)]


@pytest.mark.parametrize("text", ["", "x" * 10_000, "ü" * 10_000, "\x1f" * 10_000, '"\\\n' * 5000, "\ud800" * 9000])
def test_a_record_is_one_line_that_a_pipe_takes_at_once(text):
    line = _line({"name": "n"}, text)
    assert len(line) <= MOST
    assert line.count(b"\n") == 1
    assert len(line) > min(MOST // 2, len(text))


# ---- waiting for a result for so long only


def test_a_result_that_does_not_come_in_time_comes_later():
    gate = threading.Event()

    def source():
        yield 1
        gate.wait(10)
        yield 2

    with qf.process(n=2)(same) | qf.queue(1) as pipe:
        run = pipe(source())
        assert run.next(10) == 1
        for _ in range(3):
            with pytest.raises(qf.StepTimeout, match=r"0\.05 seconds"):
                run.next(timeout=0.05)
        gate.set()
        assert run.next(10) == 2
        with pytest.raises(StopIteration):
            run.next(10)
        assert run.stats()[0].results == 2


@pytest.mark.parametrize("ordered", [True, False])
def test_waiting_in_pieces_changes_nothing(ordered):
    def uneven(x):
        time.sleep(0.02 * (x % 3))
        return x

    run, got = qf.run(qf.process(n=3)(uneven), range(60), ordered=ordered), []
    while True:
        try:
            got.append(run.next(timeout=0.002))
        except qf.StepTimeout:
            pass
        except StopIteration:
            break
    assert (got if ordered else sorted(got)) == [*range(60)]


@pytest.mark.parametrize("timeout", [-1, True, "1", float("nan")])
def test_a_wrong_timeout_is_an_error(timeout, engine):
    with qf.run(qf.process(same), [1], engine=engine) as run:
        with pytest.raises(qf.GraphError, match=r"run.next\(timeout=5\)"):
            run.next(timeout)
        assert next(run) == 1


def test_a_record_keeps_what_was_added_to_it_and_a_handler_that_fails_ends_no_run(capsys):
    def log(x):
        logging.getLogger("of.mine").warning("seen", extra={"origin": "a step", "number": x, "odd": object()})
        return x

    class Fails(logging.Handler):
        def emit(self, record):
            seen.append(record)
            raise AttributeError(f"about {record.origin}")

    seen: list[Any] = []
    logger, fails = logging.getLogger("of.mine"), Fails()
    logger.addHandler(fails)
    try:
        with qf.Flow(qf.process(log)) as pipe:
            assert list(pipe([7])) == [7]
    finally:
        logger.removeHandler(fails)
    (record,) = seen
    assert (record.origin, record.number, hasattr(record, "odd")) == ("a step", 7, False)
    assert "AttributeError: about a step" in capsys.readouterr().err
