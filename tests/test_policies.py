"""Policies: what a run does with failures, and what a mark promises beside its function.

What is a meaning holds for every engine; limits of time and memory, and workers, need processes.
"""

from __future__ import annotations

import collections
import os
import re
import threading
import time

import numpy as np
import pytest
import torch
from test_processes import delivered
from test_replay import first_try, kill

import qflow as qf
from qflow.engines.processes import Processes
from qflow.engines.simulated import Simulated
from qflow.runtime.worker import private_memory

pytestmark = pytest.mark.usefixtures("one_nursery")

EVERYWHERE = {"serial": "serial", "processes": "processes", "simulated": Simulated(5, deaths=0)}
COUNTING = {name: engine for name, engine in EVERYWHERE.items() if name != "serial"}  # those with statistics


@pytest.fixture(params=EVERYWHERE)
def anywhere(request):
    return EVERYWHERE[request.param]


@pytest.fixture(params=COUNTING)
def counting(request):
    return COUNTING[request.param]


def fails(x):
    if x % 5 == 3:
        raise LookupError(f"no {x}")
    return x


def total(stats, what):
    return sum(getattr(each, what) for each in stats)


class Flaky:
    """Fails the first ``failures`` times that it gets an item."""

    def __init__(self, failures, error=OSError):
        self.failures, self.error, self.tries = failures, error, collections.Counter()

    def __call__(self, x):
        self.tries[x] += 1
        if self.tries[x] <= self.failures:
            raise self.error(x)
        return x, self.tries[x]


# ---- on_error and max_errors


@pytest.mark.parametrize("mark", [qf.process(n=3), qf.thread(n=2), qf.map], ids=["process", "thread", "map"])
def test_skipped_items_are_listed_in_order_with_what_is_known_of_them(mark, anywhere):
    flow = mark(fails) | qf.process(n=2)(lambda x: -x)
    with flow(range(20), engine=anywhere, on_error="skip") as run:
        assert list(run) == [-x for x in range(20) if x % 5 != 3]
        assert [failure.index for failure in run.failures] == [(3,), (8,), (13,), (18,)]
        for failure in run.failures:
            (x,) = failure.index
            assert (type(failure.error), failure.error.args) == (LookupError, (f"no {x}",))
            assert (failure.step, failure.item, failure.attempts, failure.value, failure.fatal) == (
                "fails",
                str(x),
                1,
                None,
                False,
            )
            assert (failure.worker is None) == (anywhere == "serial")
            assert f"in step 'fails', item {x} ({x})" in failure.error.__notes__[0]


def test_a_run_that_raises_lists_the_failure_it_raises(anywhere):
    with qf.run(qf.process(n=2)(fails), range(20), engine=anywhere) as run:
        with pytest.raises(LookupError) as raised:
            list(run)
        (failure,) = run.failures
        assert failure.error is raised.value


def test_collected_failures_have_the_value_that_failed(anywhere):
    def refuse(x):
        raise KeyError("never")

    values = [np.arange(3), {"a": [1, None]}, "text", torch.ones(2, 2), np.zeros(40_000)]
    with qf.run(qf.process(n=2)(refuse), values, engine=anywhere, on_error="collect") as run:
        assert list(run) == []
        array, mapping, text, tensor, large = (failure.value for failure in run.failures)
    assert array.tolist() == [0, 1, 2]
    assert (mapping, text) == (values[1], values[2])
    assert torch.equal(tensor, values[3])
    assert (large.shape, large.dtype, large.any()) == ((40_000,), np.dtype(float), False)


def test_a_collected_value_is_what_the_failing_step_was_given(anywhere):
    flow = qf.process(lambda x: x * 10) | qf.map(lambda x: x + 1) | qf.process(lambda x: 1 / (x - 21))
    with flow(range(4), engine=anywhere, on_error="collect") as run:
        assert len(list(run)) == 3
        assert [(failure.value, failure.index) for failure in run.failures] == [(21, (2,))]


