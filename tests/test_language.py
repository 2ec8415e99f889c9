"""The language: its laws, and every rule of the design's section on it."""

from __future__ import annotations

import collections
import copy
import functools
import itertools
import multiprocessing
import operator
import pickle
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import h5py
import numpy as np
import pandas as pd
import polars
import pyarrow as arrow
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from torch.utils.data import Dataset, IterableDataset, TensorDataset

import qflow as qf
from qflow.graph.context import Context
from qflow.graph.markers import CLOSE
from qflow.graph.pool import Gather

SHARED_SIZE = multiprocessing.Value("i", 2)  # here, because multiprocessing keeps its first mapping for ever

# ---- named steps, as a user writes them


def double(value: Any) -> Any:
    return value + value


def twice(value: Any) -> Iterator[Any]:
    yield value
    yield value


def short(value: Any) -> bool:
    return len(repr(value)) % 3 != 0


@qf.process
def plain(value: Any) -> Any:
    """One process."""
    return value


@qf.process(n=3, name="named")
def labelled(value: Any, suffix: str = "") -> str:
    return f"{value}{suffix}"


@qf.thread(n=2)
def threaded(value: Any) -> Any:
    return [value]


@qf.pool(n=4)
def pooled(element: Any) -> Any:
    return element


@qf.process(n=2)
class Scale:
    """Multiplies."""

    def __init__(self, factor: int = 2) -> None:
        self.factor = factor

    def __call__(self, value: Any) -> Any:
        return value * self.factor


sizes = st.integers(1, 9)
counts = st.integers(1, 8)
functions = st.sampled_from([double, twice, str, repr, len, np.square, Path])
chains = st.lists(st.builds(qf.map, functions) | st.builds(qf.filter, st.just(short)), min_size=1, max_size=3).map(
    lambda parts: qf.Flow(*parts)
)
marks = st.sampled_from([qf.process, qf.pool, qf.thread])
named = st.sampled_from([plain, labelled, threaded, pooled, Scale, Scale(3), Scale(factor=4), Scale()])
steps = (
    named
    | st.builds(lambda step, n: step.using(n=n), named, counts)
    | st.builds(lambda step, name: step.using(name=name), named, st.sampled_from(["a", "b c", "'"]))
    | st.builds(lambda suffix, n: labelled.bind(suffix=suffix).using(n=n), st.text(max_size=3), counts)
    | st.builds(lambda mark, f: mark(f), marks, functions)
    | st.builds(lambda mark, f, n: mark(n=n)(f), marks, functions, counts)
    | st.builds(lambda mark, f, n: mark(n=n, name="inner")(f), marks, chains, counts)
)
operators = (
    steps
    | st.builds(qf.map, functions)
    | st.builds(qf.filter, st.just(short))
    | st.builds(qf.pack, sizes, drop_last=st.booleans())
    | st.builds(qf.repack, sizes, drop_last=st.booleans())
    | st.builds(qf.unpack)
    | st.builds(qf.queue, sizes)
)
flows = st.lists(operators, max_size=5).map(lambda parts: qf.Flow(*parts))
items = st.lists(st.integers(-9, 9), max_size=12)
lists = st.lists(st.lists(st.integers(-9, 9), max_size=5), max_size=8)


def run(step: Any, source: Iterable[Any], engine: str = "serial") -> list[Any]:
    return list(qf.run(step, source, engine=engine))


# ---- laws


@given(flows, flows, flows)
def test_joining_is_associative(a: Any, b: Any, c: Any) -> None:
    assert (a | b) | c == a | (b | c)


@given(operators, operators, operators)
def test_joining_operators_is_associative(a: Any, b: Any, c: Any) -> None:
    assert (a | b) | c == a | (b | c) == qf.Flow(a, b, c)


@given(flows | operators)
def test_the_empty_flow_changes_nothing(a: Any) -> None:
    assert qf.Flow() | a == qf.Flow(a) == a | qf.Flow()


