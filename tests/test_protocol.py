"""The 38 scenarios that break simpler protocols, and the test that shows each.

1   here: children of later parents fill all cells while the first parent is slow
2   test_turn::test_any_interleaving_gives_the_serial_result, test_laws (holes of SKIP, filters, empty iterators)
3   test_replay::test_all_workers_may_die_at_any_point_of_the_protocol ("holding": the cursor is in a dead hand)
4   test_turn, test_simulated: the engine's own logic, without processes
5   test_replay::test_a_repeated_item_is_as_it_came; here: with large tensors, changed in place
6   test_replay::test_what_a_stream_keeps_outlives_its_worker; here: with a bound of 1
7   here: a forked child that exits gives no cell back, and writes to no descriptor of the user's
8   test_replay::test_what_a_forked_copy_of_the_parent_sees_never_changes
9   test_processes::test_kept_values_never_change_and_keeping_them_never_stalls
10  here: a source that waits for the consumer's last result
11  test_replay::test_children_that_were_given_come_once
12  test_resources::test_kept_results_hold_no_descriptors, test_shared_memory (sealed in size)
13  test_resources (what the system refuses)
14  test_processes::test_large_items_hold_bounded_memory
15  test_replay::test_attempts_are_an_option_of_the_engine, test_chaos
16  test_replay::test_a_class_is_built_again, test_processes::test_a_class_is_built_once_per_worker
17  test_processes::test_the_source_is_pulled_no_further_than_queues_and_workers_hold
18  test_laws::test_a_pool_is_a_process_on_lists
19  test_processes::test_a_script_needs_no_main_guard_and_its_exit_is_clean, test_start_methods (the nursery)
20  test_processes::test_a_script_needs_no_main_guard_and_its_exit_is_clean, test_notebooks (dataclasses of cells)
21  test_rebatch (a size that changes is read in the parent)
22  test_turn::test_deaths_between_any_two_stores_change_nothing (words of 64 bits, one writer each)
23  test_idle (blocking reads, no polls)
24  here: a source that is stuck in next() while the run is closed
25  here: the source runs in a thread with the caller's context
26  test_processes::test_two_runs_at_once_have_workers_of_their_own, ::test_a_run_inside_a_step
27  test_processes::test_many_short_epochs, test_turn (the end is a word, not a message)
28  test_start_methods::test_forked_workers_survive_the_thread_that_made_them, ::test_workers_that_hold_the_interpreter_go_too
29  test_payloads, test_codec
30  here: a tiny view that is kept holds no more than itself
31  test_replay::test_an_item_that_kills_whoever_loads_it_is_charged_to_its_maker; here: death while a result is pickled
32  test_policies::test_streams_go_on_without_what_failed_before_and_behind_them
33  test_codec, test_payloads::test_what_is_shared_inside_an_item_is_shared_when_it_arrives
34  test_replay::test_a_copy_of_a_worker_that_user_code_forks_gives_no_results, test_catalogue (U21)
35  the bench
36  test_resources::test_few_addresses_make_small_cells_and_not_a_failure
37  here: pipes as small as the kernel makes them
38  test_processes::test_a_step_that_keeps_its_inputs_does_not_stall_and_sees_them_unchanged
"""

from __future__ import annotations

import contextvars
import fcntl
import gc
import itertools
import os
import queue
import threading
import time

import numpy as np
import pytest
import torch
from test_replay import first_try, kill
from test_seconds import rests, workers_of

import qflow as qf
from qflow.runtime.channels import Channels


@pytest.mark.parametrize("bound", [None, 1])
def test_1_children_of_later_parents_do_not_block_those_of_a_slow_first_one(bound):
    def children(x):
        if x == 0:
            time.sleep(0.3)
        for k in range(20):
            yield x, k

    flow = qf.process(n=2)(children) | qf.process(n=2)(lambda pair: pair)
    flow = flow if bound is None else flow | qf.queue(bound)
    with flow:
        assert list(flow(range(4))) == [(x, k) for x in range(4) for k in range(20)]


@pytest.mark.parametrize("mark", [qf.process, qf.thread])
def test_5_a_step_that_changed_its_large_tensors_in_place_has_them_as_they_came(mark):
    def scale(item):
        item["t"] *= 2
        item["t"].add_(item["u"][0, :5].sum())
        if first_try():
            kill()
        return float(item["t"].sum()), float(item["u"].sum())

    source = [{"t": torch.full((300, 300), float(x)), "u": torch.ones(400, 400)[::2, ::2]} for x in range(6)]
    expected = [(90_000.0 * (2 * x + 5), 40_000.0) for x in range(6)]
    with qf.run(mark(n=2)(scale), source, engine=qf.engines.Processes(attempts=9)) as run:
        assert list(run) == expected


