"""HDF5, the way in: every row of every file comes once, in order, in chunks of one size."""

from __future__ import annotations

import errno
import gc
import os
import pickle
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qflow as qf
from qflow import GraphError, h5
from qflow.h5.kept import MOST_OPEN, Kept
from qflow.h5.worker import handle_of

pytestmark = pytest.mark.usefixtures("one_nursery")


def write(path: Path, **datasets: Any) -> str:
    """A file of these datasets; ``group__x`` is ``group/x``."""
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name.replace("__", "/")] = values
    return str(path)


def numbers(folder: Path, *lengths: int) -> list[str]:
    """Files f0.h5, f1.h5, ... with the numbers 0, 1, 2, ... in ``x``, that go on from file to file."""
    bounds = np.cumsum([0, *lengths])
    return [write(folder / f"f{i}.h5", x=np.arange(bounds[i], bounds[i + 1])) for i in range(len(lengths))]


def open_files(folder: Path) -> list[str]:
    """The files of a folder that this process has open."""
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return [os.readlink(link) for link in links if os.path.lexists(link) and os.readlink(link).startswith(str(folder))]


@pytest.fixture
def two(tmp_path):
    """Two files of five rows."""
    return numbers(tmp_path, 5, 5)


# Plans


file_lengths = st.dictionaries(st.text("abcdefgh", min_size=1, max_size=3), st.integers(0, 9), max_size=8)
sizes = st.integers(1, 12)


@given(file_lengths, sizes)
def test_a_plan_has_every_row_once_in_order_and_every_chunk_but_the_last_is_full(lengths, size):
    plan = h5.Chunks.of(lengths, size)
    rows = [(file, row) for chunk in plan for file, start, stop in chunk for row in range(start, stop)]
    assert rows == [(file, row) for file, length in lengths.items() for row in range(length)]
    counts = [sum(stop - start for _, start, stop in chunk) for chunk in plan]
    assert all(count == size for count in counts[:-1])
    assert all(0 < count <= size for count in counts)
    assert all(start < stop for chunk in plan for _, start, stop in chunk)


