"""Flows over tables: what the output holds, whatever the workers; wrong flows; and runs that are interrupted."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import chain

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenario import needs_unshare, script

import qflow as qf
from qflow import h5
from qflow.errors import GraphError, ResourceError
from qflow.h5.block import Block, Made, Slice

HIT = np.dtype([("id", "i4"), ("q", "f4")])
pytestmark = pytest.mark.usefixtures("one_nursery")


@pytest.fixture
def events(tmp_path):
    """1000 hits, each of a track; a number for each hit."""
    path, rng = tmp_path / "in.h5", np.random.default_rng(0)
    hits = np.zeros(1000, HIT)
    hits["id"], hits["q"] = np.arange(1000), rng.random(1000)
    with h5.Tables(path, "w") as file:
        file.append("hits", hits)
        file.append("tracks", np.arange(100.0))
        file.append("quality", np.arange(1000) % 5)
        file.link("tracks", "hits", np.stack([rng.integers(0, 100, 1000), np.arange(1000)], axis=1))
    return path


def content(path):
    """All datasets and attributes of a file."""
    found = {}

    def note(name, each):
        data = (str(each.dtype), each.shape, each[:].tobytes()) if isinstance(each, h5py.Dataset) else None
        found[name] = data, {key: str(value) for key, value in each.attrs.items()}

    with h5py.File(path) as file:
        file.visititems(note)
    return found


def calibrate(hits, tracks, numbers, gain=2.0):
    assert tracks.shape == numbers.shape == (len(hits), 1)
    return hits["q"] * gain + tracks[:, 0].filled(0)


def spread(calib, quality):
    return [np.full(number, charge) for number, charge in zip(quality, calib, strict=True)]


def cluster(hits, rows, charges, rng):
    number = len(hits) // 3
    here = np.arange(number)
    pairs = {"hits": np.stack([rows[:number], here], axis=1), "calib": np.stack([charges[:number], here], axis=1)}
    return h5.linked(here + rng.random(number), pairs)


class Count:
    """Sees all slices, in order."""

    def __init__(self, name="number"):
        self.name = name

    def begin(self, file):
        self.hits = 0

    def __call__(self, hits):
        self.hits += len(hits)
        return np.array([self.hits])

    def end(self, file):
        file.attrs("hits")[self.name] = self.hits


calibrated = (
    h5.need(tracks="hits -> tracks", numbers=("hits -> tracks", "index")) | qf.map(calibrate) | h5.append("calib", refs="1:1")
)
whole = (
    calibrated
    | h5.need(quality="quality")
    | spread
    | h5.append("reco/spread", refs="1:n", attrs={"unit": "keV"})
    | h5.need(rows=("hits", "index"), charges=("hits -> calib", "index"))
    | (lambda hits, rows, charges, rng: cluster(hits, rows, charges.compressed(), rng))
    | h5.append("clusters", refs={"hits": "pairs", "calib": "pairs"}, dtype="f4")
    | h5.stage(Count)
    | h5.append("counts")
)


# ---- what the output holds


def test_the_output_is_that_of_a_loop(events, tmp_path):
    h5.run(h5.rows("hits", size=64) | whole, events, tmp_path / "out.h5", n=2, seed=3)
    with h5.Tables(events) as file:
        hits, tracks, quality = file["hits", :], file["hits", "tracks", :][:, 0], file["quality", :]
    calib = hits["q"] * 2.0 + tracks.filled(0)
    with h5.Tables(tmp_path / "out.h5") as file:
        np.testing.assert_array_equal(file["calib", :], calib)
        np.testing.assert_array_equal(file["hits", "calib", :].ravel(), calib)
        np.testing.assert_array_equal(file["reco/spread", :], np.repeat(calib, quality))
        counts = file["hits", "reco/spread", :].count(axis=1)
        np.testing.assert_array_equal(counts, quality)
        assert file.attrs("reco/spread")["unit"] == "keV"
        sizes = np.diff([*range(0, 1000, 64), 1000])
        numbers = np.concatenate([at * 64 + np.arange(size // 3) for at, size in enumerate(sizes)])
        np.testing.assert_array_equal(file["clusters", "hits", :]["id"].ravel(), numbers)
        np.testing.assert_array_equal(file["clusters", "calib", :].ravel(), calib[numbers])
        assert file["clusters"].dtype == "f4"
        np.testing.assert_array_equal(file["counts", :], np.cumsum(sizes))
        assert file.attrs("hits")["number"] == 1000
        for table in ("hits", "tracks", "quality"):
            assert table in file
        assert file["tracks", "hits", 5].size > 1


@pytest.mark.parametrize("n", [2, 3])
def test_it_is_the_same_for_any_number_of_workers_and_any_engine(events, tmp_path, n):
    flow = h5.rows("hits", size=96) | whole
    h5.run(flow, events, tmp_path / "a.h5", seed=1, engine="serial")
    h5.run(flow, events, tmp_path / "b.h5", seed=1, n=n)
    assert content(tmp_path / "a.h5") == content(tmp_path / "b.h5")
    assert sorted(os.listdir(tmp_path)) == ["a.h5", "b.h5", "in.h5"]


def test_steps_with_marks_have_workers_of_their_own(events, tmp_path):
    marked = qf.process(n=2)(calibrate)
    flow = h5.rows("hits", size=96) | h5.need(tracks="hits -> tracks", numbers=("hits -> tracks", "index")) | marked | qf.queue(4)
    h5.run(flow | qf.process(lambda value: value + 1) | h5.append("calib"), events, tmp_path / "a.h5")
    h5.run(h5.rows("hits") | calibrated, events, tmp_path / "b.h5")
    with h5.Tables(tmp_path / "a.h5") as a, h5.Tables(tmp_path / "b.h5") as b:
        np.testing.assert_array_equal(a["calib", :], b["calib", :] + 1)


@settings(max_examples=25)
@given(
    size=st.integers(1, 40),
    start=st.integers(0, 30),
    stop=st.none() | st.integers(30, 60),
    counts=st.lists(st.integers(0, 3), min_size=50, max_size=50),
)
def test_references_are_exact_for_any_slices(tmp_path_factory, size, start, stop, counts):
    folder = tmp_path_factory.mktemp("any")
    with h5.Tables(folder / "in.h5", "w") as file:
        file.append("a", np.array(counts))

    def some(a, numbers):
        return [10 * number + np.arange(count) for number, count in zip(numbers, a, strict=True)]

    def ends(b, at):
        kept = np.arange(len(b))[::-1]  # in another order
        return h5.linked(b[kept], np.stack([kept, np.arange(len(b))], axis=1))

    flow = (
        h5.rows("a", size=size, start=start, stop=stop)
        | h5.need(numbers=("a", "index"))
        | some
        | h5.append("b", refs="1:n", dtype=int)
    )
    flow = flow | h5.need(at=("a -> b", "index")) | ends | h5.append("c", refs={"b": "pairs"})
    h5.run(flow, folder / "in.h5", folder / "out.h5", engine="serial")
    with h5.Tables(folder / "out.h5") as file:
        rows = range(start, 50 if stop is None else min(stop, 50))
        expected = [[10 * row + i for i in range(counts[row])] for row in rows]
        found = file["a", "b", rows] if rows else []
        assert [row.compressed().tolist() for row in found] == expected
        assert sorted(file["c", :].tolist()) == sorted(chain.from_iterable(expected))
        np.testing.assert_array_equal(file["c", "b", :].ravel(), file["c", :])
        regions = [file.region("a", "b")[row].tolist() for row in rows if counts[row]]
        assert [stop - start for start, stop in regions] == [counts[row] for row in rows if counts[row]]


def total(found, rows, nothing):
    """Of each row what is linked with it."""
    numbers = np.ma.asarray(found["id"] if found.dtype.names else found)
    return numbers.reshape(rows, -1 if rows else 0).sum(axis=1).filled(nothing)


def each(text):
    """A function of its inputs by name, as a text."""
    return eval(text, {"np": np, "h5": h5, "total": total})


@st.composite
def flows_(draw):
    """What is made of rows one by one, of those that were made so, and along the links between them."""
    parts, made = [], []
    for number in range(draw(st.integers(1, 5))):
        name, kind = f"t{number}", draw(st.sampled_from(["one", "many", "of", "many of", "sum", "pairs", "back"]))
        before = draw(st.sampled_from(made)) if made else None
        up = f"u{number}"
        if kind == "one" or before is None:
            parts += [each(f"lambda hits: hits['id'] * {number + 2}"), h5.append(name, refs="1:1")]
        elif kind == "many":
            parts += [
                each(f"lambda hits: [np.arange(i % {number + 2}) + i for i in hits['id']]"),
                h5.append(name, refs="1:n", dtype="i8"),
            ]
        elif kind == "of":
            parts += [each(f"lambda {before}: {before} * 3 + 1"), h5.append(name, refs={before: "1:1"})]
        elif kind == "many of":
            parts += [
                each(f"lambda {before}: [np.full(i % 3, i) for i in {before}]"),
                h5.append(name, refs={before: "1:n"}, dtype="i8"),
            ]
        elif kind == "sum":
            path = f"hits -> {before}" if before in direct(parts) else "hits"
            parts += [h5.need(**{up: path}), each(f"lambda {up}, hits: total({up}, len(hits), -1)")]
            parts += [h5.append(name, refs="1:1", dtype="i8")]
        elif kind == "pairs":
            kept = f"np.flatnonzero({before} % 2 == 0)"
            pairs = f"np.stack([{kept}, np.arange(len({kept}))], axis=1)"
            parts += [each(f"lambda {before}: h5.linked({before}[{kept}], {pairs})")]
            parts += [h5.append(name, refs={before: "pairs"}, dtype="i8")]
        else:
            path = f"{before} -> hits" if before in direct(parts) else ("hits", "index")
            parts += [h5.need(**{up: path}), each(f"lambda {up}: total({up}, len({up}), 0)"), h5.append(name, dtype="i8")]
        made.append(name)
    return parts


def direct(parts):
    """The tables that are linked with the hits."""
    return [part.table for part in parts if isinstance(part, h5.outputs.Append) and "" in part.refs]


@settings(max_examples=60)
@given(parts=flows_(), sizes=st.tuples(st.integers(1, 9), st.integers(10, 40)), data=st.data())
def test_what_is_made_row_by_row_is_the_same_for_any_slices(tmp_path_factory, parts, sizes, data):
    folder = tmp_path_factory.mktemp("rows")
    with h5.Tables(folder / "in.h5", "w") as file:
        file.append(
            "hits", np.array([(number, 0) for number in data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=30))], HIT)
        )
    for name, size in zip("ab", sizes, strict=True):
        flow = h5.rows("hits", size=size)
        for part in parts:
            flow = flow | part
        h5.run(flow, folder / "in.h5", folder / f"{name}.h5", engine="serial")
    assert content(folder / "a.h5") == content(folder / "b.h5")


def test_inputs_follow_references_from_and_to_what_the_slice_has_made(events, tmp_path):
    seen = []

    def look(first, back, back_numbers):
        assert first.shape == back.shape[:2] == back_numbers.shape[:2]
        seen.append((back["id"].ravel(), back_numbers.ravel()))

    flow = (
        h5.rows("hits", size=300)
        | (lambda hits: hits["id"][::2])
        | (lambda value: h5.linked(value, np.stack([value, np.arange(len(value))], axis=1)))
        | h5.append("even", refs="pairs")
        | h5.need(first="hits -> even", back="hits -> even -> hits", back_numbers=("hits -> even -> hits", "index"))
    )
    h5.run(flow | look, events, tmp_path / "out.h5", engine="serial")
    ids = np.ma.concatenate([ids for ids, _ in seen])
    np.testing.assert_array_equal(ids.compressed(), np.arange(0, 1000, 2))
    np.testing.assert_array_equal(np.ma.concatenate([numbers for _, numbers in seen]).compressed(), np.arange(0, 1000, 2))


def test_a_generator_makes_the_rows_of_the_table_that_is_gone_through(tmp_path):
    def make(number=3):
        return (np.arange(10 * each, 10 * each + 10) for each in range(number))

    def copied(index, numbers):
        assert np.array_equal(index, numbers % 30)  # another run appends behind those
        return h5.linked(index, np.stack([numbers, np.arange(len(index))], axis=1))

    def back(found, counted):
        assert np.array_equal(found.ravel(), counted.ravel() % 30)
        return found.ravel().filled(-1)

    flow = h5.rows("input/index", of=make) | h5.need(numbers=("input/index", "index")) | copied | h5.append("copy", refs="pairs")
    flow = (
        flow
        | h5.need(found="copy -> input/index", counted=("copy -> input/index", "index"))
        | back
        | h5.append("again", refs="1:1")
    )
    h5.run(flow, output=tmp_path / "out.h5", n=2)
    h5.run(flow, output=tmp_path / "out.h5", n=2, exists="append", params={"number": 2})
    with h5.Tables(tmp_path / "out.h5") as file:
        np.testing.assert_array_equal(file["input/index", :], [*range(30), *range(20)])
        for table in ("copy", "again"):
            np.testing.assert_array_equal(file["input/index", table, :].ravel(), file["input/index", :])
        ref, _ = file.ref("input/index", "copy")
        np.testing.assert_array_equal(ref[:, 0], np.arange(50))


def test_x8_the_example_of_h5flow(tmp_path):
    """The content that `prior` lists for it, from functions in place of its classes."""

    def chunks():
        return (np.arange(1024 * number, 1024 * number + 1024) for number in range(10))

    def copy(index, numbers):
        children = np.minimum(np.arange(len(index))[:, None] + np.arange(10), len(index) - 1)
        pairs = np.stack(np.broadcast_arrays(numbers[:, None], children), axis=-1).reshape(-1, 2)
        return h5.linked(index, np.unique(pairs, axis=0))

    shapes = set()

    def look(example, numbers_of, once):
        shapes.add((example.shape, numbers_of.shape, once.shape))

    out = partial(h5.append, refs="pairs")
    flow = (
        h5.rows("input/index", of=chunks)
        | h5.need(numbers=("input/index", "index"))
        | copy
        | out("stage0/example", name="stage0")
        | h5.need(
            example="input/index -> stage0/example",
            numbers_of=("input/index -> stage0/example", "index"),
            once="input/index -> stage0/example -> input/index",
        )
        | look
        | copy
        | out("stage1/example", name="stage1")
        | copy
        | out("example_stage2/example", name="stage2")
    )
    h5.run(flow, output=tmp_path / "out.h5", drop=["example_stage2"], engine="serial")
    assert shapes == {((1024, 10), (1024, 10), (1024, 10, 10))}
    with h5.Tables(tmp_path / "out.h5") as file:
        assert [*file] == ["input/index", "stage0/example", "stage1/example"]
        np.testing.assert_array_equal(file["input/index", :], np.arange(10240))
        np.testing.assert_array_equal(file["stage1/example", :], np.arange(10240))
        ref, _ = file.ref("input/index", "stage0/example")
        assert ref.shape == (101950, 2)
        assert ref[:11].tolist() == [*([0, each] for each in range(10)), [1, 1]]
        assert ref[-2:].tolist() == [[10238, 10239], [10239, 10239]]
        region = file.region("input/index", "stage0/example")
        assert region[:3].tolist() == [(0, 10), (10, 20), (20, 30)]
        assert region[-3:].tolist() == [(101944, 101947), (101947, 101949), (101949, 101950)]
        back = file.region("stage0/example", "input/index")
        assert [back[row].tolist() for row in (0, 1, 2, -1)] == [(0, 1), (1, 11), (2, 21), (101904, 101950)]
        assert file["input/index", "stage0/example", 1020:1024].tolist() == [
            [1020, 1021, 1022, 1023],
            [1021, 1022, 1023, None],
            [1022, 1023, None, None],
            [1023, None, None, None],
        ]
        assert file["stage0/example", "input/index", 20:22].tolist() == [[*range(11, 21)], [*range(12, 22)]]


def test_slices_that_skip_make_nothing_and_the_others_go_on(events, tmp_path):
    def odd(hits):
        return qf.SKIP if hits["id"][0] % 200 else hits["id"]

    flow = (
        h5.rows("hits", size=100) | odd | h5.append("ids", refs="1:1") | qf.filter(lambda ids: ids[0] == 200) | h5.append("two")
    )
    done = h5.run(flow, events, tmp_path / "out.h5", n=2)
    assert done.rows == {"ids": 500, "two": 100}
    assert done.slices == 10


def test_a_shared_resource_and_parameters_come_by_name(events, tmp_path):
    table = qf.shared(np.arange(1000.0))

    def look_up(hits, table, scale):
        return table[hits["id"]] * scale

    flow = h5.rows("hits") | look_up | h5.append("found", refs="1:1")
    h5.run(flow, events, tmp_path / "out.h5", n=2, params={"table": table, "scale": 3})
    with h5.Tables(tmp_path / "out.h5") as file:
        np.testing.assert_array_equal(file["found", :], 3.0 * np.arange(1000))


# ---- what a strict reading found

ids = h5.rows("hits", size=100) | (lambda hits: hits["id"])


def tables(path, *names):
    with h5.Tables(path) as file:
        return [file[name, :].tolist() for name in names]


def test_a_table_that_is_made_anew_is_seen_by_what_is_behind_and_only_by_that(events, tmp_path):
    out = tmp_path / "out.h5"
    h5.run(ids | h5.append("calib", refs="1:1"), events, out)
    with pytest.raises(GraphError, match="no references between 'tracks' and 'calib'"):
        h5.run(ids | h5.append("calib") | h5.need(c="hits -> tracks -> calib") | len, output=out, exists="append")

    def negated(hits, old):
        return -old[:, 0].filled(0) - 1

    def both(old, new):
        return new[:, 0].filled(0) * 10_000 + old[:, 0].filled(0)

    for marks in (lambda function: function, qf.process):
        flow = h5.rows("hits", size=100) | h5.need(old="hits -> calib") | marks(negated) | h5.append("calib", refs="1:1")
        h5.run(flow | h5.need(new="hits -> calib") | marks(both) | h5.append("both"), output=out, exists="append")
        with h5.Tables(out) as file:
            np.testing.assert_array_equal(file["both", -1000:], (-np.arange(1000) - 1) * 10_000 + np.arange(1000))


def test_nobody_changes_what_others_are_given_or_what_is_written(events, tmp_path):
    kept = np.zeros(100, "i8")

    def again(hits):  # its own memory, each time
        kept[:] = hits["id"]
        return kept

    def changes(calib):
        with pytest.raises(ValueError, match="read-only"):
            calib[:] = 0

    flow = h5.rows("hits", size=100) | again | h5.append("calib") | changes
    h5.run(flow, events, tmp_path / "out.h5", engine="serial")
    assert tables(tmp_path / "out.h5", "calib") == [[*range(1000)]]


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_stages_have_parameters_and_random_numbers_of_the_run(events, tmp_path, engine):
    class Scaled:
        def __init__(self, offset):
            self.offset = offset

        def __call__(self, hits, scale, rng):
            return hits["id"] * scale + self.offset + rng.integers(1000)

    flow = h5.rows("hits", size=100) | h5.stage(partial(Scaled, 5)) | qf.map(np.negative) | h5.append("a")
    for name in "ab":
        h5.run(flow, events, tmp_path / f"{name}.h5", seed=3, params={"scale": 2}, engine=engine)
    assert content(tmp_path / "a.h5") == content(tmp_path / "b.h5")
    with pytest.raises(GraphError, match="`scale`"):
        h5.run(flow, events, tmp_path / "c.h5", seed=3)


@pytest.mark.parametrize(
    ("function", "refs", "error", "text"),
    [
        (lambda hits: np.ma.array(hits["q"], mask=hits["id"] % 2 == 0), None, TypeError, "without a mask.*filled"),
        (lambda hits: np.ma.array(hits, mask=[(False, True)] * len(hits))[:, None], "1:n", TypeError, "masked in part"),
        (lambda hits: [[1], [2]], "1:n", ValueError, "2 lists of rows"),
        (lambda hits: hits["id"][:50, None], "1:n", ValueError, "50 lists of rows"),
        (lambda hits: hits["id"], "1:n", TypeError, "for each row"),
        (lambda hits: [1, 2], "1:n", TypeError, "for each row an array"),
        (lambda hits: h5.linked(hits["id"], [[-1, 0]]), "pairs", IndexError, "row -1 of rows 0 to 1000 of 'hits'"),
        (lambda hits: ["abc"] * len(hits), None, TypeError, "HDF5 has.*np.char.encode"),
        (lambda hits: hits["id"].astype("M8[s]"), None, TypeError, "HDF5 has.*astype"),
        (lambda hits: [{}] * len(hits), None, TypeError, "HDF5 has"),
    ],
)
def test_rows_that_say_too_little_or_too_much_are_told_of(events, tmp_path, function, refs, error, text):
    with pytest.raises(error, match=text):
        h5.run(h5.rows("hits", size=100) | function | h5.append("a", refs=refs), events, tmp_path / "out.h5", engine="serial")


def test_masked_rows_and_pairs_are_left_out(events, tmp_path):
    def lists(hits):
        return [np.ma.array([number, 99], mask=[False, True]) for number in hits["id"]]

    def strided(hits):
        masked = np.ma.array(np.repeat(hits[:, None], 4, axis=1))
        masked[:, 1:] = np.ma.masked
        return masked[:, ::2]

    def pairs(hits, numbers):
        masked = np.ma.array(np.stack([numbers, np.arange(len(hits))], axis=1))
        masked[numbers % 2 == 0] = np.ma.masked
        return h5.linked(hits["id"], masked)

    flow = h5.rows("hits", size=100) | h5.need(numbers=("hits", "index")) | lists | h5.append("lists", refs="1:n")
    flow = flow | (lambda hits: strided(hits)) | h5.append("strided", refs="1:n")
    flow = flow | (lambda hits, numbers: pairs(hits, numbers)) | h5.append("odd", refs="pairs")
    flow = flow | (lambda hits: np.ma.zeros((len(hits), 0))) | h5.append("none", refs="1:n")
    h5.run(flow, events, tmp_path / "out.h5", engine="serial")
    with h5.Tables(tmp_path / "out.h5") as file:
        assert file["lists", :].tolist() == [*range(1000)]
        assert file["strided", :]["id"].tolist() == [*range(1000)]
        assert file["odd", "hits", :]["id"].ravel().tolist() == [number if number % 2 else None for number in range(1000)]
        assert len(file["none"]) == 0


def test_pairs_stay_within_the_slice_where_the_flow_has_made_the_rows(events, tmp_path):
    for wrong in (-1, 3):

        def three(hits):
            return hits["id"][:3]

        def pairs(value, wrong=wrong):
            return h5.linked(value, [[wrong, 0]])

        flow = (
            h5.rows("hits", size=100)
            | three
            | h5.append("b")
            | (lambda value: pairs(value))
            | h5.append("c", refs={"b": "pairs"})
        )
        with pytest.raises(IndexError, match=f"row {wrong} of rows 0 to 3 of 'b'"):
            h5.run(flow, events, tmp_path / "out.h5", engine="serial")


@pytest.mark.parametrize("most", [1, 1 << 24])
def test_the_type_of_a_table_is_that_of_its_first_rows_however_they_are_written(events, tmp_path, monkeypatch, most):
    monkeypatch.setattr(h5.writer, "BYTES", most)

    def later(hits):
        return [[number] if number >= 150 else [] for number in hits["id"]]

    def wide(hits):
        return hits["id"].astype("i8" if hits["id"][0] else "i4") + (2**40 if hits["id"][0] == 900 else 0)

    flow = h5.rows("hits", size=100) | later | h5.append("later", refs="1:n")
    h5.run(flow, events, tmp_path / "out.h5", engine="serial")
    with h5.Tables(tmp_path / "out.h5") as file:
        assert file["later"].dtype == "i4"
        assert file["hits", "later", 140:160].compressed().tolist() == [*range(150, 160)]
    with pytest.raises(GraphError, match="int32, in which 1099511628676 does not fit"):
        h5.run(h5.rows("hits", size=100) | wide | h5.append("a"), events, tmp_path / "b.h5", engine="serial")


def test_empty_tables_have_their_type_and_their_links(events, tmp_path):
    flow = h5.rows("hits", size=100) | (lambda hits: [np.empty((0, 3), "f4") for _ in hits]) | h5.append("a", refs="1:n")
    flow = flow | (lambda hits: np.ones((len(hits), 3))) | h5.append("b", dtype="f4") | qf.filter(lambda hits: False)
    h5.run(flow | (lambda hits: hits["id"]) | h5.append("c", dtype="i2", refs="1:1"), events, tmp_path / "out.h5")
    with h5.Tables(tmp_path / "out.h5") as file:
        assert (file["a"].shape, file["a"].dtype, file["c"].shape, file["c"].dtype) == ((0, 3), "f4", (0,), "i2")
        assert file["b"].shape == (1000, 3)
        assert file["hits", "a", :3].mask.all()


class Unhashable:
    __hash__ = None

    def __call__(self, hits, *, scale=2):
        return hits["id"] * scale


@pytest.mark.parametrize(
    "function",
    [
        Unhashable(),
        Unhashable,
        partial(lambda scale, hits: hits["id"] * scale, 2),
        partial(lambda hits, scale: hits["id"] * scale, scale=2),
        qf.process(lambda hits, table: hits["id"] * table[0]).bind(table=np.array([2])),
        Unhashable().__call__,
        lambda *values: values[0]["id"] * 2,
        lambda value, /: value["id"] * 2,
    ],
)
def test_functions_of_each_kind_are_given_their_inputs(events, tmp_path, function):
    h5.run(h5.rows("hits", size=100) | function | h5.append("a"), events, tmp_path / "out.h5")
    assert tables(tmp_path / "out.h5", "a") == [[*range(0, 2000, 2)]]


def test_what_a_stage_is_handed_is_the_same_from_a_journal(events, tmp_path):
    class Sum:
        def __call__(self, value):
            return np.array([value.sum()])

    flow = (
        h5.rows("hits", size=100)
        | (lambda hits: qf.SKIP if hits["id"][0] == 300 else hits["id"])
        | h5.stage(Sum)
        | h5.append("a")
    )
    h5.run(flow, events, tmp_path / "out.h5")
    assert len(tables(tmp_path / "out.h5", "a")[0]) == 9
    with pytest.raises(TypeError, match="an array without a mask"):
        h5.run(h5.rows("hits") | (lambda hits: {"a": 1}) | h5.stage(Sum), events, tmp_path / "b.h5")


def test_an_output_that_comes_into_being_meanwhile_stays(events, tmp_path):
    out = tmp_path / "out.h5"

    def meanwhile(hits):
        out.write_text("precious")
        return hits["id"]

    with pytest.raises(GraphError, match="since this run began"):
        h5.run(h5.rows("hits", size=1000) | meanwhile | h5.append("a"), events, out, engine="serial")
    assert out.read_text() == "precious"
    out.unlink()
    assert h5.run(h5.rows("hits", size=1000) | meanwhile | h5.append("a"), events, out, resume=True).rows == {"a": 1000}


def test_other_files_beside_the_output_stay(events, tmp_path):
    (tmp_path / "out.h5.journal_notes.txt").write_text("mine")
    (tmp_path / "out.h5.journal-of-2").write_text("mine")
    h5.run(ids | h5.append("a"), events, tmp_path / "out.h5", exists="overwrite")
    assert sorted(os.listdir(tmp_path)) == ["in.h5", "out.h5", "out.h5.journal-of-2", "out.h5.journal_notes.txt"]


def test_a_link_to_the_output_is_followed(events, tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "out.h5").symlink_to(tmp_path / "real" / "out.h5")
    monkeypatch.chdir(tmp_path)

    def moves(hits):
        os.chdir("/")
        return hits["id"]

    h5.run(h5.rows("hits") | moves | h5.append("a"), "in.h5", "out.h5", engine="serial")
    assert tables(tmp_path / "real" / "out.h5", "a") == [[*range(1000)]]
    assert (tmp_path / "out.h5").is_symlink()


def test_names_may_be_written_in_many_ways():
    assert h5.need(t="hits ->\n\t/reco//tracks/") == h5.need(t="hits -> reco/tracks")
    assert h5.append("\n/reco//calib/ ") == h5.append("reco/calib")
    assert h5.rows("//hits") == h5.rows("hits")


def test_regions_of_narrow_numbers_grow_wide(tmp_path):
    with h5.Tables(tmp_path / "a.h5", "w") as file:
        file.append("a", np.arange(3))
        file.append("b", np.arange(3))
        file.link("a", "b", [[0, 0]])
        narrow = np.zeros(3, [("start", "i1"), ("stop", "i1")])
        narrow[0] = 0, 1
        del file.file["a/ref/b/ref_region"]
        file.file["a/ref/b"].create_dataset("ref_region", data=narrow, maxshape=(None,), chunks=(8,))
        file.link("a", "b", [[1, 1]] * 200)
        assert file.region("a", "b")[:].tolist() == [(0, 1), (1, 201), (0, 0)]
        assert file["a", "b", 1].shape == (1, 200)


def test_a_link_is_with_the_rows_that_were_there_where_it_was_made(events, tmp_path):
    def of_tracks(hits, numbers):
        return h5.linked(hits["id"], np.stack([numbers[:, 0].filled(0), np.arange(len(hits))], axis=1))

    for most in (1, 1 << 24):
        flow = h5.rows("hits", size=100) | h5.need(numbers=("hits -> tracks", "index")) | of_tracks
        flow = flow | h5.append("calib", refs={"tracks": "pairs"}) | (lambda hits: np.arange(7.0)) | h5.append("tracks")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(h5.writer, "BYTES", most)
            h5.run(flow, events, tmp_path / f"{most}.h5", engine="serial")
        with h5.Tables(tmp_path / f"{most}.h5") as file:
            assert len(file["tracks"]) == 170
            np.testing.assert_array_equal(file["calib", "tracks", :], file["hits", "tracks", :])
        with pytest.raises(GraphError, match="no references between 'calib' and 'tracks'"):
            h5.run(flow | h5.need(x="calib -> tracks") | len, events, tmp_path / "c.h5")


def test_pairs_that_wait_to_be_written_are_bounded_too(tmp_path, monkeypatch):
    """A row of one byte is linked by 16."""
    monkeypatch.setattr(h5.writer, "BYTES", 1 << 20)
    with h5.Tables(tmp_path / "out.h5", "w") as file:
        file.append("hits", np.zeros(2_000_000, "u1"))
        writer = h5.writer.Writer(file)
        tracemalloc.start()
        try:
            for start in range(0, 2_000_000, 10_000):
                at = Slice(None, "hits", start, start + 10_000)
                writer.add(Block(at, {}, (Made("flags", np.ones(10_000, "u1"), {"hits": "1:1"}),)))
            writer.finish()
            held = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert file["hits", "flags", [0, 1_999_999]].tolist() == [[1], [1]]
    assert held < 8 << 20


def test_a_class_behind_a_stage_is_made_once(events, tmp_path):
    made = []

    class Times:
        def __init__(self):
            made.append(self)

        def __call__(self, hits):
            return hits["id"] * 2

    h5.run(h5.rows("hits", size=100) | h5.stage(Count) | Times | h5.append("a"), events, tmp_path / "out.h5")
    assert tables(tmp_path / "out.h5", "a") == [[*range(0, 2000, 2)]]
    assert len(made) == 1


def test_slices_where_nothing_is_there_need_no_type(events, tmp_path):
    flow = h5.rows("hits", size=100) | (lambda hits: [[] for _ in hits]) | h5.append("a", refs="1:n", dtype=HIT)
    h5.run(flow | (lambda hits: []) | h5.append("b", dtype="i2"), events, tmp_path / "out.h5", engine="serial")
    with h5.Tables(tmp_path / "out.h5") as file:
        assert (file["a"].dtype, file["b"].dtype) == (HIT, "i2")


def test_masks_of_inputs_stay(events, tmp_path):
    def hides(tracks):
        with pytest.raises(ValueError, match="read-only"):
            tracks[:] = np.ma.masked
        return tracks.filled(0)

    h5.run(
        h5.rows("hits") | h5.need(tracks="hits -> tracks") | hides | h5.append("a"), events, tmp_path / "out.h5", engine="serial"
    )


def test_a_journal_that_ends_with_zeros_is_gone_on_with(events, tmp_path):
    def fails(hits, limit=500):
        if hits["id"][0] >= limit and not (tmp_path / "well").exists():
            raise RuntimeError("broken")
        return hits["id"]

    flow = h5.rows("hits", size=100) | fails | h5.append("ids", refs="1:1")
    with pytest.raises(RuntimeError):
        h5.run(flow, events, tmp_path / "out.h5")
    with open(tmp_path / "out.h5.journal", "ab") as file:
        file.write(bytes(1000))
    (tmp_path / "well").touch()
    assert h5.run(flow, events, tmp_path / "out.h5", resume=True).rows == {"ids": 1000}


def test_to_go_on_appends_once(events, tmp_path):
    h5.run(ids | h5.append("a"), events, tmp_path / "out.h5")
    with pytest.raises(GraphError, match="append once more"):
        h5.run(ids | h5.append("a"), output=tmp_path / "out.h5", exists="append", resume=True)


# ---- an output that is there


def test_an_output_that_is_there_is_refused_overwritten_or_appended_to(events, tmp_path):
    out = tmp_path / "out.h5"
    flow = h5.rows("hits") | (lambda hits: hits["id"]) | h5.append("ids", refs="1:1")
    h5.run(flow, events, out)
    before = content(out)
    with pytest.raises(GraphError, match='exists="append"'):
        h5.run(flow, events, out)
    assert content(out) == before
    h5.run(flow, events, out, exists="overwrite")
    assert content(out) == before
    with pytest.raises(GraphError, match="leave `input` out"):
        h5.run(flow, events, out, exists="append")
    h5.run(flow, output=out, exists="append")
    with h5.Tables(out) as file:
        assert file["hits", "ids", :].tolist() == [[row, row] for row in range(1000)]
    with pytest.raises(GraphError, match="already"):
        h5.run(flow, events, events)


def test_a_link_to_the_input_is_the_input(events, tmp_path):
    (tmp_path / "link.h5").symlink_to(events)
    with pytest.raises(GraphError, match="already"):
        h5.run(h5.rows("hits") | len, events, tmp_path / "link.h5", exists="overwrite")
    assert "hits/data" in content(events)


# ---- wrong flows

_wrong = {
    "no table 'hit'.*did you mean 'hits'": h5.rows("hit") | len,
    "no table 'trcks'.*did you mean": h5.rows("hits") | h5.need(x="hits -> trcks") | len,
    "no references between 'hits' and 'quality'.*'tracks' -> 'hits'": h5.rows("hits") | h5.need(x="hits -> quality") | len,
    "'tracks' has 100 rows and 'hits' has 1000": h5.rows("hits") | h5.need(x="tracks") | len,
    "names `trucks`.*inputs are 'hits', 'tracks'": h5.rows("hits") | h5.need(tracks="hits -> tracks") | (lambda hits, trucks: 1),
    "starts at row 1000 .*1000 rows": h5.rows("hits", start=1000) | len,
    "begins with `h5.rows`": h5.need(x="hits") | len,
    "works on streams": h5.rows("hits") | qf.pack(2) | len,
    "one `h5.rows`": h5.rows("hits") | h5.rows("tracks"),
    "appends to 'a' twice": h5.rows("hits") | len | h5.append("a") | len | h5.append("a"),
    "whose rows the flow goes through": h5.rows("hits") | len | h5.append("hits"),
    "`rng`, the first": h5.rows("hits") | (lambda rng, hits: hits),
    "by its place only": h5.rows("hits") | h5.need(x="quality") | (lambda hits, x, /: x),
    "another name": h5.rows("hits") | h5.need(x="quality") | len | h5.append("reco/x"),
}


@pytest.mark.parametrize("text", _wrong)
def test_a_flow_that_names_what_is_not_there_says_what_there_is(events, tmp_path, text):
    with pytest.raises(GraphError, match=text):
        h5.run(_wrong[text], events, tmp_path / "out.h5")
    assert os.listdir(tmp_path) == ["in.h5"]


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: h5.rows(3), GraphError, "the name of a table"),
        (lambda: h5.rows("hits", size=0), GraphError, "size"),
        (lambda: h5.rows("hits", start=-1), GraphError, "0 or more"),
        (lambda: h5.rows("hits", start=5, stop=4), GraphError, "start=5, stop=4"),
        (lambda: h5.rows("my hits"), GraphError, "name=..."),
        (lambda: h5.need(), GraphError, "names inputs"),
        (lambda: h5.need(x="a -> "), GraphError, "hits -> tracks"),
        (lambda: h5.need(x=("a", "rows")), GraphError, "index"),
        (lambda: h5.append("a", refs="1:2"), GraphError, "one of '1:1', '1:n', 'pairs'"),
        (lambda: h5.append("a", dtype="nothing"), GraphError, "type of numpy"),
        (lambda: h5.stage(3), GraphError, "can be called"),
        (lambda: h5.append("a", attrs={"made": None}), GraphError, "attribute 'made' of 'a'"),
        (lambda: h5.run(h5.rows("a", of=lambda start: []), output="b.h5"), GraphError, "needs `start`.*`start=...`"),
        (lambda: h5.run(h5.rows("a", of=[]), output="."), GraphError, "is a folder"),
        (lambda: h5.rows("a", of=iter([])), GraphError, "for each run"),
        (lambda: h5.rows("a", of=[], size=3), GraphError, "makes the slices"),
        (lambda: h5.rows("a/ref/b"), GraphError, "the name of a table"),
        (lambda: h5.run(h5.rows("a", of=[]), output="b.h5", start=3), GraphError, "names no such parameter"),
        (lambda: h5.run(h5.rows("a", of=lambda number: []), output="b.h5"), GraphError, "needs `number`"),
        (lambda: h5.run(h5.rows("a", start=3), output="b.h5", stop=2), GraphError, "start=3, stop=2"),
        (lambda: h5.run(h5.rows("a", of=[]), output="b.h5", drop=["c"]), GraphError, "no table 'c'"),
        (lambda: h5.run(len, "a.h5", "b.h5"), GraphError, "takes a flow"),
        (lambda: h5.run(h5.rows("a"), "a.h5"), GraphError, "`output` is the path"),
    ],
)
def test_wrong_arguments_are_told_at_once(make, error, text):
    with pytest.raises(error, match=text):
        make()


@pytest.mark.parametrize(
    ("flow", "error", "text"),
    [
        (h5.rows("hits") | (lambda hits: hits["q"][:3]) | h5.append("a", refs="1:1"), ValueError, "3 rows for 'a' were made of"),
        (h5.rows("hits") | (lambda hits: "text") | h5.append("a"), TypeError, "gets rows"),
        (h5.rows("hits") | (lambda hits: None) | h5.append("a"), TypeError, "gets rows"),
        (h5.rows("hits") | h5.append("a"), TypeError, "behind a function"),
        (h5.rows("hits") | (lambda hits: iter(hits)) | h5.append("a"), TypeError, "gives an iterator"),
        (h5.rows("hits") | (lambda hits: h5.linked([1.0], [[0, 1]])) | h5.append("a", refs="pairs"), IndexError, "names row 1"),
        (h5.rows("hits") | (lambda hits: h5.linked([1.0], [[5000, 0]])) | h5.append("a", refs="pairs"), IndexError, "row 5000"),
        (h5.rows("hits") | (lambda hits: hits["q"]) | h5.append("a", refs="pairs"), TypeError, "linked"),
        (h5.rows("hits") | (lambda hits: h5.linked(hits["q"], [])) | h5.append("a"), TypeError, "pairs"),
        (h5.rows("hits") | (lambda hits: hits["q"]) | h5.append("a", dtype=int), GraphError, "are int64, but got float32"),
        (h5.rows("hits") | (lambda hits: hits["q"]) | h5.append("quality", name="other"), GraphError, "quality"),
    ],
)
@pytest.mark.parametrize("n", [1, 2])
def test_wrong_results_are_told_and_leave_no_output(events, tmp_path, flow, error, text, n):
    before = events.read_bytes()
    with pytest.raises(error, match=text):
        h5.run(flow, events, tmp_path / "out.h5", n=n)
    assert events.read_bytes() == before
    assert set(os.listdir(tmp_path)) <= {"in.h5", "out.h5.journal"}


@pytest.mark.parametrize("how", ["truncated", "text", "locked", "missing"])
def test_an_input_that_cannot_be_read_is_named(events, tmp_path, how):
    held = None
    if how == "truncated":
        events.write_bytes(events.read_bytes()[:-1000])
    elif how == "text":
        events.write_text("no HDF5")
    elif how == "locked":
        held = subprocess.Popen(
            [sys.executable, "-c", f"import h5py; f = h5py.File({str(events)!r}, 'r+'); print(flush=True); input()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        held.stdout.readline()
    else:
        events.unlink()
    with pytest.raises(OSError, match=r"in\.h5") as found:
        h5.run(h5.rows("hits") | len, events, tmp_path / "out.h5")
    assert found.value.filename == str(events)
    if held is not None:
        held.communicate(b"\n")


def test_contiguous_and_empty_tables_are_gone_through(tmp_path):
    with h5py.File(tmp_path / "in.h5", "w") as file:
        file["plain/data"] = np.arange(300_000)
        file["empty/data"] = np.empty(0)
    done = h5.run(h5.rows("plain") | (lambda plain: plain) | h5.append("out", refs="1:1"), tmp_path / "in.h5", tmp_path / "a.h5")
    assert done.slices == 3
    done = h5.run(h5.rows("empty") | (lambda empty: empty) | h5.append("out", dtype=float), tmp_path / "in.h5", tmp_path / "b.h5")
    assert done.slices == 0
    with h5.Tables(tmp_path / "b.h5") as file:
        assert file["out"].shape == (0,)


# ---- interruptions

SCRIPT = """
import os, sys, signal
import numpy as np
from qflow import h5