@given(flows, flows)
def test_a_source_may_be_joined_first_or_last(a: Any, b: Any) -> None:
    source = [1, 2, 3]
    assert source | (a | b) == (source | a) | b == qf.source(source) | a | b


@given(flows)
def test_the_text_of_a_flow_gives_it_back(flow: Any) -> None:
    assert eval(repr(flow), globals()) == flow


@given(steps)
def test_the_text_of_a_step_gives_it_back(step: Any) -> None:
    assert eval(repr(step), globals()) == step


@given(flows)
def test_a_flow_comes_back_from_pickle_and_copy(flow: Any) -> None:
    assert pickle.loads(pickle.dumps(flow)) == copy.deepcopy(flow) == copy.copy(flow) == flow
    assert cloudpickle.loads(cloudpickle.dumps(flow)) == flow
    assert hash(pickle.loads(pickle.dumps(flow))) == hash(flow)


@given(flows, st.integers(1, 4))
def test_every_flow_has_a_plan(flow: Any, n: int) -> None:
    plan = flow.plan(n=n)
    assert len(plan.bounds) == len(plan.groups) + 1
    assert len({group.name for group in plan.groups}) == len(plan.groups)
    assert str(plan) == str(flow.plan(n=n))


@given(flows)
def test_two_marked_steps_are_never_fused_but_threads(flow: Any) -> None:
    plan = flow.plan()
    marked = [[each.placement for each in group.operators if each.placement] for group in plan.groups]
    assert all(len(placements) <= 1 or {*placements} == {"thread"} for placements in marked)
    assert sum(map(len, marked)) == sum(each.placement is not None for each in flow.operators)


@given(flows, sizes, flows)
def test_a_written_queue_is_never_fused_away(before: Any, maxsize: int, after: Any) -> None:
    """What stands before it is planned as if it stood alone, and its bound is where that ends."""
    left = before.plan()
    plan = (before | qf.queue(maxsize) | plain | after).plan()
    place = len(left.groups)
    if left.feed:  # a leading queue makes a worker of what runs in the feed otherwise
        assert maxsize in plan.bounds
    else:
        assert plan.bounds[place] == maxsize
        assert [group.name for group in plan.groups[:place]] == [group.name for group in left.groups]


@given(flows)
def test_the_groups_of_a_plan_hold_every_operator_in_order(flow: Any) -> None:
    plan = flow.plan()
    planned = [*plan.feed, *itertools.chain.from_iterable(group.operators for group in plan.groups)]
    lowered = [part for each in flow.operators for part in each.lower() if not isinstance(each, type(qf.queue(1)))]
    assert [each.name for each in planned] == [each.name for each in lowered]


@given(items)
def test_process_after_process_is_the_process_of_both(values: list[int]) -> None:
    composed = qf.process(lambda value: str(double(value)))
    assert run(qf.process(double) | qf.process(str), values) == run(composed, values)


@given(lists)
def test_pool_is_the_process_of_a_list_of_maps(values: list[list[int]]) -> None:
    assert run(qf.pool(double), values) == run(qf.process(lambda elements: [double(each) for each in elements]), values)


@given(items, sizes)
def test_unpack_takes_apart_what_pack_made(values: list[int], size: int) -> None:
    assert run(qf.pack(size) | qf.unpack(), values) == values


@given(lists, sizes, sizes)
def test_the_last_repack_decides(values: list[list[int]], m: int, n: int) -> None:
    assert run(qf.repack(m) | qf.repack(n), values) == run(qf.repack(n), values)


@given(lists, sizes)
def test_repack_keeps_the_elements_and_makes_lists_of_one_length(values: list[list[int]], size: int) -> None:
    found = run(qf.repack(size), values)
    assert list(itertools.chain(*found)) == list(itertools.chain(*values))
    assert all(len(each) == size for each in found[:-1])
    assert all(0 < len(each) <= size for each in found[-1:])
    assert run(qf.repack(size, drop_last=True), values) == [each for each in found if len(each) == size]


