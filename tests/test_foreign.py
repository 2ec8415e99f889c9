"""Foreign objects and extreme items through workers: other libraries' (P4), huge (P10), many-parted (P11), treacherous (P13)."""

from __future__ import annotations

import ctypes
import datetime
import gc
import io
import os
import re
import time
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hostile import Broken, build
from PIL import Image

import qflow as qf

# ---- P4: objects of other libraries


def frame():
    index = pd.MultiIndex.from_product([range(500), list("ab")], names=["k", "letter"])
    times = pd.date_range("2024-03-30", periods=1000, freq="h", tz="Europe/Berlin")
    made = pd.DataFrame(
        {
            "float": np.arange(1000.0),
            "text": ["ä"] * 1000,
            "when": times,
            "kind": pd.Categorical(list("abcd") * 250, ordered=True),
            "missing": pd.array([1, None] * 500, dtype="Int64"),
            "arrow": pd.array(["x", None] * 500, dtype="string[pyarrow]"),
            "objects": [{"k": 1}] * 1000,
            "range": pd.arrays.IntervalArray.from_breaks(np.arange(1001.0)),
        },
        index=index,
    )
    made.attrs["unit"] = {"float": "GeV"}
    return made


def table():
    parts = [
        pa.record_batch(
            {
                "n": pa.array(range(k, k + 5000)),
                "text": pa.array(["x", None] * 2500),
                "word": pa.array(["a", "b"] * 2500).dictionary_encode(),
                "rows": pa.array([[1, 2], None] * 2500),
                "when": pa.array([datetime.datetime(2024, 1, 1)] * 5000, pa.timestamp("us", "UTC")),
            }
        )
        for k in (0, 5000)
    ]
    return pa.Table.from_batches(parts).replace_schema_metadata({"unit": "GeV"})


def palette():
    return Image.fromarray(np.arange(40_000, dtype=np.uint32).astype(np.uint8).reshape(200, 200)).convert("P")


def opened_lazily():
    """A picture whose file has been opened, and of which nothing has been read yet."""
    file = io.BytesIO()
    Image.fromarray(np.arange(120_000, dtype=np.uint32).astype(np.uint8).reshape(200, 200, 3)).save(file, "PNG")
    file.seek(0)
    return Image.open(file)


def same_frame(a, b):
    pd.testing.assert_frame_equal(a, b, check_freq=True, check_flags=True)
    assert a.attrs == b.attrs


def same_table(a, b):
    assert a.equals(b, check_metadata=True)
    b.validate(full=True)
    assert b.schema.metadata == a.schema.metadata


def same_picture(a, b):
    assert (a.mode, a.size, a.getpalette()) == (b.mode, b.size, b.getpalette())
    assert a.tobytes() == b.tobytes()


def same_polars(a, b):
    assert a.equals(b)
    assert a.schema == b.schema


FOREIGN = {
    "frame": (frame, same_frame),
    "part of a frame": (lambda: frame().iloc[::7, [0, 2, 5]], same_frame),
    "empty frame": (lambda: frame().iloc[:0], same_frame),
    "table": (table, same_table),
    "part of a table": (lambda: table().slice(4990, 20), same_table),
    "batch": (lambda: table().to_batches()[1], lambda a, b: same_table(pa.table(a), pa.table(b))),
    "polars": (lambda: pl.DataFrame({"n": range(9000), "t": ["x", None, "ü"] * 3000, "l": [[1], [], None] * 3000}), same_polars),
    "picture with a palette": (palette, same_picture),
    "picture of 16 bits": (lambda: Image.new("I;16", (300, 300), 60_000), same_picture),
    "transparent picture": (lambda: Image.new("RGBA", (300, 300), (1, 2, 3, 4)), same_picture),
    "picture in an open file": (opened_lazily, lambda a, b: same_picture(a, b)),
}


@pytest.fixture(scope="module")
def two_steps():
    with qf.process(build) | qf.process(n=2)(build) as pipe:
        list(pipe([0]))
        yield pipe


@pytest.mark.parametrize("kind", FOREIGN)
def test_P4_objects_of_other_libraries_arrive_as_they_were(kind, two_steps):
    make, same = FOREIGN[kind]
    from_worker, from_source = two_steps([partial(make), {"in": [make()]}])
    assert type(from_worker) is type(make()) or "file" in kind
    same(make(), from_worker)
    same(make(), from_source["in"][0])


def test_P4_frames_and_tables_that_are_kept_never_change(two_steps):
    """What they hold are views on cells, which are used again for what comes after."""
    kept = list(two_steps([partial(pd.DataFrame, {"a": np.full(20_000, float(n)), "b": n}) for n in range(40)]))
    tables = list(two_steps([partial(pa.table, {"a": np.full(20_000, n)}) for n in range(40)]))
    for n, (made, columns) in enumerate(zip(kept, tables, strict=True)):
        assert (made["a"] == n).all()
        assert columns["a"].to_numpy().tolist() == [n] * 20_000
    kept[3].loc[:, "a"] = -1.0
    assert (kept[4]["a"] == 4).all()