class Total:
    def begin(self, file):
        self.total = 0
    def __call__(self, ids):
        self.total += int(ids.sum())
        return np.array([self.total])
    def end(self, file):
        file.attrs("ids")["total"] = self.total

def ids(hits, rng):
    return hits["id"] + rng.integers(1000)

def total(value, rng):
    return value + rng.integers(1000)

def flow():
    return h5.rows("hits", size=50) | ids | h5.append("ids", refs="1:1") | h5.stage(Total) | total | h5.append("totals")

if __name__ == "__main__":
    from qflow.h5 import journal
    fatal, number, add = int(sys.argv[1]), 0, journal.Journal.add
    def dying(self, handed):
        global number
        add(self, handed)
        number += 1
        if number == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
    journal.Journal.add = dying
    h5.run(flow(), sys.argv[2], sys.argv[3], n=int(sys.argv[4]), resume=True, seed=7)
"""


@pytest.mark.parametrize("cut", [0, 1, 7, 60])
def test_a_killed_run_leaves_no_output_and_goes_on_where_it_was(events, tmp_path, cut):
    script, out = tmp_path / "script.py", tmp_path / "out.h5"
    script.write_text(SCRIPT)
    for fatal in (3, 6, 4):
        ended = subprocess.run([sys.executable, script, str(fatal), events, out, "2"], check=False)
        assert ended.returncode == -signal.SIGKILL
        assert not out.exists()
        journal = tmp_path / "out.h5.journal"
        if cut:
            journal.write_bytes(journal.read_bytes()[:-cut])
    namespace = {"__name__": "script"}
    exec(SCRIPT, namespace)
    with pytest.raises(GraphError, match="resume=True"):
        h5.run(namespace["flow"](), events, out)
    subprocess.run([sys.executable, script, "-1", events, out, "1"], check=True)
    h5.run(namespace["flow"](), events, tmp_path / "whole.h5", seed=7)
    assert content(out) == content(tmp_path / "whole.h5")
    assert sorted(os.listdir(tmp_path)) == ["in.h5", "out.h5", "script.py", "whole.h5"]


def test_a_failed_run_keeps_what_it_has_and_says_so(events, tmp_path):
    def fails(hits, limit):
        if hits["id"][0] >= limit:
            raise RuntimeError("broken")
        return hits["id"]

    flow = h5.rows("hits", size=100) | fails | h5.append("ids", refs="1:1")
    with pytest.raises(RuntimeError, match="broken") as found:
        h5.run(flow, events, tmp_path / "out.h5", params={"limit": 500})
    assert any("resume=True" in note for note in found.value.__notes__)
    assert sorted(os.listdir(tmp_path)) == ["in.h5", "out.h5.journal"]
    with pytest.raises(GraphError, match="another params"):
        h5.run(flow, events, tmp_path / "out.h5", resume=True, params={"limit": 5000})
    os.utime(events)
    with pytest.raises(GraphError, match="another input"):
        h5.run(flow, events, tmp_path / "out.h5", resume=True, params={"limit": 500})
    assert h5.run(flow, events, tmp_path / "out.h5", exists="overwrite", params={"limit": 5000}).rows == {"ids": 1000}
    assert sorted(os.listdir(tmp_path)) == ["in.h5", "out.h5"]


def test_two_runs_do_not_write_one_output(events, tmp_path):
    def again(hits):
        with pytest.raises(ResourceError, match="Another run"):
            h5.run(flow, events, tmp_path / "out.h5", exists="overwrite")
        return hits["id"]

    flow = h5.rows("hits", size=1000) | again | h5.append("ids")
    assert h5.run(flow, events, tmp_path / "out.h5", engine="serial").rows == {"ids": 1000}


def test_a_journal_keeps_each_type_of_rows(events, tmp_path):
    kinds = [
        np.dtype("M8[ns]"),
        np.dtype("S7"),
        np.dtype("c16"),
        np.dtype([("a", "f4", (2, 3)), ("b", [("c", "?")])]),
        np.dtype("f2"),
    ]
    for number, kind in enumerate(kinds):
        rows = np.zeros((4, 2), kind)
        raw = np.random.default_rng(0).integers(0, 2, rows.nbytes, np.uint8)
        made = h5.block.Made("a", np.frombuffer(raw, kind).reshape(4, 2), {"b": "1:1", "c": np.arange(6).reshape(3, 2)})
        path = str(tmp_path / f"{number}.journal")
        written = h5.journal.Handed(3, 7, False, ..., (made,))
        journal = h5.journal.Journal(path)
        journal.begin({"x": 1, "state": {"y": 2}})
        journal.add(written)
        journal.add(written._replace(over=True, made=(), value=np.empty((0, 2), kind)))
        journal.close()
        journal = h5.journal.Journal(path)
        assert journal.state({"x": 1}) == {"y": 2}
        first, second = journal.read()
        journal.close()
        assert first.made[0].rows.tobytes() == made.rows.tobytes()
        assert first.made[0].rows.dtype == kind
        assert first.made[0].links["b"] == "1:1"
        np.testing.assert_array_equal(first.made[0].links["c"], made.links["c"])
        assert second.over
        assert second.value.dtype == kind
        assert second.value.shape == (0, 2)


# ---- ranks

RANKS = """
import os, sys
import numpy as np
from qflow import h5

