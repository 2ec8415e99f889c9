"""Files to files: read, worked on and written in one worker; whole outputs, and a record for each input."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from syscalls import killed_at, possible

import qflow as qf
from qflow import files
from qflow.files import Meta, Record, fitting, work
from qflow.files.names import Naming, real
from qflow.files.plain import NotPlain, from_plain, to_plain
from qflow.graph import cores
from qflow.runtime import machine

pytestmark = pytest.mark.usefixtures("one_nursery")

# ---- the worked case of the earlier system


def reject(data: Any, reject_value: Any = None) -> Any:
    return None if reject_value is not None and data[0, 0] == reject_value else data


def boost_later(data: Any, control: dict[str, Any], boost_target: Any = None, boost_amount: Any = None) -> Any:
    if boost_target is not None and boost_amount is not None and data[0, 0] == boost_target:
        control["need_to_boost_by"] = boost_amount
    return data


def later_booster(data: Any, need_to_boost_by: Any = None) -> Any:
    return data if need_to_boost_by is None else data + need_to_boost_by


def median(data: Any, meta: Meta) -> Any:
    meta["median"] = np.median(data)
    return data


def average(data: Any, meta: Meta) -> Any:
    meta |= {"average": np.average(data)}
    return data


def all_in_one(data: Any, meta: Meta, reject_value: Any = None, boost_target: Any = None, boost_amount: float = 0) -> Any:
    if data[0, 0] == reject_value:
        return None
    boost = boost_amount if data[0, 0] == boost_target else 0
    data = data * 10 + boost
    meta.update(median=np.median(data), average=np.average(data))
    return data


def tenfold(data: Any) -> Any:
    return data * 10


DEFAULT = files.defaults(boost_target=3)
STEPS = reject | qf.Flow(boost_later) | tenfold | later_booster | median | average
WAYS: dict[str, Callable[[], qf.Flow[Any, Record]]] = {
    "one function": lambda: files.read(np.load) | DEFAULT | all_in_one | files.write(np.save),
    "small ones": lambda: files.read(np.load) | DEFAULT | STEPS | files.write(np.save),
    "marked once": lambda: qf.Flow(qf.process(n=2)(files.read(np.load) | DEFAULT | STEPS | files.write(np.save))),
    "each for itself": lambda: (
        qf.process(n=2)(files.read(np.load))
        | DEFAULT
        | qf.map(reject)
        | qf.process(n=2)(qf.map(boost_later) | tenfold)
        | later_booster
        | qf.thread(n=2)(median)
        | average
        | files.write(np.save)
    ),
}


@pytest.fixture
def arrays(tmp_path: Path) -> list[str]:
    names = [str(tmp_path / f"big_array_{number}.npy") for number in range(10)]
    for number, name in enumerate(names):
        np.save(name, number + np.zeros((100, 20)))
    (tmp_path / "out").mkdir()
    return names


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("engine", ["serial", "processes", "simulated"])
def test_the_worked_case(way: str, engine: Any, arrays: list[str], tmp_path: Path) -> None:
    engine = qf.engines.Simulated(seed=3, deaths=2) if engine == "simulated" else engine
    out = str(tmp_path / "out")
    with WAYS[way]() as pipe:
        records = list(pipe(arrays, engine=engine, params={"reject_value": 2, "boost_amount": 5, "outdir": out}))
    assert [record.input for record in records] == arrays
    assert records[2] == Record(arrays[2], None, {}, None)
    right = {0: 0.0, 1: 10.0, 3: 35.0} | {number: 10.0 * number for number in range(4, 10)}
    kept = files.prune(records)
    assert [record.output for record in kept] == [f"{out}/big_array_{number}_bmp.npy" for number in right]
    assert [record.meta for record in kept] == [{"median": value, "average": value} for value in right.values()]
    for record, value in zip(kept, right.values(), strict=True):
        assert record.output is not None
        assert np.array_equal(np.load(record.output), np.full((100, 20), value))
    assert sorted(os.listdir(out)) == [os.path.basename(record.output or "") for record in kept]
    assert files.table(kept[:1]) == [
        {"input": arrays[0], "output": kept[0].output, "error": None, "median": 0.0, "average": 0.0},
    ]


# ---- three streams


def plus_one(data: Any, control: dict[str, Any], x: int = 0) -> Any:
    control["x"] = x + 1
    return data


def tell_x(data: Any, meta: Meta, x: int = 0) -> Any:
    meta["x"] = x
    return data


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name * 3)
    return [str(tmp_path / f"{name}.txt") for name in "abc"]


def only(*steps: Any) -> qf.Flow[Any, Record]:
    """A flow that writes nothing."""
    flow = qf.Flow(files.read())
    for step in steps:
        flow = flow | step
    return flow | files.write(None)


def test_control_is_what_a_step_said_else_the_run_else_the_defaults(texts: list[str], engine: str) -> None:
    base = files.read() | qf.map(plus_one)
    assert [each.meta for each in (base | plus_one | tell_x | files.write(None))(texts, engine=engine, params={"x": 10})] == [
        {"x": 12}
    ] * 3
    more = files.read() | files.defaults(x=5) | plus_one | plus_one | plus_one | tell_x | files.write(None)
    assert [each.meta["x"] for each in more(texts, engine=engine)] == [8] * 3
    assert [each.meta["x"] for each in more(texts, engine=engine, params={"x": 0})] == [3] * 3
    twice = only(files.defaults(x=1), files.defaults(x=2), tell_x)
    assert next(twice(texts, engine=engine)).meta == {"x": 1}
    assert [each.meta for each in only(tell_x)(texts, engine=engine, params={"x": None})] == [{"x": None}] * 3


def test_what_a_step_sets_is_for_this_file_only(texts: list[str], engine: str) -> None:
    def first(data: bytes, control: dict[str, Any], input_name: str, x: int = 0) -> bytes:
        if input_name.endswith("a.txt"):
            control["x"] = 7
        return data

    assert [each.meta["x"] for each in only(first, tell_x)(texts, engine=engine)] == [7, 0, 0]


def test_large_metadata_stay_unless_they_are_asked_for(texts: list[str], engine: str) -> None:
    def large(data: bytes, meta: Meta) -> bytes:
        meta["large"] = 9
        meta.local("large")
        return data

    def use(data: bytes, meta: Meta) -> bytes:
        meta["s"] = meta["large"] - 7
        return data

    pipe = only(large, use)
    assert [each.meta for each in pipe(texts, engine=engine)] == [{"s": 2}] * 3
    assert [each.meta for each in pipe(texts, engine=engine, params={"keep_local": True})] == [{"large": 9, "s": 2}] * 3


def test_none_rejects_at_each_place_and_metadata_so_far_is_kept(texts: list[str], tmp_path: Path, engine: str) -> None:
    def none(data: Any) -> None:
        return None

    def never(data: Any, meta: Meta) -> Any:
        meta["never"] = True
        return data

    out = files.write(lambda path, data: Path(path).write_bytes(data), outdir=tmp_path / "out", create_outdir=True)
    read_none = files.read(lambda name: None) | never | out
    assert list(read_none(texts, engine=engine)) == [Record(text) for text in texts]
    for rejecting in (none, qf.filter(lambda data: False), qf.process(none)):
        assert list((files.read() | tell_x | rejecting | never | out)(texts, engine=engine)) == [
            Record(text, None, {"x": 0}) for text in texts
        ]
    assert not os.listdir(tmp_path / "out")


def test_a_group_is_one_item(texts: list[str], tmp_path: Path, engine: str) -> None:
    def joined(data: Any, meta: Meta, input_name: Any) -> bytes:
        meta["names"] = len(input_name)
        return b"".join(data[0]) + data[1]

    def write(path: str, data: bytes) -> None:
        Path(path).write_bytes(data)

    pipe = files.read() | qf.map(joined) | files.write(write, outdir=tmp_path, append="_all")
    (record,) = pipe([[texts[:2], texts[2]]], engine=engine)
    assert record == Record([texts[:2], texts[2]], str(tmp_path / "a_all.txt"), {"names": 2})
    assert Path(record.output or "").read_text() == "aaabbbccc"


def test_an_iterator_makes_several_outputs_of_one_input(texts: list[str], tmp_path: Path, engine: str) -> None:
    def letters(data: bytes, meta: Meta, control: dict[str, Any], x: int = 0) -> Iterator[bytes]:
        meta["first"] = chr(data[0])
        for number in range(2):
            control["x"] = number
            yield data[number:]

    def write(path: str, data: bytes, x: int = 0) -> None:
        Path(path).write_bytes(data[x:])

    pipe = files.read() | qf.map(letters) | tell_x | files.write(write, outdir=tmp_path, outname="{stem}-{part}{suffix}")
    records = list(pipe(texts[:2], engine=engine))
    assert [os.path.basename(each.output or "") for each in records] == ["a-0.txt", "a-1.txt", "b-0.txt", "b-1.txt"]
    assert [each.meta for each in records[:2]] == [{"first": "a", "x": 0}, {"first": "a", "x": 1}]
    assert [Path(each.output or "").read_text() for each in records[:2]] == ["aaa", "a"]
    same = files.read() | qf.map(letters) | files.write(write, outdir=tmp_path)
    first, second = same(texts[:1], engine=engine)
    assert first.error is None
    assert "{part}" in str(second.error)


# ---- what is wrong, and where that is said


@pytest.mark.parametrize(
    ("flow", "options", "said"),
    [
        (lambda: only(tell_x), {"params": {"y": 1}}, r"`params` has `y`, which no step .*: the steps name .*`x`"),
        (lambda: only(tell_x), {"params": {"meta": 1}}, "`params` has `meta`, which no step"),
        (lambda: only(files.defaults(y=1), tell_x), {}, "`qf.files.defaults` has `y`, which no step names"),
        (lambda: qf.Flow(files.write(None)), {}, "stands behind `qf.files.read`"),
        (lambda: files.read() | files.read() | files.write(None), {}, "Make two flows, and give the second one the outputs"),
        (lambda: only(qf.pack(2)), {}, "where each file is by itself"),
        (lambda: only(tell_x), {"params": {"append": 3}}, "`append` is a text, but got"),
        (lambda: files.read() | tell_x, {}, r"come to no `qf.files.write`.*`\| qf.files.write\(None\)` for records"),
        (lambda: qf.process(n=2)(files.read() | tell_x) | qf.map(len), {}, "come to no `qf.files.write`"),
        (lambda: files.read() | files.write(len, outdir="nowhere"), {}, "There is no folder 'nowhere'"),
        (lambda: files.read() | files.write(len, outname="same"), {}, r"'a.txt' and 'b.txt' would both be written to"),
        (lambda: files.read() | files.write(len, append=""), {}, "would replace the input 'a.txt'"),
        (lambda: files.read() | files.write(len, outname="../{name}"), {}, r"would lie outside of.*outside=True"),
    ],
)
def test_what_is_wrong_is_told_before_anything_runs(
    flow: Any, options: Any, said: str, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(qf.GraphError, match=said):
        flow()(["a.txt", "b.txt"], **options)
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "b.txt", "c.txt"]


def test_wrong_options_are_told_where_they_are_written() -> None:
    with pytest.raises(qf.GraphError, match=r"`outname` is a template of .*\{stem\}"):
        files.write(np.save, outname="{stam}")
    with pytest.raises(qf.GraphError, match="`skip_existing` is True or False"):
        files.write(np.save, skip_existing="yes")  # type: ignore[arg-type]
    with pytest.raises(qf.GraphError, match="`append` is a text"):
        files.write(np.save, append=None)  # type: ignore[arg-type]
    with pytest.raises(qf.GraphError, match=r"`qf.files.read` takes a function"):
        files.read("a.npy")  # type: ignore[arg-type]
    with pytest.raises(qf.GraphError, match="`meta` is what each file has of its own"):
        files.defaults(meta=1)


def test_no_names_no_records(engine: str) -> None:
    assert list(only(tell_x)([], engine=engine)) == []


def dies(data: bytes) -> bytes:
    if data.startswith(b"b"):
        os.kill(os.getpid(), signal.SIGKILL)
    return data


def fails(data: bytes) -> bytes:
    if data.startswith(b"b"):
        raise ArithmeticError("no b")
    return data


def save(path: str, data: bytes) -> None:
    Path(path).write_bytes(data)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("step", [fails, dies])
def test_a_file_that_fails_is_a_record_and_the_others_go_on(step: Any, n: int, texts: list[str], tmp_path: Path) -> None:
    for chain in (files.read() | step | files.write(save, outdir=tmp_path), files.read() | qf.process(step) | files.write(None)):
        pipe = qf.process(n=n)(chain) if not any(each.placement for each in chain.operators) else chain
        with qf.Flow(pipe) as flow:
            records = list(flow(texts))
            assert [record.error is None for record in records] == [True, False, True]
            assert records[1].input == texts[1]
            assert isinstance(records[1].error, ArithmeticError if step is fails else qf.WorkerDied)
            if step is fails:
                notes = "".join(records[1].error.__notes__)
                assert "fails" in notes
                assert texts[1] in notes or "bytes" in notes
            with pytest.raises((ArithmeticError, qf.WorkerDied)):
                list(flow(texts, on_error="raise"))
            assert [record.input for record in flow(texts, on_error="skip")] == [texts[0], texts[2]]
            with pytest.raises(FileNotFoundError):
                list(flow([texts[1], str(tmp_path / "missing.txt")], max_errors=1))
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_missing_files_folders_and_writers_that_write_nothing_are_told(texts: list[str], tmp_path: Path, engine: str) -> None:
    missing, folder = str(tmp_path / "missing.txt"), str(tmp_path / "folder")
    os.mkdir(folder)
    pipe = files.read() | files.write(save, outdir=tmp_path)
    found = list(pipe([texts[0], missing, folder, texts[1]], engine=engine))
    assert [type(record.error) for record in found] == [type(None), FileNotFoundError, IsADirectoryError, type(None)]
    for wrong, said in (
        (lambda path, data: None, "has written nothing"),
        (_several, r"given the name 'a_bmp.txt', but has written"),
    ):
        (record,) = (files.read() | files.write(wrong, outdir=tmp_path))(texts[:1], engine=engine)
        assert record.output is None
        with pytest.raises(ValueError, match=said):
            raise record.error or AssertionError
    (record,) = pipe(iter([3]), engine=engine)
    assert isinstance(record.error, TypeError)
    for no_name in (3, [], ["a", None]):
        with pytest.raises(
            qf.GraphError, match=r"Of the input .*: (An input is the name of a file|A group of files has no name)"
        ):
            pipe([no_name], engine=engine)
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "a_bmp.txt", "b.txt", "b_bmp.txt", "c.txt", "folder"]


def _several(path: str, data: bytes) -> None:
    for name in ("one", "two"):
        Path(path).with_name(name).write_bytes(data)


def test_a_control_that_nobody_names_fails_the_file_that_sets_it(texts: list[str]) -> None:
    def sets(data: bytes, control: dict[str, Any]) -> bytes:
        control["misspelt"] = 1
        return data

    records = list(only(sets, tell_x)(texts, engine="serial"))
    assert all("'sets' sets the control `misspelt`, which no step names" in str(record.error) for record in records)


# ---- names


def test_names_may_come_from_metadata(texts: list[str], tmp_path: Path, engine: str) -> None:
    def name(data: bytes, meta: Meta) -> bytes:
        meta["outname"] = f"sub/M{{31-{chr(data[0])}.dat"
        return data

    pipe = files.read() | qf.map(name) | files.write(save, outdir=tmp_path)
    (record, *_) = pipe(texts, engine=engine)
    assert isinstance(record.error, FileNotFoundError)
    records = list(pipe(texts, engine=engine, params={"create_outdir": True}))
    assert [record.output for record in records] == [str(tmp_path / f"sub/M{{31-{each}.dat") for each in "abc"]


@pytest.mark.parametrize("names", [["x", "x"], ["b_bmp.txt"], ["../x"], ["/tmp/x"], ["b.txt/.."], [".qflow-x"], ["a\0b"], [""]])
def test_bad_names_from_metadata_fail_their_file(names: list[str], texts: list[str], tmp_path: Path, engine: str) -> None:
    """Doubled ones, also with the name that a later file will have; outside ones; and what is no name."""
    out = tmp_path / "out"
    out.mkdir()

    def name(data: bytes, meta: Meta, input_name: str) -> bytes:
        number = texts.index(input_name)
        if number < len(names):
            meta["outname"] = names[number]
        return data

    records = list((files.read() | qf.map(name) | files.write(save, outdir=out))(texts, engine=engine))
    wrong = [record for record in records if record.error is not None]
    assert len(wrong) == 1
    assert len(os.listdir(out)) == 2
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "b.txt", "c.txt", "out"]


@given(st.text(max_size=20), st.text(max_size=5))
def test_no_name_leads_outside(name: str, append: str) -> None:
    naming = Naming("/some/folder", append)
    try:
        paths = [naming.path("/x/a.txt", None, name), naming.path("/x/a.txt")]
    except ValueError:
        return
    for path in paths:
        assert os.path.commonpath(["/some/folder", os.path.realpath(os.path.dirname(path))]) == "/some/folder"


def test_a_link_in_the_folder_leads_nowhere_else(texts: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "link").symlink_to(tmp_path)
    pipe = files.read() | files.write(save, outdir=out, outname="link/{name}2")
    with pytest.raises(qf.GraphError, match="would lie outside"):
        pipe(texts, engine="serial")
    assert [
        record.error for record in (files.read() | files.write(save, outdir=out, outname="link/{name}2", outside=True))(texts)
    ] == [None] * 3


def test_the_earlier_names() -> None:
    assert Naming().path("/data/ngc1.fits") == "ngc1_bmp.fits"
    assert Naming("out").path("ngc1.fits.gz") == "out/ngc1.fits_bmp.gz"
    assert Naming("out", "").path("ngc1") == "out/ngc1"
    assert Naming("out", "_r").path(["a.fits", "b.fits"]) == "out/a_r.fits"
    assert Naming("out", outname="{parent}_{stem}{suffix}").path("/data/night1/a.fits") == "out/night1_a.fits"


def test_a_suffix_that_the_writer_adds_is_the_outputs(texts: list[str], tmp_path: Path, engine: str) -> None:
    pipe = files.read() | qf.map(len) | files.write(np.save, outdir=tmp_path, outname="{stem}.dat")
    assert [record.output for record in pipe(texts, engine=engine)] == [str(tmp_path / f"{each}.dat.npy") for each in "abc"]


# ---- again


def test_skip_existing_does_only_what_is_missing_or_older(texts: list[str], tmp_path: Path, engine: str) -> None:
    called = tmp_path / "called"

    def note(data: bytes, meta: Meta) -> bytes:
        with called.open("a") as file:
            file.write(chr(data[0]))
        meta["n"] = 1
        return data

    out = tmp_path / "out"
    pipe = files.read() | qf.map(note) | files.write(save, outdir=out, create_outdir=True, skip_existing=True)
    first = list(pipe(texts, engine=engine))
    os.remove(first[0].output or "")
    os.utime(texts[1], ns=(0, os.stat(first[1].output or "").st_mtime_ns + 1))
    called.unlink()
    assert list(pipe(texts, engine=engine)) == [*first[:2], Record(texts[2], first[2].output)]
    assert sorted(called.read_text()) == ["a", "b"]
    assert list(pipe(texts, engine=engine, params={"skip_existing": False})) == first


@pytest.mark.parametrize("cut", [0, 1, 3, 5])
def test_a_run_goes_on_where_it_was(cut: int, tmp_path: Path, engine: str) -> None:
    names = [str(tmp_path / f"{number}.txt") for number in range(6)]
    for name in names[:2] + names[3:]:
        Path(name).write_text(name)
    pipe = files.read() | qf.process(len) | files.write(None)
    whole = list(pipe(names, engine=engine))
    with pipe(names, engine=engine) as run:
        begun = [next(run) for _ in range(cut)]
        state = run.state_dict()
    rest = pipe(names, engine=engine, resume=state)
    assert len(rest) == 6 - cut
    found = begun + list(rest)
    assert [record[:3] for record in found] == [record[:3] for record in whole]
    assert type(found[2].error) is FileNotFoundError


# ---- whole or not there


@pytest.mark.skipif(not possible(), reason="this kernel does not let a process watch its child")
@pytest.mark.parametrize("there", [pytest.param(False, marks=pytest.mark.slow), True])
def test_an_output_is_whole_or_not_there_wherever_its_writer_is_killed(there: bool, tmp_path: Path) -> None:
    """At each system call of one file's way; afterwards a run makes it whole, and sweeps up."""
    name, out = tmp_path / "a.bin", tmp_path / "out"
    name.write_bytes(b"new" * 10_000)
    pipe = files.read() | files.write(_slowly, outdir=out, create_outdir=True, fsync=True)
    run = pipe([name], engine="serial")
    list(run)
    output, seen = out / "a_bmp.bin", set()
    for number in range(10_000):
        output.unlink(missing_ok=True)
        if there:
            output.write_bytes(b"old")
        fresh = pipe([name], engine="serial")
        came = killed_at(number, lambda fresh=fresh: list(fresh))
        seen.add(output.read_bytes()[:3] if output.exists() else None)
        assert not output.exists() or output.read_bytes() in (b"old", b"new" * 10_000)
        del fresh
        if not came:
            break
    assert number > 20
    assert seen == {b"old" if there else None, b"new"}
    assert [record.error for record in pipe([name], engine="serial")] == [None]
    assert os.listdir(out) == ["a_bmp.bin"]