@given(file_lengths, sizes)
def test_drop_last_drops_only_a_shorter_last_chunk(lengths, size):
    plan = h5.Chunks.of(lengths, size, drop_last=True)
    assert list(plan) == list(h5.Chunks.of(lengths, size))[: sum(lengths.values()) // size]


@given(file_lengths, sizes, st.integers(-9, 9), st.slices(8))
def test_a_plan_is_the_sequence_of_its_chunks(lengths, size, index, part):
    plan, chunks = h5.Chunks.of(lengths, size), list(h5.Chunks.of(lengths, size))
    assert len(plan) == len(chunks)
    assert list(plan[part]) == chunks[part]
    assert list(reversed(plan)) == chunks[::-1]
    if -len(chunks) <= index < len(chunks):
        assert plan[index] == chunks[index]
        assert plan[index] in plan
    else:
        with pytest.raises(IndexError):
            plan[index]


def test_the_plan_of_the_issue():
    plan = h5.Chunks.of({"a": 5, "b": 5}, 3)
    assert list(plan) == [(("a", 0, 3),), (("a", 3, 5), ("b", 0, 1)), (("b", 1, 4),), (("b", 4, 5),)]
    assert list(h5.Chunks.of({"a": 5, "b": 5}, 3, drop_last=True)) == list(plan[:3])
    assert list(h5.Chunks.of({"a": 1, "none": 0, "b": 1}, 5)) == [(("a", 0, 1), ("b", 0, 1))]


def test_a_plan_is_an_immutable_value(two):
    plan = h5.chunks(two, 3)
    assert plan == h5.chunks(two, 3)
    assert plan != h5.chunks(two, 4)
    assert plan != plan[:2]
    assert hash(plan) == hash(h5.chunks(two, 3))
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert repr(plan) == "<4 chunks of 3 rows, 2 files>"
    with pytest.raises(AttributeError):
        plan.size = 2
    assert set(random.Random(0).sample(plan, len(plan))) == set(plan)


def test_a_pattern_is_sorted_and_a_list_keeps_its_order(tmp_path):
    for name in ("b10.h5", "b9.h5", "a.h5", "sub/c.h5"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, x=[0])
    names = lambda plan: [os.path.relpath(file, tmp_path) for file in plan.files]
    assert names(h5.chunks(f"{tmp_path}/*.h5", 1)) == ["a.h5", "b10.h5", "b9.h5"]
    assert names(h5.chunks(tmp_path / "**/*.h5", 1)) == ["a.h5", "b10.h5", "b9.h5", "sub/c.h5"]
    assert names(h5.chunks([tmp_path / "b9.h5", f"{tmp_path}/a.h5"], 1)) == ["b9.h5", "a.h5"]
    assert names(h5.chunks(tmp_path / "a.h5", 1)) == ["a.h5"]


def test_a_path_with_pattern_signs_is_a_path_when_the_file_is_there(tmp_path):
    path = write(tmp_path / "run[1].h5", x=[0, 1])
    assert list(h5.chunks(path, 2)) == list(h5.chunks([path], 2)) == [((path, 0, 2),)]


def test_without_a_key_all_datasets_at_the_top_count_and_single_values_do_not(tmp_path):
    path = write(tmp_path / "a.h5", x=np.zeros(4), y=np.zeros((4, 2)), version=3, group__z=np.zeros(9))
    assert list(h5.chunks(path, 4)) == [((path, 0, 4),)]
    assert list(h5.chunks(path, 9, key="group/z")) == [((path, 0, 9),)]
    assert list(h5.chunks(path, 4, key=["x", "y"])) == [((path, 0, 4),)]


def test_lengths_are_kept_until_size_or_time_of_a_file_change(tmp_path):
    path = write(tmp_path / "a.h5", x=np.zeros(4))
    plan, time = h5.chunks(path, 2), os.stat(path).st_mtime_ns
    Path(path).write_bytes(bytes(os.path.getsize(path)))
    os.utime(path, ns=(time, time))
    assert h5.chunks(path, 2) == plan
    with pytest.raises(OSError):
        h5.chunks(path, 2, key="x")  # another key is another length
    os.utime(path, ns=(time, time + 1))
    with pytest.raises(OSError, match="No complete HDF5 file"):
        h5.chunks(path, 2)


def test_planning_leaves_no_file_open(two, tmp_path):
    h5.chunks(two, 3)
    assert open_files(tmp_path) == []


# Reading


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), sizes, st.booleans())
def test_chunks_and_read_give_every_row_once_in_order(lengths, size, compressed):
    with tempfile.TemporaryDirectory() as folder:
        files, at = [], 0
        for i, length in enumerate(lengths):
            files.append(f"{folder}/{i}.h5")
            x = np.arange(at, at + length, dtype="i4")
            with h5py.File(files[-1], "w") as file:
                options: Any = {"chunks": (3,), "compression": "gzip", "maxshape": (None,)} if compressed else {}
                file.create_dataset("x", data=x, **options)
                file.create_dataset("deep/y", data=np.stack([x, -x], axis=1).astype("f4"))
            at += length
        plan = h5.chunks(files, size)
        lists = list(qf.run(h5.read(["x", "deep/y"]), plan, engine="serial"))
        dicts = list(qf.run(h5.read(["x", "deep/y"], rows=False), plan, engine="serial"))
    assert [row["x"] for rows in lists for row in rows] == list(range(at))
    assert [row["deep/y"].tolist() for rows in lists for row in rows] == [[i, -i] for i in range(at)]
    assert [len(rows) for rows in lists] == [len(columns["x"]) for columns in dicts]
    for columns in dicts:
        assert columns["x"].dtype == "i4"
        assert columns["deep/y"].dtype == "f4"
        assert np.array_equal(columns["deep/y"], np.stack([columns["x"], -columns["x"]], axis=1))
    assert [x for columns in dicts for x in columns["x"]] == list(range(at))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=4), sizes, sizes)
