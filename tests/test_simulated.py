"""The simulated engine: any order, any deaths, in one thread; what it gives is what the serial engine gives."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import mutants
import numpy as np
import plain_steps as steps
import pytest
import small_runs
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import Keeps, Moody, fewer, full, loses, many, other, part_of_three, several, two_and_die

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


def death():
    raise Death


@pytest.fixture
def simulated_deaths(monkeypatch):
    """The functions of the small runs end a simulated worker, and not this process."""
    monkeypatch.setattr(small_runs, "die", death)


class World(NamedTuple):
    """A flow, its input, a number of deaths and attempts, and what must come of them, also in another order; failures."""

    flow: qf.Flow
    source: Sequence
    expected: list
    deaths: int = 40
    attempts: int = 100
    ordered: bool = True
    failures: Sequence[type] = ()


def serial(flow, source, **rest):
    flow = qf.Flow(flow)
    return World(flow, source, list(flow(source, engine="serial")), **rest)


def worlds():
    children = [y for x in range(10) for y in ((x, -x) if x == 7 else (x, -x, 2 * x))]
    return [
        serial(qf.process(n=2)(steps.several) | qf.pack(4) | qf.process(steps.total) | qf.queue(1), range(20)),
        serial(qf.pool(n=2)(steps.drop) | qf.repack(3) | qf.process(steps.total), [range(n % 5) for n in range(12)]),
        serial(qf.process(steps.drop) | qf.queue(1) | qf.pack(2) | qf.queue(1), range(40)),
        serial(qf.process(n=3)(steps.flip) | qf.queue(1) | qf.process(n=2)(steps.add) | qf.queue(1), range(20)),
        serial(qf.process(n=3)(steps.several) | qf.queue(1), range(20), ordered=False),
        serial(
            qf.queue(40) | qf.process(n=2)(steps.add) | qf.queue(40) | qf.process(n=2)(steps.several) | qf.queue(1), range(90)
        ),
        serial(qf.process(n=2)(several) | qf.queue(1), range(90), deaths=90),
        serial(qf.process(n=2)(many) | qf.queue(300) | qf.process(n=2)(steps.flip), range(4)),
        serial(qf.process(full) | qf.queue(1) | qf.process(n=2)(Keeps)(3), range(30)),
        serial(qf.process(full) | qf.queue(1) | qf.process(Keeps), range(50)),
        serial(qf.process(n=2)(full) | qf.queue(2), range(30)),
        serial(qf.process(n=2)(steps.add) | qf.queue(1), range(40), deaths=12, attempts=2),
        World(qf.Flow(qf.process(n=2)(part_of_three)), range(10), children, 3, 2, failures=[qf.WorkerDied]),
        World(qf.Flow(qf.process(two_and_die)), [Moody(1)], [1, -1], 0, 2, failures=[qf.TransportError]),
        World(qf.Flow(qf.process(fewer)), [1], [0, 1, 2, 3], 0, 2, failures=[qf.NondeterministicStep]),
        World(qf.Flow(qf.process(other)), [1], ["a", "b"], 0, 2, failures=[qf.NondeterministicStep]),
        World(qf.repack(1) | qf.filter(loses), [[1, 2, 3]], [[1], [2]], 0, 2, failures=[qf.NondeterministicStep]),
    ]


def same(world, given):
    if isinstance(world.expected[0], np.ndarray):
        return len(given) == len(world.expected) and all(map(np.array_equal, given, world.expected))
    return given == world.expected if world.ordered else sorted(given) == sorted(world.expected)


def comes_out_right(world, seed):
    """Whether all comes, in order, and whatever was kept is as it was."""
    engine = Simulated(seed, deaths=world.deaths, attempts=world.attempts)
    run = world.flow(world.source, engine=engine, on_error="skip", ordered=world.ordered)
    given = list(itertools.islice(run, len(world.expected) + 1))
    return same(world, given) and [type(failure.error) for failure in run.failures] == list(world.failures)


def notices(seeds):
    """Whether any world comes out wrong."""
    for seed, world in itertools.product(seeds, worlds()):
        try:
            with mutants.patience():
                if not comes_out_right(world, seed):
                    return True
        except Exception:
            return True
    return False


def put_in_place(made, monkeypatch):
    """Let the simulated engine use changed modules."""
    own = {"turn": ["work", "feed"], "streaming": ["stream"], "consumer": ["Consumer", "Leases", "OVER"]}
    for module, names in {**own, "desk": ["Desk"], "stream_desk": ["StreamDesk"], "ledger": ["Ledger", "Orders"]}.items():
        for name in names:
            monkeypatch.setattr(simulated, name, getattr(made[module], name))


@pytest.mark.usefixtures("simulated_deaths")
@pytest.mark.slow
@pytest.mark.parametrize("name", mutants.seen_by("simulated"))
def test_removing_a_line_of_the_coordination_is_noticed(name, monkeypatch):
    put_in_place(mutants.runtime(name), monkeypatch)
    assert notices(range(60))


@pytest.mark.slow
@pytest.mark.usefixtures("simulated_deaths")
def test_changing_nothing_is_not_noticed(monkeypatch):
    put_in_place(mutants.runtime(None), monkeypatch)
    assert not notices(range(20))