def _slowly(path: str, data: bytes) -> None:
    with open(path, "wb", buffering=0) as file:
        for start in range(0, len(data), 10_000):
            file.write(data[start : start + 10_000])


@pytest.mark.skipif(not possible(), reason="this kernel does not let a process watch its child")
@pytest.mark.parametrize("there", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_folder_is_whole_or_not_there_wherever_its_writer_is_killed(there: bool, tmp_path: Path) -> None:
    name, out = tmp_path / "a", tmp_path / "out"
    name.write_bytes(b"new")
    pipe = files.read() | files.write(_as_folder, outdir=out, create_outdir=True)
    list(pipe([name], engine="serial"))
    output, seen = out / "a_bmp", set()
    for number in range(10_000):
        shutil.rmtree(output, ignore_errors=True)
        if there:
            _as_folder(str(output), b"old")
        fresh = pipe([name], engine="serial")
        came = killed_at(number, lambda fresh=fresh: list(fresh))
        found = _folder(output)
        assert found in ({}, dict.fromkeys(["0", "1", "sub/2"], b"old"), dict.fromkeys(["0", "1", "sub/2"], b"new"))
        seen.add(found.get("0"))
        del fresh
        if not came:
            break
    assert number > 20
    assert seen == {b"old" if there else None, b"new"}
    assert [record.error for record in pipe([name], engine="serial")] == [None]
    assert os.listdir(out) == ["a_bmp"]


def _as_folder(path: str, data: bytes) -> None:
    os.makedirs(os.path.join(path, "sub"))
    for each in ("0", "1", "sub/2"):
        Path(path, each).write_bytes(data)


def _folder(path: Path) -> dict[str, bytes]:
    return {str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*") if each.is_file()}


def test_what_a_killed_process_left_is_removed_and_what_others_do_is_not(texts: list[str], tmp_path: Path) -> None:
    from qflow.files import work

    child = os.fork()
    if not child:
        try:
            with work.written(None, str(tmp_path / "x")) as path:
                Path(path).write_text("half")
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    os.waitpid(child, 0)
    with work.written(None, str(tmp_path / "y")) as other:
        Path(other).write_text("at work")
        stranger = tmp_path / ".qflow-elsewhere-1-1-abc"
        stranger.mkdir()
        assert len([each for each in os.listdir(tmp_path) if each.startswith(".qflow-")]) == 3
        list((files.read() | files.write(save, outdir=tmp_path))(texts))
        left = {each for each in os.listdir(tmp_path) if each.startswith(".qflow-")}
        assert left == {stranger.name, os.path.basename(os.path.dirname(other))}


def test_a_full_disk_or_folder_without_permission_is_an_error_without_parts(
    texts: list[str], tmp_path: Path, engine: str
) -> None:
    def full(path: str, data: bytes) -> None:
        Path(path).write_bytes(data)
        with open("/dev/full", "wb") as file:
            file.write(b"x")

    records = list((files.read() | files.write(full, outdir=tmp_path))(texts, engine=engine))
    assert [isinstance(record.error, OSError) and record.error.errno for record in records] == [28] * 3
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "b.txt", "c.txt"]


MOUNTED = """
import os, sys
from pathlib import Path
import qflow as qf

def save(path, data):
    Path(path).write_bytes(data)

def save_folder(path, data):
    os.mkdir(path)
    Path(path, "part").write_bytes(data)

if __name__ == "__main__":
    names = [f"in/{number}" for number in range(4)]
    for write in (save, save_folder):
        for engine in ("serial", "processes"):
            records = list((qf.files.read() | qf.process(n=1)(qf.map(len) | (lambda size: b"x" * size)) | qf.files.write(
                write, outdir="small", append="", outname="{stem}" + f"{write.__name__}{engine}"))(names, engine=engine))
            print(*[record.error and record.error.errno for record in records], len(os.listdir("small")))
    try:
        list((qf.files.read() | qf.files.write(save, outdir="fixed"))(names))
    except qf.GraphError as error:
        print(error)
"""


def test_a_disk_that_is_full_or_read_only_is_told_and_what_has_room_is_done(tmp_path: Path) -> None:
    """Two of four outputs have room, and no part of another takes any, once it has failed: so one worker writes."""
    try:
        subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", tmp_path], check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("folders can't be mounted here")
    for each in ("in", "small", "fixed"):
        (tmp_path / each).mkdir()
    for number, size in enumerate([100_000, 3_000_000, 100_000, 3_000_000]):
        (tmp_path / "in" / str(number)).write_bytes(bytes(size))
    (tmp_path / "script.py").write_text(MOUNTED)
    mounts = "mount -t tmpfs -o size=2m none small && mount -t tmpfs -o ro none fixed"
    command = ["unshare", "-rm", "sh", "-c", f"{mounts} && exec {sys.executable} script.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    *rows, fixed = done.stdout.splitlines()
    assert rows == [f"None 28 None 28 {count}" for count in (2, 4, 6, 8)], done.stderr
    assert fixed == ("Nothing can be written to the folder 'fixed', for lack of permission, or because the disk is read-only.")
    assert done.stderr == ""


def test_a_flow_prints_as_it_was_written_and_plans() -> None:
    chain = files.read(np.load) | DEFAULT | reject | files.write(np.save, outdir="out", append="_r", fsync=True)
    assert repr(chain) == (
        "qf.files.read(np.load) | qf.files.defaults(boost_target=3) | qf.map(reject) | "
        "qf.files.write(np.save, outdir='out', append='_r', fsync=True)"
    )
    assert eval(repr(chain), {"qf": qf, "np": np, "reject": reject}) == chain
    (group,) = (qf.process(n=3)(chain) | qf.queue(2)).plan().groups
    assert (group.n, group.name) == (3, "read+defaults+reject+write")
    left = (files.read(np.load) | reject) | files.write(np.save)
    assert left == files.read(np.load) | (reject | files.write(np.save))


def test_a_pool_takes_lists_apart_and_files_do_not() -> None:
    with pytest.raises(qf.GraphError, match=r"`qf.pool` works on the elements of lists"):
        qf.pool(n=2)(files.read() | files.write(None))
    with pytest.raises(qf.GraphError, match="where each file is by itself"):
        (files.read() | qf.pool(len) | files.write(None))([])


@pytest.mark.parametrize("size", [3e9, 3_000_000_000, "3000000000", "3GB", "3 GB"])
def test_sizes_are_numbers_or_texts(size: Any) -> None:
    assert files.workers(n=8, mem_available=1e10, process_size=size)() == 3
    for wrong in (2.5, "3 apples", "", True, 0, "0", float("inf"), float("nan")):
        with pytest.raises(qf.GraphError, match="process_size"):
            files.workers(process_size=wrong)


def test_the_sizes_of_the_first_files_lower_the_number_of_workers(tmp_path: Path) -> None:
    names = [tmp_path / str(number) for number in range(5)]
    for number, name in enumerate(names):
        with name.open("wb") as file:
            file.truncate(number * 10**9)  # of a hole

    def n_of(n: Any, names: Any) -> int:
        with qf.run(qf.process(n=n)(files.read(os.stat) | files.write(None)), names) as run:
            list(run)
            return run.stats()[0].n

    def fits(**words: Any) -> Any:
        return files.workers(n=6, mem_available="9GB", **words)

    assert n_of(fits(), names[:1] * 3) == 3  # no more than inputs
    assert n_of(fits(), []) == 1
    assert n_of(fits(), names) == 2  # 9 GB / 4 GB
    assert n_of(fits(), names[:4]) == 3
    assert n_of(fits(), iter(names)) == 6  # nobody knows
    assert n_of(fits(), [names[:4], 3, tmp_path / "missing"]) == 1  # 6 GB in one
    assert n_of(fits(process_size="3GB"), names[:2] * 3) == 3
    assert n_of(fits(process_size="3GB"), names) == 2
    assert n_of(files.workers(n=6, mem_available="1GB"), names) == 1
    assert n_of(4, names) == 4
    apart = qf.process(n=fits())(files.read(os.stat)) | qf.process(n=fits())(files.write(None))
    with qf.run(apart, names) as run:
        assert [each.n for each in run.stats()] == [2, 2]
    with qf.run(qf.process(files.read(os.stat) | files.write(None)), names, n=fits()) as run:
        assert run.stats()[0].n == 2
    names[0].open("r+b").truncate(2**43)
    assert n_of("auto", names) == 1


@pytest.mark.parametrize(
    "nothing", [lambda data: None, lambda data: qf.SKIP, lambda data: iter(()), lambda data: iter([qf.SKIP])]
)
def test_each_input_has_a_record_also_if_a_step_gives_nothing(
    nothing: Any, texts: list[str], tmp_path: Path, engine: str
) -> None:
    def mark(data: bytes, meta: Meta) -> bytes:
        meta["was"] = data
        return data

    def some(data: bytes) -> Any:
        return nothing(data) if data == b"bbb" else data

    def never(data: bytes) -> bytes:
        assert isinstance(data, bytes)
        return data

    pipe = files.read() | mark | some | never | files.write(save, outdir=tmp_path)
    records = list(pipe(texts, engine=engine))
    assert [(record.input, record.output is None, record.meta["was"]) for record in records] == [
        (name, name.endswith("b.txt"), Path(name).read_bytes()) for name in texts
    ]
    assert all(record.empty for record in (files.read(lambda name: qf.SKIP) | files.write(save, outdir=tmp_path))(texts))


def test_as_many_workers_as_cores(texts: list[str]) -> None:
    step = qf.process(n="auto")(only(tell_x))
    assert step.using(n=2) != step
    assert qf.Flow(step).plan().groups[0].n == len(os.sched_getaffinity(0))
    assert qf.Flow(qf.process(n=lambda: 3)(abs)).plan().groups[0].n == 3
    assert repr(qf.process(n="auto")(abs)) == "qf.process(n='auto')(abs)"
    with pytest.raises(qf.GraphError, match="n must be a whole number of at least 1"):
        qf.process(n="all")(abs)
    with pytest.raises(qf.GraphError, match="n must be a whole number of at least 1"):
        qf.Flow(qf.process(n=lambda: 0.5)(abs)).plan()  # type: ignore[arg-type, return-value]


def test_real_paths_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert real(str(tmp_path / "link" / "a")) == real(str(tmp_path / "a"))


# ---- how many workers


def test_workers_are_as_many_as_cores_and_memory_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = fitting.physical_cores()
    assert 1 <= cores <= len(os.sched_getaffinity(0))
    assert files.workers(n=64, mem_available="10GB", process_size="3GB")() == 3
    assert files.workers()() == files.workers(n=0)() == cores
    assert files.workers(n=8.0)() == 8
    monkeypatch.setattr(fitting, "physical_cores", lambda: 6)
    assert [files.workers(n=part)() for part in (0.01, 0.5, 0.9, 1)] == [1, 3, 5, 1]
    monkeypatch.setattr(fitting, "available_memory", lambda: 10**10)
    assert [files.workers(process_size="3GB", mem_frac=part)() for part in (0.3, 0.8, 1)] == [1, 2, 3]
    with pytest.raises(
        qf.ResourceError, match=r"Not even one process of 3GB fits into the 2\.9GB of memory.*29% of what is available"
    ):
        files.workers(process_size="3GB", mem_frac=0.29)()
    with pytest.raises(qf.ResourceError, match="Not even one process"):
        qf.Flow(qf.process(n=files.workers(process_size="3GB", mem_available=1))(abs))([1])
    assert repr(files.workers(n=0.5, process_size="3GB")) == "qf.files.workers(n=0.5, process_size=3000000000)"
    assert eval(repr(files.workers(n=0.5, process_size="3GB")), {"qf": qf}) == files.workers(n=0.5, process_size="3GB")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"n": -1}, "a whole number of workers, or a part of the cores"),
        ({"n": 2.5}, "a whole number of workers, or a part of the cores"),
        ({"n": True}, "a whole number of workers, or a part of the cores"),
        ({"n": "all"}, "a whole number of workers, or a part of the cores"),
        ({"process_size": "3 apples"}, "`process_size` is a number of bytes or a text: got '3 apples'"),
        ({"process_size": 0.8}, "process_size must be a whole number"),
        ({"process_size": "0"}, "process_size must be a whole number of at least 1"),
        ({"mem_available": "much"}, "`mem_available` is a number of bytes or a text"),
        ({"mem_frac": 0}, "`mem_frac` is a number above 0, at most 1"),
        ({"mem_frac": 80}, "`mem_frac` is a number above 0, at most 1"),
    ],
)
def test_wrong_numbers_of_workers_are_told(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(qf.GraphError, match=said):
        files.workers(**wrong)


def test_limits_of_control_groups_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {
        "cpu.max": "150000 100000",
        "memory.max": "5000",
        "memory.current": "1000",
        "memory.stat": "inactive_file 7",
    }.items():
        (tmp_path / name).write_text(text)
    old = tmp_path / "old"
    old.mkdir()
    for name, text in {"cpu.cfs_quota_us": "100000", "cpu.cfs_period_us": "100000", "memory.limit_in_bytes": "900"}.items():
        (old / name).write_text(text)
    (old / "memory.usage_in_bytes").write_text("100")
    for module in (cores, machine):
        monkeypatch.setattr(module, "allowed", lambda: set(range(8)))
        monkeypatch.setattr(module, "groups", lambda controller: [str(tmp_path), str(tmp_path / "none")])
    assert (cores.usable(), machine.physical_cores() <= 2, machine.available_memory()) == (2, True, 4007)
    for module in (cores, machine):
        monkeypatch.setattr(module, "groups", lambda controller: [str(tmp_path), str(old)])
    assert (cores.usable(), machine.available_memory()) == (1, 800)


# ---- a run as a list, and what is kept of it


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.complex_numbers()
    | st.dates()
    | st.datetimes()
    | st.times()
    | st.floats().map(np.float64)
    | st.integers(0, 200).map(np.uint8)
    | st.booleans().map(np.bool)
    | st.text(max_size=5).map(Path)
    | st.lists(st.floats(width=32)).map(lambda values: np.array(values, "f4"))
    | st.just(np.arange(6, dtype=">i2").reshape(2, 3)[:, ::2]),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(), inner) | st.lists(inner).map(tuple) | st.dictionaries(st.integers(), inner)
    ),
    max_leaves=8,
)


