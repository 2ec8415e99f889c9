"""The simulated engine: any order, any deaths, in one thread; what it gives is what the serial engine gives."""

from __future__ import annotations

import importlib
import inspect
import itertools
import sys
import types

import numpy as np
import plain_steps as steps
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qflow as qf
from qflow.engines import simulated
from qflow.engines.simulated import Simulated
from qflow.runtime.whereabouts import Death

seeds = st.integers(0, 2**32)


def one(x):
    return [x]


numbers = st.sampled_from([steps.add, steps.flip, steps.drop, steps.several])


@st.composite
def flows(draw):
    """Chains of marked steps, streams and queues over numbers."""
    parts = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["process", "thread", "map", "filter", "pool", "pack", "repack", "queue"]))
        function, n, size = draw(numbers), draw(st.integers(1, 3)), draw(st.integers(1, 5))
        match kind:
            case "process" | "thread":
                parts.append(getattr(qf, kind)(n=n)(function))
            case "map":
                parts.append(qf.map(function))
            case "filter":
                parts.append(qf.filter(steps.even))
            case "pool":
                parts += [qf.map(steps.pair), qf.pool(n=n)(function), qf.unpack()]
            case "pack":
                parts += [qf.pack(size), qf.map(steps.total)]
            case "repack":
                parts += [qf.map(steps.pair), qf.repack(size), qf.process(steps.total)]
            case "queue":
                parts.append(qf.queue(size))
    return qf.Flow(*parts)


@settings(max_examples=150)
@given(flows(), st.integers(0, 30), seeds, st.integers(0, 4))
def test_any_order_and_any_deaths_give_the_serial_result(flow, items, seed, deaths):
    assert list(flow(range(items), engine=Simulated(seed, deaths=deaths))) == list(flow(range(items), engine="serial"))


def fails(x):
    if x % 5 == 3:
        raise LookupError(x)
    return x


@settings(max_examples=60)
@given(flows(), st.integers(0, 25), seeds, st.integers(0, 3), st.sampled_from(["skip", "collect"]))
def test_skipped_items_are_those_that_serial_skips(flow, items, seed, deaths, on_error):
    flow = qf.process(n=2)(fails) | flow | qf.map(fails)

    def run(engine):
        run = flow(range(items), engine=engine, on_error=on_error)
        return list(run), [(f.step, f.index, f.item, type(f.error), f.value) for f in run.failures]

    assert run(Simulated(seed, deaths=deaths)) == run("serial")


@settings(max_examples=60)
@given(flows(), st.integers(0, 25), seeds, st.integers(0, 3))
def test_the_values_before_a_failure_come_first(flow, items, seed, deaths):
    flow = flow | qf.process(fails)

    def run(engine):
        values, error = [], None
        try:
            for value in flow(range(items), engine=engine):
                values.append(value)
        except LookupError as caught:
            error = caught.args, caught.__notes__[0].partition(", worker")[0]
        return values, error

    assert run(Simulated(seed, deaths=deaths)) == run("serial")


@given(seeds)
def test_kept_arrays_never_change(seed):
    """Freed cells are overwritten in a simulation, so a view that should not be there would show it."""
    double = qf.process(n=2)(lambda x: x * 2)
    kept = list(qf.run(double | double, [np.full(10_000, float(i)) for i in range(12)], engine=Simulated(seed)))
    assert all((array == 4 * i).all() for i, array in enumerate(kept))


@given(seeds, st.integers(1, 3))
def test_a_step_may_die_by_itself(seed, n):
    def dies_once(x):
        if qf.worker().attempt == 1 and x % 4 == 1:
            raise Death
        return x

    with qf.run(qf.process(n=n)(dies_once), range(12), engine=Simulated(seed, deaths=0)) as run:
        assert list(run) == list(range(12))
        assert run.stats()[0].died == 3


@given(seeds, st.integers(1, 3))
def test_an_item_that_always_kills_fails_in_its_turn(seed, n):
    def dies(x):
        if x == 6:
            raise Death
        return x

    run = qf.run(qf.process(n=n)(dies) | qf.pack(2), range(12), engine=Simulated(seed), on_error="skip")
    assert list(run) == [[0, 1], [2, 3], [4, 5], [7, 8], [9, 10], [11]]
    (failure,) = run.failures
    assert (type(failure.error), failure.index, failure.attempts) == (qf.WorkerDied, (6,), 2)


def test_the_same_seed_is_the_same_run():
    def run(seed):
        order = []
        step = qf.process(n=3)(lambda x: order.append(x) or x)
        list(qf.run(step, range(20), engine=Simulated(seed), ordered=False))
        return list(qf.run(qf.process(n=3)(abs), range(20), engine=Simulated(seed, deaths=0), ordered=False))

    assert run(3) == run(3)
    assert len({tuple(run(seed)) for seed in range(10)}) > 1


def test_without_order_every_result_comes_once():
    for seed in range(20):
        assert sorted(qf.run(qf.process(n=3)(abs), range(20), engine=Simulated(seed), ordered=False)) == [*range(20)]


def test_a_run_can_be_left_early():
    with qf.run(qf.process(n=2)(abs), iter(int, 1), engine=Simulated()) as run:
        assert [next(run) for _ in range(5)] == [0] * 5
    with pytest.raises(qf.GraphError, match="exhausted"):
        iter(run)