@settings(max_examples=20, deadline=None)
def test_rebatch_after_read_does_not_depend_on_the_chunks(lengths, size, batch):
    with tempfile.TemporaryDirectory() as folder:
        files = numbers(Path(folder), *lengths)
        flow = h5.read("x", rows=False) | qf.rebatch(batch)
        found = [columns["x"].tolist() for columns in flow(h5.chunks(files, size), engine="serial")]
    total = sum(lengths)
    assert found == [list(range(start, min(start + batch, total))) for start in range(0, total, batch)]


def test_the_main_line(two, engine):
    pipe = h5.read("x", n=2) | qf.map(lambda rows: [row["x"] for row in rows]) | qf.repack(4)
    with pipe:
        for _ in range(2):
            assert list(pipe(h5.chunks(two, 3), engine=engine)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_columns_go_through_rebatch(two, engine):
    with h5.read("x", n=2, rows=False) | qf.rebatch(4) as pipe:
        assert [batch["x"].tolist() for batch in pipe(h5.chunks(two, 3), engine=engine)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


TYPES = {
    "float16": np.arange(5, dtype="f2"),
    "big-endian": np.arange(5, dtype=">i4"),
    "bool": np.array([True, False, True, True, False]),
    "complex": np.arange(5) * 1j,
    "text": np.array(["a", "bé", "", "d", "e"], dtype=object),
    "bytes": np.array([b"a", b"bc", b"", b"d", b"e"]),
    "records": np.array([(i, [i, i]) for i in range(5)], dtype=[("a", "i2"), ("b", "f8", (2,))]),
    "pictures": np.arange(5 * 2 * 3, dtype="u1").reshape(5, 2, 3),
    "no columns": np.zeros((5, 0)),
}


def same(one: Any, other: Any) -> bool:
    return (one.dtype, one.dtype.metadata, one.shape) == (other.dtype, other.dtype.metadata, other.shape) and repr(
        one.tolist()
    ) == repr(other.tolist())


@pytest.mark.parametrize("values", TYPES.values(), ids=TYPES)
def test_types_are_those_of_h5py_in_one_file_and_across_files(tmp_path, values):
    files = [write(tmp_path / f"{i}.h5", x=values) for i in range(2)]
    with h5py.File(files[0]) as file:
        expected = file["x"][:]
    columns = h5.read("x", rows=False)
    assert same(columns(((files[0], 1, 4),))["x"], expected[1:4])
    joined = np.concatenate([expected[3:], expected[:2]]).astype(expected.dtype)
    assert same(columns(((files[0], 3, 5), (files[1], 0, 2)))["x"], joined)
    rows = h5.read("x")(((files[0], 4, 5), (files[1], 0, 1)))
    assert repr(rows) == repr([{"x": expected[4]}, {"x": expected[0]}])


def test_rows_of_varying_length_come_as_arrays(tmp_path):
    files = [str(tmp_path / name) for name in ("a.h5", "b.h5")]
    for path in files:
        with h5py.File(path, "w") as file:
            dataset = file.create_dataset("hits", (3,), dtype=h5py.vlen_dtype("i4"))
            for i in range(3):
                dataset[i] = np.arange(i)
    rows = h5.read("hits")(((files[0], 1, 3), (files[1], 0, 3)))
    assert [row["hits"].tolist() for row in rows] == [[0], [0, 1], [], [0], [0, 1]]
    assert rows[0]["hits"].dtype == "i4"


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [("f4", "f8", "f8"), ("f8", "f4", "f8"), ("i2", "u2", "i4"), ("S1", "S3", "S3"), ("i4", ">i4", "i4")],
)
def test_numbers_of_two_types_get_the_type_that_holds_both(tmp_path, one, other, common):
    values = np.array([1, 2, 3])
    files = [write(tmp_path / f"{i}.h5", x=values.astype(kind)) for i, kind in enumerate([one, other])]
    found = h5.read("x", rows=False)(((files[0], 1, 3), (files[1], 0, 2)))["x"]
    assert found.dtype == common
    assert found.tolist() == np.array([2, 3, 1, 2]).astype(common).tolist()


def test_one_part_is_read_as_it_is_and_parts_without_a_copy_between(two, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a copy")

    whole = h5.read("x", rows=False)
    monkeypatch.setattr(np, "concatenate", refuse)
    assert whole(((two[0], 0, 5),))["x"].flags.owndata
    monkeypatch.setattr(h5py.Dataset, "__getitem__", refuse)
    assert whole(((two[0], 3, 5), (two[1], 0, 1)))["x"].tolist() == [3, 4, 5]


def test_a_chunk_may_be_any_lists_of_parts_and_a_part_may_be_empty(two):
    read = h5.read("x", rows=False)
    assert read([[Path(two[0]), 3, np.int64(5)], (two[1], 0, 1)])["x"].tolist() == [3, 4, 5]
    assert read(((two[0], 2, 2), (two[1], 0, 1)))["x"].tolist() == [5]
    assert read(((two[0], 2, 2),))["x"].tolist() == []


def test_a_chunk_may_span_more_files_than_stay_open(tmp_path):
    files = numbers(tmp_path, *[2] * (2 * MOST_OPEN + 1))
    read = h5.read("x", rows=False)
    for _ in range(2):
        assert read(h5.chunks(files, 1000)[0])["x"].tolist() == list(range(2 * len(files)))
    assert len(open_files(tmp_path)) == MOST_OPEN
    del read
    assert open_files(tmp_path) == []


def test_files_stay_open_between_chunks_and_are_closed_after_the_run(two, tmp_path):
    seen = []
    for _ in qf.run(h5.read("x"), h5.chunks(two, 1), engine="serial"):
        seen.append(len(open_files(tmp_path)))
    assert seen == [1] * 5 + [2] * 5
    gc.collect()
    assert open_files(tmp_path) == []


def test_an_early_stop_and_an_error_close_the_files(two, tmp_path):
    with qf.run(h5.read("x"), h5.chunks(two, 1), engine="serial") as run:
        next(run)
    assert open_files(tmp_path) == []
    with pytest.raises(ValueError, match="has 5 rows"):
        list(qf.run(h5.read("x"), [((two[0], 0, 9),)], engine="serial"))
    gc.collect()
    assert open_files(tmp_path) == []


def test_a_file_is_opened_once_for_many_chunks(two, monkeypatch):
    opened = []
    file_of = h5py.File
    monkeypatch.setattr(h5py, "File", lambda *args, **kwargs: opened.append(args[0]) or file_of(*args, **kwargs))
    list(qf.run(h5.read(["x"]), [((file, i, i + 1),) for i in range(5) for file in two], engine="serial"))
    assert opened == two


def test_a_file_that_was_written_again_is_opened_again(tmp_path):
    path = write(tmp_path / "a.h5", x=[1, 2])
    read = h5.read("x", rows=False)
    assert read(((path, 0, 2),))["x"].tolist() == [1, 2]
    os.replace(write(tmp_path / "new.h5", x=[3, 4, 5]), path)
    os.utime(path, ns=(0, 1))
    assert read(((path, 0, 3),))["x"].tolist() == [3, 4, 5]
    assert len(open_files(tmp_path)) == 1


def _in_a_fork(read: Any, plan: h5.Chunks) -> list[Any]:
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(sink, pickle.dumps([read(chunk)["x"].tolist() for chunk in plan]))
        os._exit(0)
    os.close(sink)
    with open(source, "rb") as results:
        found = results.read()
    os.waitpid(child, 0)
    return pickle.loads(found)


def _in_a_new_interpreter(read: Any, plan: h5.Chunks) -> list[Any]:
    code = "import pickle, sys; read, plan = pickle.load(sys.stdin.buffer); print([read(chunk)['x'].tolist() for chunk in plan])"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps((read, plan)), capture_output=True, check=True)
    return eval(done.stdout)


@pytest.mark.parametrize("in_a_child", [_in_a_fork, _in_a_new_interpreter])
def test_a_step_that_has_files_open_works_in_a_child_of_any_start_method(tmp_path, in_a_child):
    files = numbers(tmp_path, *[2] * (2 * MOST_OPEN))
    read, plan = h5.read("x", rows=False), h5.chunks(files, 3)
    expected = [read(chunk)["x"].tolist() for chunk in plan]
    assert files[-1] in open_files(tmp_path)
    assert in_a_child(read, plan) == expected
    with pytest.raises(BlockingIOError):  # we have it open still
        _write_elsewhere(files[-1])
    assert [read(chunk)["x"].tolist() for chunk in plan] == expected


def test_a_fork_does_not_use_the_handles_of_its_parent(two):
    handles = Kept(lambda path: handle_of(path, ("x",)))
    ours = handles.open(two[0])
    assert handles.open(two[0]) is ours
    child = os.fork()
    if child == 0:
        os._exit(handles.open(two[0]) is ours)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert handles.open(two[0]) is ours
    assert ours.columns["x"][:].tolist() == [0, 1, 2, 3, 4]


def _write_elsewhere(path: str) -> None:
    code = "import h5py, sys\ntry: h5py.File(sys.argv[1], 'a')\nexcept BlockingIOError: sys.exit(7)"
    if subprocess.run([sys.executable, "-c", code, path], check=False).returncode == 7:
        raise BlockingIOError


def test_threads_read_the_same_files(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    files = numbers(tmp_path, *[20] * 3)
    plan = h5.chunks(files, 7)
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(lambda: list(qf.run(h5.read("x", rows=False), plan, engine="serial"))) for _ in range(8)]
    assert all([x for columns in run.result() for x in columns["x"]] == list(range(60)) for run in runs)


# The step as a value


@pytest.mark.parametrize("options", [{}, {"n": 2}, {"rows": False}, {"rows": False, "n": 3, "name": "events"}])
def test_the_step_prints_as_the_call_and_travels_as_a_name(options):
    step = h5.read(["x", "group/y"], **options)
    assert isinstance(step, type(qf.process(abs)))
    assert eval(repr(step), {"read": h5.read}) == step
    assert pickle.loads(pickle.dumps(step)) == step
    assert len(pickle.dumps(step)) < 250
    assert step == h5.read(("x", "group/y"), **options)
    assert hash(step) == hash(h5.read(("x", "group/y"), **options))
    assert step != h5.read(["x"], **options)
    assert step.name == options.get("name", "read")
    assert step.workers == options.get("n")


def test_the_step_pickles_while_its_files_are_open(two):
    read = h5.read("x", n=2)
    read(((two[0], 0, 1),))
    assert pickle.loads(pickle.dumps(read))(((two[0], 0, 1),)) == [{"x": 0}]
    assert repr(read | qf.repack(4)) == "read(('x',)).using(n=2) | qf.repack(4)"


def test_the_keys_of_a_step_can_not_change_later():
    keys = ["x"]
    step = h5.read(keys)
    keys.append("y")
    assert step == h5.read("x")


def test_the_number_of_results_is_that_of_the_chunks(two):
    assert len(qf.run(h5.read("x"), h5.chunks(two, 3), engine="serial")) == 4


# Splits


@given(st.integers(1, 200), st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_fractions_share_out_every_chunk_once_in_order_or_say_why_not(length, validation, test):
    plan = h5.Chunks.of({"a": length}, 1)
    try:
        parts = h5.split(plan, validation=validation, test=test)
    except GraphError:
        few = min(round(validation * length), round(test * length)) == 0
        assert few or round(validation * length) + round(test * length) >= length or validation + test >= 1
        return
    assert all(parts)
    assert [*parts.validation, *parts.test, *parts.train] == list(plan)
    assert abs(len(parts.validation) - validation * length) <= 0.5
    assert abs(len(parts.test) - test * length) <= 0.5


def test_a_split_has_three_parts_by_name_and_by_place():
    plan = h5.Chunks.of({"a": 50, "b": 50}, 10)
    train, validation, test = h5.split(plan, validation=0.1, test=0.2)
    assert (validation, test, train) == (plan[:1], plan[1:3], plan[3:])
    assert h5.split(plan, validation=0.3).validation == plan[:3]
    assert len(h5.split(plan, validation=0.3).test) == 0
    assert h5.split(list(plan), test=0.1) == (list(plan[1:]), [], list(plan[:1]))


def test_files_split_by_fraction_and_by_pattern(tmp_path):
    files = [write(tmp_path / f"run{i}.h5", x=[i]) for i in range(10)]
    train, validation, test = h5.split(files, validation="run7*", test=["run8*", "*9.h5"])
    assert (train, validation, test) == (files[:7], [files[7]], files[8:])
    assert h5.split(f"{tmp_path}/*.h5", validation="run7*", test=["run8*", "*9.h5"]) == (train, validation, test)
    assert h5.split(files, validation=f"{tmp_path}/run7.h5").validation == [files[7]]
    assert h5.split(files, validation=0.2) == (files[2:], files[:2], [])
    rows = [{row for chunk in h5.chunks(part, 3) for row in chunk} for part in (train, validation, test)]
    assert not rows[0] & rows[1]
    assert sum(map(len, rows)) == 10


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "takes fractions between 0 and 1"),
        ({"validation": 0}, "takes fractions.*validation=0"),
        ({"validation": 1}, "takes fractions"),
        ({"validation": 1.0}, "takes fractions"),
        ({"validation": -0.1}, "takes fractions"),
        ({"test": float("nan")}, "takes fractions"),
        ({"validation": 0.1, "test": "a*"}, "takes fractions.*or for files patterns"),
        ({"validation": []}, "takes fractions"),
        ({"validation": 0.001}, "validation=0.001 of 10 is none"),
        ({"validation": 0.5, "test": 0.5}, "validation=0.5 and test=0.5 of 10 leave nothing to train on"),
        ({"validation": 0.7, "test": 0.7}, "leave nothing to train on"),
        ({"validation": 0.96}, "validation=0.96 of 10 leave nothing"),
        ({"validation": "a*"}, "patterns split files"),
    ],
)
def test_shares_that_do_not_fit_are_errors(options, words):
    plan = h5.Chunks.of({"a": 100}, 10)
    with pytest.raises(GraphError, match=words):
        h5.split(plan, **options)
    with pytest.raises(GraphError, match=words):
        h5.split(list(plan), **options)


