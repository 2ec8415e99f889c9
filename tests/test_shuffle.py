"""Orders: of sources and streams that are shuffled, and of those that end early."""

import itertools
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qflow as qf
from qflow.testing.leaks import nothing_left


def shuffled(items: Any, buffer: int, **options: Any) -> list[Any]:
    return list(qf.run(qf.shuffle(buffer), items, engine="serial", **options))


@given(st.integers(0, 200), st.integers(1, 60), st.integers(0, 5), st.integers(0, 5))
def test_a_shuffled_stream_is_a_permutation_that_moves_no_item_by_the_buffer(
    items: int, buffer: int, seed: int, epoch: int
) -> None:
    found = shuffled(range(items), buffer, seed=seed, epoch=epoch)
    assert sorted(found) == [*range(items)]
    for earlier, later in itertools.combinations(found, 2):
        assert earlier - later < buffer


@given(st.integers(1, 60), st.integers(1, 300))
def test_fewer_items_wait_than_the_buffer_has_room_for(buffer: int, items: int) -> None:
    taken = 0

    def source() -> Iterator[int]:
        nonlocal taken
        for item in range(items):
            taken += 1
            yield item

    for given_out, _ in enumerate(qf.run(qf.shuffle(buffer), source(), engine="serial", seed=0), 1):
        assert taken - given_out < buffer


def test_orders_differ_between_seeds_and_epochs_and_operators() -> None:
    found = [tuple(shuffled(range(50), 20, **options)) for options in ({"seed": 1}, {"seed": 2}, {"seed": 1, "epoch": 1}, {})]
    found.append(tuple((range(50) | qf.shuffle(20) | qf.shuffle(20))(engine="serial", seed=1)))
    assert len({*found}) == len(found)
    assert shuffled(range(50), 20, seed=1) == [*found[0]]


def test_a_seed_of_its_own_wins() -> None:
    pipe = qf.Flow(qf.shuffle(20, seed=4))
    assert list(pipe(range(50), engine="serial", seed=1)) == list(pipe(range(50), engine="serial", seed=2))
    assert list(pipe(range(50), engine="serial", epoch=1)) != list(pipe(range(50), engine="serial", epoch=2))


def test_a_buffer_of_one_changes_nothing() -> None:
    assert shuffled(range(20), 1) == [*range(20)]


@pytest.mark.slow
def test_orders_are_even() -> None:
    """Where an item ends up beside its neighbour is even; the places that it moves by are spread over the buffer."""
    moves = [
        place - item for seed in range(30) for place, item in enumerate(shuffled(range(200), 40, seed=seed)) if 50 < item < 150
    ]
    assert abs(np.mean(moves)) < 1
    assert np.quantile(moves, [0.05, 0.95]) == pytest.approx([-18, 18], abs=4)
    first = sum(found.index(100) < found.index(101) for found in (shuffled(range(200), 40, seed=seed) for seed in range(200)))
    assert 70 < first < 130


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_shuffled_flow_is_the_same_for_any_n(n: int) -> None:
    step = qf.process(n=n)(abs)
    pipe = qf.shuffle(9) | step | qf.shuffle(20) | step | qf.pack(4)
    assert list(pipe(range(100), seed=1)) == list(pipe(range(100), seed=1, engine="serial"))


# ---- sources


@given(st.integers(0, 100), st.integers(0, 3), st.integers(0, 3))
def test_a_shuffled_source_is_a_permutation(items: int, seed: int, epoch: int) -> None:
    found = list(qf.source([*range(items)], shuffle=True)(engine="serial", seed=seed, epoch=epoch))
    assert sorted(found) == [*range(items)]
    again = qf.source(np.arange(items), shuffle=True, seed=seed)
    assert list(again(engine="serial", epoch=epoch)) == list(again(engine="serial", epoch=epoch, seed=99))