COMMIT = "        yield from _commit(board, me, Slot(place, item, half, end, done))\n"
RELEASE = """        for claim in pushed:
            kept = yield ("release", claim)
            yield from taker.free(claim.cell, claim.place, kept)
"""
MUTANTS = {
    "the cells of entries before the place stay taken": ("streaming", " or 0 < word <= place:", ":"),
    "cells of later entries are freed": ("streaming", "0 < word <= place:", "0 < word:"),
    "lanes below the place stay taken": ("streaming", "        yield from taker.seen(slot.place >> SHIFT)\n    else", "    else"),
    "results are given again": (
        "streaming",
        "        if not putter.published(item)[0]:\n            yield from putter.put(item, Parcel",
        "        if 1:\n            yield from putter.put(item, Parcel",
    ),
    "the slot counts before it is written": (
        "streaming",
        '        job[at + number] = word\n    if board.watched:\n        yield "slotted"\n    job[0] = version',
        '        job[0] = version\n        yield "slotted"\n        job[at + number] = word',
    ),
    "entries are released before the commit": ("streaming", COMMIT + RELEASE, RELEASE + COMMIT),
    "skipped lanes are not noted": (
        "streaming",
        "        place = after\n        return commit()",
        "        place = after\n        return iter(())",
    ),
    "what was taken is not written down": (
        "stream_desk",
        "                    end = self._log.append(end, encode(value))",
        "                    pass",
    ),
    "what is kept is not written down": (
        "stream_desk",
        "encode(row.states)",
        "encode([(given, None) for given, _ in row.states])",
    ),
    "a stream begins anew": ("stream_desk", "        for value in entered:\n            self._row.enter(value)\n", ""),
    "a verdict counts as given": ("turn", "elif given < skip and not parcel.kind & END:", "elif given < skip:"),
    "a poisonous item is repeated for ever": ("ledger", "if deaths >= self.attempts:", "if False:"),
    "nobody is charged": ("ledger", "            self._deaths[group, call] += 1\n", "            pass\n"),
}


def mutated(name, old, new):
    """A module of the runtime with one place changed."""
    original = importlib.import_module(f"qflow.runtime.{name}")
    source = inspect.getsource(original)
    assert source.count(old) == 1, old
    module = types.ModuleType(original.__name__)
    monkeyed = {**sys.modules, original.__name__: module}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "modules", monkeyed)
        exec(compile(source.replace(old, new), name, "exec"), vars(module))
    return module


def children_and_death(x):
    yield x
    yield -x
    if x == 7:
        raise Death
    yield 2 * x


class Moody:
    """Kills whoever loads it after the first try."""

    def __init__(self, x):
        self.x = x

    def __reduce__(self):
        return moody, (self.x,)


def moody(x):
    if qf.worker() is not None and qf.worker().attempt > 1:
        raise Death
    return Moody(x)


def two_and_death(item):
    yield item.x
    yield -item.x
    raise Death


def worlds():
    """Flows, inputs, failures, and what must come of them, under many seeds."""
    keep = qf.process(n=2)(steps.several) | qf.pack(4) | qf.process(steps.total) | qf.queue(1)
    regroup = qf.pool(n=2)(steps.drop) | qf.repack(3) | qf.process(steps.total)
    tight = qf.process(steps.drop) | qf.queue(1) | qf.pack(2) | qf.queue(1)
    fatal, loading = qf.Flow(qf.process(n=2)(children_and_death)), qf.Flow(qf.process(two_and_death))
    children = [y for x in range(10) for y in ((x, -x) if x == 7 else (x, -x, 2 * x))]
    for seed in range(300):
        often = Simulated(seed, deaths=40, attempts=100)
        for flow, source in (keep, range(20)), (regroup, [range(n % 5) for n in range(12)]), (tight, range(40)):
            yield flow, source, often, [], list(flow(source, engine="serial"))
        yield fatal, range(10), Simulated(seed), [qf.WorkerDied], children
        yield loading, [Moody(1)], Simulated(seed, deaths=0), [qf.TransportError], [1, -1]


def notices(worlds):
    """Whether any world comes out wrong."""
    for flow, source, engine, failures, expected in worlds:
        try:
            run = flow(source, engine=engine, on_error="skip")
            assert list(itertools.islice(run, 1000)) == expected
            assert [type(failure.error) for failure in run.failures] == failures
        except Exception:
            return True
    return False


def put_in_place(mutant, monkeypatch):
    """Let the simulated engine use a changed module."""
    own = {
        "streaming": ["stream"],
        "turn": ["work", "feed"],
        "desk": ["Desk"],
        "stream_desk": ["StreamDesk"],
        "ledger": ["Ledger"],
    }
    for attribute in own[mutant.__name__.rpartition(".")[2]]:
        monkeypatch.setattr(simulated, attribute, getattr(mutant, attribute))


@pytest.mark.parametrize("name", MUTANTS)
def test_removing_a_line_of_the_recovery_is_noticed(name, monkeypatch):
    put_in_place(mutated(*MUTANTS[name]), monkeypatch)
    assert notices(worlds())


@pytest.mark.parametrize("module", ["streaming", "turn", "desk", "stream_desk", "ledger"])
def test_changing_nothing_is_not_noticed(module, monkeypatch):
    source = inspect.getsource(importlib.import_module(f"qflow.runtime.{module}"))
    put_in_place(mutated(module, source, source), monkeypatch)
    assert not notices(itertools.islice(worlds(), 90))
