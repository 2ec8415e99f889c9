"""Small values that share cells: what is written is read, in any part; the quick way of numbers is as the other one."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qflow as qf
from qflow.engines.simulated import PlainCells
from qflow.errors import InternalError
from qflow.graph.plan import SMALL
from qflow.runtime.board import DATA, PACKED, Board, shape_of, words_needed
from qflow.runtime.desk import Desk
from qflow.runtime.ledger import Orders
from qflow.runtime.packed import MOST, Filling, Numbers, Packer, Plain, Records, mark_of, other_mark, packs, read, small
from qflow.runtime.side import Claim, Parcel

numbers = st.integers(-(1 << 63), (1 << 63) - 1) | st.floats()
plain = numbers | st.integers() | st.booleans() | st.none() | st.text(max_size=20) | st.binary(max_size=20)
values_ = plain | st.tuples(plain, plain) | st.lists(plain, max_size=4) | st.dictionaries(st.text(max_size=3), plain, max_size=3)
paths = st.tuples(st.integers(0, 1 << 40)) | st.tuples(st.integers(0, 99), st.integers(0, 1 << 40))


def parcel(content, nbytes=8):
    return Parcel(DATA, nbytes, content, packs=True)


def written(contents):
    """A cell with values in it -> the cell, and how many fitted."""
    cells = PlainCells({})
    filling = Filling(cells)
    filling.fill(0, parcel(contents[0]))
    fitted = 1 + sum(1 for _ in itertools.takewhile(lambda content: filling.add(0, parcel(content)), contents[1:]))
    return cells.region(0), fitted


def same(left, right):
    return type(left) is type(right) and repr(left) == repr(right)


@given(st.lists(st.tuples(values_, paths), min_size=1, max_size=30), st.booleans(), st.data())
def test_what_is_written_is_read_in_any_part_also_from_a_copy(items, rows, data):
    packer = Packer()
    region, fitted = written([packer.pack(value, path) if rows else small(value, path) for value, path in items])
    assert fitted == len(items) if not rows else fitted >= 1
    offset = data.draw(st.integers(0, fitted - 1))
    count = data.draw(st.integers(1, fitted - offset))
    reader = read(region, offset, count)
    copy = memoryview(bytearray(SMALL))
    reader.copy(copy)
    for each in (reader, read(copy, offset, count)):
        for k, (value, path) in enumerate(items[offset : offset + count]):
            found, at = each.load(k, read_only=True)
            assert same(found, value)
            assert at == path == each.path(k)


arrays = st.integers(0, 9).map(lambda number: np.arange(number, number + 5.0))


@given(values_ | arrays | st.dictionaries(st.text(max_size=3), plain | arrays, max_size=3), paths)
def test_a_digest_is_had_of_either_way_that_a_value_is_sent(value, path):
    """A worker that has seen many alike sends a row, another one a record; both know what the other's digest would be."""
    record, packer = small(value, path), Packer()
    for _ in range(10):
        content = packer.pack(value, path)
    assert other_mark(content, value) == (mark_of(record) if mark_of(content) & 1 == 0 else 0)
    assert other_mark(record, value) == (mark_of(content) if mark_of(content) & 1 == 0 else 0)


@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=1, max_size=300), st.integers(0, 1 << 40))
def test_numbers_in_a_row_are_as_one_by_one(values, first):
    packer = Packer()
    row, _ = written([Numbers.of(values, first)])
    one, _ = written([packer.pack(value, (first + k,)) for k, value in enumerate(values)])
    for region in (row, one):
        reader = read(region, 0, len(values))
        assert reader.values(read_only=True) == values
        assert [reader.path(k) for k in range(len(values))] == [(first + k,) for k in range(len(values))]


