"""The serial engine defines what a flow means: `toolz.pipe` over the meanings of its operators."""

from __future__ import annotations

import io
import itertools
import os
import pdb
import pickle
import traceback
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import toolz
from hypothesis import given
from hypothesis import strategies as st

import qflow as qf

items = st.lists(st.none() | st.integers(-9, 9), max_size=12)
lists = st.lists(st.lists(st.none() | st.integers(-9, 9), max_size=5), max_size=8)
sizes = st.integers(1, 9)


def run(step: Any, source: Iterable[Any], **options: Any) -> list[Any]:
    return list(qf.run(step, source, engine="serial", **options))


def odd(value: int | None) -> Any:
    """Drops some items, gives several for others, None for None."""
    if value is None:
        return None
    return qf.SKIP if value % 3 == 0 else iter([value] * (value % 3)) if value > 0 else value


def meant(value: Any) -> list[Any]:
    """The oracle: what `odd` gives for a value, as a list."""
    found = odd(value)
    return [] if found is qf.SKIP else list(found) if isinstance(found, Iterator) else [found]


# ---- meanings


@given(items)
def test_process_thread_and_map_give_each_items_results(values: list[Any]) -> None:
    expected = list(toolz.mapcat(meant, values))
    for step in qf.process(odd), qf.process(n=3)(odd), qf.thread(n=2)(odd), qf.map(odd):
        assert run(step, values) == expected


@given(lists)
def test_pool_treats_each_element_as_process_treats_an_item(values: list[Any]) -> None:
    assert run(qf.pool(n=2)(odd), values) == [list(toolz.mapcat(meant, value)) for value in values]


@given(items)
def test_filter_keeps_what_holds(values: list[Any]) -> None:
    assert run(qf.filter(bool), values) == list(filter(bool, values))


@given(items, sizes, st.booleans())
def test_pack_is_partition_all_or_partition(values: list[Any], size: int, drop_last: bool) -> None:
    cut = toolz.partition if drop_last else toolz.partition_all
    assert run(qf.pack(size, drop_last=drop_last), values) == [list(group) for group in cut(size, values)]


@given(lists)
def test_unpack_is_concat(values: list[Any]) -> None:
    assert run(qf.unpack(), values) == list(toolz.concat(values))


@given(lists, sizes)
def test_repack_is_partition_all_of_concat(values: list[Any], size: int) -> None:
    assert run(qf.repack(size), values) == [list(group) for group in toolz.partition_all(size, toolz.concat(values))]


@given(items, sizes)
def test_queue_changes_nothing(values: list[Any], size: int) -> None:
    assert run(qf.queue(size), values) == values == list(qf.Flow()(values, engine="serial"))


@given(lists)
def test_a_flow_is_the_pipe_of_its_operators(values: list[Any]) -> None:
    parts = [qf.pool(odd), qf.unpack(), qf.map(repr), qf.pack(3), qf.process(len)]
    assert run(qf.Flow(*parts), values) == list(toolz.pipe(iter(values), *(part.transform for part in parts)))


# ---- SKIP, None, iterators


def test_none_is_an_ordinary_value(engine: str) -> None:
    assert list(qf.run(qf.process(lambda value: None), [1, None], engine=engine)) == [None, None]


def test_skip_drops_the_item_and_inside_a_container_is_an_ordinary_value(engine: str) -> None:
    flow = qf.Flow(qf.process(lambda value: [qf.SKIP, iter([1, qf.SKIP, 2]), [qf.SKIP], qf.SKIP][value]))
    assert list(flow(range(4), engine=engine)) == [1, 2, [qf.SKIP]]


def test_a_generator_step_is_emitted_value_by_value() -> None:
    """Lazily: an endless one is no problem."""
    assert list(itertools.islice(qf.run(qf.process(itertools.count), [5], engine="serial"), 3)) == [5, 6, 7]


def test_lists_and_tuples_are_one_value() -> None:
    assert run(qf.process(lambda value: [value, value]), [1]) == [[1, 1]]