def ids(hits, rng):
    return hits["id"] + rng.integers(1000)

class Total:
    def begin(self, file):
        self.total = 0
    def __call__(self, ids):
        self.total += int(ids.sum())
        return np.array([self.total])
    def end(self, file):
        file.attrs("ids")["total"] = self.total

def fails(hits):
    where = os.environ.get("FAILS", "")
    if where and hits["id"][0] >= 300 and os.environ["RANK"] == where[1:]:
        if where[0] == "k":
            os.kill(int(os.environ["PARENT"]), 9)
        raise RuntimeError("broken")
    return hits["id"]

if __name__ == "__main__":
    os.environ["PARENT"] = str(os.getpid())
    flow = h5.rows("hits", size=90) | ids | h5.append("ids", refs="1:1") | fails
    flow = flow | h5.append("same", refs={"hits": "1:1", "ids": "1:1"}) | h5.stage(Total) | h5.append("totals")
    print(h5.run(flow, sys.argv[1], sys.argv[2], n=2, seed=4, resume="resume" in sys.argv))
"""


def ranks(tmp_path, count, *arguments, **environment):
    """Processes as torchrun starts them."""
    (tmp_path / "ranks.py").write_text(RANKS)
    base = {**os.environ, **environment, "WORLD_SIZE": str(count)}
    started = [
        subprocess.Popen(
            [sys.executable, tmp_path / "ranks.py", *arguments],
            env={**base, "RANK": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in reversed(range(count))
    ]
    found = [(each.communicate(timeout=100), each.returncode) for each in reversed(started)]
    return [code for _, code in found], [out + err for (out, err), _ in found]


@pytest.mark.parametrize("count", [2, 3])
def test_several_ranks_write_what_one_does(events, tmp_path, count):
    assert ranks(tmp_path, 1, events, tmp_path / "one.h5")[0] == [0]
    codes, texts = ranks(tmp_path, count, events, tmp_path / "out.h5")
    assert codes == [0] * count, texts
    assert "slices=12" in texts[0]
    assert content(tmp_path / "out.h5") == content(tmp_path / "one.h5")
    assert sorted(os.listdir(tmp_path)) == ["in.h5", "one.h5", "out.h5", "ranks.py"]


@pytest.mark.parametrize("fails", ["r0", "r1", "k0", "k1"])
def test_when_a_rank_fails_or_is_killed_the_others_hear_it_and_all_go_on_later(events, tmp_path, fails):
    codes, texts = ranks(tmp_path, 2, events, tmp_path / "out.h5", FAILS=fails)
    assert all(codes), texts
    assert codes[int(fails[1])] == (-signal.SIGKILL if fails[0] == "k" else 1)
    said = {"r0": "Rank 0, .* has failed: RuntimeError: broken", "r1": "Another rank has failed: RuntimeError: broken"}
    assert re.search("ResourceError: " + said.get(fails, ".* is gone"), texts[1 - int(fails[1])]), texts
    assert not (tmp_path / "out.h5").exists()
    codes, texts = ranks(tmp_path, 2, events, tmp_path / "out.h5", "resume")
    assert codes == [0, 0], texts
    ranks(tmp_path, 1, events, tmp_path / "one.h5")
    assert content(tmp_path / "out.h5") == content(tmp_path / "one.h5")
    assert sorted(os.listdir(tmp_path)) == ["in.h5", "one.h5", "out.h5", "ranks.py"]


@pytest.mark.parametrize("count", [2, 3])
def test_mpiexec_tells_ranks_of_each_other(events, tmp_path, count):
    """12 slices. The launcher is that of the package `openmpi`; it listens, but nothing connects from elsewhere."""
    (tmp_path / "ranks.py").write_text(RANKS)
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    mpiexec = [os.path.join(os.path.dirname(sys.executable), "mpiexec"), "--oversubscribe", "-n", str(count)]
    command = [*mpiexec, sys.executable, tmp_path / "ranks.py", events, tmp_path / "out.h5"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=100)
    if "No network interfaces were found" in ended.stdout + ended.stderr:
        pytest.skip("Open MPI's launcher needs a network interface beside loopback")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    ranks(tmp_path, 1, events, tmp_path / "one.h5")
    assert content(tmp_path / "out.h5") == content(tmp_path / "one.h5")
    assert sorted(os.listdir(tmp_path)) == ["in.h5", "one.h5", "out.h5", "ranks.py"]


def test_what_another_run_has_said_counts_for_nothing(events, tmp_path):
    """Rank 1 comes first, and finds what a run has left that was killed."""
    (tmp_path / "ranks.py").write_text(RANKS)
    (tmp_path / "out.h5.ranks").write_text('{"run": "00000000000000000000000000000000", "seed": 999}')
    (tmp_path / "out.h5.journal").touch()
    command = [sys.executable, tmp_path / "ranks.py", events, tmp_path / "out.h5"]
    started = []
    for number in (1, 0):
        started.append(subprocess.Popen(command, env={**os.environ, "RANK": str(number), "WORLD_SIZE": "2"}))
        while number and not (tmp_path / "out.h5.journal-1-of-2").exists():
            assert started[0].poll() is None
    assert [each.wait(100) for each in started] == [0, 0]
    ranks(tmp_path, 1, events, tmp_path / "one.h5")
    assert content(tmp_path / "out.h5") == content(tmp_path / "one.h5")
    assert sorted(os.listdir(tmp_path)) == ["in.h5", "one.h5", "out.h5", "ranks.py"]


@pytest.mark.parametrize("index", [0, 1])
def test_nobody_waits_for_ever_for_a_rank_that_does_not_come(events, tmp_path, monkeypatch, index):
    monkeypatch.setattr(h5.meeting, "PATIENCE", 0.1)
    with pytest.raises(ResourceError, match="has not begun within"):
        h5.run(ids | h5.append("a"), events, tmp_path / "out.h5", shard=(index, 2), engine="serial")
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize("before", [False, True], ids=["first", "interrupted"])
def test_rank_0_hears_of_a_rank_that_fails_before_its_first_slice(events, tmp_path, monkeypatch, before):
    monkeypatch.setattr(h5.meeting, "PATIENCE", 20)

    def run(index, function=lambda hits: hits["id"], **options):
        flow = h5.rows("hits", size=90) | function | h5.append("a")
        return h5.run(flow, events, tmp_path / "out.h5", shard=(index, 2), **{"engine": "serial", **options})

    def broken(hits):
        if hits["id"][0] >= 500:
            raise RuntimeError("broken")
        return hits["id"]

    def said():
        with suppress(FileNotFoundError):  # rank 0 removes what it said before
            return (tmp_path / "out.h5.ranks").read_bytes()
        return b""

    with ThreadPoolExecutor() as threads:
        for each in [threads.submit(run, index, broken) for index in range(2)] if before else ():
            with pytest.raises((RuntimeError, ResourceError)):
                each.result()
        first = threads.submit(run, 0, exists="overwrite")
        while not (text := said()) or b"failed" in text:
            assert not first.done()
        with pytest.raises(GraphError, match="engine" if not before else "interrupted"):
            run(1, **({} if before else {"engine": "seriel"}))
        with pytest.raises(ResourceError, match="Another rank has failed: GraphError"):
            first.result()
        again = [threads.submit(run, index, exists="overwrite") for index in range(2)]
        whole, part = [each.result().slices for each in again]
    assert whole > part
    assert sorted(os.listdir(tmp_path)) == ["in.h5", "out.h5"]


def test_runs_of_other_numbers_of_ranks_do_not_write_one_output_at_once(events, tmp_path):
    def again(hits):
        with pytest.raises(ResourceError, match="Another run"):
            h5.run(ids | h5.append("a"), events, tmp_path / "out.h5", exists="overwrite", shard=(0, 2), engine="serial")
        return hits["id"]

    assert h5.run(h5.rows("hits", size=1000) | again | h5.append("a"), events, tmp_path / "out.h5", engine="serial").slices == 1


def test_a_run_is_gone_on_with_by_as_many_ranks(events, tmp_path):
    ranks(tmp_path, 2, events, tmp_path / "out.h5", FAILS="r0")
    codes, texts = ranks(tmp_path, 1, events, tmp_path / "out.h5", "resume")
    assert codes == [1]
    assert "another ranks (2, now 1)" in texts[0]


def test_an_output_is_on_the_disk_before_it_gets_its_name(events, tmp_path, monkeypatch):
    done = []
    for word in ("fsync", "link", "replace", "unlink"):
        monkeypatch.setattr(
            os, word, partial(lambda word, real, *given: (done.append(word), real(*given))[1], word, getattr(os, word))
        )
    for exists, named in (("refuse", "link"), ("overwrite", "replace")):
        done.clear()
        h5.run(ids | h5.append("a"), events, tmp_path / "out.h5", engine="serial", exists=exists)
        assert done[done.index("fsync") :][:3] == ["fsync", named, "fsync"]


# ---- pipes


def charge(hits, tracks, gain=1.0):
    return hits["q"] * gain + tracks[:, 0].filled(0)


def test_a_flow_over_tables_is_a_pipe_too(events):
    flow = h5.rows("hits", size=300) | h5.need(tracks="hits -> tracks") | charge | h5.values()
    with h5.Tables(events) as file:
        whole = file["hits"][:]["q"] * 2 + file["hits", "tracks", :][:, 0].filled(0)
    for engine in ("serial", "processes"):
        found = list(flow([events], engine=engine, params={"gain": 2.0}))
        assert [len(each) for each in found] == [300, 300, 300, 100]
        np.testing.assert_array_equal(np.concatenate(found), whole)
    rows = qf.process(n=2)(h5.rows("hits", size=300) | h5.values()) | qf.map(lambda hits: [*hits["id"]]) | qf.repack(64)
    assert [number for batch in rows([events]) for number in batch] == [*range(1000)]
    shuffled = qf.shuffle(1000) | h5.rows("hits", size=10) | (lambda hits: hits["id"][0]) | h5.values()
    numbers = list(shuffled([events], engine="serial"))
    assert sorted(numbers) == [*range(0, 1000, 10)] != numbers
    some = h5.rows("hits", size=300) | (lambda hits: qf.SKIP if hits["id"][0] else len(hits)) | h5.values()
    assert list(some([events])) == [300]


@pytest.mark.parametrize(
    ("flow", "source", "said"),
    [
        (lambda: h5.rows("hits") | charge, ["in.h5"], r"by `h5.run\(flow, 'in.h5', 'out.h5'\)`.*with `h5.values\(\)`"),
        (lambda: h5.rows("hits") | charge | h5.values(), ["in.h5"], "needs `tracks`, which has no value"),
        (lambda: h5.rows("hit") | h5.values(), ["in.h5"], "no table 'hit'"),
        (lambda: h5.rows("hits") | h5.values(), ["in.h5", "b.h5"], "a source of one file"),
        (lambda: h5.rows("hits") | h5.values(), "in.h5", r"Did you mean `\[x\]`"),
        (lambda: h5.rows("hits", start=2000) | h5.values(), ["in.h5"], "starts at row 2000"),
        (lambda: h5.rows("hits") | h5.append("a") | h5.values(), ["in.h5"], r"`h5.append\('a'\)` is for `h5.run`"),
        (lambda: h5.rows("new", of=[[1]]) | h5.values(), ["in.h5"], "is for `h5.run`"),
        (lambda: qf.map(len) | h5.values(), ["in.h5"], "stands behind `h5.rows`"),
    ],
)
def test_a_wrong_pipe_is_told_before_anything_runs(events, monkeypatch, flow, source, said):
    monkeypatch.chdir(events.parent)
    with pytest.raises(GraphError, match=said):
        flow()(source, engine="serial")


def test_a_run_that_writes_has_no_values(events, tmp_path):
    with pytest.raises(GraphError, match=r"`h5.values\(\)` ends a flow that is iterated over"):
        h5.run(h5.rows("hits") | h5.values(), events, tmp_path / "out.h5")


@pytest.mark.parametrize("size", [6, 10, 14, 16])
def test_a_disk_that_is_full_is_an_error_from_which_a_run_goes_on(tmp_path, size):
    """Wherever the room ends: HDF5 says nothing of rows that it can't write when a dataset is let go."""
    text = """
        import os, subprocess
        import numpy as np
        from qflow import h5
        folder = os.environ["FOLDER"]
        def run(**words):
            flow = h5.rows("x", size=1000) | (lambda x: np.ones(len(x))) | h5.append("y")
            return h5.run(flow, os.environ["INPUT"], folder + "/out.h5", engine="serial", **words).rows
        try:
            run()
        except OSError as error:
            print(error.errno, os.listdir(folder))
        subprocess.run(["mount", "-o", "remount,size=80m", folder], check=True)
        print(run(resume=True))
        with h5.Tables(folder + "/out.h5") as file:
            print(file["y", :].sum(), os.listdir(folder))
    """
    with h5.Tables(tmp_path / "in.h5", "w") as file:
        file.append("x", np.zeros(1_000_000, "u1"))
    needs_unshare("--mount")
    (tmp_path / "small").mkdir()
    mount = f"mount -t tmpfs -o size={size}m tmpfs {tmp_path / 'small'}"
    within = ["unshare", "--mount", "sh", "-ec", f'{mount}; exec "$@"', "sh"]
    done = script(text, within=within, FOLDER=str(tmp_path / "small"), INPUT=str(tmp_path / "in.h5"))
    assert done.stdout.splitlines() == ["28 ['out.h5.journal']", "{'y': 1000000}", "1000000.0 ['out.h5']"], done
    assert done.returncode == 0, done