@given(PLAIN)
def test_metadata_come_back_from_json(value: Any) -> None:
    found = from_plain(json.loads(json.dumps(to_plain(value))))
    assert same(found, value), (found, value)


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=True)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return len(one) == len(other) and all(
            same(a, b) for pair in zip(one.items(), other.items(), strict=True) for a, b in zip(*pair, strict=True)
        )
    return bool(one == other) or repr(one) == repr(other)


@pytest.mark.parametrize("value", [object(), len, np.array([object()]), type("Mine", (list,), {})()])
def test_what_json_can_not_hold_is_told(value: Any) -> None:
    with pytest.raises(NotPlain):
        to_plain(value)


@pytest.mark.parametrize("words", [{"$os.system": "ls"}, {"$array": ["O", [1], ""]}, {"$x": 1, "y": 2}])
def test_other_words_are_refused(words: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        from_plain(words)


def test_records_are_kept_and_only_what_is_missing_is_done(texts: list[str], tmp_path: Path) -> None:
    called = tmp_path / "called"

    def note(data: bytes, meta: Meta, scale: int = 1) -> bytes:
        with called.open("ab") as file:
            file.write(data[:1])
        if data == b"bad":
            raise ValueError(data)
        meta["size"] = np.float64(len(data) * scale)
        return data

    chain = files.read() | qf.map(note) | files.write(save, outdir=tmp_path / "out", create_outdir=True)
    cache = tmp_path / "records.jsonl"

    def did(**options: Any) -> tuple[str, list[Record]]:
        called.write_text("")
        found = files.records(chain, texts, cache=cache, engine="serial", **options)
        return called.read_text(), found

    words, first = did()
    assert words == "abc"
    assert did() == ("", first)
    os.remove(first[0].output or "")
    Path(texts[1]).write_text("bad")
    words, second = did()
    assert (words, second[0], second[2]) == ("ab", first[0], first[2])
    assert isinstance(second[1].error, ValueError)
    assert did()[0] == "b"  # what failed is done again
    Path(texts[1]).write_text("good")
    words, third = did()
    assert (words, third[1].meta) == ("g", {"size": 4.0})
    assert did(params={"scale": 2})[0] == "agc"  # other parameters
    cut = cache.read_bytes()[:-5]
    cache.write_bytes(cut)  # as a killed run leaves it
    assert did(params={"scale": 2})[0] == "c"
    assert did(params={"scale": 2})[0] == ""
    assert b"pickle" not in cache.read_bytes()
    cache.write_text("no records")
    with pytest.raises(qf.GraphError, match="`cache` is a file of records, but"):
        did()
    with pytest.raises(qf.GraphError, match="`cache` is the path of a file"):
        files.records(chain, texts, cache=True)  # type: ignore[arg-type]
    with pytest.raises(qf.GraphError, match="a file in a folder that is there"):
        files.records(chain, texts, cache=tmp_path / "nowhere" / "x")

    def odd(data: bytes, meta: Meta) -> bytes:
        meta["object"] = object()
        return data

    with pytest.warns(UserWarning, match=r"The metadata of '.*a.txt' can't be kept, and will be made again: object"):
        found = files.records(only(odd), texts[:1], cache=tmp_path / "other.jsonl", engine="serial")
    assert [record.error for record in found] == [None]
    cache.unlink()


def test_inputs_with_several_records_keep_their_places(texts: list[str], tmp_path: Path) -> None:
    def some(data: bytes, meta: Meta) -> Iterator[Any]:
        for number in range({b"a": 2, b"b": 0, b"c": 1}[data[:1]]):
            meta["n"] = number
            yield data

    cache = tmp_path / "records.jsonl"
    first = files.records(only(some), texts, cache=cache, engine="serial")
    numbers = [(texts[0], {"n": 0}), (texts[0], {"n": 1}), (texts[1], {}), (texts[2], {"n": 0})]
    assert [(record.input, record.meta) for record in first] == numbers
    assert files.records(only(some), texts, cache=cache, engine="serial") == first
    assert len(cache.read_text().splitlines()) == 4


def test_a_bar_shows_files_and_bytes(texts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    found = files.records(only(tell_x, fails), texts, progress=True, engine="serial")
    assert len(found) == 3
    assert re.search(r"100%.*3/3 \[.* files/s, .*B/s, 1 failed\]", capsys.readouterr().err)


def test_a_dry_run_says_what_would_be_written(texts: list[str], tmp_path: Path) -> None:
    chain = qf.process(n=2)(files.read() | tell_x | files.write(save, outdir=tmp_path, skip_existing=True))
    (tmp_path / "b_bmp.txt").write_text("b")
    found = files.outputs(chain, texts)
    assert [(os.path.basename(each.output or ""), each.skipped) for each in found] == [
        ("a_bmp.txt", False),
        ("b_bmp.txt", True),
        ("c_bmp.txt", False),
    ]
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "b.txt", "b_bmp.txt", "c.txt"]
    with pytest.raises(qf.GraphError, match="would both be written"):
        files.outputs(chain, texts, params={"outname": "same"})
    with pytest.raises(qf.GraphError, match=r"no `qf.files.write`"):
        files.outputs(qf.map(abs), texts)


# ---- a command line


def test_a_chain_has_a_command_line_in_two_lines(texts: list[str], tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import sys, qflow as qf\n"
        "from qflow import files\n"
        "def cut(data, meta, length: int = 1):\n"
        "    if data.startswith(b'c'):\n"
        "        raise ValueError('no c')\n"
        "    meta['n'] = len(data)\n"
        "    return data[:length]\n"
        "def save(path, data):\n"
        "    open(path, 'wb').write(data)\n"
        "if __name__ == '__main__':\n"
        "    sys.exit(files.main(files.read() | cut | files.write(save)))\n"
    )

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "script.py", *words], cwd=tmp_path, capture_output=True, text=True, check=False)

    dry = call("a.txt", "b.txt", "--outdir", "out", "--create-outdir", "--dry-run")
    assert dry.returncode == 0
    assert dry.stdout.startswith("source")
    assert dry.stdout.endswith("\n\na.txt -> out/a_bmp.txt\nb.txt -> out/b_bmp.txt\n")
    missing = call("a.txt", "--outdir", "out")
    assert missing.returncode == 2
    assert "There is no folder 'out'" in missing.stderr
    done = call("a.txt", "b.txt", "--outdir", "out", "--create-outdir", "--append", "_x", "--n", "2", "--set", "length=2")
    assert done.returncode == 0, done.stderr
    assert "2 inputs, 2 outputs, 0 failed" in done.stdout
    assert (tmp_path / "out" / "a_x.txt").read_text() == "aa"
    failed = call(
        "a.txt", "c.txt", "--n", "0.5", "--process-size", "1MB", "--mem-frac", "0.5", "--quiet", "--cache", "kept.jsonl"
    )
    assert failed.returncode == 1
    assert "c.txt: ValueError: no c" in failed.stderr
    assert "'cut'" in failed.stderr
    assert len((tmp_path / "kept.jsonl").read_text().splitlines()) == 2
    for dry in ((), ("--dry-run",)):
        for wrong, said in (
            (["--set", "lenght=2"], "`params` has `lenght`"),
            (["--process-size", "3 apples"], "got '3 apples'"),
            (["--outdir", "nowhere"], "There is no folder 'nowhere'"),
        ):
            unknown = call("a.txt", *wrong, *dry)
            assert unknown.returncode == 2
            assert said in unknown.stderr
    assert "4 processes" in call("a.txt", "b.txt", "--n", "4", "--append", "_z", "--dry-run").stdout
    assert call("a.txt", "--n", "-3").returncode == 2