@given(items, sizes)
def test_pack_is_partition_all(values: list[int], size: int) -> None:
    assert run(qf.pack(size), values) == [values[start : start + size] for start in range(0, len(values), size)]


@given(st.integers(0, 30), st.integers(1, 7), st.booleans())
def test_a_stream_that_misses_several_values_gives_no_result_before(count: int, size: int, listed: bool) -> None:
    if listed:  # the elements of lists that are as long as the first, and the mark that ends each
        kept, values = Gather().accumulator(), itertools.cycle([*range(size), CLOSE])
        count += size + 1
    else:
        kept, values = qf.pack(size).accumulator(), itertools.count()
    for number, value in enumerate(itertools.islice(values, count)):
        missing, found = kept.missing, [*kept.add(value)]
        assert missing == size - number % (size + listed) or (listed and number <= size)
        assert bool(found) == (missing == (0 if listed else 1) and not (listed and number < size))


@given(items, sizes)
def test_a_chain_in_a_worker_means_the_chain(values: list[int], n: int) -> None:
    chain = qf.map(twice) | qf.filter(short) | double
    assert run(qf.process(n=n)(chain), values) == run(chain, values)


# ---- what stands left of `|`


class Items(Dataset[int]):
    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> int:
        return self.numbers[: len(self.numbers)][index] * 10 if index < len(self) else self.numbers[99]


class Unsized(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


def left_of_a_step() -> dict[str, tuple[Any, list[Any]]]:
    frame = pd.DataFrame({"a": [1, 2], "b": [3, 4]})
    return {
        "list": ([1, 2], [1, 2]),
        "tuple": ((1, 2), [1, 2]),
        "range": (range(3), [0, 1, 2]),
        "set": ({1}, [1]),
        "frozenset": (frozenset({1}), [1]),
        "deque": (collections.deque([1, 2]), [1, 2]),
        "dict values": ({1: 2}.values(), [2]),
        "generator": ((number for number in range(3)), [0, 1, 2]),
        "zip": (zip("ab", "cd", strict=True), [("a", "c"), ("b", "d")]),
        "chain": (itertools.chain([1], [2]), [1, 2]),
        "ndarray": (np.arange(3), [0, 1, 2]),
        "ndarray of objects": (np.array([1, "a"], dtype=object), [1, "a"]),
        "2-d ndarray": (np.eye(2), list(np.eye(2))),
        "masked array": (np.ma.array([1, 2]), [1, 2]),
        "tensor": (torch.arange(3), list(torch.arange(3))),
        "sparse tensor": (torch.eye(2).to_sparse(), list(torch.eye(2).to_sparse())),
        "DataFrame": (frame, ["a", "b"]),
        "Series": (frame.a, [1, 2]),
        "Index": (frame.index, [0, 1]),
        "groupby": (frame.groupby("a"), list(frame.groupby("a"))),
        "rows": (frame.itertuples(index=False, name=None), [(1, 3), (2, 4)]),
        "map-style data set": (TensorDataset(torch.arange(2)), [(torch.tensor(0),), (torch.tensor(1),)]),
        "data set of items": (Items([1, 2]), [10, 20]),
        "data set without a length": (Unsized(), [0, 1, 2]),
        "mix": (qf.mix([1, 2], weights=[1]), [1, 2]),
    }


def same(left: Any, right: Any) -> bool:
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, torch.Tensor):
        return bool((left.to_dense() == right.to_dense()).all())
    return bool(np.all(left == right))


@pytest.mark.parametrize("kind", left_of_a_step())
def test_an_iterable_left_of_a_step_or_flow_is_its_source(kind: str) -> None:
    source, expected = left_of_a_step()[kind]
    joined = source | plain
    assert isinstance(joined, qf.Flow)
    assert joined.source is source
    assert same(list(joined(engine="serial")), expected)
    source, expected = left_of_a_step()[kind]
    assert same(list((source | (plain | plain))(engine="serial")), expected)