def test_a_pattern_without_files_or_with_all_or_two_patterns_with_one_file_are_errors(two):
    with pytest.raises(GraphError, match=r"'test' is empty: no file matches 'z\*'.*f0\.h5"):
        h5.split(two, validation="f0*", test="z*")
    with pytest.raises(GraphError, match="'train' is empty: the patterns match every file"):
        h5.split(two, validation="f0*", test="f1*")
    with pytest.raises(GraphError, match=r"f0\.h5 matches both validation='f0\*' and test='f\*'"):
        h5.split(two, validation="f0*", test="f*")


def test_a_row_in_two_chunks_and_a_file_named_twice_are_errors(two):
    chunks = [(("a", 0, 3),), (("b", 0, 3), ("a", 5, 6)), (("a", 2, 4),), (("a", 9, 12),)]
    with pytest.raises(GraphError, match="Row 2 of a stands in two chunks"):
        h5.split(chunks, validation=0.25)
    with pytest.raises(GraphError, match="more than once"):
        h5.split([two[0], two[1], two[0]], validation=0.3)
    with pytest.raises(GraphError, match="more than once"):
        h5.chunks([two[0], os.path.join(os.path.dirname(two[0]), ".", "f0.h5")], 3)


@pytest.mark.parametrize("data", [3, [], None, {"a": 1}, [3], [("a", 1)]])
def test_other_things_can_not_be_split(data):
    with pytest.raises(GraphError):
        h5.split(data, validation=0.5)