def test_another_epoch_has_another_order() -> None:
    source = qf.source(range(50), shuffle=True) | qf.process(abs)
    assert len({tuple(source(seed=0, epoch=epoch)) for epoch in range(3)}) == 3
    assert len(source) == 50


class Pictures:
    """A map-style data set, that says what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> int:
        assert type(index) is int
        self.asked.append(index)
        return index


def test_a_shuffled_source_holds_indices_only() -> None:
    pictures = Pictures()
    run = (qf.source(pictures, shuffle=True) | qf.map(abs))(engine="serial", seed=0)
    assert next(run) == pictures.asked[0]
    assert len(pictures.asked) == 1
    assert sys.getsizeof(run) < 1000


def test_what_can_not_be_shuffled_is_told() -> None:
    with pytest.raises(qf.GraphError, match=r"`shuffle=True` needs items by index .* got .* of type generator.*qf.shuffle"):
        qf.source((each for each in range(3)), shuffle=True)
    with pytest.raises(qf.GraphError, match="buffer must be a whole number of at least 1"):
        qf.shuffle(0)
    with pytest.raises(qf.GraphError, match="seed must be a whole number"):
        qf.source([1], shuffle=True, seed=-1)


def test_a_shuffled_source_prints_as_it_was_written() -> None:
    assert repr(qf.source([1], shuffle=True, seed=3) | qf.take(1)) == "qf.source(list, shuffle=True, seed=3) | qf.take(1)"
    assert eval(repr(qf.shuffle(3, seed=1) | qf.take(2)), {"qf": qf}) == qf.shuffle(3, seed=1) | qf.take(2)


# ---- take


@pytest.mark.parametrize("engine", ["serial", "processes"])
@pytest.mark.parametrize("n", [0, 1, 5, 100])
def test_take_is_islice(engine: str, n: int) -> None:
    step = qf.process(n=2)(abs)
    for pipe in (qf.take(n) | step, step | qf.take(n), step | qf.take(n) | step, qf.pack(1) | qf.unpack() | qf.take(n)):
        assert list(pipe(range(20), engine=engine)) == [*range(min(n, 20))]


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_take_behind_the_source_reads_no_further(engine: str) -> None:
    source = iter(range(1000))
    assert list(qf.run(qf.take(5), source, engine=engine)) == [*range(5)]
    assert next(source) == 5


def test_take_ends_an_endless_source_behind_steps_too() -> None:
    assert list((itertools.count() | qf.process(n=2)(abs) | qf.take(50))()) == [*range(50)]
    assert len(range(9) | qf.take(5) | qf.process(abs)) == 5


@pytest.mark.parametrize("pipe", [qf.take(0) | qf.repeat(), qf.unpack() | qf.repeat()])
def test_a_source_of_which_nothing_comes_is_left_when_the_run_is_closed(pipe: qf.Flow[Any, Any]) -> None:
    with nothing_left(), pipe | qf.process(abs) as whole, whole([[]]) as run, pytest.raises(qf.StepTimeout):
        run.next(timeout=0.1)


def endless(value: int) -> Iterator[int]:
    return itertools.count(value)


def broken_behind(value: int) -> Iterator[int]:
    yield from (value, value)
    raise LookupError(value)


@pytest.mark.parametrize("engine", ["serial", "processes"])
@pytest.mark.parametrize("n", [1, 2])
def test_nothing_before_a_take_is_asked_for_more(engine: str, n: int) -> None:
    """In one worker or another one."""
    for step, expected in ((endless, [0, 1]), (broken_behind, [0, 0])):
        mark = qf.process(n=n)(step)
        assert list((mark | qf.take(2))(range(3), engine=engine)) == expected
        assert list((mark | qf.pack(1) | qf.take(2) | qf.unpack())(range(3), engine=engine)) == expected
    assert list((mark | qf.take(2) | qf.repeat(2))(range(3), engine=engine)) == [0, 0, 0, 0]