def test_pool_takes_any_iterable_and_gives_lists() -> None:
    assert run(qf.pool(abs), [(-1,), range(2), {-3}, iter([-4])]) == [[1], [0, 1], [3], [4]]


@pytest.mark.parametrize("whole", ["ab", b"ab", {"a": 1}, 3], ids=repr)
@pytest.mark.parametrize("step", [qf.pool(str), qf.unpack(), qf.repack(2)], ids=repr)
def test_text_and_mappings_are_not_taken_apart(step: Any, whole: Any) -> None:
    with pytest.raises(qf.GraphError, match="takes lists of elements, but got"):
        run(step, [whole])


# ---- laziness, errors, ends


def test_the_source_is_read_one_item_at_a_time() -> None:
    read = []

    def source() -> Iterator[int]:
        for number in itertools.count():
            read.append(number)
            yield number

    results = qf.run(qf.process(lambda value: value) | qf.pack(2), source(), engine="serial")
    assert read == []
    assert next(results) == [0, 1]
    assert read == [0, 1]
    results.close()


def test_everything_runs_in_the_callers_thread(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(qf.process(n=4)(lambda value: print("step", value) or os.getpid()), [1]) == [os.getpid()]
    assert capsys.readouterr().out == "step 1\n"


def test_pdb_works_in_a_step() -> None:
    def step(value: int) -> int:
        debugger = pdb.Pdb(
            stdin=io.StringIO("p value\nvalue = 7\nc\n"), stdout=(heard := io.StringIO()), nosigint=True, readrc=False
        )
        debugger.set_trace()
        said.append(heard)
        return value

    said: list[io.StringIO] = []
    assert run(qf.process(step), [3]) == [7]
    assert "3" in said[0].getvalue()


def fail_at_two(value: int) -> int:
    if value == 2:
        raise KeyError("two")
    return value


def test_the_values_before_a_failure_come_first_then_the_original_error(engine: str) -> None:
    with qf.Flow(qf.process(fail_at_two)) as flow:
        results = flow(range(5), engine=engine)
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(KeyError, match="two") as caught:
            next(results)
        note = "\n".join(caught.value.__notes__)
        assert "in step 'fail_at_two', item 2 (2)" in note
        assert "fail_at_two" in "".join(traceback.format_exception(caught.value))
        assert list(flow([1], engine=engine)) == [1]


def test_lists_before_a_failure_are_not_lost(engine: str) -> None:
    with qf.map(fail_at_two) | qf.pack(1) | qf.process(lambda value: value) as flow:
        results = flow(range(5), engine=engine)
        assert [next(results), next(results)] == [[0], [1]]
        with pytest.raises(KeyError, match="two"):
            next(results)


@pytest.mark.parametrize(
    "step", [qf.pool(fail_at_two), qf.unpack() | qf.map(fail_at_two), qf.repack(1) | qf.pool(fail_at_two)], ids=repr
)
def test_the_failing_step_is_named(step: Any) -> None:
    with pytest.raises(KeyError) as caught:
        run(step, [[1], [2]])
    assert "in step 'fail_at_two', item 1" in "\n".join(caught.value.__notes__)


def test_a_failing_source_is_named() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise OSError("disk")

    results = qf.run(qf.process(abs), source(), engine="serial")
    assert next(results) == 1
    with pytest.raises(OSError, match="disk") as caught:
        next(results)
    assert "in step 'source'" in "\n".join(caught.value.__notes__)


def test_stop_iteration_in_a_step_does_not_end_the_loop_quietly(engine: str) -> None:
    def step(value: int) -> int:
        return next(iter([value] if value else []))

    with pytest.raises(qf.StepError, match="StopIteration"):
        list(qf.run(qf.process(step), [1, 0, 2], engine=engine))


def test_the_innermost_step_of_a_chain_is_named() -> None:
    with pytest.raises(KeyError) as caught:
        run(qf.process(qf.map(abs) | fail_at_two), [1, 2])
    assert "in step 'fail_at_two', item 1 (2)" in "\n".join(caught.value.__notes__)


def test_an_exhausted_run_iterated_again_is_an_error(engine: str) -> None:
    results = qf.run(qf.process(abs), [1], engine=engine)
    assert list(results) == [1]
    with pytest.raises(qf.GraphError, match="exhausted"):
        iter(results)
    with pytest.raises(StopIteration):
        next(results)


def test_a_closed_run_gives_nothing_more() -> None:
    with qf.run(qf.process(abs), range(9), engine="serial") as results:
        assert next(results) == 0
    assert next(results, "end") == "end"
    results.close()
    with pytest.raises(qf.GraphError, match="exhausted"):
        iter(results)


def test_closing_a_run_closes_the_generators_in_it() -> None:
    closed = []

    def source() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            closed.append("source")

    results = qf.run(qf.process(abs), source(), engine="serial")
    next(results)
    results.close()
    assert closed == ["source"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: (each for each in [1]),
        lambda: iter([1]),
        lambda: zip([1], strict=True),
        lambda: map(abs, [1]),
        lambda: itertools.chain([1]),
    ],
)
def test_a_one_shot_source_run_twice_is_an_error(make: Any, engine: str) -> None:
    source = make()
    with qf.Flow(qf.process(lambda value: value)) as flow:
        assert len(list(flow(source, engine=engine))) == 1
        with pytest.raises(qf.GraphError, match=r"an iterator \(.*\) that an earlier run has used"):
            flow(source, engine=engine)
        assert list(flow([2], engine=engine)) == [2]


