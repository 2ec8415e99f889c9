"""Laws: every engine gives what the serial one gives, and the identities of the language hold in each."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_steps import add, drop, even, flip, pair, several, total

import qflow as qf

pytestmark = pytest.mark.usefixtures("one_nursery")

n_ = st.none() | st.integers(1, 3)
marks_ = st.sampled_from([qf.process, qf.thread])
items_ = st.builds(lambda mark, f, n: mark(n=n)(f), marks_, st.sampled_from([add, flip, drop, several]), n_)
plain_ = st.sampled_from([qf.map(add), qf.filter(even), qf.map(several), qf.map(flip)])
queues_ = st.builds(qf.queue, st.integers(1, 4))
# What takes ints to ints: single operators, and groupings that undo themselves.
grouped_ = st.sampled_from(
    [
        qf.Flow(qf.pack(2), qf.unpack()),
        qf.Flow(qf.map(pair), qf.pool(n=2)(drop), qf.repack(3), qf.unpack()),
        qf.Flow(qf.pack(3), qf.pool(several), qf.process(total)),
        qf.Flow(qf.map(pair), qf.repack(3, drop_last=True), qf.process(n=2)(total)),
        qf.Flow(qf.pack(2), qf.queue(1), qf.pool(n=3)(add), qf.queue(2), qf.unpack()),
    ]
)
parts_ = st.lists(st.one_of(items_, items_, plain_, queues_, grouped_), min_size=0, max_size=4)


def varied(x):
    """Numbers, but now and then something else."""
    match x % 16:
        case 9:
            return None
        case 10:
            return x, 1
        case 11:
            return qf.SKIP
        case 12:
            return [x]
        case 13:
            return (each for each in (x, x + 1))
        case 14:
            return iter(())
    return x


@pytest.mark.parametrize("function", [varied, add, drop, several], ids=lambda function: function.__name__)
@pytest.mark.parametrize("mark", [qf.map, qf.process, qf.process(n=2), qf.thread(n=2)], ids=["map", "process", "two", "threads"])
def test_numbers_in_and_anything_out(mark, function):
    """Numbers are worked on the quick way, as long as they give numbers."""
    flow = qf.Flow(mark(function))
    expected = list(flow(range(200), engine="serial"))
    assert list(flow(range(200))) == expected
    lists = [list(range(k, k + k % 7)) for k in range(30)]
    assert list((qf.pool(n=2)(function) | qf.queue(2))(lists)) == list(qf.Flow(qf.pool(function))(lists, engine="serial"))


@settings(max_examples=60)
@given(parts_, st.lists(st.integers(-20, 20), max_size=20))
def test_processes_agree_with_serial(parts, source):
    flow = qf.Flow(*parts)
    assert list(flow(source)) == list(flow(source, engine="serial"))


@settings(max_examples=20)
@given(st.lists(st.one_of(items_, plain_, queues_), max_size=3), st.lists(st.integers(-20, 20), max_size=20))
def test_without_order_the_same_values_come(parts, source):
    flow = qf.Flow(*parts, qf.process(n=3)(add))
    assert sorted(flow(source, ordered=False)) == sorted(flow(source, engine="serial"))


@settings(max_examples=15)
@given(parts_, st.lists(st.integers(-20, 20), max_size=12), st.integers(1, 3))
def test_epochs_are_alike(parts, source, epochs):
    flow = qf.Flow(*parts)
    expected = list(flow(source, engine="serial"))
    with flow:
        for _ in range(epochs):
            assert list(flow(source)) == expected


@settings(max_examples=20)
@given(st.lists(st.integers(), max_size=30), st.integers(1, 4), st.integers(1, 3))
def test_two_steps_are_their_composition(source, n, m):
    two = qf.process(n=n)(add) | qf.process(n=m)(flip)
    one = qf.Flow(qf.process(n=n)(lambda x: flip(add(x))))
    assert list(two(source)) == list(one(source))


@settings(max_examples=20)
@given(st.lists(st.lists(st.integers(), max_size=6), max_size=10), st.integers(1, 4))
def test_a_pool_is_a_process_on_lists(source, n):
    pool, process = qf.pool(n=n)(add), qf.process(n=n)(lambda xs: [add(x) for x in xs])
    assert list(qf.run(pool, source)) == list(qf.run(process, source)) == [[x + 1 for x in xs] for xs in source]


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(), max_size=6), max_size=10), st.integers(1, 5), st.integers(1, 5))
def test_regrouping_keeps_every_element(engine, source, m, size):
    lists = list(qf.run(qf.repack(size), source, engine=engine))
    assert [x for xs in lists for x in xs] == [x for xs in source for x in xs]
    assert all(len(xs) == size for xs in lists[:-1])
    assert list((qf.repack(m) | qf.repack(size))(source, engine=engine)) == lists
    assert list((qf.pack(size) | qf.unpack())(source, engine=engine)) == source
