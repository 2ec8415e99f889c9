"""A run goes on behind any of its results: the same values, whatever n, engine or bounds, and little is done twice."""

import json
import pickle
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qflow as qf
from qflow.engines.simulated import Simulated
from qflow.graph.attempt import Watch
from qflow.graph.options import RunOptions
from qflow.graph.reading import readings
from qflow.graph.resume import resumption
from qflow.graph.row import Row

pytestmark = pytest.mark.usefixtures("one_nursery")


def double(value: Any) -> Any:
    return [value, value]


def spread(value: Any) -> Iterator[Any]:
    """None to two results."""
    yield from [value] * (len(str(value)) % 3)


def listed(value: Any) -> list[Any]:
    return [value] * (len(str(value)) % 4)


def odd(value: Any) -> bool:
    return len(str(value)) % 5 != 0


def jitter(value: Any, rng: Any) -> Any:
    return value, int(rng.integers(1000))


def refuse(value: Any) -> Any:
    if sum(str(value).encode()) % 4 == 3:
        raise ValueError(value)
    return value


STEPS = [
    lambda n: qf.process(n=n)(double),
    lambda n: qf.process(n=n)(spread),
    lambda n: qf.thread(n=n)(jitter),
    lambda n: qf.process(n=n)(listed) | qf.unpack(),
    lambda n: qf.map(spread),
    lambda n: qf.filter(odd),
    lambda n: qf.pack(3),
    lambda n: qf.process(n=n)(listed) | qf.repack(4),
    lambda n: qf.pack(2) | qf.pool(n=n)(spread),
    lambda n: qf.pack(3, drop_last=True) | qf.unpack(),
    lambda n: qf.queue(n),
    lambda n: qf.take(7),
    lambda n: qf.shuffle(5),
    lambda n: qf.shuffle(30, seed=3),
    lambda n: qf.process(n=n)(refuse),
]
REFUSES = len(STEPS) - 1