def test_a_collected_value_that_cannot_be_sent_is_none_and_its_text_is_there():
    flow = qf.map(lambda x: threading.Lock()) | qf.process(lambda lock: 1 // 0)
    with flow([1], on_error="collect") as run:
        assert list(run) == []
        (failure,) = run.failures
        assert (type(failure.error), failure.value) == (ZeroDivisionError, None)
        assert "lock" in failure.item


def test_failures_of_several_steps_stand_in_the_order_of_the_items(anywhere):
    def odd(x):
        return x if x % 2 else 1 // 0

    flow = qf.process(n=2)(fails) | qf.process(n=2)(lambda x: odd(x)) | qf.thread(n=2)(lambda x: x if x != 7 else [][0])
    with flow(range(10), engine=anywhere, on_error="skip") as run:
        assert list(run) == [1, 5, 9]
        assert [failure.index[0] for failure in run.failures] == [0, 2, 3, 4, 6, 7, 8]


def test_children_after_which_a_generator_fails_count_and_so_do_those_of_its_neighbours(anywhere):
    def children(x):
        for k in range(3):
            if (x, k) == (1, 2):
                raise ValueError("third")
            yield x, k

    with qf.run(qf.process(n=2)(children), range(3), engine=anywhere, on_error="skip") as run:
        assert list(run) == [(x, k) for x in range(3) for k in range(3) if (x, k) != (1, 2)]
        assert [failure.index for failure in run.failures] == [(1, 2)]


def test_an_element_that_fails_in_a_pool_is_left_out_of_its_list(anywhere):
    flow = qf.process(lambda x: [x, x + 1]) | qf.pool(n=3)(fails) | qf.process(lambda xs: xs)
    with flow(range(0, 10, 2), engine=anywhere, on_error="skip") as run:
        assert list(run) == [[0, 1], [2], [4, 5], [6, 7], [9]]
        assert [failure.error.args for failure in run.failures] == [("no 3",), ("no 8",)]


def test_streams_go_on_without_what_failed_before_and_behind_them(anywhere):
    flow = qf.process(n=2)(fails) | qf.pack(3) | qf.process(lambda xs: sum(xs) // (xs[0] - 7)) | qf.pack(2)
    with flow(range(12), engine=anywhere, on_error="skip") as run:
        values = list(run)
        assert [(failure.step, failure.index) for failure in run.failures if failure.step == "fails"] == [
            ("fails", (3,)),
            ("fails", (8,)),
        ]
        assert [failure.index for failure in run.failures if failure.step != "fails"] == [(2,)]
    assert values == [[-1, -5], [11 // 4]]


@pytest.mark.parametrize("most", [1, 3])
def test_more_failures_than_allowed_end_the_run_with_the_last(most, anywhere):
    values = []
    with qf.run(qf.process(n=2)(fails), range(50), engine=anywhere, on_error="skip", max_errors=most) as run:
        with pytest.raises(LookupError, match=f"no {5 * most + 3}") as raised:
            for value in run:
                values.append(value)
        assert len(run.failures) == most + 1
        assert any(f"more than max_errors={most}" in note for note in raised.value.__notes__)
    assert values == [x for x in range(5 * most + 3) if x % 5 != 3]


def test_exactly_as_many_failures_as_allowed_are_fine(anywhere):
    with qf.run(qf.process(n=2)(fails), range(10), engine=anywhere, on_error="skip", max_errors=2) as run:
        assert len(list(run)) == 8


@pytest.mark.parametrize("on_error", ["skip", "collect"])
def test_a_failing_source_is_no_item_to_be_skipped(on_error, anywhere):
    def source():
        yield from range(5)
        raise KeyError("gone")

    values = []
    with qf.run(qf.process(fails), source(), engine=anywhere, on_error=on_error) as run:
        with pytest.raises(KeyError, match="gone"):
            for value in run:
                values.append(value)
        assert values == [0, 1, 2, 4]
        assert [(failure.step, failure.index, failure.fatal) for failure in run.failures] == [
            ("fails", (3,), False),
            ("source", (5,), True),
        ]


def test_unordered_runs_skip_too(counting):
    with qf.run(qf.process(n=3)(fails), range(30), engine=counting, ordered=False, on_error="skip") as run:
        assert sorted(run) == [x for x in range(30) if x % 5 != 3]
        assert sorted(failure.index for failure in run.failures) == [(x,) for x in range(3, 30, 5)]


def test_a_failure_of_another_run_is_an_ordinary_value(anywhere):
    """One may well run a pipe over the failures of another one."""
    with qf.run(qf.process(fails), range(5), engine=anywhere, on_error="collect") as run:
        list(run)
        failures = run.failures
    (again,) = qf.run(qf.process(lambda failure: failure), failures, engine=anywhere)
    assert (again.index, again.value, again.error.args) == ((3,), 3, ("no 3",))


class BadToLoad:
    def __init__(self, raising):
        self.raising = raising

    def __reduce__(self):
        return self.raising, ()


def value_error():
    raise ValueError("not like this")


def leave():
    raise SystemExit(3)


@pytest.mark.parametrize("raising", [value_error, leave, first_try])
@pytest.mark.parametrize("taker", [[], [qf.process(name="taker")(lambda x: x)]], ids=["consumer", "worker"])
def test_what_cannot_be_loaded_is_a_failure_of_its_maker(raising, taker):
    flow = qf.Flow(qf.process(name="maker")(lambda x: BadToLoad(raising) if x == 2 else x), *taker)
    with flow, flow(range(5), on_error="skip") as run:
        if raising is first_try and taker:
            assert list(run) == [0, 1, True, 3, 4]
            return
        assert list(run) == [0, 1, 3, 4]
        (failure,) = run.failures
        assert (type(failure.error), failure.step, failure.index) == (qf.TransportError, "maker", (2,))
        assert [stats.failed for stats in run.stats()] == [1] + [0] * len(taker)


# ---- retry


@pytest.mark.parametrize("mark", [qf.process, qf.thread])
@pytest.mark.parametrize("n", [1, 3])
def test_what_is_tried_again_may_succeed(mark, n, anywhere):
    with qf.run(mark(n=n, retry=2)(Flaky)(2), range(8), engine=anywhere) as run:
        assert list(run) == [(x, 3) for x in range(8)]
        assert run.failures == []
        if anywhere != "serial":
            assert (total(run.stats(), "retried"), total(run.stats(), "failed")) == (16, 0)


def test_elements_of_a_pool_are_tried_again_each_for_itself(anywhere):
    step = qf.pool(n=2, retry=(OSError, 1))(Flaky)(1)
    assert list(qf.run(step, [[1, 2], [], [3]], engine=anywhere)) == [[(1, 2), (2, 2)], [], [(3, 2)]]


def test_a_step_behind_a_stream_is_tried_again(anywhere):
    class Sum(Flaky):
        def __call__(self, xs):
            return super().__call__(sum(xs))

    flow = qf.pack(3) | qf.process(retry=1)(Sum)(1) | qf.map(lambda pair: pair[0]) | qf.pack(2) | qf.process(retry=1)(Sum)(1)
    assert list(flow(range(9), engine=anywhere)) == [(15, 2), (21, 2)]


def test_tries_that_do_not_suffice_end_in_the_last_error(anywhere):
    run = qf.run(qf.process(n=2, retry=2)(Flaky)(5), range(3), engine=anywhere, on_error="skip")
    assert list(run) == []
    assert [(failure.index, failure.attempts, type(failure.error)) for failure in run.failures] == [
        ((x,), 3, OSError) for x in range(3)
    ]
    assert all("at try 3" in failure.error.__notes__[0] for failure in run.failures)


@pytest.mark.parametrize(
    ("retry", "error", "tried"),
    [
        ((OSError, 3), OSError, 4),
        ((OSError, 3), FileNotFoundError, 4),
        ((OSError, 3), KeyError, 1),
        (((OSError, KeyError), 1), KeyError, 2),
        (OSError, OSError, 2),
        (1, ValueError, 2),
    ],
)
def test_only_what_retry_names_is_tried_again(retry, error, tried, anywhere):
    with qf.run(qf.process(retry=retry)(Flaky)(9, error), [0], engine=anywhere, on_error="skip") as run:
        assert list(run) == []
        assert [failure.attempts for failure in run.failures] == [tried]


def test_children_that_were_given_do_not_come_again(anywhere):
    class Children:
        def __init__(self):
            self.tries = collections.Counter()

        def __call__(self, x):
            self.tries[x] += 1
            for k in range(4):
                if k == self.tries[x]:
                    raise OSError
                yield x, k

    run = qf.run(qf.process(n=2, retry=3)(Children), range(5), engine=anywhere)
    assert list(run) == [(x, k) for x in range(5) for k in range(4)]
    with qf.run(qf.process(n=2, retry=1)(Children), range(2), engine=anywhere, on_error="skip") as run:
        assert list(run) == [(0, 0), (0, 1), (1, 0), (1, 1)]
        assert [(failure.index, failure.attempts) for failure in run.failures] == [((0, 2), 2), ((1, 2), 2)]


def test_other_children_at_the_second_try_are_an_error(anywhere):
    class Others:
        tries = 0

        def __call__(self, x):
            self.tries += 1
            for k in range(4):
                if self.tries == 1 and k == 2:
                    raise OSError
                yield 10 * self.tries + k

    run = qf.run(qf.process(retry=1)(Others), [0], engine=anywhere)
    assert [next(run), next(run)] == [10, 11]
    with pytest.raises(qf.NondeterministicStep, match="other results") as caught:
        next(run)
    assert "in step 'Others', item 0.1" in caught.value.__notes__[0]


def test_fewer_children_at_the_second_try_are_an_error(anywhere):
    class Fewer:
        tries = 0

        def __call__(self, x):
            self.tries += 1
            yield from range(3 if self.tries == 1 else 2)
            if self.tries == 1:
                raise OSError

    flow = qf.Flow(qf.process(retry=1)(Fewer))
    values, error = delivered(flow, [0], engine=anywhere)
    assert (values, type(error)) == ([0, 1, 2], qf.NondeterministicStep)


@pytest.mark.parametrize("inside", [False, True], ids=["item", "behind a map"])
def test_a_step_is_tried_again_on_the_item_as_it_came(inside, anywhere):
    class Changes(Flaky):
        def __call__(self, x):
            x["list"].append(0)
            x["tensor"].add_(1)
            super().__call__(x["n"])
            return x["list"], x["tensor"].tolist()

    step = qf.process(n=2, retry=2)(Changes)(2)
    items = [{"n": n, "list": [n], "tensor": torch.full((2,), n)} for n in range(5)]
    if inside:
        step = qf.process(n=2, retry=2)(
            qf.map(lambda x: {**x, "list": list(x["list"]), "tensor": x["tensor"].clone()}) | Changes(2)
        )
    assert list(qf.run(step, items, engine=anywhere)) == [([n, 0], [n + 1, n + 1]) for n in range(5)]


def test_there_is_a_wait_before_each_try(anywhere):
    class Times(Flaky):
        def __call__(self, x):
            self.times = [*getattr(self, "times", []), time.monotonic()]
            super().__call__(x)
            return self.times

    ((first, second, third),) = qf.run(qf.process(retry=(OSError, 2, 0.1))(Times)(2), [0], engine=anywhere)
    assert second - first >= 0.1
    assert third - second >= 0.1


def test_the_attempt_counts_deaths_and_retries():
    def step(x):
        match qf.worker().attempt:
            case 1:
                kill()
            case 2:
                raise OSError
        return qf.worker().attempt

    with qf.run(qf.process(retry=1)(step), range(3)) as run:
        assert list(run) == [3, 3, 3]
        (stats,) = run.stats()
        assert (stats.died, stats.retried, stats.failed) == (3, 3, 0)


# ---- timeout


def loops():
    while True:
        pass


def sleeps():
    time.sleep(100)


def holds_the_lock():
    re.match(r"(a|aa)+$", "a" * 60 + "b")


STUCK = [loops, sleeps, holds_the_lock]
SOON = 0.4


def gets_stuck(how, at):
    def step(x):
        if x == at:
            how()
        return x

    return step


@pytest.mark.parametrize("how", STUCK)
@pytest.mark.parametrize("mark", [qf.process, qf.thread])
def test_only_the_item_that_takes_too_long_fails(how, mark):
    pipe = mark(n=3, timeout=SOON)(gets_stuck(how, 4)) | qf.process(lambda x: x)
    with pipe:
        assert list(pipe([0])) == [0]  # warm, so that only the timeout is timed
        began = time.monotonic()
        with pipe(range(12), on_error="skip") as run:
            assert list(run) == [x for x in range(12) if x != 4]
            took = time.monotonic() - began
            (failure,) = run.failures
            assert [stats.died for stats in run.stats()] == [1, 0]
        assert (type(failure.error), failure.step, failure.index) == (qf.StepTimeout, "step", (4,))
        assert f"in {how.__name__}" in str(failure.error)  # the stack
        assert "timeout=0.4" in str(failure.error)
        assert SOON <= took < SOON + 2  # half a second on a quiet machine


def test_the_values_before_the_stuck_item_come_then_the_timeout():
    pipe = qf.Flow(qf.process(n=2, timeout=SOON)(gets_stuck(sleeps, 5)))
    with pipe:
        values, error = delivered(pipe, range(9))
        assert (values, type(error)) == (list(range(5)), qf.StepTimeout)
        assert list(pipe([1, 2])) == [1, 2]


def test_a_stuck_element_of_a_pool_fails_alone():
    with qf.run(qf.pool(n=2, timeout=SOON)(gets_stuck(sleeps, 4)), [[1, 4, 2], [3]], on_error="skip") as run:
        assert list(run) == [[1, 2], [3]]
        assert [type(failure.error) for failure in run.failures] == [qf.StepTimeout]


def test_a_stuck_batch_behind_a_stream_fails_alone():
    def step(batch):
        if 4 in batch:
            sleeps()
        return batch

    with qf.run(qf.repack(2) | qf.process(timeout=SOON)(step), [range(5), range(5, 9)], on_error="skip") as run:
        assert list(run) == [[0, 1], [2, 3], [6, 7], [8]]
        (failure,) = run.failures
        assert (type(failure.error), failure.index) == (qf.StepTimeout, (2,))


def test_several_stuck_items_fail_each_for_itself():
    def step(x):
        if x % 4 == 2:
            sleeps()
        return x

    with qf.run(qf.thread(n=3, timeout=SOON)(step), range(12), on_error="skip") as run:
        assert list(run) == [x for x in range(12) if x % 4 != 2]
        assert [failure.index for failure in run.failures] == [(2,), (6,), (10,)]


def test_a_timeout_can_be_tried_again():
    def step(x):
        if x == 2 and first_try():
            sleeps()
        return x, qf.worker().attempt

    with qf.run(qf.process(n=2, timeout=SOON, retry=(qf.StepTimeout, 1))(step), range(4)) as run:
        assert list(run) == [(0, 1), (1, 1), (2, 2), (3, 1)]
        assert total(run.stats(), "retried") == 1
    step = qf.process(n=2, timeout=SOON, retry=(qf.StepTimeout, 1))(gets_stuck(sleeps, 1))
    with qf.run(step, range(3), on_error="skip") as run:
        assert list(run) == [0, 2]
        assert [(type(failure.error), failure.attempts) for failure in run.failures] == [(qf.StepTimeout, 2)]


def test_each_result_of_a_generator_has_the_time():
    def slowly(x):
        for k in range(4):
            time.sleep(SOON / 2)
            yield k

    assert list(qf.run(qf.process(timeout=SOON)(slowly), [0])) == [0, 1, 2, 3]


def test_waiting_for_a_slow_consumer_is_not_computing():
    for taken, x in enumerate(qf.run(qf.process(timeout=0.2)(lambda x: x) | qf.queue(1), range(6))):
        assert taken == x
        if x == 1:
            time.sleep(0.6)


# ---- max_items and max_memory


def pid_and(x):
    return os.getpid(), x


@pytest.mark.parametrize("n", [1, 3])
def test_a_worker_is_replaced_after_so_many_items(n):
    pipe = qf.process(n=n, max_items=5)(pid_and) | qf.process(lambda pair: pair)
    recycled = 0
    with pipe:
        for runs in (1, 2):  # warm workers count on
            with pipe(range(40)) as run:
                values = list(run)
                assert [x for _, x in values] == list(range(40))
                assert max(collections.Counter(pid for pid, _ in values).values()) <= 5
                recycling, other = run.stats()
                recycled += recycling.recycled
                assert 8 * runs - n <= recycled <= 8 * runs
                assert (recycling.died, other.recycled, recycling.items, recycling.results) == (0, 0, 40, 40)


def test_the_elements_of_a_pool_count():
    with qf.run(qf.pool(n=2, max_items=3)(pid_and), [range(10), range(10, 20)]) as run:
        values = [pair for pairs in run for pair in pairs]
        assert [x for _, x in values] == list(range(20))
        assert max(collections.Counter(pid for pid, _ in values).values()) <= 3


def test_threads_finish_what_they_have_begun_before_their_process_is_replaced():
    def step(x):
        time.sleep(0.002 * (x % 3))
        return os.getpid(), x

    with qf.run(qf.thread(n=3, max_items=6)(step), range(60)) as run:
        values = list(run)
        assert [x for _, x in values] == list(range(60))
        assert run.stats()[0].recycled >= 4
        assert run.stats()[0].died == 0


@pytest.mark.parametrize("stream", [qf.repack(3), qf.pack(2) | qf.unpack() | qf.repack(3)], ids=repr)
def test_a_stream_is_replaced_with_what_it_keeps(stream):
    with qf.run(stream | qf.process(max_items=4)(pid_and), [[x] for x in range(50)]) as run:
        values = list(run)
        assert [x for _, batch in values for x in flat(batch)] == list(range(50))
        assert len({pid for pid, _ in values}) >= 3  # small items are finished together, 16 at a time
        assert total(run.stats(), "recycled") >= 3


def flat(batch):
    return [y for x in batch for y in (x if isinstance(x, list) else [x])]


def test_generators_are_finished_before_their_worker_is_replaced():
    def children(x):
        for k in range(3):
            yield os.getpid(), x, k

    values = list(qf.run(qf.process(n=2, max_items=1)(children), range(10)))
    assert [(x, k) for _, x, k in values] == [(x, k) for x in range(10) for k in range(3)]
    assert len({pid for pid, _, _ in values}) == 10


class Hoards:
    """Keeps 20 MB for each item."""

    def __init__(self):
        self.kept = []

    def __call__(self, x):
        self.kept.append(np.ones(20_000_000, np.uint8))
        return os.getpid(), x


@pytest.mark.parametrize("mark", [qf.process, qf.thread])
def test_a_worker_that_holds_too_much_memory_is_replaced(mark):
    (fresh,) = qf.run(mark(lambda x: private_memory()), [0])
    with qf.run(mark(max_memory=fresh + 70_000_000)(Hoards), range(14)) as run:
        values = list(run)
        assert [x for _, x in values] == list(range(14))
        assert max(collections.Counter(pid for pid, _ in values).values()) in (3, 4)
        assert run.stats()[0].recycled in (3, 4)


def test_a_bound_on_memory_that_no_worker_keeps_is_an_error_with_numbers():
    with pytest.raises(qf.ResourceError, match=r"step 'pid_and' holds .*MB before its first item.*max_memory='1B'"):
        list(qf.run(qf.process(n=2, max_memory=1)(pid_and), range(10)))


# ---- qf.worker()


def test_a_step_knows_its_worker(counting):
    with qf.run(qf.process(n=3)(lambda x: qf.worker()), range(60), engine=counting) as run:
        found = set(run)
    assert {info.index for info in found} <= set(range(3))
    assert {(info.n, info.attempt) for info in found} == {(3, 1)}
    assert len({info.step for info in found}) == 1


@pytest.mark.parametrize("mark", [qf.process, qf.thread])
def test_a_constructor_knows_its_worker_too(mark, counting):
    class OnDevice:
        def __init__(self):
            self.device = qf.worker().index % 2

        def __call__(self, x):
            yield qf.worker().index % 2 == self.device, qf.worker().n

    assert set(qf.run(mark(n=3)(OnDevice), range(20), engine=counting)) == {(True, 3)}


def test_who_is_no_worker_is_none():
    assert qf.worker() is None
    assert list(qf.run(qf.process(lambda x: qf.worker()), [0], engine="serial")) == [None]


# ---- options


def test_a_run_gives_defaults_and_the_mark_wins(counting):
    flow = qf.process(Flaky)(2) | qf.map(lambda pair: pair[0]) | qf.process(retry=(OSError, 5))(Flaky)(5)
    with flow(range(2), engine=counting, retry=2) as run:
        assert list(run) == [(0, 6), (1, 6)]
    with qf.run(qf.process(retry=1)(Flaky)(2), [0], engine=counting, retry=9, on_error="skip") as run:
        assert list(run) == []
        assert run.failures[0].attempts == 2


def test_limits_can_be_defaults_of_a_run():
    pipe = qf.Flow(qf.process(gets_stuck(sleeps, 1)))
    with pipe, pipe(range(3), timeout=SOON, max_items=1, n=2, on_error="skip") as run:
        assert list(run) == [0, 2]
        assert type(run.failures[0].error) is qf.StepTimeout
        (stats,) = run.stats()
        assert (stats.n, stats.recycled, stats.died) == (2, 3, 1)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"retry": "often"}, "`retry` says which exceptions"),
        ({"retry": (OSError, 0)}, "retry"),
        ({"retry": (OSError, 2, -1)}, "`retry` says which exceptions"),
        ({"retry": ()}, "`retry` says which exceptions"),
        ({"retry": True}, "retry"),
        ({"timeout": 0}, "`timeout` is a number of seconds above 0"),
        ({"timeout": float("nan")}, "`timeout` is a number of seconds above 0"),
        ({"timeout": "3"}, "`timeout` is a number of seconds above 0"),
        ({"timeout": True}, "`timeout` is a number of seconds above 0"),
        ({"max_items": 0}, "max_items"),
        ({"max_items": 1.5}, "max_items"),
        ({"max_memory": "much"}, "`max_memory` is a number of bytes or a text"),
        ({"max_memory": 0}, "max_memory"),
    ],
    ids=repr,
)
def test_a_wrong_option_is_an_error_on_its_line(wrong, says, engine):
    with pytest.raises(qf.GraphError, match=says):
        qf.process(**wrong)
    pipe = qf.Flow(qf.process(abs))
    with pytest.raises(qf.GraphError, match=says):
        pipe([1], engine=engine, **wrong)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"on_error": "ignore"}, "`on_error` is one of 'raise', 'skip', 'collect', 'report', but got 'ignore'"),
        ({"on_error": "skip", "max_errors": 0}, "max_errors"),
        ({"on_error": "skip", "max_errors": "3"}, "max_errors"),
        ({"max_errors": 3}, "`max_errors` counts skipped items"),
        ({"ordered": "no"}, "`ordered` is True or False"),
        ({"name": "x"}, "A run has no option `name`"),
        ({"onerror": "skip"}, "A run has no option `onerror`"),
        ({"engine": "proceses"}, "`engine` is one of"),
    ],
    ids=repr,
)
def test_a_wrong_option_of_a_run_is_an_error_on_its_line(wrong, says):
    pipe = qf.Flow(qf.process(abs))
    with pytest.raises(qf.GraphError, match=says):
        pipe([1], **wrong)


def test_an_engine_of_ones_own_goes_with_its_pipe():
    pipe = qf.Flow(qf.process(pid_and))
    with pipe:
        ((pid, _),) = pipe([1], engine=Processes(attempts=3))
    assert not os.path.exists(f"/proc/{pid}")


@pytest.mark.parametrize("engine", EVERYWHERE)
def test_each_step_of_a_row_has_its_own_tries(engine):
    """In the serial engine the steps stand in one row, with processes each for itself."""

    def fails_at_first():
        calls = []

        def step(x):
            calls.append(x)
            if len(calls) == 1:
                raise OSError("not yet")
            return x

        return qf.process(step, retry=(OSError, 1))

    assert list((fails_at_first() | fails_at_first())([7], engine=EVERYWHERE[engine])) == [7]