H5 = {
    "file": lambda file: file,
    "group": lambda file: file["g"],
    "dataset": lambda file: file["g/x"],
    "attributes": lambda file: file.attrs,
    "closed file": lambda file: (file.close(), file)[1],
}

PLACE = "item['rows'][0]", "it holds h5py._hl.attrs.AttributeManager"  # which h5py itself pickles, but can't rebuild


def open_h5(path, what):
    return {"meta": 1, "rows": [H5[what](h5py.File(path))]}


@pytest.fixture
def h5_file(tmp_path):
    with h5py.File(tmp_path / "some.h5", "w") as file:
        file["g/x"] = np.arange(20_000)
    return str(tmp_path / "some.h5")


@pytest.mark.parametrize("what", H5)
def test_P4_a_handle_of_hdf5_is_refused_at_its_place_in_the_item(what, h5_file, two_steps):
    source = [0, partial(open_h5, h5_file, what), 2]
    with two_steps(source, on_error="skip") as run:
        assert list(run) == [0, 2]
        (failure,) = run.failures
    assert (type(failure.error), failure.step, failure.index) == (qf.TransportError, "build", (1,))
    assert PLACE[what == "attributes"] in str(failure.error)
    with two_steps([0, open_h5(h5_file, what), 2], on_error="skip") as run:  # and so is one of the source
        assert list(run) == [0, 2]
        (failure,) = run.failures
    assert (type(failure.error), failure.step, failure.index) == (qf.TransportError, "source", (1,))
    assert PLACE[what == "attributes"] in str(failure.error)


def test_P4_what_is_read_from_hdf5_is_data(h5_file, two_steps):
    def read():
        with h5py.File(h5_file) as file:
            return file["g/x"][:], file["g/x"].dtype, file["g/x"][()], h5py.Empty("f4")

    ((rows, dtype, again, empty),) = two_steps([partial(read)])
    assert (rows == again).all()
    assert (len(rows), dtype, empty) == (20_000, np.dtype("int64"), h5py.Empty("f4"))


# ---- P10: items larger than 2 GiB


def available():
    """Bytes of memory that are there to be taken."""
    return int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) << 10


NEEDED = 10 << 30
HUGE = (2 << 30) + (1 << 20)  # bytes