def test_options_join_a_parser_of_ones_own(texts: list[str], tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bias", type=int, default=7)
    options = files.add_arguments(parser, outdir=str(tmp_path), quiet=True).parse_args(
        [texts[0], "--no-skip-existing", "--n", "1"]
    )
    found = files.run_with(options, only(tell_x), params={"x": options.bias}, engine="serial")
    assert [record.meta for record in found] == [{"x": 7}]
    with pytest.raises(qf.GraphError, match="`add_arguments` has no option `outdri`"):
        files.add_arguments(argparse.ArgumentParser(), outdri="x")


def test_steps_may_have_pools_of_their_own(texts: list[str]) -> None:
    def pooled(data: bytes, meta: Meta) -> bytes:
        with multiprocessing.get_context("fork").Pool(2) as pool:
            meta["doubled"] = pool.map(len, [data, data])
        return data

    with qf.Flow(qf.process(n=2)(only(pooled))) as pipe:
        assert [record.meta for record in pipe(texts)] == [{"doubled": [3, 3]}] * 3


# ---- what crosses, and what is left


def heavy(data: Any, meta: Meta) -> Any:
    meta["background"] = data + 1
    meta.local("background")
    meta["shared"] = shared_bytes()
    return data * 2


def test_the_data_of_a_file_crosses_no_process(tmp_path: Path) -> None:
    names = [str(tmp_path / f"{number}.npy") for number in range(4)]
    for name in names:
        np.save(name, np.zeros(2_000_000))
    read, write = files.read(np.load), files.write(np.save, outdir=tmp_path)
    for flow, least, most in (
        (qf.process(n=2)(read | heavy | write), 0, 1 << 20),
        (qf.process(read) | qf.process(heavy) | write, 8_000_000, 1 << 30),
    ):
        with qf.Flow(flow) as pipe:
            records = list(pipe(names))
            assert shared_bytes() < 1 << 20
        assert all(record.output for record in records)
        assert least <= max(record.meta["shared"] for record in records) < most


def shared_bytes() -> int:
    """Bytes of qflow's shared memory that is really there."""
    mapped = Path("/proc/self/smaps").read_text().split("memfd:qflow-edge")[1:]
    return sum(int(lines.partition("Rss:")[2].split()[0]) * 1024 for lines in mapped)


KILLED = """
import os, sys, time
import qflow as qf
from qflow import files

def slow(data, meta):
    time.sleep(0.02)
    meta["n"] = len(data)
    return data

def save(path, data):
    with open(path, "wb", buffering=0) as file:
        for number in range(10):
            file.write(data[number * 1000 : (number + 1) * 1000])
            time.sleep(0.001)

names = sorted(f"in/{name}" for name in os.listdir("in"))
chain = files.read() | slow | files.write(save, outdir="out", create_outdir=True, skip_existing=True)
with qf.Flow(qf.process(n=3)(chain)) as pipe:
    for record in pipe(names):
        assert record.error is None, record.error
        print(record.input, record.output, "n" in record.meta, flush=True)
"""


def test_a_killed_script_leaves_whole_files_and_the_next_one_does_the_rest(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(60):
        (tmp_path / "in" / f"{number:02}.bin").write_bytes(bytes([number]) * 10_000)
    (tmp_path / "script.py").write_text(KILLED)
    begun = 0
    for lines in (5, 20, None):
        command = [sys.executable, "script.py"]
        with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as script:
            assert script.stdout is not None
            told = [line.split() for line, _ in zip(script.stdout, range(lines or 100), strict=False)]
            if lines:
                script.kill()
            script.wait()
        skipped = sum(line[2] == "False" for line in told)
        assert skipped >= begun - 1
        begun = lines or 60
        for path in (tmp_path / "out").glob("*.bin"):
            assert path.read_bytes() == bytes([int(path.name[:2])]) * 10_000
    assert len(told) == 60
    assert sorted(os.listdir(tmp_path / "out")) == [f"{number:02}_bmp.bin" for number in range(60)]


# ---- what may collide


def load(name: str) -> Any:
    return np.load(name)


def pair(data: Any) -> Iterator[Any]:
    yield data
    yield data


def test_a_suffix_that_the_writer_adds_may_not_hit_others(tmp_path: Path, engine: str) -> None:
    for name in ("a.npy", "b.npy"):
        np.save(tmp_path / name, np.zeros(3))
    (tmp_path / "a").write_bytes((tmp_path / "a.npy").read_bytes())
    out = tmp_path / "out"
    out.mkdir()
    own = list(
        (files.read(load) | qf.map(tenfold) | files.write(np.save, outdir=tmp_path, outname="{stem}"))(
            [tmp_path / "b.npy"], engine=engine
        )
    )
    assert "would replace the input" in str(own[0].error)
    both = list((files.read(load) | files.write(np.save, outdir=out))([tmp_path / "a.npy", tmp_path / "a"], engine=engine))
    assert sorted(record.error is None for record in both) == [False, True]
    assert os.listdir(out) == ["a_bmp.npy"]


def test_metadata_may_not_name_another_input(texts: list[str], tmp_path: Path, engine: str) -> None:
    def name(data: bytes, meta: Meta) -> bytes:
        meta["outname"] = "b.txt" if data == b"aaa" else f"{data.decode()}.dat"
        return data

    first, *rest = (files.read() | qf.map(name) | files.write(save, outdir=tmp_path))(texts, engine=engine)
    assert "would replace the input" in str(first.error)
    assert [record.error for record in rest] == [None, None]
    assert Path(texts[1]).read_text() == "bbb"


def test_outputs_are_told_apart_by_their_items_not_by_their_names(texts: list[str], tmp_path: Path, engine: str) -> None:
    def write(**options: Any) -> Any:
        return files.write(save, outdir=tmp_path, **options)

    for pipe, names in (
        (files.read() | qf.map(pair) | pair | write(outname="{part}{suffix}"), texts[:1]),
        (files.read() | b"".join | write(append="_all"), iter([texts[:2], [texts[0], texts[2]]])),
        (files.read() | write(), iter([texts[0], texts[0]])),
    ):
        records = list(pipe(names, engine=engine))
        written = [record.output for record in records if record.error is None]
        assert len({*written}) == len(written)
        assert len(records) == 4 or len(written) == 1
        assert all(Path(path or "").exists() for path in written)
    late = list((files.read() | write())(iter([texts[0], str(tmp_path / "a_bmp.txt")]), engine=engine))
    assert "is an output of this run" in str(late[1].error)


def test_outputs_are_told_apart_where_there_are_no_links(
    texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, "as exFAT says")

    monkeypatch.setattr(os, "symlink", refuse)
    same = files.read() | files.write(save, outdir=tmp_path, outname="same")
    first, *rest = same(iter(texts), engine="serial")
    assert first.error is None
    assert ["is the output of item 0" in str(record.error) for record in rest] == [True, True]
    monkeypatch.undo()
    assert [record.error is None for record in same(iter(texts), engine="serial")] == [True, False, False]


def test_a_link_to_an_output_is_an_input_that_it_would_replace(texts: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "link_bmp.txt").write_text("precious")
    (tmp_path / "link.txt").symlink_to(out / "link_bmp.txt")
    with pytest.raises(qf.GraphError, match="would replace the input"):
        (files.read() | files.write(save, outdir=out))([str(tmp_path / "link.txt")])


def test_a_step_that_changes_the_folder_changes_no_output(
    texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()

    def wanders(data: bytes) -> bytes:
        os.chdir(tmp_path / "elsewhere")
        return data

    records = list((files.read() | qf.map(wanders) | files.write(save, outdir="out"))(texts[:1], engine=engine))
    assert records == [Record(texts[0], "out/a_bmp.txt", {})]
    assert os.listdir(tmp_path / "out") == ["a_bmp.txt"]


def test_behind_a_pair_steps_get_records_and_nothing_is_cached(texts: list[str], tmp_path: Path) -> None:
    with pytest.raises(qf.GraphError, match="'tell_x' needs `meta`, which has no value"):
        (only(plus_one) | tell_x)(texts)
    with pytest.raises(qf.GraphError, match="would keep records of outputs that may be gone"):
        (only(tell_x) | qf.cache(str(tmp_path)))(texts)
    with qf.Flow(only(fails) | qf.map(lambda record: record.input) | qf.pack(2)) as pipe:
        with pytest.raises(ArithmeticError):
            list(pipe(texts, engine="serial"))
        assert list(pipe(texts, engine="serial", on_error="skip")) == [[texts[0], texts[2]]]
        with pytest.raises(qf.GraphError, match='`on_error="report"` is for flows that end with'):
            pipe(texts, on_error="report")


def test_one_pair_in_a_flow() -> None:
    pipe = files.read() | files.write(None) | qf.map(lambda record: record.input) | files.read() | files.write(None)
    with pytest.raises(qf.GraphError, match="Make two flows"):
        pipe(["a"])


def test_parts_have_metadata_of_their_own(texts: list[str], engine: str) -> None:
    def several(data: bytes, meta: Meta) -> Iterator[bytes]:
        meta["log"] = []
        for _ in range(2):
            yield data

    def logs(data: bytes, meta: Meta, seen: Any = ()) -> bytes:
        meta["log"].append(len(meta["log"]))
        seen.append(1)
        meta["seen"] = len(seen)
        return data

    flow = files.read() | qf.map(several) | files.defaults(seen=[]) | logs | files.write(None)
    assert [record.meta for record in flow(texts[:2], engine=engine)] == [{"log": [0], "seen": 1}] * 4


def test_marked_chains_keep_no_data_that_later_steps_need_not(tmp_path: Path) -> None:
    alive: list[int] = []

    class Data:
        count = 0

        def __init__(self) -> None:
            Data.count += 1

        def __del__(self) -> None:
            Data.count -= 1

    def again(data: Any) -> Any:
        made = Data()
        alive.append(Data.count)
        return made

    def end(data: Any) -> Any:
        alive.append(Data.count)
        return data

    chain = files.read(lambda name: Data()) | again | again | again | end | files.write(None)
    list(qf.run(qf.process(chain), ["a", "b"], engine="serial"))
    assert alive == [2, 2, 2, 1] * 2


def test_the_writer_and_what_kind_of_step_it_is_belong_to_what_is_kept(texts: list[str], tmp_path: Path) -> None:
    def other(path: str, data: bytes) -> None:
        Path(path).write_bytes(data * 2)

    cache = tmp_path / "records.jsonl"
    for writer, right in ((save, "aaa"), (other, "aaaaaa")):
        (record,) = files.records(files.read() | files.write(writer, outdir=tmp_path), texts[:1], cache=cache, engine="serial")
        assert Path(record.output or "").read_text() == right
    (tmp_path / "a_bmp.txt").write_text("")  # cut off by somebody
    files.records(files.read() | files.write(other, outdir=tmp_path), texts[:1], cache=cache, engine="serial")
    assert (tmp_path / "a_bmp.txt").read_text() == "aaaaaa"
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "a.txt").write_text("y")
    with pytest.raises(qf.GraphError, match="would both be written"):  # with one that is kept
        files.records(files.read() | files.write(other, outdir=tmp_path), [texts[0], tmp_path / "y" / "a.txt"], cache=cache)
    assert files.records(only(fails), texts, cache=tmp_path / "other", engine="serial", on_error="skip")[1].input == texts[2]
    assert len(files.records(only(fails), texts, cache=tmp_path / "other", engine="serial")) == 3
    twice = [texts[0], texts[0]]
    assert len(files.records(only(tell_x), twice, engine="serial")) == 2
    with pytest.raises(qf.GraphError, match="stands there twice"):
        files.records(only(tell_x), twice, cache=tmp_path / "twice", engine="serial")
    for wrong in (qf.map(str) | only(tell_x), qf.pack(2) | only(tell_x)):
        with pytest.raises(qf.GraphError, match="`cache` needs the records in the order of the names"):
            files.records(wrong, texts, cache=tmp_path / "wrong", engine="serial")
        assert files.records(wrong, texts, engine="serial")
    made = files.read(lambda name: name) | files.write(None)
    assert len(files.records(made, ["run:1"], cache=tmp_path / "made", engine="serial")) == 1


def test_parameters_of_the_writer_and_of_steps_before_are_known(texts: list[str], tmp_path: Path, engine: str) -> None:
    def headed(path: str, data: bytes, *, header: str = "") -> None:
        Path(path).write_bytes(header.encode() + data)

    def where(name: str, night: str = "") -> str:
        return os.path.join(os.path.dirname(name), night or os.path.basename(name))

    def uses(data: bytes, control: dict[str, Any]) -> bytes:
        control["header"] = control.get("header", "") + "!"
        return data

    pipe = qf.map(where) | files.read() | uses | files.write(headed, outdir=tmp_path)
    (record,) = pipe(texts[:1], engine=engine, params={"header": "h", "night": "b.txt"})
    assert record.error is None
    assert (tmp_path / "b_bmp.txt").read_text() == "h!bbb"


# ---- inputs and outputs that would replace each other


@pytest.mark.parametrize("before", [False, True])
def test_an_input_that_was_read_is_not_replaced_where_nobody_knows_all_names(
    before: bool, texts: list[str], tmp_path: Path, engine: str
) -> None:
    precious = tmp_path / "a_bmp.txt"
    precious.write_text("precious")
    chain = files.read() | files.write(save, outdir=tmp_path)
    names = [str(precious), texts[0]]
    records = list((qf.map(str) | chain)(names, engine=engine) if before else chain(iter(names), engine=engine))
    assert [type(record.error) for record in records] == [type(None), ValueError]
    assert "would replace the input" in str(records[1].error)
    assert precious.read_text() == "precious"


def in_folder(path: str, data: Any) -> None:
    os.mkdir(path)
    Path(path, "sum.txt").write_text(str(len(data)))


def test_an_output_that_is_a_folder_never_replaces_one_with_inputs(tmp_path: Path, engine: str) -> None:
    (tmp_path / "night1").mkdir()
    names = [str(tmp_path / "night1" / name) for name in ("a.txt", "b.txt")]
    for name in names:
        Path(name).write_text("x")
    pipe = files.read() | files.write(in_folder, outdir=tmp_path, outname="{parent}")
    with pytest.raises(qf.GraphError, match="would replace the input"):
        pipe([names], engine=engine)
    (record,) = pipe(iter([names]), engine=engine)
    assert "would replace the input" in str(record.error)
    assert sorted(os.listdir(tmp_path / "night1")) == ["a.txt", "b.txt"]


@pytest.mark.parametrize("order", [("b/inner.txt", "b"), ("b", "b/inner.txt")])
@pytest.mark.parametrize("known", [True, False])
def test_an_output_lies_in_no_other_one(
    order: tuple[str, str], known: bool, texts: list[str], tmp_path: Path, engine: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()

    def name(data: bytes, meta: Meta) -> bytes:
        meta["outname"] = order[data == b"bbb"]
        return data

    def write(path: str, data: bytes) -> None:
        in_folder(path, data) if path.endswith("b") else save(path, data)

    pipe = files.read() | name | files.write(write, outdir=out, create_outdir=True)
    records = list(pipe(texts[:2] if known else iter(texts[:2]), engine=engine))
    assert sum(record.error is not None for record in records) == 1
    assert all(os.path.exists(record.output) for record in records if record.output)


def test_a_folder_is_replaced_at_once(texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = files.read() | files.write(in_folder, outdir=tmp_path, outname="{stem}")
    for known in (True, False):
        if not known:  # a system that can't exchange
            monkeypatch.setattr(work.ctypes, "CDLL", lambda name: object())
        for _ in range(2):
            assert [record.error for record in pipe(texts, engine="serial")] == [None] * 3
        assert sorted(os.listdir(tmp_path)) == ["a", "a.txt", "b", "b.txt", "c", "c.txt"]


def test_what_runs_elsewhere_is_not_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / f"{work.owner(os.getpid()).partition(str(os.getpid()))[0]}{1 << 30}-1-x"
    other.mkdir()
    with monkeypatch.context() as patch:
        work._host.cache_clear()
        patch.setattr(work.os, "readlink", lambda path: "pid:[another]")
        work.sweep(str(tmp_path))
        assert other.exists()
    work._host.cache_clear()
    work.sweep(str(tmp_path))
    assert not other.exists()


def test_what_can_not_be_renamed_is_copied_beside_it_first(
    texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, refused = os.replace, []

    def between_mounts(source: str, target: str) -> None:
        if not refused:
            refused.append(source)
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, target)

    monkeypatch.setattr(work.os, "replace", between_mounts)
    records = list((files.read() | files.write(save, outdir=tmp_path))(texts, engine="serial"))
    assert [record.error for record in records] == [None] * 3
    assert refused
    assert Path(records[0].output or "").read_text() == "aaa"
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []


# ---- sources, parts, defaults, caches


def test_a_source_that_can_be_iterated_once_is_iterated_once(texts: list[str], tmp_path: Path) -> None:
    class Once:
        """As a bar is."""

        def __init__(self, names: list[str]) -> None:
            self.names = iter(names)

        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Iterator[str]:
            return self.names

        def __contains__(self, name: object) -> bool:
            return False

    first = files.read() | files.write(save, outdir=tmp_path)
    again = qf.map(lambda record: record.output) | files.read() | files.write(save, outdir=tmp_path, append="2")
    assert len(list(first(Once(texts), engine="serial"))) == 3
    assert [record.error for record in again(first(texts, engine="serial"), engine="serial")] == [None] * 3
    assert (tmp_path / "a_bmp2.txt").read_text() == "aaa"


def test_what_has_parts_is_never_skipped(texts: list[str], tmp_path: Path, engine: str) -> None:
    def parts(data: bytes) -> Iterator[bytes]:
        yield from (data, data[:1])

    pipe = files.read() | parts | files.write(save, outdir=tmp_path, outname="{stem}-{part}", skip_existing=True)
    for _ in range(2):
        assert len(list(pipe(texts, engine=engine))) == 6
        os.unlink(tmp_path / "b-1")
    assert len(list(pipe(texts, engine=engine))) == 6
    assert (tmp_path / "b-1").read_text() == "b"


def test_what_is_skipped_is_of_this_input(tmp_path: Path) -> None:
    for name in "yz":
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name)
    pipe = files.read() | files.write(save, outdir=tmp_path, skip_existing=True)
    records = list(pipe(iter([tmp_path / "y" / "a.txt", tmp_path / "z" / "a.txt"]), engine="serial"))
    assert [type(record.error) for record in records] == [type(None), FileExistsError]
    assert (tmp_path / "a_bmp.txt").read_text() == "y"


def test_outputs_with_a_suffix_of_the_writer_are_skipped_too(texts: list[str], tmp_path: Path) -> None:
    pipe = files.read(np.fromfile) | files.write(np.save, outdir=tmp_path, skip_existing=True)
    for name in texts:
        Path(name).write_bytes(bytes(16))
    first = [record.output for record in pipe(texts, engine="serial")]
    assert first == [f"{tmp_path}/{name}_bmp.txt.npy" for name in "abc"]
    stamps = [os.stat(name).st_mtime_ns for name in first if name]
    assert [each.skipped for each in files.outputs(pipe, texts)] == [True] * 3
    assert [record.output for record in pipe(texts, engine="serial")] == first
    assert [os.stat(name).st_mtime_ns for name in first if name] == stamps


def test_defaults_are_for_the_reader_and_for_what_is_written_too(texts: list[str], tmp_path: Path, engine: str) -> None:
    def part(name: str, most: int) -> bytes:  # which has no default of its own
        return Path(name).read_bytes()[:most]

    pipe = files.read(part) | files.defaults(most=1, skip_existing=True) | files.write(save, outdir=tmp_path)
    for params, right in (({}, "a"), ({"most": 2}, "a"), ({"most": 2, "skip_existing": False}, "aa")):
        records = list(pipe(texts, engine=engine, params=params))
        assert [record.error for record in records] == [None] * 3
        assert (tmp_path / "a_bmp.txt").read_text() == right


def test_what_a_step_does_to_a_parameter_of_the_run_is_for_its_file_only(texts: list[str], engine: str) -> None:
    def note(data: bytes, log: list[int], meta: Meta) -> bytes:
        log.append(1)
        meta["n"] = len(log)
        return data

    mine: list[int] = []
    assert [record.meta for record in only(note)(texts, engine=engine, params={"log": mine})] == [{"n": 1}] * 3
    assert mine == []


def test_wrong_controls_are_told_wherever_they_are_set(texts: list[str], tmp_path: Path) -> None:
    (record, *_) = only(qf.filter(lambda data, control: control.update(mis=1) or True))(texts, engine="serial")
    assert "sets the control `mis`" in str(record.error)

    def set_fsync(data: bytes, control: dict[str, Any]) -> bytes:
        control["fsync"] = "no"
        return data

    (record, *_) = (files.read() | set_fsync | files.write(save, outdir=tmp_path))(texts, engine="serial")
    assert "`fsync` is True or False" in str(record.error)
    with pytest.raises(qf.GraphError, match="names `meta`, which is for the steps behind it"):
        files.read(lambda name, meta: name)


def test_a_step_that_changes_the_folder_loses_no_input(texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()

    def leave(data: bytes) -> Iterator[bytes]:
        os.chdir(tmp_path / "elsewhere")
        yield data

    monkeypatch.chdir(tmp_path)
    for names in (["a.txt", "b.txt"], [Path("a.txt"), Path("b.txt")], [["a.txt", "b.txt"]]):
        os.chdir(tmp_path)
        records = list((files.read() | leave | files.write(None))(names, engine="serial"))
        assert [record.error for record in records] == [None] * len(names)
        os.chdir(tmp_path)
        for each in (names, iter(names)):
            os.chdir(tmp_path)
            with contextlib.suppress(qf.GraphError):
                list((files.read() | leave | files.write(lambda path, data: save(path, b"!"), append=""))(each, engine="serial"))
    assert Path(texts[0]).read_text() == "aaa"


def test_every_input_has_a_record_whatever_it_is(texts: list[str], tmp_path: Path, engine: str) -> None:
    records = list((files.read() | files.write(None))(iter([texts[0], 3, None, texts[2]]), engine=engine))
    assert [type(record.error) for record in records] == [type(None), TypeError, TypeError, type(None)]
    assert [row["input"] for row in files.table(records)] == [texts[0], "3", "None", texts[2]]


def test_a_record_of_a_failure_keeps_no_data_alive(texts: list[str]) -> None:
    class Data:
        pass

    kept: list[Any] = []

    def data(name: str) -> Data:
        kept.append(weakref.ref(found := Data()))
        return found

    def fails_with(data: Data) -> None:
        raise ValueError("no") from KeyError("why")

    records = list((files.read(data) | fails_with | files.write(None))(texts, engine="serial"))
    assert [each() for each in kept] == [None] * 3
    assert "in fails_with" in str(records[0].error.__cause__)
    assert "KeyError: 'why'" in str(records[0].error.__cause__)


def test_no_file_that_is_no_cache_is_overwritten_and_no_cache_by_a_typing_error(texts: list[str], tmp_path: Path) -> None:
    catalogue = tmp_path / "cat.json"
    for text in ('{"my": "catalogue"}', "[1, 2]", "text"):
        catalogue.write_text(text)
        with pytest.raises(qf.GraphError, match="`cache` is a file of records, but"):
            files.records(only(tell_x), texts, cache=catalogue, engine="serial")
        assert catalogue.read_text() == text
    cache = tmp_path / "cache"
    files.records(only(tell_x), texts, cache=cache, engine="serial")
    before = cache.read_text()
    with pytest.raises(qf.GraphError, match="`params` has `y`"):
        files.records(only(tell_x), texts, cache=cache, engine="serial", params={"y": 1})
    assert cache.read_text() == before
    for x in (1, 0):  # what was kept for other parameters is kept
        found = files.records(only(tell_x), texts, cache=cache, engine="serial", params={"x": x} if x else None)
        assert [record.meta for record in found] == [{"x": x}] * 3
    assert len(cache.read_text().splitlines()) == 7
    files.records(only(tell_x), texts, cache=cache, engine="serial", renew=True)
    assert len(cache.read_text().splitlines()) == 10


def test_a_cache_knows_switches_and_seeds(texts: list[str], tmp_path: Path) -> None:
    def draw(data: bytes, meta: Meta, rng: Any) -> bytes:
        meta["drawn"] = int(rng.integers(1 << 60))
        meta["large"] = 1
        meta.local("large")
        return data

    cache = tmp_path / "cache"

    def found(keep: bool, seed: int) -> Any:
        chain = files.read() | draw | files.write(None, keep_local=keep)
        return [record.meta for record in files.records(chain, texts, cache=cache, engine="serial", seed=seed)]

    assert found(False, 1) == found(False, 1)
    assert found(False, 1) != found(False, 2)
    assert [*found(True, 1)[0]] == ["drawn", "large"]


@pytest.mark.parametrize("meta", [{"uint8": 3}, {"_bool": 1}, {"uint16": 70_000}, {"$uint8": 3}, {"dict": []}, {"": 0}])
def test_names_of_types_are_names_like_others(meta: Any) -> None:
    back = from_plain(json.loads(json.dumps(to_plain(meta))))
    assert back == meta
    assert type(back) is dict