def test_6_a_batch_may_be_larger_than_what_the_queues_hold():
    with qf.queue(1) | qf.process(lambda x: x) | qf.queue(1) | qf.pack(64) | qf.process(len) | qf.queue(1) as pipe:
        assert list(pipe(range(200))) == [64, 64, 64, 8]


def test_7_a_forked_child_that_ends_gives_no_cell_back():
    """Its finalisers run; a cell that they gave back would be overwritten, and a descriptor may be a file by then."""
    pipe = qf.process(lambda x: np.full(50_000, float(x))) | qf.queue(1)
    with pipe, pipe(range(60)) as run:
        kept = [next(run) for _ in range(3)]
        pid = os.fork()
        if not pid:
            del kept
            run.close()
            gc.collect()
            os._exit(0)
        os.waitpid(pid, 0)
        rest = [float(x[-1]) for x in run]
        assert rest == [float(x) for x in range(3, 60)]
        assert [(x == n).all() for n, x in enumerate(kept)] == [True] * 3


@pytest.mark.parametrize("n", [1, 3])
def test_10_a_source_may_wait_for_the_consumers_last_result(n):
    answers = queue.SimpleQueue()

    def source():
        value = 1
        while value < 100:
            yield value
            value = answers.get(timeout=10)

    found = []
    with qf.process(n=n)(lambda x: 2 * x) | qf.process(lambda x: x) as pipe:
        for value in pipe(source()):
            found.append(value)
            answers.put(value)
    assert found == [2, 4, 8, 16, 32, 64, 128]


def test_24_a_source_that_is_stuck_is_left_and_the_pipe_runs_again():
    go, asked = threading.Event(), threading.Event()

    def source():
        yield from range(3)
        asked.set()
        go.wait()
        yield 3

    with qf.process(n=2)(abs) | qf.queue(2) as pipe:
        run = pipe(source())
        assert [next(run) for _ in range(3)] == [0, 1, 2]
        assert asked.wait(10)
        pids = workers_of(pipe)
        began = time.monotonic()
        run.close()
        assert rests(pipe) - began < 0.5  # nobody is waited for
        assert list(pipe(range(-3, 0))) == [3, 2, 1]
        assert workers_of(pipe) == pids
        go.set()
        assert list(pipe([-7])) == [7]


def test_25_a_source_sees_the_callers_context():
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(5)
    assert list(qf.run(abs, (variable.get() + x for x in range(2)))) == [5, 6]


def test_30_a_part_that_is_kept_holds_no_more_than_itself():
    kept = []
    pipe = qf.process(lambda x: {"large": np.zeros(1_000_000), "small": np.full(3, x)}) | qf.queue(1)
    with pipe:
        for item in pipe(range(50)):
            kept.append(item["small"])
        assert [int(x[0]) for x in kept] == [*range(50)]
        assert all(x.base is None or len(x.base) < 100_000 for x in kept)


class Deadly:
    """Kills whoever pickles it, as often as it is told to."""

    def __init__(self, x, always):
        self.x, self.always = x, always

    def __getstate__(self):
        if self.always or first_try():
            kill()
        return self.__dict__


@pytest.mark.parametrize("mark", [qf.process, qf.thread])
def test_31_a_worker_that_dies_while_it_pickles_a_result_is_replaced(mark):
    with qf.run(mark(n=2)(lambda x: Deadly(x, False) if x % 3 == 1 else x), range(9)) as run:
        assert [getattr(value, "x", value) for value in run] == [*range(9)]
        assert 1 <= run.stats()[0].died <= 3


def test_31_a_result_that_always_kills_who_pickles_it_fails_alone():
    with qf.run(qf.process(n=2)(lambda x: Deadly(x, True) if x == 3 else x), range(6), on_error="skip") as run:
        assert list(run) == [0, 1, 2, 4, 5]
        (failure,) = run.failures
    assert (type(failure.error), failure.index, failure.attempts) == (qf.WorkerDied, (3,), 2)
    assert "signal 9" in str(failure.error)


def test_37_pipes_of_one_page_are_enough(monkeypatch):
    made = Channels._pipe

    def small(self):
        ends = made(self)
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, 4096)
        return ends

    monkeypatch.setattr(Channels, "_pipe", small)

    def step(x):
        print("x" * 3000)
        return x

    with qf.process(n=20)(step) | qf.process(n=20)(lambda x: x) as pipe:
        for _ in range(3):
            assert list(pipe(range(100))) == list(range(100))
        run = pipe(itertools.count())
        next(run)
        run.close()
        assert list(pipe(range(3))) == [0, 1, 2]