def huge(kind):
    made = np.zeros(HUGE, np.uint8)
    made[[0, HUGE // 2, -1]] = 1, 2, 3
    return {"array": lambda: made, "bytes": lambda: made.tobytes(), "two": lambda: [made[: HUGE // 2], made[HUGE // 2 :]]}[kind]()


def facts(item):
    """What must come out of it, and at which places."""
    parts = [
        np.frombuffer(part, np.uint8) if isinstance(part, bytes) else part for part in (item if type(item) is list else [item])
    ]
    marked = [(number, int(place), int(part[place])) for number, part in enumerate(parts) for place in np.flatnonzero(part)]
    return type(item).__name__, [len(part) for part in parts], marked


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["array", "bytes", "two"])
def test_P10_an_item_of_more_than_two_gigabytes_goes_through_workers(kind):
    if available() < NEEDED:
        pytest.skip(f"needs {NEEDED >> 30} GiB of memory, and {available() >> 30} GiB are there")
    with qf.process(huge) | qf.process(lambda item: (facts(item), item)) | qf.queue(1) as pipe:
        ((seen, item),) = pipe([kind])
        here = facts(item)
        del item
        gc.collect()
    half = HUGE // 2
    whole = [(0, 0, 1), (0, half, 2), (0, HUGE - 1, 3)]
    cut = [(0, 0, 1), (1, 0, 2), (1, HUGE - half - 1, 3)]
    assert seen == here
    assert here[1:] == (([half, HUGE - half], cut) if kind == "two" else ([HUGE], whole))


# ---- P11: items of many parts


def held():
    return len(os.listdir("/proc/self/fd"))


def deep(depth):
    made = "core"
    for _ in range(depth):
        made = {"in": made}
    return made


PARTS = {
    "1e6 integers": (partial(range, 1_000_000), lambda item: item == range(1_000_000)),
    "1e6 integers in a list": (lambda: [*range(1_000_000)], lambda item: item == [*range(1_000_000)]),
    "1e5 floats and texts": (
        lambda: [(k / 3, str(k)) for k in range(100_000)],
        lambda item: item == [(k / 3, str(k)) for k in range(100_000)],
    ),
    "a dict of 1e5 keys": (lambda: {str(k): k for k in range(100_000)}, lambda item: item == {str(k): k for k in range(100_000)}),
    "1000 arrays": (
        lambda: [np.full(5, k) for k in range(1000)],
        lambda item: all((part == k).all() and len(part) == 5 for k, part in enumerate(item)),
    ),
    "1000 large arrays": (
        lambda: [np.full(10_000, k, np.int16) for k in range(1000)],
        lambda item: all((part == k).all() and len(part) == 10_000 for k, part in enumerate(item)),
    ),
    "1000 arrays of one memory": (
        lambda: [*np.arange(1_000_000).reshape(1000, 1000)],
        lambda item: all(part[0] == 1000 * k and len(part) == 1000 for k, part in enumerate(item)),
    ),
}


@pytest.mark.parametrize("kind", PARTS)
def test_P11_an_item_of_many_parts_takes_no_descriptors(kind):
    make, right = PARTS[kind]
    maker = qf.process(lambda x: (held(), make() if x else None))
    with maker | qf.process(n=2)(lambda pair: (pair[0], held(), pair[1])) | qf.queue(2) as pipe:
        found = []
        for first, second, item in pipe(range(4)):
            assert right(item) if found else item is None
            found.append((first, second, held()))
            kept = item  # its views, while the next one comes
        del item, kept
    assert {*found} == {found[0]}


@pytest.mark.parametrize("depth", [500, 1000])
def test_P11_a_deep_dict_goes_through(depth, two_steps):
    for item in two_steps([partial(deep, depth), deep(depth)]):
        seen = 0
        while item != "core":
            item, seen = item["in"], seen + 1
        assert seen == depth


def test_P11_one_that_is_too_deep_is_a_failure_of_its_item(two_steps):
    with two_steps([0, partial(deep, 100_000), 2, deep(100_000), 4], on_error="skip") as run:
        assert list(run) == [0, 2, 4]
        assert [(type(failure.error), failure.index) for failure in run.failures] == [
            (qf.TransportError, (1,)),
            (qf.TransportError, (3,)),
        ]
        assert all("nested too deeply" in str(failure.error) for failure in run.failures)


# ---- P13: pickling that sleeps or crashes


class WhenPickled:
    """Does something when it is sent."""

    def __init__(self, how):
        self.how = how

    def __getstate__(self):
        self.how()
        return {"how": None}


def sleeps():
    time.sleep(60)


def spins():
    while True:
        pass


def crashes():
    ctypes.string_at(0)


def exits():
    os._exit(3)


def at_three(make):
    return lambda x: make() if x == 3 else x


@pytest.mark.parametrize("how", [sleeps, spins])
@pytest.mark.parametrize("mark", [qf.process, qf.thread])
@pytest.mark.parametrize("behind", [False, True], ids=["to the consumer", "to a worker"])
def test_P13_pickling_that_takes_too_long_is_a_timeout_of_its_item(how, mark, behind):
    step = mark(n=2, timeout=0.4, name="maker")(at_three(partial(WhenPickled, how)))
    flow = step | qf.process(lambda x: x) if behind else qf.Flow(step)
    with flow as pipe, pipe(range(8), on_error="skip") as run:
        began = time.monotonic()
        assert list(run) == [0, 1, 2, 4, 5, 6, 7]
        assert time.monotonic() - began < 3
        (failure,) = run.failures
    assert (type(failure.error), failure.step, failure.index) == (qf.StepTimeout, "maker", (3,))
    assert f"in {how.__name__}" in str(failure.error)
    assert "__getstate__" in str(failure.error)


@pytest.mark.parametrize(("how", "text"), [(crashes, "signal 11 (SIGSEGV)"), (exits, "exited with code 3")])
@pytest.mark.parametrize("mark", [qf.process, qf.thread])
@pytest.mark.parametrize("behind", [False, True], ids=["to the consumer", "to a worker"])
def test_P13_pickling_that_crashes_is_a_death_for_its_item_and_not_for_who_takes_it(how, text, mark, behind):
    step = mark(n=2, name="maker")(at_three(partial(WhenPickled, how)))
    flow = step | qf.process(lambda x: x) if behind else qf.Flow(step)
    with flow as pipe, pipe(range(8), on_error="skip") as run:
        assert list(run) == [0, 1, 2, 4, 5, 6, 7]
        (failure,) = run.failures
        assert [stats.died for stats in run.stats()] == [2, 0][: 1 + behind]
    assert (type(failure.error), failure.step, failure.index) == (qf.WorkerDied, "maker", (3,))
    assert text in str(failure.error)


@pytest.mark.slow
@pytest.mark.parametrize("how", [sleeps, spins])
def test_P13_rebuilding_that_takes_too_long_is_an_error_of_its_maker(how, monkeypatch):
    """Who takes it has the time, who made it is to blame."""
    monkeypatch.setattr("qflow.runtime.clock.BUILDING", 3)
    maker = qf.process(name="maker")(at_three(partial(Broken, partial(waits, how))))
    with maker | qf.process(n=2, timeout=0.4, name="taker")(lambda x: x) as pipe, pipe(range(8), on_error="skip") as run:
        assert list(run) == [0, 1, 2, 4, 5, 6, 7]
        (failure,) = run.failures
    assert (type(failure.error), failure.step, failure.index) == (qf.TransportError, "maker", (3,))
    assert "(StepTimeout: The step gave no result for 0.4 seconds" in str(failure.error)
    assert f"in {how.__name__}" in str(failure.error)


def waits(how, _):
    how()
    return ValueError("never")