SOURCES = [
    range,
    lambda items: qf.source(range(items), shuffle=True).source,
    lambda items: qf.mix(range(items // 3), [*map(str, range(items - items // 3))], weights=[1, 3], seed=items),
    lambda items: qf.mix(qf.source(range(items // 2), shuffle=True).source, dict.fromkeys(range(items // 2), 0).values()),
    lambda items: qf.mix(range(items), Again(items)),
]


class Again:
    """Numbers that nobody can count before they came."""

    def __init__(self, items: int) -> None:
        self.items = items

    def __iter__(self) -> Iterator[int]:
        yield from range(self.items)


REPEAT = len(STEPS)


def flow(chosen: list[int], n: int) -> qf.Flow[Any, Any]:
    pipe: qf.Flow[Any, Any] = qf.Flow()
    for step in chosen:
        pipe = pipe | (qf.repeat(3) if step == REPEAT else STEPS[step](n))
    return pipe


@st.composite
def flows_of(draw: Any, extra: list[int]) -> list[int]:
    """Steps, and perhaps some others between them."""
    chosen: list[int] = draw(st.lists(st.integers(0, REFUSES - 1), max_size=6))
    for step in extra:
        if draw(st.booleans()):
            chosen.insert(draw(st.integers(0, len(chosen))), step)
    return chosen


flows = flows_of([REPEAT, REFUSES])


def told(run: qf.Run[Any]) -> list[Any]:
    """The failures of a run."""
    return [(each.step, each.index, each.item) for each in run.failures]


@settings(max_examples=200)
@given(flows, st.sampled_from(SOURCES), st.integers(0, 25), st.integers(0, 40), st.integers(0, 40))
def test_the_rest_is_that_of_the_whole(chosen: list[int], source: Any, items: int, cut: int, again: int) -> None:
    pipe = flow(chosen, 1)
    whole = pipe(source(items), engine="serial", on_error="skip", seed=1)
    results = list(whole)
    run = pipe(source(items), engine="serial", on_error="skip", seed=1)
    before = list(islice(run, cut))
    state = json.loads(json.dumps(run.state_dict()))
    assert state["results"] == len(before)
    then = pipe(source(items), engine="serial", on_error="skip", resume=state)
    middle = list(islice(then, again))
    state = json.loads(json.dumps(then.state_dict()))
    last = pipe(source(items), engine="serial", on_error="skip", resume=state)
    assert [*before, *middle, *last] == results
    assert told(run) + told(then) + told(last) == told(whole)
    assert len(json.dumps(state)) < 10_000


@settings(max_examples=25)
@given(flows, st.integers(0, 60), st.integers(1, 3), st.integers(1, 3), st.integers(0, 1 << 30), st.integers(0, 4), st.randoms())
def test_with_other_workers_and_when_some_die(
    chosen: list[int], items: int, n: int, then: int, chance: int, deaths: int, random: Any
) -> None:
    """Every result's state is one to go on from; three are tried."""
    serial = flow(chosen, 1)(range(items), engine="serial", on_error="skip", seed=1)
    whole, failures = list(serial), told(serial)
    run = flow(chosen, n)(range(items), engine=Simulated(chance, deaths=deaths), on_error="skip", seed=1)
    states = [(run.state_dict(), 0, 0)]
    for number, value in enumerate(run):
        assert value == whole[number]
        states.append((run.state_dict(), number + 1, len(run.failures)))
    assert told(run) == failures
    states.append((run.state_dict(), len(whole), len(failures)))
    for state, given_out, known in random.sample(states, min(3, len(states))):
        state = json.loads(json.dumps(state))
        for engine in ("serial", Simulated(chance + 1, deaths=deaths)):
            rest = flow(chosen, then)(range(items), engine=engine, on_error="skip", resume=state)
            assert list(rest) == whole[given_out:]
            assert told(rest) == failures[known:]


@settings(max_examples=100)
@given(flows_of([REPEAT]), st.integers(0, 30), st.integers(0, 20), st.randoms())
def test_a_row_goes_on_where_another_one_was(chosen: list[int], items: int, cut: int, random: Any) -> None:
    """From its states, or from those and what it has taken since, in the midst of a run, too."""
    pipe = flow(chosen, 1)
    run = pipe(range(items), engine="serial", seed=1)
    list(islice(run, cut))
    options = RunOptions(resume=run.state_dict())
    plan = pipe.plan()
    context = plan.context(options.context)
    resumed, watch = resumption(plan, options), Watch(context=context)

    def row(states: Any) -> Row:
        found = Row([each.opened() for each in plan.row], watch, states, plan.labels, resumed.starts)
        found.enter([])
        return found

    def results(*, deaths: bool) -> Iterator[Any]:
        now, saved, places = row(None), None, None
        for reading in readings(range(items), plan, context, resumed):
            for number, item in enumerate(reading.items, reading.number):
                if deaths and now.whole and not now.deep and random.random() < 0.5:
                    entered, now = now.entered or [], row(saved)
                    now.enter(pickle.loads(pickle.dumps(entered)), places)
                    now.entered = entered
                elif deaths and random.random() < 0.5:
                    saved, places = pickle.loads(pickle.dumps(now.states)), None
                    now = row(saved)
                yield from now.add(item, (*reading.head, number))
                places = now.places
        yield from now.finish()

    assert list(results(deaths=True)) == list(results(deaths=False))


LONG = [10, 12, 3, 0, 1, 6, 8, 5, 4, 9]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_in_processes(n: int) -> None:
    whole = list(flow(LONG, 1)(range(60), engine="serial", seed=1))
    assert len(whole) > 20
    with flow(LONG, n) as pipe:
        run, states = pipe(range(60), seed=1), []
        states = [json.dumps(run.state_dict())]
        for _ in run:
            states.append(json.dumps(run.state_dict()))
        for given_out in (0, 1, len(whole) // 2, len(whole) - 1, len(whole)):
            assert list(pipe(range(60), resume=json.loads(states[given_out]))) == whole[given_out:]
    assert max(map(len, states)) < 1000


@pytest.mark.parametrize("how", [lambda run: run.close(), lambda run: None, lambda run: run._session.abandon()])
@pytest.mark.parametrize("given_out", [1, 2, 40, 77])
def test_the_state_of_a_run_that_was_ended_is_behind_what_was_given_out(given_out: int, how: Any) -> None:
    with qf.process(n=2)(abs) | qf.pack(2) as pipe:  # of which a message holds many
        run = pipe(range(100_000))
        while not (len(run._ready) > 3 and run.state_dict()["results"] >= given_out):
            next(run)
        given, how = run.state_dict(), how(run)
        assert given["results"] < 50_000
        assert run.state_dict() == given
        run.close()
        assert run.state_dict() == given
        assert next(pipe(range(100_000), resume=given)) == [2 * given["results"], 2 * given["results"] + 1]


class Counted:
    """A data set that notes what is asked of it."""

    def __init__(self, items: int) -> None:
        self.items, self.asked = items, []  # type: ignore[var-annotated]

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, item: int) -> int:
        self.asked.append(item)
        return item


def noted(path: Path) -> Any:
    def note(value: int) -> Any:
        with path.open("a") as file:
            file.write(f"{value}\n")
        return range(value % 3)

    return note


@pytest.mark.parametrize("engine", ["serial", "processes"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_what_was_consumed_is_neither_read_nor_computed_again(tmp_path: Path, engine: str, shuffle: bool) -> None:
    """Three elements come of three items, so that a result of 16 needs about as many."""
    notes, data = tmp_path / "notes", Counted(3000)
    pipe = qf.process(n=2)(noted(notes)) | qf.repack(8) | qf.pack(2)
    with (qf.source(data, shuffle=shuffle, seed=0) | pipe)(engine=engine) as run:
        assert len(list(islice(run, 150))) == 150
        state = run.state_dict()
    notes.unlink()
    data.asked.clear()
    rest = list((qf.source(data, shuffle=shuffle, seed=0) | pipe)(resume=state, engine=engine))
    called = [int(line) for line in notes.read_text().split()]
    assert 30 <= len(rest) <= 40
    assert len(called) <= 3000 - 150 * 16 + 100
    assert sorted(called) == sorted(data.asked)
    assert len(called) == len({*called})


def test_a_million_items_are_skipped_by_number() -> None:
    data = Counted(1_000_000)
    run = (qf.source(data) | qf.pack(10))(engine="serial", seed=0)
    for _ in run:
        if data.asked[-1] > 999_000:
            break
    state = run.state_dict()
    data.asked.clear()
    list((qf.source(data) | qf.pack(10))(engine="serial", resume=state))
    assert len(data.asked) < 1100


# ---- what can't be gone on from


def test_wrong_states_are_told() -> None:
    pipe = qf.process(n=2)(double) | qf.repack(4)
    run = pipe(range(9), engine="serial", seed=3)
    next(run)
    state = run.state_dict()
    for other, message in [
        (qf.process(double) | qf.repack(5), r"operator 2 was qf.repack\(4\), but here it is qf.repack\(5\)"),
        (qf.process(listed) | qf.repack(4), r"operator 1 was qf.map\(double\), but here it is qf.map\(listed\)"),
        (qf.process(double) | qf.repack(4) | qf.pack(2), r"had 2 operators, .*; this one has 3"),
    ]:
        with pytest.raises(qf.GraphError, match=message):
            other(range(9), resume=state)
    for options, message in [
        ({"seed": 4}, "The state has seed=3, but the run seed=4. Leave it out."),
        ({"epoch": 1}, "The state has epoch=0, but the run epoch=1. Leave it out."),
        ({"resume": 5}, r"`resume` takes what `run.state_dict\(\)` has given, but got 5"),
        ({"resume": {**state, "version": 99}}, "The state has version 99"),
    ]:
        with pytest.raises(qf.GraphError, match=message):
            pipe(range(9), **{"resume": state, **options})  # type: ignore[arg-type]
    with pytest.raises(qf.GraphError, match="The state is of a run over 9 items, but this source has 10"):
        pipe(range(10), resume=state)
    assert list(pipe(range(9), seed=3, epoch=0, resume=state)) == list(pipe(range(9), engine="serial"))[1:]


def test_a_run_without_order_has_no_state() -> None:
    with qf.run(qf.process(double), range(3), ordered=False) as run, pytest.raises(qf.GraphError, match="Write `ordered=True`"):
        run.state_dict()


def test_queues_workers_marks_and_engines_may_differ() -> None:
    run = (qf.process(n=2)(double) | qf.queue(3) | qf.repack(4) | qf.queue(2))(range(9))
    first = next(run)
    run.close()
    other = qf.thread(n=3)(double) | qf.repack(4)
    assert [first, *other(range(9), resume=run.state_dict())] == list(other(range(9), engine="serial"))


def test_the_length_of_a_run_is_that_of_the_rest() -> None:
    pipe = qf.process(double) | qf.pack(2)
    run = pipe(range(9), engine="serial")
    next(run)
    assert len(pipe(range(9), engine="serial", resume=run.state_dict())) == 4


# ---- failures


def picky(value: int) -> int:
    if value in (3, 9):
        raise ValueError(value)
    return value


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_failures_are_told_once(engine: str) -> None:
    pipe = qf.process(n=2)(picky) | qf.pack(2)
    run = pipe(range(12), engine=engine, on_error="skip")
    before = list(islice(run, 2))
    state = run.state_dict()
    run.close()
    assert before == [[0, 1], [2, 4]]
    assert [failure.index for failure in run.failures] == [(3,)]
    again = pipe(range(12), engine=engine, on_error="skip", resume=state)
    assert list(again) == [[5, 6], [7, 8], [10, 11]]
    assert [failure.index for failure in again.failures] == [(9,)]
    with pytest.raises(ValueError, match="9"):
        list(pipe(range(12), engine=engine, resume=state))


@pytest.mark.parametrize("engine", ["serial", "processes"])
@pytest.mark.parametrize("behind", [[], [qf.pack(2)], [qf.repack(1)]])
def test_what_has_raised_comes_again_and_is_not_lost(engine: str, behind: list[Any], tmp_path: Path) -> None:
    """The default is to raise: when the network is back, the item is there."""
    down = tmp_path / "down"

    def fetch(number: int) -> list[int]:
        if number == 5 and down.exists():
            raise OSError("the network is down")
        return [number]

    pipe = qf.Flow(qf.process(fetch), *behind)
    whole = [*pipe(range(9), engine=engine)]
    down.touch()
    run, seen = pipe(range(9), engine=engine), []
    assert run.state_dict()["results"] == 0
    with pytest.raises(OSError, match="the network is down"):
        for each in run:
            seen.append(each)
    state = run.state_dict()
    with pytest.raises(OSError, match="the network is down"):
        seen += pipe(range(9), engine=engine, resume=state)
    down.unlink()
    assert [*seen, *pipe(range(9), engine=engine, resume=state)] == whole


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_a_state_may_be_taken_after_a_failure_that_is_skipped_and_it_is_told_once(engine: str) -> None:
    def fetch(number: int) -> int:
        if number in (3, 8):
            raise OSError(str(number))
        return number

    pipe = qf.process(fetch) | qf.pack(2)
    run = pipe(range(9), engine=engine, on_error="skip")
    assert [*run] == [[0, 1], [2, 4], [5, 6], [7]]
    again = pipe(range(9), engine=engine, on_error="skip", resume=run.state_dict())
    assert [*again] == []
    assert again.failures == []
    plain = qf.Flow(qf.process(fetch))
    run = plain(range(9), engine=engine, on_error="skip")
    assert [*run] == [0, 1, 2, 4, 5, 6, 7]
    state = run.state_dict()
    for _ in range(2):  # a state of a run that has given nothing more is the same
        rest = plain(range(9), engine=engine, on_error="skip", resume=state)
        assert rest.state_dict() == state
        assert [*rest] == []
        assert rest.failures == []
        assert rest.state_dict() == state


def test_failures_before_and_behind_a_stream_are_told_apart() -> None:
    def inner(number: int) -> list[int]:
        if number == 3:
            raise OSError("item 3")
        return [10 * number + k for k in range(6)]

    def outer(batch: list[int]) -> list[int]:
        if batch in ([3], [4]):
            raise OSError(f"batch {batch[0]}")
        return batch

    pipe = qf.map(inner) | qf.repack(1) | qf.map(outer)
    run, seen = pipe(range(5), engine="serial", on_error="skip", max_errors=1), []
    with pytest.raises(OSError, match="batch 4"):
        for batch in run:
            seen.append(batch)
    rest = pipe(range(5), engine="serial", on_error="skip", resume=run.state_dict())
    assert [*seen, *rest] == [
        [10 * number + k] for number in (0, 1, 2, 4) for k in range(6) if (number, k) not in ((0, 3), (0, 4))
    ]
    assert [str(failure.error) for failure in rest.failures] == ["batch 4", "item 3"]  # batch 3 was told of, and skipped


def test_behind_a_failure_that_was_raised_its_item_is_met_again(engine: str) -> None:
    pipe = qf.process(n=2)(picky) | qf.pack(3)
    run = pipe(range(8), engine=engine)
    assert next(run) == [0, 1, 2]
    with pytest.raises(ValueError, match="3"):
        next(run)
    state = run.state_dict()
    with pytest.raises(ValueError, match="3"):
        list(pipe(range(8), engine=engine, resume=state))
    assert list(pipe(range(8), engine=engine, resume=state, on_error="skip")) == [[4, 5, 6], [7]]


def late(value: Any) -> Any:
    if value in (1, [3, 4]):
        raise ValueError(value)
    return value


def test_failures_of_one_index_before_and_behind_a_stream_are_two() -> None:
    pipe = qf.map(late) | qf.pack(2) | qf.map(late)
    run = pipe(range(6), engine="serial", on_error="skip")
    assert next(run) == [0, 2]
    rest = pipe(range(6), engine="serial", on_error="skip", resume=run.state_dict())
    assert list(rest) == [[5]]
    assert (told(run), told(rest)) == ([("late", (1,), "1")], [("late", (1,), "[3, 4]")])
