"""Samplers of PyTorch as sources: pure functions of the run's seed and epoch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DistributedSampler, RandomSampler, SequentialSampler, SubsetRandomSampler
from torch.utils.data import WeightedRandomSampler as Weighted

import qflow as qf

ITEMS = range(20)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def distributed() -> Any:
    return DistributedSampler(ITEMS, num_replicas=2, rank=1)  # type: ignore[arg-type]


DRAWING: dict[str, Callable[[], Any]] = {
    "random": lambda: RandomSampler(ITEMS),
    "with a generator": lambda: RandomSampler(ITEMS, generator=generator()),
    "weighted": lambda: Weighted([1.0] * 20, 20),
    "subset": lambda: SubsetRandomSampler(range(0, 20, 2)),
    "batches": lambda: BatchSampler(RandomSampler(ITEMS), 3, drop_last=False),
    "distributed": distributed,
}


def same(index: Any) -> Any:
    return index


@pytest.mark.parametrize("kind", DRAWING)
def test_its_order_follows_seed_and_epoch_alone(kind: str) -> None:
    def order(engine: str, sampler: Any, **options: Any) -> list[Any]:
        torch.rand(3)  # somebody else draws
        with qf.process(n=2)(same) | qf.queue(2) as pipe:
            return [*pipe(sampler, engine=engine, **options)]

    sampler = DRAWING[kind]()
    first = order("serial", sampler, seed=1, epoch=2)
    assert order("processes", sampler, seed=1, epoch=2) == first
    assert order("serial", DRAWING[kind](), seed=1, epoch=2) == first
    assert order("serial", sampler, seed=1, epoch=3) != first
    assert (order("serial", sampler, seed=2, epoch=2) == first) == (kind in ("with a generator", "distributed"))
    repeated = [*(sampler | qf.repeat(2))(engine="serial", seed=1, epoch=1)]
    assert repeated[len(sampler) :] == first


@pytest.mark.parametrize("kind", DRAWING)
def test_an_epoch_goes_on_in_its_midst_elsewhere(kind: str) -> None:
    flow = qf.map(same) | qf.pack(2)
    with qf.train.Loader(DRAWING[kind]() | flow, seed=0, engine="serial") as loader:
        first = [*loader]
        taking = iter(loader)
        batches = [next(taking), next(taking)]
        state = loader.state_dict()
        batches += taking
    torch.manual_seed(99)
    with qf.train.Loader(DRAWING[kind]() | flow, engine="serial") as other:
        other.load_state_dict(state)
        assert [*other] == batches[2:]
        assert len(other) == len(batches)
    assert first != batches


def test_the_sampler_stays_as_it_is() -> None:
    sampler, own = distributed(), RandomSampler(ITEMS, generator=generator())
    sampler.set_epoch(5)
    assert list((sampler | qf.map(same))(engine="serial", epoch=2)) == list(_at(distributed(), 7))
    before = own.generator.get_state()
    list((own | qf.map(same))(engine="serial"))
    assert torch.equal(own.generator.get_state(), before)
    assert sampler.epoch == 5


def _at(sampler: Any, epoch: int) -> Any:
    sampler.set_epoch(epoch)
    return sampler


def test_where_its_order_would_be_frozen_or_torn_apart_it_is_told(tmp_path: Path) -> None:
    with pytest.raises(qf.GraphError, match=r"`RandomSampler` before `qf.cache` differs from epoch to epoch"):
        (RandomSampler(ITEMS) | qf.cache(str(tmp_path)))()
    with pytest.raises(qf.GraphError, match="needs a seed, for all ranks must shuffle it alike"):
        (RandomSampler(ITEMS) | qf.shard(0, 2))()
    parts = [list((RandomSampler(ITEMS) | qf.shard(rank, 2))(seed=0, engine="serial")) for rank in (0, 1)]
    assert sorted(parts[0] + parts[1]) == [*ITEMS]
    assert list((SequentialSampler(ITEMS) | qf.cache(str(tmp_path)))(engine="serial")) == [*ITEMS]


def test_samplers_may_be_mixed() -> None:
    flow = qf.mix(RandomSampler(ITEMS), range(20, 40)) | qf.map(same)
    first = list(flow(seed=1, engine="serial"))
    assert sorted(first) == [*range(40)]
    assert list(flow(seed=1, engine="serial")) == first
    assert [each for each in flow(seed=2, engine="serial") if each < 20] != [each for each in first if each < 20]
