"""The loader: epochs, lengths and states as training frameworks expect them."""

import json
import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import qflow as qf


def jitter(value: Any, rng: Any) -> Any:
    return value, int(rng.integers(1 << 40))


def legacy(value: Any) -> Any:
    return value, random.randrange(1 << 40)


def once(value: Any) -> Iterator[Any]:
    yield value


def as_it_is(batch: Any) -> Any:
    return batch


def flow(n: int = 1) -> Any:
    return qf.source(range(20), shuffle=True) | qf.process(n=n)(jitter) | qf.pack(3)


def epoch(number: int) -> list[Any]:
    return list(flow()(engine="serial", seed=4, epoch=number))


def test_an_iteration_is_the_next_epoch() -> None:
    with qf.train.Loader(flow(2), seed=4) as loader:
        assert len(loader) == 7
        for number in range(3):
            assert loader.epoch == number
            assert list(loader) == epoch(number)
        assert list(loader.flow(seed=4, epoch=1)) == epoch(1)


@settings(max_examples=60)
@given(st.integers(0, 25), st.integers(0, 25))
def test_it_goes_on_from_any_state(cut: int, again: int) -> None:
    def batches(loader: Any, number: int) -> list[Any]:
        """So many, over the ends of epochs."""
        found: list[Any] = []
        while len(found) < number:
            found += islice(loader, number - len(found))
        return found

    def loader() -> Any:
        return qf.train.Loader(flow(), seed=4, engine="serial")

    whole = batches(loader(), cut + again + 8)
    first = loader()
    found = batches(first, cut)
    second = qf.train.Loader(flow(), engine="serial")
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    found += batches(second, again)
    third = loader()
    third.load_state_dict(json.loads(json.dumps(second.state_dict())))
    found += batches(third, 8)
    assert found == whole


def test_a_state_at_the_end_of_an_epoch_is_the_beginning_of_the_next() -> None:
    loader = qf.train.Loader(flow(), seed=4, engine="serial")
    list(loader)
    assert loader.state_dict() == {"epoch": 1, "seed": 4, "seeded": True, "run": None}


def test_set_epoch_decides() -> None:
    loader = qf.train.Loader(flow(), seed=4, engine="serial")
    loader.set_epoch(2)
    assert list(loader) == epoch(2)
    loader.sampler.set_epoch(0)
    results = iter(loader)
    first = next(results)
    loader.set_epoch(0)  # as frameworks call it again and again
    assert [first, *results] == epoch(0)
    state = loader.state_dict()
    loader.load_state_dict(state)
    loader.set_epoch(1)
    assert list(loader) == epoch(1)


def test_a_second_iteration_ends_the_first() -> None:
    with qf.train.Loader(flow(2), seed=4) as loader:
        first = iter(loader)
        next(first)
        assert list(loader) == epoch(0)
        with pytest.raises(qf.GraphError, match="This iteration was ended by another one"):
            list(first)


def test_parameters_may_change_between_epochs() -> None:
    source = range(2) | qf.process(lambda value, training: (value, training))
    with qf.train.Loader(source, params={"training": True}) as loader:
        assert list(loader) == [(0, True), (1, True)]
        loader.params["training"] = False
        assert list(loader) == [(0, False), (1, False)]


def test_without_a_seed_one_is_drawn_for_all_epochs_and_the_global_generators_are_left_alone() -> None:
    loader = qf.train.Loader(range(5) | qf.map(jitter), engine="serial")
    first, second = list(loader), list(loader)
    assert first != second
    assert first == list((range(5) | qf.map(jitter))(engine="serial", seed=loader.seed))
    random.seed(0)
    expected = [random.randrange(1 << 40) for _ in range(3)]
    random.seed(0)
    plain = qf.train.Loader(range(3) | qf.map(legacy), engine="serial")
    assert [number for _, number in plain] == expected
    again = qf.train.Loader(range(3) | qf.map(legacy), engine="serial")
    again.load_state_dict(plain.state_dict())
    random.seed(0)
    assert [number for _, number in again] == expected


def test_lengths() -> None:
    generator = range(4) | qf.map(once)
    with pytest.raises(TypeError):
        len(qf.train.Loader(generator))
    assert len(qf.train.Loader(generator, length=4)) == 4
    assert qf.train.Loader(generator)


def test_what_is_wrong_is_told() -> None:
    with pytest.raises(qf.GraphError, match=r"A loader takes a flow with its source, but got .*`qf.train.Loader\(source"):
        qf.train.Loader(qf.Flow(qf.pack(2)))  # type: ignore[arg-type]
    with pytest.raises(qf.GraphError, match=r"A loader has no option `epoch`: it has its own, `loader.set_epoch\(3\)`"):
        qf.train.Loader(flow(), epoch=3)
    loader = qf.train.Loader(flow(), seed=4, engine="serial")
    with pytest.raises(qf.GraphError, match=r"`load_state_dict` takes what `loader.state_dict\(\)` has given, but got 3"):
        loader.load_state_dict(3)  # type: ignore[arg-type]
    next(iter(loader))
    state = loader.state_dict()
    other = qf.train.Loader(range(20) | qf.pack(2), engine="serial")
    other.load_state_dict(state)
    with pytest.raises(qf.GraphError, match="The state is of another flow"):
        iter(other)


def test_a_data_loader_gives_its_batches_as_they_are() -> None:
    with qf.train.Loader(flow(), seed=4) as loader:
        expected = [[*loader] for _ in range(2)]
        loader.set_epoch(0)
        data = qf.train.dataset(loader)
        assert len(data) == len(loader)
        batches = DataLoader(data, batch_size=None, collate_fn=as_it_is)
        assert [[*batches] for _ in range(2)] == expected


@pytest.mark.usefixtures("dataloader")
def test_a_data_loader_that_would_give_everything_twice_is_told() -> None:
    data = qf.train.dataset(qf.train.Loader(flow(), engine="serial"))
    for workers in (1, 2):
        batches = iter(DataLoader(data, batch_size=None, num_workers=workers))
        with pytest.raises(qf.GraphError, match=rf"Each worker of DataLoader \(num_workers={workers}\) would run the whole pipe"):
            next(batches)
        batches._shutdown_workers()  # type: ignore[attr-defined]
    with pytest.raises(qf.GraphError, match=r"`qf.train.dataset` takes a loader, but got \[1\]"):
        qf.train.dataset([1])  # type: ignore[arg-type]


def test_the_data_set_has_the_loader_s_state() -> None:
    first, second = (qf.train.dataset(qf.train.Loader(flow(), seed=4, engine="serial")) for _ in range(2))
    whole = [*first]
    first.set_epoch(0)
    results = iter(DataLoader(first, batch_size=None, collate_fn=as_it_is))
    begun = [next(results) for _ in range(3)]
    second.load_state_dict(first.state_dict())
    assert [*begun, *second] == whole
