"""What a run is beside its data: random numbers follow seed, epoch, step and item alone; parameters reach the steps."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qflow as qf
from qflow.engines.simulated import Simulated
from qflow.runtime.whereabouts import attempt

pytestmark = pytest.mark.usefixtures("one_nursery")


def jitter(value: Any, rng: np.random.Generator) -> Any:
    return value, int(rng.integers(1 << 40))


def crops(value: Any, rng: np.random.Generator) -> Iterator[Any]:
    """Draws between its results."""
    for _ in range(int(rng.integers(3))):
        yield value, int(rng.integers(1 << 40))


def keeps(value: Any, *, rng: np.random.Generator) -> bool:
    return bool(rng.random() < 0.7)


def legacy(value: Any) -> Any:
    """As most augmentations are written."""
    return value, random.randrange(1 << 40), int(np.random.randint(1 << 40))


def several(value: Any) -> Iterator[Any]:
    for _ in range(3):
        yield value, random.randrange(1 << 40), int(np.random.randint(1 << 40))


class Shifted:
    def __init__(self, by: int) -> None:
        self.by = by

    def __call__(self, value: Any, rng: np.random.Generator) -> Any:
        return value, self.by + int(rng.integers(1 << 40))


def flow(n: int, *, threads: bool = False) -> qf.Flow[Any, Any]:
    mark = qf.thread if threads else qf.process
    return (
        mark(n=n)(jitter)
        | qf.map(jitter)
        | mark(n=n)(crops)
        | qf.filter(keeps)
        | mark(n=n)(qf.map(jitter) | qf.map(crops) | jitter)
        | mark(n=n)(Shifted)(5)
    )


def pooled(n: int) -> qf.Flow[Any, Any]:
    return qf.pack(3) | qf.pool(n=n)(crops) | qf.unpack() | qf.map(jitter)


SERIAL = list(flow(1)(range(20), engine="serial", seed=3))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_what_is_drawn_depends_on_seed_epoch_step_and_item_alone(n: int) -> None:
    assert list(flow(n)(range(20), seed=3)) == SERIAL
    assert list(flow(n, threads=True)(range(20), seed=3)) == SERIAL
    assert sorted(flow(n)(range(20), seed=3, ordered=False)) == sorted(SERIAL)
    assert list(pooled(n)(range(20), seed=3)) == list(pooled(1)(range(20), seed=3, engine="serial"))


@settings(max_examples=25)
@given(st.integers(0, 1 << 30), st.integers(1, 3), st.booleans(), st.integers(0, 4))
def test_nor_on_who_dies_meanwhile(chance: int, n: int, pools: bool, deaths: int) -> None:
    pipe = (pooled if pools else flow)(n)
    expected = list((pooled if pools else flow)(1)(range(6), engine="serial", seed=3))
    assert list(pipe(range(6), seed=3, engine=Simulated(chance, deaths=deaths))) == expected


def test_another_seed_or_epoch_gives_other_numbers() -> None:
    options: list[dict[str, Any]] = [{"seed": 0}, {"seed": 1}, {"seed": 0, "epoch": 1}, {"seed": 1, "epoch": 1}, {}]
    numbers = [number for each in options for _, number in (range(3) | qf.map(jitter))(engine="serial", **each)]
    assert len({*numbers}) == len(numbers)


def test_equal_steps_draw_other_numbers() -> None:
    for (_, first), second in (range(5) | qf.map(jitter) | qf.process(n=2)(jitter))(seed=0):
        assert first != second


def test_a_run_without_a_seed_draws_one_and_says_it() -> None:
    first, second = ((range(3) | qf.process(jitter))() for _ in range(2))
    results = list(first)
    assert first.seed != second.seed
    assert results == list((range(3) | qf.process(n=2)(jitter))(seed=first.seed)) != list(second)


def test_a_step_that_is_called_plainly_gets_a_fresh_generator() -> None:
    step = qf.process(jitter)
    assert step(1) != step(1)
    assert step(1, np.random.default_rng(0)) == step(1, rng=np.random.default_rng(0))
    assert qf.process(Shifted)(5)(1)[1] >= 5


def outer(value: Any) -> Any:
    return inner(value)[0]


inner = qf.process(jitter)


def test_a_step_in_a_step_is_called_plainly() -> None:
    assert list((range(3) | qf.process(outer))(seed=0)) == [0, 1, 2]


def flaky(value: Any, rng: np.random.Generator) -> Any:
    drawn = int(rng.integers(1 << 40))
    if attempt() < 2:
        raise OSError("again")
    return drawn


def test_what_is_tried_again_draws_the_same() -> None:
    calm = qf.process(lambda value, rng: int(rng.integers(1 << 40)), name="same")
    again = qf.process(flaky, name="same", retry=(OSError, 2))
    expected = list(qf.run(calm, range(4), seed=1))
    assert list(qf.run(again, range(4), seed=1)) == expected == list(qf.run(again, range(4), seed=1, engine="serial"))


# ---- the global generators


@pytest.mark.parametrize("n", [1, 2, 3])
def test_in_a_run_with_a_seed_the_global_generators_follow_the_item(n: int) -> None:
    pipe = qf.process(n=n)(legacy) | qf.map(several) | qf.map(legacy) | qf.process(n=n)(several)
    assert list(pipe(range(7), seed=5)) == list(pipe(range(7), seed=5, engine="serial"))


def test_torch_follows_too() -> None:
    torch = pytest.importorskip("torch")
    step = qf.process(lambda value: (value, torch.rand(2).tolist()))
    first = list(qf.run(step, range(5), seed=5))
    assert first == list(qf.run(step.using(n=3), range(5), seed=5))
    assert first != list(qf.run(step, range(5), seed=6))


def test_the_serial_engine_leaves_the_callers_generators_alone() -> None:
    random.seed(1)
    np.random.seed(1)
    expected = random.random(), np.random.random()
    random.seed(1)
    np.random.seed(1)
    run = (range(3) | qf.map(legacy) | qf.map(jitter))(seed=5, engine="serial")
    next(run)
    assert (random.random(), np.random.random()) == expected


def test_unseeded_workers_do_not_share_a_state() -> None:
    """A process that is copied has the state of what it was copied from."""
    drawn = [number for _, *numbers in (range(40) | qf.process(n=4)(legacy))() for number in numbers]
    assert len({*drawn}) == len(drawn)


# ---- parameters


def scaled(value: Any, factor: int = 1, *, training: bool = False) -> Any:
    return value * factor, training


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_a_parameter_reaches_every_step_that_names_it(engine: str) -> None:
    pipe = qf.process(n=2)(scaled) | qf.map(lambda value, training: (*value, training))
    with pipe:
        for factor, training in [(1, True), (2, False), (3, True)]:
            params = {"factor": factor, "training": training}
            results = list(pipe([1, 2], params=params, engine=engine))
            assert results == [(factor, training, training), (2 * factor, training, training)]


def test_what_is_bound_wins_over_a_parameter() -> None:
    pipe = qf.Flow(qf.process(scaled).bind(factor=7))
    assert list(pipe([1], params={"training": True}, engine="serial")) == [(7, True)]


def test_a_run_without_parameters_does_not_remember_those_of_the_one_before() -> None:
    with qf.Flow(qf.process(scaled)) as pipe:
        assert list(pipe([1], params={"factor": 5})) == [(5, False)]
        assert list(pipe([1])) == [(1, False)]


def test_wrong_parameters_are_told() -> None:
    pipe = qf.Flow(qf.process(scaled))
    with pytest.raises(qf.GraphError, match=r"`params` has `traning`, which no step .* the steps name `factor`, `training`"):
        pipe([1], params={"traning": True})
    with pytest.raises(qf.GraphError, match=r"Step 'lambda' needs `size`, which has no value. Write `pipe"):
        qf.run(lambda value, size: value, [1])
    with pytest.raises(qf.GraphError, match="`params` is a dict of values by the names of parameters"):
        pipe([1], params=[1])  # type: ignore[arg-type]
    with pytest.raises(qf.GraphError, match="The parameter `training` can't be sent to a worker"):
        pipe([1], params={"training": (each for each in ())})


@pytest.mark.parametrize("option", ["seed", "epoch"])
@pytest.mark.parametrize("value", [-1, 1.5, "a", True])
def test_wrong_seeds_and_epochs_are_told(option: str, value: Any) -> None:
    with pytest.raises(qf.GraphError, match=f"{option} must be a whole number of at least 0, but got"):
        qf.run(abs, [1], **{option: value})