def test_every_kind_of_source_goes_through_every_engine(engine: str) -> None:
    with qf.Flow(plain) as flow:
        for source, expected in left_of_a_step().values():
            assert same(list(flow(source, engine=engine)), expected)


def test_sparse_matrices_are_sources_of_their_rows() -> None:
    for matrix in sparse.csr_array(np.eye(2)), sparse.csr_matrix(np.eye(2)), sparse.coo_array(np.eye(2)):
        assert same([row.toarray().ravel() for row in (matrix | plain)(engine="serial")], list(np.eye(2)))


def test_pyarrow_arrays_are_sources_and_tables_say_how_to_get_rows() -> None:
    assert [each.as_py() for each in (arrow.array([1, 2]) | plain)(engine="serial")] == [1, 2]
    assert [each.as_py() for each in (arrow.chunked_array([[1], [2]]) | plain)(engine="serial")] == [1, 2]
    table = arrow.table({"a": [1, 2]})
    with pytest.raises(qf.GraphError, match="to_pylist"):
        table | plain
    with pytest.raises(qf.GraphError, match="to_pylist"):
        plain(1), qf.source(table)
    assert list((table.to_pylist() | plain)(engine="serial")) == [{"a": 1}, {"a": 2}]


def test_polars_takes_the_bar_for_itself_so_source_is_written() -> None:
    series = polars.Series([1, 2])
    assert list((qf.source(series) | plain)(engine="serial")) == [1, 2]
    frame = polars.DataFrame({"a": [1, 2]})
    assert list((frame.rows() | plain)(engine="serial")) == [(1,), (2,)]


