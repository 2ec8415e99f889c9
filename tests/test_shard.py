"""Shards: the parts of all ranks together are the source, and have nothing in common."""

import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qflow as qf
from qflow.graph.ranks import Rank, rank


class Data:
    """A map-style data set, that notes what is asked of it."""

    def __init__(self, items: int) -> None:
        self.items, self.asked = items, []  # type: ignore[var-annotated]

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, item: int) -> int:
        self.asked.append(item)
        return item


class Again:
    """An iterable of which nobody knows how many items it has."""

    def __init__(self, items: int) -> None:
        self.items = items

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.items))


SOURCES = [
    lambda items: [*range(items)],
    range,
    np.arange,
    Data,
    Again,
    lambda items: qf.source(Data(items), shuffle=True, seed=1),
]


def parts(source: Any, count: int, even: str | None = None, **options: Any) -> list[list[int]]:
    def part(index: int) -> Any:
        return list((qf.source(source) | qf.shard(index, count, even=even))(engine="serial", **options))

    return [part(index) for index in range(count)]


@settings(max_examples=200)
@given(st.sampled_from(range(len(SOURCES))), st.integers(0, 40), st.integers(1, 7), st.sampled_from([None, "drop", "pad"]))
def test_parts_are_disjoint_and_together_the_source(kind: int, items: int, count: int, even: str | None) -> None:
    def source() -> Any:
        found = SOURCES[kind](items)
        return found.source if isinstance(found, qf.Flow) else found

    whole = list(qf.source(source())(engine="serial"))
    found = [list((qf.source(source()) | qf.shard(index, count, even=even))(engine="serial")) for index in range(count)]
    plain = [whole[index::count] for index in range(count)]
    if even is None:
        assert found == plain
    elif even == "drop":
        assert found == [part[: items // count] for part in plain]
    else:
        rounds = math.ceil(items / count)
        assert found == [[whole[number % items] for number in range(index, rounds * count, count)] for index in range(count)]
    known = kind != SOURCES.index(Again)
    for index in range(count if known else 0):
        assert len(qf.source(source()) | qf.shard(index, count, even=even)) == len(found[index])


def test_the_earlier_loaders_shards() -> None:
    paths = [str(number) for number in range(10)]
    assert [list((paths | qf.shard(index, 3))(engine="serial")) for index in range(3)] == [
        ["0", "3", "6", "9"],
        ["1", "4", "7"],
        ["2", "5", "8"],
    ]


def test_items_of_other_ranks_are_not_read() -> None:
    data = Data(20)
    assert list((qf.source(data) | qf.shard(1, 4) | qf.process(abs))()) == [*range(1, 20, 4)] == data.asked


def test_a_shuffled_source_is_shuffled_alike_by_all_ranks() -> None:
    def part(index: int, **options: Any) -> list[int]:
        return list((qf.source(range(20), shuffle=True) | qf.shard(index, 3))(engine="serial", **options))

    assert sorted(value for index in range(3) for value in part(index, seed=0, epoch=2)) == [*range(20)]
    assert part(1, seed=0, epoch=1) != part(1, seed=0, epoch=2)
    with pytest.raises(qf.GraphError, match="A source that is shuffled and sharded needs a seed"):
        part(0)
    assert len(list((qf.source(range(20), shuffle=True) | qf.shard(0, 1))(engine="serial"))) == 20


def jitter(value: Any, rng: Any) -> Any:
    return value, int(rng.integers(1 << 40))


def total(values: Any, rng: Any) -> Any:
    return int(rng.integers(1 << 40))


def test_what_is_random_for_an_item_depends_on_no_rank_and_for_batches_differs() -> None:
    whole = dict((range(20) | qf.process(jitter))(seed=0))
    for count in (1, 2, 5):
        for index in range(count):
            assert all(
                whole[value] == drawn for value, drawn in (range(20) | qf.shard(index, count) | qf.process(jitter))(seed=0)
            )
    batches = [number for index in range(4) for number in (range(20) | qf.shard(index, 4) | qf.pack(2) | qf.map(total))(seed=0)]
    assert len({*batches}) == len(batches)


@settings(max_examples=100)
@given(
    st.sampled_from(range(len(SOURCES))),
    st.integers(1, 40),
    st.integers(1, 5),
    st.sampled_from([None, "drop", "pad"]),
    st.integers(0, 30),
    st.sampled_from([1, 2]),
)
def test_a_rank_goes_on_where_it_was(kind: int, items: int, count: int, even: str | None, cut: int, times: int) -> None:
    def source() -> Any:
        found = SOURCES[kind](items)
        return found.source if isinstance(found, qf.Flow) else found

    pipe = qf.shard(count - 1, count, even=even) | qf.shuffle(4) | qf.map(jitter) | qf.repeat(times) | qf.pack(2)
    run = (qf.source(source()) | pipe)(engine="serial", seed=0)
    before = [value for _, value in zip(range(cut), run, strict=False)]
    after = list((qf.source(source()) | pipe)(engine="serial", resume=run.state_dict()))
    assert before + after == list((qf.source(source()) | pipe)(engine="serial", seed=0))


def test_a_state_of_another_rank_is_told() -> None:
    run = (range(20) | qf.shard(0, 4))(engine="serial")
    next(run)
    with pytest.raises(qf.GraphError, match=r"The state is of rank 0 of 4, but this run reads rank 1 of 4. Each rank goes on"):
        (range(20) | qf.shard(1, 4))(engine="serial", resume=run.state_dict())
    with pytest.raises(qf.GraphError, match=r"rank 0 of 4, but this run reads all of the source"):
        qf.source(range(20))(engine="serial", resume=run.state_dict())


# ---- who says which rank this is


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, Rank(0, 1)),
        ({"RANK": "2", "WORLD_SIZE": "4", "PMI_RANK": "1", "PMI_SIZE": "2"}, Rank(2, 4, "torchrun")),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "3", "PMI_RANK": "0", "PMI_SIZE": "1"}, Rank(1, 3, "Open MPI")),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, Rank(1, 2, "PMI")),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}, Rank(1, 2, "Slurm")),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, Rank(0, 1)),
        ({"RANK": "1"}, Rank(0, 1)),
    ],
)
def test_the_launcher_says_the_rank(environment: dict[str, str], found: Rank, monkeypatch: Any) -> None:
    assert rank(environment) == found
    for name in [name for name in os.environ if name.startswith(("RANK", "WORLD_SIZE", "OMPI_", "PMI_", "SLURM_"))]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    pipe = qf.shard() | qf.process(abs)
    assert list(pipe(range(12), engine="serial")) == [*range(found.index, 12, found.count)]
    assert f"shard({found})" in str(pipe.plan())