# Bad input


@pytest.mark.parametrize("size", [0, -3, 2.5, "8", True])
def test_a_wrong_size_is_an_error(two, size):
    with pytest.raises(GraphError, match="size must be a whole number of at least 1"):
        h5.chunks(two, size)


@pytest.mark.parametrize("files", [3, None, {"a.h5": 1}, [3], b"a.h5", [["a.h5"]]])
def test_wrong_files_are_an_error(files):
    with pytest.raises(GraphError, match="Files are a path, a pattern"):
        h5.chunks(files, 3)


def test_no_files_are_an_error(tmp_path):
    with pytest.raises(GraphError, match="the list is empty"):
        h5.chunks([], 3)
    with pytest.raises(FileNotFoundError, match="No file matches the pattern") as caught:
        h5.chunks(tmp_path / "*.h5", 3)
    assert caught.value.filename == str(tmp_path / "*.h5")


def test_a_missing_file_says_what_to_do(two, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No such HDF5 file \(looked from .*gone\.h5") as caught:
        h5.chunks([*two, tmp_path / "gone.h5"], 3)
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(FileNotFoundError, match="stands alone, not in a list"):
        h5.chunks([f"{tmp_path}/*.h5"], 3)
    with pytest.raises(FileNotFoundError, match=r"gone\.h5"):
        h5.split([*two, tmp_path / "gone.h5"], test=0.3)


def test_a_folder_a_pipe_and_a_file_of_another_kind_are_errors(tmp_path):
    with pytest.raises(IsADirectoryError, match=r"write '.*\*\.h5' for the files in it"):
        h5.chunks(tmp_path, 3)
    os.mkfifo(tmp_path / "pipe.h5")
    with pytest.raises(OSError, match="Not a regular file"):
        h5.chunks(tmp_path / "pipe.h5", 3)
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(OSError, match=r"No complete HDF5 file: truncated.*text\.h5"):
        h5.chunks(tmp_path / "text.h5", 3)


def test_a_truncated_file_is_an_error_with_its_path(two):
    os.truncate(two[1], os.path.getsize(two[1]) // 2)
    with pytest.raises(OSError, match=r"No complete HDF5 file: truncated.*f1\.h5"):
        h5.chunks(two, 3)


def test_a_file_that_is_being_written_is_an_error_with_its_path(two):
    code = "import h5py, sys; file = h5py.File(sys.argv[1], 'a'); print('open', flush=True); sys.stdin.read()"
    writer = subprocess.Popen([sys.executable, "-c", code, two[0]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    try:
        with pytest.raises(BlockingIOError, match=r"Open for writing somewhere else.*f0\.h5"):
            h5.chunks(two, 3)
    finally:
        writer.communicate()


def test_an_unknown_key_lists_those_there_are(tmp_path):
    path = write(tmp_path / "a.h5", x=[1, 2], group__deep__y=[1, 2])
    with pytest.raises(GraphError, match=r"a\.h5 has no dataset 'z'; there are 'group/deep/y', 'x'\."):
        h5.chunks(path, 3, key="z")
    with pytest.raises(GraphError, match="has a group, no dataset, 'group'"):
        h5.chunks(path, 3, key="group")
    with pytest.raises(GraphError, match="no dataset 'x/y'"):
        h5.chunks(path, 3, key="x/y")
    deep = write(tmp_path / "deep.h5", group__y=[1], version=3)
    with pytest.raises(GraphError, match=r"no dataset with rows at its top; there are 'group/y', 'version'\. Say which"):
        h5.chunks(deep, 3)
    with pytest.raises(GraphError, match="the file has none"):
        h5.chunks(write(tmp_path / "empty.h5"), 3)


def test_keys_of_different_length_are_an_error_that_says_the_lengths(tmp_path):
    path = write(tmp_path / "a.h5", x=np.zeros(4), y=np.zeros(3), z=np.zeros(4))
    with pytest.raises(GraphError, match=r"'x' has 4, 'y' has 3, 'z' has 4.*Say which one counts"):
        h5.chunks(path, 3)
    with pytest.raises(GraphError, match="'x' has 4, 'y' has 3"):
        h5.chunks(path, 3, key=["x", "y"])


@pytest.mark.parametrize("keys", [3, [], "", ["x", 3], [""], b"x", {"x": 1}])
def test_wrong_keys_are_an_error(two, keys):
    for call in (lambda: h5.read(keys), lambda: h5.chunks(two, 3, key=keys)):
        with pytest.raises(GraphError, match="Keys are the name of a dataset"):
            call()


def test_wrong_options_of_read_are_errors():
    with pytest.raises(GraphError, match="Each key stands once"):
        h5.read(["x", "x"])
    with pytest.raises(GraphError, match="n must be a whole number"):
        h5.read("x", n=0)
    with pytest.raises(GraphError, match="`rows` is True"):
        h5.read("x", rows=3)


BAD_CHUNKS = {
    "a path": ("good.h5", "x", GraphError, "A chunk is a tuple of parts"),
    "a part": (("good.h5", 0, 3), "x", GraphError, "A chunk is a tuple of parts"),
    "a number": (3, "x", GraphError, "A chunk is a tuple of parts.*but got 3 of type int"),
    "nothing": ((), "x", GraphError, "A chunk is a tuple of parts"),
    "a part of two": ((("good.h5", 3),), "x", GraphError, "A chunk is a tuple of parts"),
    "backwards": ((("good.h5", 3, 1),), "x", GraphError, "A chunk is a tuple of parts"),
    "from the end": ((("good.h5", -1, 1),), "x", GraphError, "A chunk is a tuple of parts"),
    "too long": ((("good.h5", 0, 6),), "x", ValueError, "good.h5 has 5 rows, but the chunk asks for rows 0 to 6"),
    "an unknown key": ((("good.h5", 0, 1),), "z", KeyError, "good.h5 has no dataset 'z'; there are 'one', 'x', 'y'"),
    "a single value": ((("good.h5", 0, 1),), "one", ValueError, "has a single value at 'one', no rows"),
    "different lengths": ((("good.h5", 0, 1),), "x y", ValueError, "'x' has 5, 'y' has 4"),
    "a missing file": ((("gone.h5", 0, 1),), "x", FileNotFoundError, "gone.h5"),
    "a truncated file": ((("broken.h5", 0, 1),), "x", OSError, "No complete HDF5 file.*broken.h5"),
    "other shapes": ((("good.h5", 0, 1), ("wide.h5", 0, 1)), "x", ValueError, r"shape \(2,\) in wide.h5, but \(\) in"),
    "text after numbers": ((("good.h5", 0, 1), ("text.h5", 0, 1)), "x", ValueError, r"is \|S1 in text.h5, but int64"),
}


@pytest.mark.parametrize(("chunk", "keys", "kind", "words"), BAD_CHUNKS.values(), ids=BAD_CHUNKS)
def test_what_can_not_be_read_raises_at_its_item_and_the_pipe_works_after(
    tmp_path, monkeypatch, chunk, keys, kind, words, engine
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "good.h5", x=np.arange(5), y=np.arange(4), one=3)
    write(tmp_path / "text.h5", x=np.array([b"a", b"b"]))
    write(tmp_path / "wide.h5", x=np.zeros((3, 2)))
    os.truncate(write(tmp_path / "broken.h5", x=np.arange(5000)), 3000)
    write(tmp_path / "fine.h5", **{key: np.arange(5) for key in keys.split()})
    with qf.Flow(h5.read(keys.split())) as pipe:
        run = pipe([(("fine.h5", 0, 1),), chunk], engine=engine)
        assert len(next(run)) == 1
        with pytest.raises(kind, match=words) as caught:
            next(run)
        assert any("in step 'read', item 1" in note for note in caught.value.__notes__)
        assert [len(rows) for rows in pipe([(("fine.h5", 0, 5),)], engine=engine)] == [5]


def test_damaged_rows_are_an_error_with_file_and_rows(tmp_path):
    path = str(tmp_path / "a.h5")
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("x", data=np.arange(1000), chunks=(1000,), compression="gzip", fletcher32=True)
        offset = dataset.id.get_chunk_info(0).byte_offset
    with open(path, "r+b") as file:
        file.seek(offset + 20)
        file.write(b"damage!!")
    for chunk in [((path, 0, 9),), ((path, 0, 9), (path, 9, 12))]:
        with pytest.raises(OSError, match=r"Can't read rows 0 to 9 of '/x'; is the file damaged\?.*a\.h5"):
            h5.read("x")(chunk)


# Imports


def test_h5py_is_imported_with_qflow_h5_and_not_before():
    code = "import sys, qflow; print('h5py' in sys.modules); qflow.h5; print('h5py' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "False"]


def test_a_missing_h5py_says_what_to_install():
    code = "import sys, qflow; sys.modules['h5py'] = None\ntry: qflow.h5\nexcept ImportError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "qflow.h5 needs h5py. Install it: pip install 'qflow[h5]'"