def test_an_hdf5_data_set_is_a_source_and_a_file_is_not(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.arange(3)
        assert list((file["x"] | plain)(engine="serial")) == [0, 1, 2]
        assert len(qf.run(plain, file["x"], engine="serial")) == 3
        with pytest.raises(qf.GraphError, match="A source is an iterable"):
            file | plain


def test_the_length_of_a_table_is_not_its_number_of_items() -> None:
    """Its length counts rows, iterating it gives columns."""
    with pytest.raises(TypeError, match="not known"):
        len(qf.run(plain, pd.DataFrame({"a": [1, 2, 3]}), engine="serial"))


def test_a_map_style_data_set_is_a_source_of_its_items() -> None:
    assert list((Items([1, 2]) | plain)(engine="serial")) == [10, 20]
    assert list((Unsized() | plain)(engine="serial")) == [0, 1, 2]
    assert len(qf.run(plain, Items([1, 2]), engine="serial")) == 2


def test_functions_classes_and_callables_left_of_a_step_are_lifted() -> None:
    for function in (
        double,
        str,
        int,
        Path,
        np.square,
        len,
        "{}".format,
        functools.partial(operator.add, 1),
        torch.nn.ReLU(),
        list,
    ):
        assert function | plain == qf.map(function) | plain
        assert function | (plain | plain) == qf.map(function) | plain | plain
        assert plain | function == plain | qf.map(function)


@pytest.mark.parametrize("both", [torch.nn.Sequential(), type("Both", (list,), {"__call__": len})()], ids=["Sequential", "list"])
def test_what_can_be_called_and_iterated_must_say_which(both: Any) -> None:
    for join in (lambda: both | plain), (lambda: plain | both), (lambda: both | (plain | plain)):
        with pytest.raises(qf.GraphError, match=r"`qf\.map\(x\)` for its function or `qf\.source\(x\)` for its items"):
            join()
    assert (qf.source(both) | plain).source is both
    assert qf.map(both) | plain


@pytest.mark.parametrize(
    "value",
    [
        "abc",
        b"abc",
        bytearray(b"abc"),
        Path("a"),
        {1: 2},
        collections.Counter("ab"),
        types.MappingProxyType({1: 2}),
        3,
        2.5,
        1j,
        True,
        None,
        np.float64(3),
        np.array(3),
        torch.tensor(3),
    ],
    ids=repr,
)
def test_text_paths_mappings_and_scalars_are_no_sources(value: Any) -> None:
    for join in (
        (lambda: value | plain),
        (lambda: value | (plain | plain)),
        (lambda: qf.source(value)),
        (lambda: qf.Flow(plain)(value, engine="serial")),
    ):
        with pytest.raises(qf.GraphError, match=r"Did you mean `\[x\]`"):
            join()


def test_source_lets_anything_iterable_stand_first() -> None:
    mapping = {1: "a", 2: "b"}
    assert list((qf.source(mapping.keys()) | plain)(engine="serial")) == [1, 2]
    assert list((qf.source(mapping.items()) | plain)(engine="serial")) == [(1, "a"), (2, "b")]
    assert list((qf.source(["x"]) | plain | qf.pack(2))(engine="serial")) == [["x"]]


@pytest.mark.parametrize("view", [{1: 2}.keys(), {1: 2}.items()], ids=["keys", "items"])
def test_views_of_a_dict_take_the_bar_for_themselves_and_the_error_says_what_to_write(view: Any) -> None:
    with pytest.raises(qf.GraphError, match=r"qf\.source\(d\.items\(\)\)"):
        view | plain


def test_python_takes_two_classes_for_a_union_and_the_error_says_what_to_write() -> None:
    with pytest.raises(qf.GraphError, match=r"qf\.map\(int\)"):
        int | str | plain


def test_a_source_elsewhere_is_an_error() -> None:
    sourced = [1] | plain
    for join in (
        (lambda: plain | sourced),
        (lambda: sourced | sourced),
        (lambda: [1] | sourced),
        (lambda: plain | [1]),
        (lambda: plain | np.arange(3)),
        (lambda: plain | range(3) | plain),
        (lambda: double | sourced),
        (lambda: qf.Flow(plain, sourced)),
    ):
        with pytest.raises(qf.GraphError, match="can only stand first"):
            join()


def test_a_flow_with_a_source_is_the_source_of_another(engine: str) -> None:
    inner = ([1, 2] | qf.map(double))(engine="serial")
    assert list(qf.Flow(plain)(inner, engine=engine)) == [2, 4]


# ---- flows are values


def test_joining_always_gives_a_flow() -> None:
    for joined in plain | plain, plain | double, double | plain, qf.pack(2) | qf.unpack(), qf.Flow() | qf.queue(1), [1] | plain:
        assert isinstance(joined, qf.Flow)


def test_one_step_runs_in_three_ways(engine: str) -> None:
    assert list(([1] | plain)(engine=engine)) == run(plain, [1], engine) == list(qf.Flow(plain)([1], engine=engine)) == [1]


@pytest.mark.parametrize(
    "operator_", [qf.repack(4), qf.pack(4), qf.unpack(), qf.queue(2), qf.map(double), qf.filter(short)], ids=repr
)
def test_calling_an_operator_says_how_to_run_it(operator_: Any) -> None:
    with pytest.raises(qf.GraphError, match=r"`xs \| qf\..*` or `qf\.run\("):
        operator_([1])


def test_building_a_flow_reads_nothing() -> None:
    def source() -> Iterator[int]:
        raise AssertionError("read")
        yield

    flow = source() | plain | qf.pack(2)
    assert repr(flow).startswith("qf.source(generator) | plain")


def test_a_flow_can_not_be_changed() -> None:
    with pytest.raises(AttributeError, match="can't be changed"):
        (plain | plain).operators = ()  # type: ignore[misc]


def test_an_unsourced_flow_is_not_iterable() -> None:
    for flow in plain, plain | plain, qf.pack(2), qf.Flow():
        with pytest.raises(qf.GraphError, match="has no source"):
            iter(flow)  # type: ignore[call-overload]
        with pytest.raises(qf.GraphError, match="a flow without a source"):
            qf.source(flow)  # type: ignore[arg-type]


def test_a_flow_runs_any_number_of_times(engine: str) -> None:
    with plain | qf.pack(2) as flow:
        for _ in range(3):
            assert list(flow([1, 2, 3], engine=engine)) == [[1, 2], [3]]


def test_flows_compare_by_what_they_are() -> None:
    assert plain | qf.pack(2) == plain | qf.pack(2)
    assert plain | qf.pack(2) != plain | qf.pack(3)
    assert plain.using(n=3) != plain
    assert qf.pack(2) != qf.repack(2)
    assert {plain | double: 1}[plain | double] == 1
    assert ([1] | plain) != ([1] | plain)


# ---- marks


def test_a_marked_function_stays_a_plain_callable() -> None:
    assert labelled(1) == "1"
    assert labelled(1, suffix="!") == "1!"
    assert plain.__doc__ == "One process."
    assert plain.__name__ == "plain"
    assert pooled(3) == 3
    assert qf.process(lambda value: value + 1)(1) == 2


def test_marks_are_bare_with_options_or_called() -> None:
    assert qf.process(double) == qf.process()(double) == qf.process(double, name=None)
    assert qf.process(n=2)(double) == qf.process(double, n=2)
    for mark in qf.process, qf.pool, qf.thread:
        assert mark(n=2)(double).workers == 2
        assert mark(lambda value: value)(3) == 3


def test_using_and_bind_make_changed_copies() -> None:
    assert plain.using(n=8).workers == 8
    assert plain.workers is None
    assert plain.using(n=8).using(name="x").workers == 8
    bound = labelled.bind(suffix="!")
    assert bound(1) == "1!"
    assert bound(1, suffix="?") == "1?"
    assert labelled(1) == "1"
    assert bound.workers == 3
    assert run(bound, [1, 2]) == ["1!", "2!"]


def test_the_text_reads_like_the_source() -> None:
    pipe = plain | pooled | qf.repack(64) | labelled | qf.queue(4)
    assert repr(pipe) == "plain | pooled | qf.repack(64) | labelled | qf.queue(4)"
    assert repr(plain.using(n=8)) == "plain.using(n=8)"
    assert repr(labelled.bind(suffix="!")) == "labelled.bind(suffix='!')"
    assert repr(Scale(3) | plain) == "Scale(3) | plain"
    assert repr(np.load | plain) == "qf.map(np.load) | plain"
    assert repr(qf.process(n=4)(qf.map(double) | str)) == "qf.process(n=4)(qf.map(double) | qf.map(str))"
    assert repr(qf.pack(2, drop_last=True) | qf.filter(short)) == "qf.pack(2, drop_last=True) | qf.filter(short)"
    assert repr(qf.Flow()) == "qf.Flow()"
    assert repr(qf.Flow(plain)) == "qf.Flow(plain)"


def test_a_lambda_prints_where_it_stands() -> None:
    line = test_a_lambda_prints_where_it_stands.__code__.co_firstlineno
    assert repr(qf.process(lambda value: value)) == f"qf.process(<lambda test_language.py:{line + 2}>)"


def test_a_step_pickles_by_name() -> None:
    for step in plain, labelled, threaded, pooled, Scale:
        data = pickle.dumps(step)
        assert len(data) < 100
        assert pickle.loads(data) is step
        assert cloudpickle.loads(cloudpickle.dumps(step)) is step
        assert len(cloudpickle.dumps(step)) < 100


def test_a_changed_step_pickles_as_a_name_and_the_change() -> None:
    for step in plain.using(n=8), labelled.bind(suffix="!"), Scale(3), Scale(3).using(n=1):
        assert len(pickle.dumps(step)) < 400
        assert pickle.loads(pickle.dumps(step)) == step


def test_a_step_whose_name_leads_elsewhere_pickles_by_value() -> None:
    factor = 3

    @qf.process
    def plain(value: int) -> int:
        return value * factor

    assert cloudpickle.loads(cloudpickle.dumps(plain))(2) == 6
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(plain)


def test_a_class_is_built_once_and_called_per_item(engine: str) -> None:
    @qf.process
    class Count:
        built = itertools.count()

        def __init__(self, start: int) -> None:
            self.number = next(self.built) + start

        def __call__(self, value: int) -> tuple[int, int]:
            return self.number, value

    found = run(Count(10), [1, 2, 3], engine)
    assert {value for _, value in found} == {1, 2, 3}
    assert {number for number, _ in found} == {10}
    assert "Count(10)" in repr(Count(10))


def test_a_bound_class_is_called_like_its_instance() -> None:
    assert Scale(3)(2) == 6
    assert run(Scale(3), [1, 2]) == [3, 6]
    assert run(Scale, [1, 2]) == [2, 4]


def test_a_plain_class_of_callables_is_built_too() -> None:
    class Add:
        def __call__(self, value: int) -> int:
            return value + 1

    assert run(qf.map(Add), [1]) == [2]
    assert run(qf.process(qf.map(Add) | Add), [1]) == [3]
    assert qf.process(qf.map(Add) | Add)(1) == 3


def test_other_classes_are_called() -> None:
    assert run(qf.process(int), ["1"]) == [1]
    assert run(qf.map(Path), ["a"]) == [Path("a")]


def test_a_chain_in_a_worker_is_lazy() -> None:
    assert next(iter(qf.run(qf.process(qf.map(lambda _: itertools.count()) | double), [0], engine="serial"))) == 0


# ---- sizes and bounds


def test_a_size_is_read_once_when_a_run_starts(engine: str) -> None:
    asked = []

    def size() -> int:
        asked.append(len(asked) + 1)
        return asked[-1]

    flow = qf.pack(size) | plain
    assert asked == []
    assert list(flow([1, 2, 3], engine=engine)) == [[1], [2], [3]]
    assert list(flow([1, 2, 3], engine=engine)) == [[1, 2], [3]]
    assert asked == [1, 2]


def test_a_size_may_be_a_shared_value(engine: str) -> None:
    size = SHARED_SIZE
    size.value = 2
    flow = qf.repack(size) | plain
    assert list(flow([[1, 2, 3]], engine=engine)) == [[1, 2], [3]]
    size.value = 3
    assert list(flow([[1, 2, 3]], engine=engine)) == [[1, 2, 3]]


def test_a_size_that_reads_as_nonsense_is_an_error_when_the_run_starts() -> None:
    with pytest.raises(qf.GraphError, match="size must be a whole number of at least 1"):
        qf.Flow(qf.pack(lambda: 0))([1], engine="serial")


@pytest.mark.parametrize(
    ("flow", "bounds"),
    [
        (qf.queue(3) | plain, (3, None)),
        (plain | qf.queue(3), (None, 3)),
        (plain | qf.queue(3) | qf.queue(5), (None, 5)),
        (plain | qf.queue(3) | plain, (None, 3, None)),
        (plain | plain, (None, None, None)),
        (plain | qf.queue(3) | qf.map(double) | plain, (None, 3, None)),
        (qf.Flow(qf.queue(7)), (7,)),
        (qf.Flow(), (None,)),
    ],
    ids=repr,
)
def test_a_queue_bounds_the_point_where_it_stands(flow: Any, bounds: tuple[int | None, ...]) -> None:
    assert flow.plan().bounds == bounds


def test_maps_run_in_a_neighbours_worker() -> None:
    plan = (np.load | plain | double | qf.filter(short) | qf.repack(4) | Scale | qf.queue(2)).plan()
    assert [[each.name for each in group.operators] for group in plan.groups] == [
        ["load", "plain", "double", "short", "repack(4)"],
        ["Scale"],
    ]
    assert [group.name for group in plan.groups] == ["plain", "Scale"]
    assert [group.n for group in plan.groups] == [1, 2]


def test_a_mark_wins_over_the_runs_default() -> None:
    assert [group.n for group in (plain | labelled).plan(n=5).groups] == [5, 3]


def test_a_plan_prints_its_steps_and_bounds() -> None:
    text = str((plain | qf.queue(4) | threaded).plan())
    assert "plain" in text
    assert "1 process" in text
    assert "2 threads in 1 process" in text
    assert "4 items" in text


# ---- SKIP and None


def test_skip_is_one_object_after_any_round_trip() -> None:
    assert pickle.loads(pickle.dumps(qf.SKIP)) is qf.SKIP
    assert copy.deepcopy(qf.SKIP) is qf.SKIP
    assert cloudpickle.loads(cloudpickle.dumps([qf.SKIP]))[0] is qf.SKIP
    assert repr(qf.SKIP) == "qf.SKIP"


# ---- several inputs


@given(lists, st.integers(0, 99))
def test_mix_keeps_every_item_and_each_sources_order(sources: list[list[int]], seed: int) -> None:
    tagged = [[(which, place) for place in range(len(source))] for which, source in enumerate(sources)]
    mixed = qf.mix(*tagged, seed=seed)
    found = list(mixed)
    assert found == list(mixed)
    assert len(mixed) == len(found)
    assert [[pair for pair in found if pair[0] == which] for which in range(len(sources))] == tagged


@given(lists, st.integers(0, 99), st.integers(0, 60), st.integers(0, 3))
def test_mix_begins_anywhere_and_mixes_each_epoch_anew(sources: list[list[int]], seed: int, start: int, epoch: int) -> None:
    mixed, context = qf.mix(*sources, seed=seed), Context(epoch=epoch)
    assert [*mixed.read(context, start)] == [*mixed.read(context)][start:]
    assert [*qf.mix(*sources, seed=seed).read(context)] == [*mixed.read(context)]
    long = qf.mix(range(50), [*"ab" * 25], seed=seed)
    assert [*long.read(context)] != [*long.read(Context(epoch=epoch + 1))]


def test_mix_reads_nothing_of_what_it_skips() -> None:
    read = []

    class Data:
        def __len__(self) -> int:
            return 1000

        def __getitem__(self, index: int) -> int:
            read.append(index)
            return index

    mixed = qf.mix(Data(), range(1000))
    whole = [*mixed]
    read.clear()
    assert [*itertools.islice(mixed.read(Context(), 1500), 10)] == whole[1500:1510]
    assert len(read) <= 10


def test_mix_of_shuffled_sources_follows_the_run_s_seed() -> None:
    mixed = qf.mix(qf.source(range(9), shuffle=True), qf.source(range(9), shuffle=True))
    first = [*qf.Flow(qf.pack(1))(mixed, engine="serial", seed=1)]
    assert first == [*qf.Flow(qf.pack(1))(mixed, engine="serial", seed=1)]
    assert first != [*qf.Flow(qf.pack(1))(mixed, engine="serial", seed=2)]
    assert sorted(first) == sorted([[number] for number in range(9)] * 2)
    for weights in ([1, float("nan")], [1, float("inf")]):
        with pytest.raises(qf.GraphError, match="needs one number above 0"):
            qf.mix([1], [2], weights=weights)
    with pytest.raises(qf.GraphError, match=r"`qf.mix` takes sources, but got .*which has steps"):
        qf.mix([1], [2] | qf.pack(1))


def test_mix_draws_by_weight() -> None:
    found = list(itertools.islice(qf.mix(itertools.repeat("a"), itertools.repeat("b"), weights=[9, 1]), 1000))
    assert 850 < found.count("a") < 950
