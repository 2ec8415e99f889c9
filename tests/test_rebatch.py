"""Rebatch: batches of columns become batches of one number of rows, and nothing else changes."""

from __future__ import annotations

import subprocess
import sys
import weakref
from collections import OrderedDict
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import qflow as qf
from qflow import GraphError
from qflow.graph.rebatch import Rebatch

pytestmark = pytest.mark.usefixtures("one_nursery")


class Pair(NamedTuple):
    x: Any
    y: Any


def as_dict(rows: np.ndarray) -> Any:
    return {"x": rows, "y": np.stack([rows, -rows], axis=1)}


def as_tuple(rows: np.ndarray) -> Any:
    return rows, rows * 0.5


def as_pair(rows: np.ndarray) -> Any:
    return Pair(rows, torch.from_numpy(rows * 2))


def as_array(rows: np.ndarray) -> Any:
    return rows


def as_tensors(rows: np.ndarray) -> Any:
    return {"x": torch.from_numpy(rows)}


def rows_of(batch: Any) -> list[int]:
    """The numbers that any of the forms above was made of."""
    first = batch["x"] if isinstance(batch, dict) else batch[0] if isinstance(batch, tuple) else batch
    return first.tolist()


def batches(lengths: list[int], form: Any) -> list[Any]:
    bounds = np.cumsum([0, *lengths])
    return [form(np.arange(start, stop)) for start, stop in pairwise(bounds)]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return set(one) == set(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return type(one) is type(other) and all(map(same, one, other))
    return type(one) is type(other) and one.dtype == other.dtype and one.tolist() == other.tolist()


def serial(flow: Any, items: list[Any]) -> list[Any]:
    return list(qf.run(flow, items, engine="serial"))


lengths = st.lists(st.integers(0, 9), max_size=8)
sizes = st.integers(1, 12)
forms = st.sampled_from([as_dict, as_tuple, as_pair, as_array, as_tensors])


@given(lengths, sizes, forms)
def test_rebatch_keeps_every_row_in_order_and_every_batch_but_the_last_is_full(lengths, size, form):
    found = serial(qf.rebatch(size), batches(lengths, form))
    assert [row for batch in found for row in rows_of(batch)] == list(range(sum(lengths)))
    assert all(len(rows_of(batch)) == size for batch in found[:-1])
    assert all(0 < len(rows_of(batch)) <= size for batch in found)


@given(lengths, sizes, forms)
def test_rebatch_gives_what_cutting_the_concatenation_gives(lengths, size, form):
    whole = np.arange(sum(lengths))
    expected = [form(whole[start : start + size]) for start in range(0, len(whole), size)]
    found = serial(qf.rebatch(size), batches(lengths, form))
    assert len(found) == len(expected)
    assert all(map(same, found, expected))


@given(lengths, sizes, sizes, forms)
def test_rebatch_after_rebatch_is_the_last_one(lengths, m, n, form):
    twice = serial(qf.rebatch(m) | qf.rebatch(n), batches(lengths, form))
    once = serial(qf.rebatch(n), batches(lengths, form))
    assert len(twice) == len(once)
    assert all(map(same, twice, once))


@given(lengths, sizes)
def test_rebatch_is_repack_on_columns(lengths, size):
    rows = serial(qf.repack(size), [batch.tolist() for batch in batches(lengths, as_array)])
    assert [batch.tolist() for batch in serial(qf.rebatch(size), batches(lengths, as_array))] == rows


@given(lengths, sizes)
def test_drop_last_drops_only_a_shorter_last_batch(lengths, size):
    found = serial(qf.rebatch(size, drop_last=True), batches(lengths, as_array))
    assert [len(batch) for batch in found] == [size] * (sum(lengths) // size)


def test_every_engine_rebatches(engine):
    found = list(qf.run(qf.rebatch(4), batches([3, 0, 7, 1], as_dict), engine=engine))
    assert [batch["x"].tolist() for batch in found] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert found[1]["y"].tolist() == [[4, -4], [5, -5], [6, -6], [7, -7]]


def test_a_second_run_sees_nothing_of_the_first(engine):
    with qf.Flow(qf.rebatch(4)) as pipe:
        for _ in range(2):
            assert [len(batch) for batch in pipe(batches([3, 3], as_array), engine=engine)] == [4, 2]


def test_rows_of_one_item_come_as_views_and_rows_of_several_as_one_copy():
    first, second = np.arange(6), np.arange(6, 12)
    a, b, c = serial(qf.rebatch(4), [first, second])
    assert np.shares_memory(a, first)
    assert np.shares_memory(c, second)
    assert not np.shares_memory(b, first)
    assert b.flags.owndata


def test_tensors_come_as_views_too():
    first = torch.arange(8)
    a, b = serial(qf.rebatch(4), [first])
    assert a.data_ptr() == first.data_ptr()
    assert b.data_ptr() == first[4:].data_ptr()


@pytest.mark.parametrize(("size", "most"), [(5, 0), (10, 0), (7, 1), (23, 3)])
def test_items_that_are_used_up_are_let_go_before_the_next_is_waited_for(size, most):
    seen: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def source():
        for _ in range(10):
            alive.append(sum(ref() is not None for ref in seen))
            item = np.zeros(10)
            seen.append(weakref.ref(item))
            yield item
            del item

    for batch in qf.run(qf.rebatch(size), source(), engine="serial"):
        del batch
    assert max(alive) == most


def test_keys_may_stand_in_another_order():
    found = serial(qf.rebatch(2), [{"x": np.array([1]), "y": np.array([2])}, {"y": np.array([4]), "x": np.array([3])}])
    assert same(found[0], {"x": np.array([1, 3]), "y": np.array([2, 4])})


def test_any_mapping_gives_a_dict():
    found = serial(qf.rebatch(2), [OrderedDict(x=np.arange(2)), {"x": np.arange(2)}])
    assert [type(batch) for batch in found] == [dict, dict]


def test_masks_and_structured_rows_survive_a_join():
    masked = np.ma.array([1, 2, 3], mask=[0, 1, 0])
    (joined,) = serial(qf.rebatch(6), [masked, masked])
    assert joined.mask.tolist() == [False, True, False] * 2
    records = np.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")])
    (joined,) = serial(qf.rebatch(2), [records, records])
    assert joined.dtype == records.dtype
    assert joined.tolist() == [(1, 2.5), (1, 2.5)]


def test_a_size_may_be_asked_for_at_every_run():
    size = 4
    flow = qf.Flow(qf.rebatch(lambda: size))
    assert [len(batch) for batch in flow(batches([8], as_array), engine="serial")] == [4, 4]
    size = 2
    assert [len(batch) for batch in flow(batches([8], as_array), engine="serial")] == [2, 2, 2, 2]


def test_rebatch_prints_compares_and_counts_like_the_other_operators():
    step = qf.rebatch(64, drop_last=True)
    assert repr(step) == "qf.rebatch(64, drop_last=True)"
    assert eval(repr(step), {"qf": qf}) == step
    assert step != qf.rebatch(64)
    assert step != qf.repack(64, drop_last=True)
    assert isinstance(step, Rebatch)
    with pytest.raises(TypeError):
        len(qf.Flow(step)([np.arange(3)], engine="serial"))


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "4", None])
def test_a_wrong_size_is_an_error_where_it_is_written(size):
    with pytest.raises(GraphError, match=r"size must be a whole number of at least 1.*qf\.rebatch\(64\)"):
        qf.rebatch(size)


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([3], "takes columns.*but got 3 of type int"),
        (["text"], "takes columns.*'text'"),
        ([None], "takes columns.*None"),
        ([[np.arange(3)]], "takes columns.*of type list.*qf.repack"),
        ([[{"x": 1}]], "For lists of rows write `qf.repack`"),
        ([{}], "takes columns"),
        ([()], "takes columns"),
        ([{"x": [1, 2]}], r"takes columns.*\[1, 2\]"),
        ([{"x": {"y": np.arange(2)}}], "takes columns.*of type dict"),
        ([np.float64(1)], "takes columns"),
        ([np.array(1)], "takes columns"),
        ([torch.tensor(1.0)], "takes columns"),
        ([{"x": np.arange(3), "y": np.arange(2)}], r"same number of rows, but got \{'x': 3, 'y': 2\}"),
        ([{"x": np.arange(3)}, {"y": np.arange(3)}], r"first was dict of numpy 'x'.*but this one is dict of numpy 'y'"),
        ([{"x": np.arange(3)}, {"x": np.arange(3), "y": np.arange(3)}], "one form"),
        ([{"x": np.arange(3)}, (np.arange(3),)], "one form"),
        ([np.arange(3), torch.arange(3)], "one form: the first was array of numpy.*array of torch"),
        ([np.zeros((2, 3)), np.zeros((2, 4))], r"one form: .*\[3\].*\[4\]"),
    ],
)
def test_a_wrong_item_is_an_error_that_names_the_step_and_the_item(items, words, engine):
    with qf.Flow(qf.rebatch(2)) as pipe:
        with pytest.raises(GraphError, match=words) as caught:
            list(pipe(items, engine=engine))
        assert any("in step 'rebatch" in note for note in caught.value.__notes__)
        assert len(list(pipe([np.arange(4)], engine=engine))) == 2


def test_rows_before_a_wrong_item_come_first(engine):
    run = qf.run(qf.rebatch(2), [np.arange(4), 3], engine=engine)
    assert next(run).tolist() == [0, 1]
    assert next(run).tolist() == [2, 3]
    with pytest.raises(GraphError):
        next(run)


def test_what_a_library_refuses_to_join_names_the_step():
    rows = [np.zeros(1, dtype=[("a", "i4")]), np.zeros(1, dtype=[("b", "f8"), ("c", "f8")])]
    with pytest.raises(TypeError) as caught:
        serial(qf.rebatch(2), rows)
    assert any("in step 'rebatch" in note for note in caught.value.__notes__)


def test_rebatch_imports_neither_torch_nor_h5py():
    code = (
        "import sys, qflow as qf, numpy as np; "
        "print([len(b) for b in qf.run(qf.rebatch(2), [np.arange(3)], engine='serial')], "
        "[name for name in ('torch', 'h5py') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[2, 1] []"