def test_iterators_that_are_not_held_any_more_are_forgotten() -> None:
    class Big(list):  # type: ignore[type-arg]
        pass

    values = Big([1])
    gone = weakref.ref(values)
    assert run(qf.process(abs), map(abs, values)) == [1]
    del values
    assert run(qf.process(abs), iter([2])) == [2]
    assert gone() is None


# ---- len


@pytest.mark.parametrize(
    ("flow", "source", "length"),
    [
        (qf.Flow(), [1, 2], 2),
        (qf.process(abs), range(5), 5),
        (qf.map(abs) | qf.pack(2), range(5), 3),
        (qf.map(abs) | qf.pack(2, drop_last=True), range(5), 2),
        (qf.process(qf.map(abs) | str), range(5), 5),
        (qf.pool(abs) | qf.queue(2), [[1], [2]], 2),
    ],
    ids=repr,
)
def test_the_length_of_a_run_is_known_before_it_ends(flow: Any, source: Any, length: int) -> None:
    results = qf.run(flow, source, engine="serial")
    assert len(results) == length
    assert len(list(results)) == length
    assert len(source | qf.Flow(flow)) == length


def splits(value: int) -> Iterator[int]:
    yield value


class Splits:
    def __call__(self, value: int) -> Iterator[int]:
        yield value


@pytest.mark.parametrize(
    "step", [splits, Splits, qf.filter(bool), qf.unpack(), qf.repack(2), qf.process(qf.map(abs) | splits)], ids=repr
)
def test_a_length_that_nobody_can_know_is_a_type_error(step: Any) -> None:
    flow = qf.map(abs) | step
    for unknown in flow([1], engine="serial"), [1] | flow, qf.run(abs, (each for each in [1]), engine="serial"):
        with pytest.raises(TypeError, match="not known"):
            len(unknown)
        assert bool(unknown)


def test_a_run_can_not_be_pickled() -> None:
    with pytest.raises(TypeError, match="Pickle the flow"):
        pickle.dumps(qf.run(abs, [1], engine="serial"))


def test_values_are_not_kept_alive_while_the_next_one_is_made() -> None:
    class Value:
        alive = 0

        def __init__(self) -> None:
            Value.alive += 1

        def __del__(self) -> None:
            Value.alive -= 1

    most = []

    def source() -> Iterator[Value]:
        for _ in range(5):
            most.append(Value.alive)
            yield Value()

    for _ in qf.run(qf.process(lambda value: value) | qf.pack(1) | qf.unpack() | qf.map(id), source(), engine="serial"):
        pass
    assert max(most) <= 1