def test_wrong_shards_are_told(monkeypatch: Any) -> None:
    for arguments in [(4, 4), (-1, 4), (0, 0), (1.5, 4), (True, 4), ("a", 2)]:
        with pytest.raises(qf.GraphError, match=r"A shard is one of `count`, number 0 to count - 1, but got index="):
            qf.shard(*arguments)  # type: ignore[arg-type]
    with pytest.raises(qf.GraphError, match="or neither, but got index=1, count=None"):
        qf.shard(1)
    with pytest.raises(qf.GraphError, match="`even` is 'drop', 'pad' or None, but got True"):
        qf.shard(0, 2, even=True)  # type: ignore[arg-type]
    with pytest.raises(qf.GraphError, match=r"`qf.shard\(0, 2\)` stands right behind the source"):
        (range(3) | qf.map(abs) | qf.shard(0, 2))(engine="serial")
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(qf.GraphError, match="but got RANK=5 WORLD_SIZE=4"):
        (range(3) | qf.shard())(engine="serial")


def test_it_prints_as_it_was_written() -> None:
    for each in (qf.shard(), qf.shard(1, 4), qf.shard(even="drop"), qf.shard(0, 2, even="pad")):
        assert eval(repr(each | qf.pack(2)), {"qf": qf}) == each | qf.pack(2)