def test_a_cell_takes_what_fits():
    packer = Packer()
    texts = [small("x" * 1000, (k,)) for k in range(SMALL // 1000)]
    region, fitted = written(texts)
    assert SMALL // 1100 < fitted < len(texts)
    assert read(region, fitted - 1, 1).load(0, read_only=True) == ("x" * 1000, (fitted - 1,))
    assert written([packer.pack(1, (0,)), packer.pack(2, (1,)), small(2.0, (1,))])[1] == 2
    assert written([small(1, (0,)), packer.pack(1, (1,))])[1] == 1


def test_what_is_larger_has_a_cell_of_its_own():
    assert packs(small(np.zeros(300), (0,)))
    assert not packs(small(np.zeros(600), (0,)))
    deep = [[str(k) * 300 for k in range(8 * each, 8 * each + 8)] for each in range(8)]
    assert not packs(small(deep, (0,)))
    assert MOST < SMALL


def test_a_damaged_cell_is_an_error():
    region, _ = written([small("a", (0,)), small("b", (1,))])
    with pytest.raises(InternalError, match="overwritten"):
        read(region, 0, 0)
    whole, region[SMALL - 8] = region[SMALL - 8], 2
    with pytest.raises(InternalError, match="points outside"):
        read(region, 0, 2).load(0, read_only=True)
    region[SMALL - 8] = whole
    region[0] = 9
    with pytest.raises(InternalError, match="overwritten"):
        read(region, 0, 2)


# ---- the quick way

LAST = (1 << 63) - 1


def odd(x):
    """Now and then not a plain number."""
    match x % 1000:
        case 13:
            return qf.SKIP
        case 14:
            return str(x)
        case 15:
            return iter([x, float(x), LAST + x])
        case 16:
            return LAST + x
        case 17:
            return bool(x)
        case 18:
            raise LookupError(x)
        case 19:
            return np.int64(x)
        case 20:
            return iter(())
    return x


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("engine", ["processes", qf.engines.Simulated(1)], ids=["processes", "simulated"])
def test_numbers_are_not_taken_for_others(n, engine):
    def run(engine, source):
        with (qf.process(n=n)(odd) | qf.process(lambda x: x))(source, engine=engine, on_error="skip") as run:
            return [(type(x), x) for x in run], [(failure.index, repr(failure.error)) for failure in run.failures]

    source = range(4000) if engine == "processes" else [*range(10, 25), *range(1010, 1020)]
    assert run(engine, source) == run("serial", source)


def test_each_call_is_made_once(tmp_path):
    """But for the one that a worker died of; and the counts say so."""

    def step(x):
        with (tmp_path / "calls").open("a") as file:
            file.write(f"{x}\n")
        if x in (700, 1500) and qf.worker().attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return x + 1 if x % 100 else str(x)

    with qf.Flow(qf.process(step))(range(2000)) as run:
        assert list(run) == [x + 1 if x % 100 else str(x) for x in range(2000)]
        assert (run.stats()[0].died, run.stats()[0].results) == (2, 2000)
    calls = [int(x) for x in (tmp_path / "calls").read_text().split()]
    assert sorted(calls) == sorted([*range(2000), 700, 1500])


def test_a_run_that_is_left_amid_a_claim_leaves_nothing_to_the_next():
    """The worker waits for room when it is cancelled; in the next run it claims the same place."""

    def step(x):
        time.sleep(0.05 * (x < 100) + 0.02 * (x == 100))
        yield from (x, x, x)

    with qf.process(step) | qf.queue(1) as pipe:
        for _ in range(6):
            run = pipe([0, 1])
            assert [next(run) for _ in range(4)] == [0, 0, 0, 1]
            words = run._session.crew.channels.board.edges[1]
            while not words.cell_wait[0]:
                time.sleep(0.001)
            run.close()
            assert list(pipe(range(100, 300))) == [x for x in range(100, 300) for _ in range(3)]


def test_what_a_cancelled_claim_took_is_not_counted_in_the_next_run():
    """The same claim there would cost less than nothing, and so many values would be taken."""
    flow = qf.Flow(qf.process(abs))
    shape = shape_of(flow.plan())
    cells = PlainCells({})
    desk = Desk(Board(shape, memoryview(bytearray(8 * words_needed(shape))).cast("Q")), ("abs",), 0, 1, cells, cells)
    desk.group = flow.plan().groups[0]
    claim = Claim(0, 0, 0, 1, DATA | PACKED, 0)
    Records(cells.inbox(0)).add(Plain(-1, (0,)))
    for spent in (10**9, 0):  # the first is cancelled before it is released
        desk.counts[0] = spent
        desk.start(Orders())
        desk._begin(claim, 0, 0)
    desk.counts[0] = 1000
    desk._release(claim)
    assert desk._share(5) in (1, 2)


def test_a_poisonous_number_is_named():
    def poison(x):
        if x == 1234:
            os.kill(os.getpid(), signal.SIGSEGV)
        return -x

    with (qf.process(n=2)(poison) | qf.queue(3))(range(2000), on_error="skip") as run:
        assert list(run) == [-x for x in range(2000) if x != 1234]
        (failure,) = run.failures
        assert (type(failure.error), failure.index, failure.attempts) == (qf.WorkerDied, (1234,), 2)
        assert run.stats()[0].died == 2


@pytest.mark.parametrize(
    "source", [range(5), [1, 2, 3], (4.0, 5.0), [1, 2.0, 3], [1 << 63, 1], [True, 2], range(1 << 70, (1 << 70) + 3), []]
)
def test_sources_that_are_there_already(source):
    with qf.Flow(qf.process(lambda x: (type(x), x)))(source) as run:
        assert list(run) == [(type(x), x) for x in source]


def test_nothing_is_held_back_while_the_source_blocks():
    def source():
        yield from range(3000)
        assert pulled.wait(30)
        yield -1

    pulled = threading.Event()
    with qf.Flow(qf.process(n=2)(lambda x: x))(source()) as run:
        assert list(itertools.islice(run, 3000)) == list(range(3000))
        pulled.set()
        assert list(run) == [-1]


def test_nothing_is_held_back_while_a_step_blocks(tmp_path):
    def step(x):
        while x == 3000 and not (tmp_path / "go").exists():
            time.sleep(0.01)
        return x

    with qf.Flow(qf.process(step) | qf.process(lambda x: x))(range(3001)) as run:
        assert list(itertools.islice(run, 3000)) == list(range(3000))
        (tmp_path / "go").touch()
        assert list(run) == [3000]


@settings(max_examples=15, deadline=None)
@given(st.lists(values_, max_size=60), st.integers(1, 3), st.sampled_from([None, 1, 17, 200]))
def test_small_values_of_all_kinds_cross_in_order(items, n, bound):
    pipe = qf.process(n=n)(lambda x: (x, [x])) | (qf.queue(bound) if bound else qf.Flow()) | qf.process(lambda pair: pair)
    with qf.Flow(pipe)(items) as run:
        assert repr(list(run)) == repr([(x, [x]) for x in items])
