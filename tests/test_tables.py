"""Files of tables that refer to each other: against a model in memory, with random appends, links and deletions."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qflow as qf
from qflow import h5
from qflow.h5 import datasets, regions, tables

h5py = pytest.importorskip("h5py")
NAMES = ["a", "b", "group/c"]


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "out.h5"
    assert [each for each in os.listdir(tmp_path) if each.startswith(".")] == []


def linked(model: Any, parent: str, child: str, rows: Any) -> list[list[int]]:
    """Which rows of the child, in ascending order."""
    pairs = [*model.get((parent, child), []), *((one, other) for other, one in model.get((child, parent), []))]
    pairs = pairs if parent != child else model.get((parent, child), [])
    return [sorted(int(other) for one, other in pairs if one == row) for row in rows]


def check(file: Any, rows: dict[str, list[int]], pairs: dict[tuple[str, str], list[tuple[int, int]]]) -> None:
    """The file has what the model has, and regions hold all pairs of their rows, and begin and end with one."""
    assert [*file] == sorted(rows)
    assert file.links() == sorted(pairs)
    for name, values in rows.items():
        assert file[name, :].tolist() == values
        assert file[name, ::-1].tolist() == values[::-1]
        assert (f"{name}/ref" in file.file) == any(name in link for link in pairs)
    for (parent, child), each in pairs.items():
        assert file.ref(parent, child)[0][:].tolist() == [list(pair) for pair in each]
        for one, other, column in ((parent, child, 0), (child, parent, 1)):
            found = file[one, other, :]
            wanted = linked(pairs, one, other, range(len(rows[one])))
            assert [row.compressed().tolist() for row in found] == [[rows[other][k] for k in links] for links in wanted]
            regions = file.region(one, other)[:]
            assert len(regions) == len(rows[one])
            for row, (start, stop) in enumerate(regions.tolist()) if parent != child else ():
                places = [place for place, pair in enumerate(each) if pair[column] == row]
                assert (start, stop) == ((places[0], places[-1] + 1) if places else (0, 0))


@given(st.data())
def test_a_file_is_what_was_done_to_it(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    path = tmp_path_factory.mktemp("tables") / "a.h5"
    rows: dict[str, list[int]] = {}
    pairs: dict[tuple[str, str], list[tuple[int, int]]] = {}
    file = h5.Tables(path, "w", compression=data.draw(st.sampled_from([None, "gzip", "lzf"])))
    for number in range(data.draw(st.integers(1, 12))):
        what = data.draw(st.sampled_from(["append", "append", "link", "link", "delete", "reopen"]))
        name, other = data.draw(st.sampled_from(NAMES)), data.draw(st.sampled_from(NAMES))
        if what == "append":
            values = [100 * number + k for k in range(data.draw(st.integers(0, 5)))]
            before = len(rows.setdefault(name, []))
            assert file.append(name, np.array(values, int)) == slice(before, before + len(values))
            rows[name] += values
        elif what == "link" and name in rows and other in rows:
            if rows[name] and rows[other]:
                pair = st.tuples(st.integers(0, len(rows[name]) - 1), st.integers(0, len(rows[other]) - 1))
                new = data.draw(st.lists(pair, max_size=6))
            else:
                new = []
            key = (other, name) if (other, name) in pairs else (name, other)
            file.link(name, other, new)
            pairs[key] = pairs.get(key, []) + [pair if key == (name, other) else pair[::-1] for pair in new]
        elif what == "delete" and name in rows:
            file.delete(name)
            del rows[name]
            pairs = {key: each for key, each in pairs.items() if name not in key}
        elif what == "reopen":
            file.close()
            file = h5.Tables(path, "a")
        check(file, rows, pairs)
    file.close()
    with h5.Tables(path) as file:
        check(file, rows, pairs)


def test_the_readme_of_h5flow(path: Path) -> None:
    with h5.Tables(path, "w") as file:
        file.append("d0", np.arange(3))
        file.append("d1", np.arange(4))
        file.link("d0", "d1", [[0, 1], [1, 2]])
        assert file.region("d0", "d1")[:].tolist() == [(0, 1), (1, 2), (0, 0)]
        assert file.region("d1", "d0")[:].tolist() == [(0, 0), (0, 1), (1, 2), (0, 0)]
        assert file["d0", "d1", :].tolist() == [[1], [2], [None]]
        assert file["d1", "d0", :].tolist() == [[None], [0], [1], [None]]
        file.link("d1", "d0", [[3, 2]])
        file.link("d1", "d0", np.empty((0, 2), int))
        assert file.ref("d0", "d1")[0][:].tolist() == [[0, 1], [1, 2], [2, 3]]
        assert file["d0", "d1"].tolist() == [[1], [2], [3]]
        assert file["d0", "d1", 1:].tolist() == [[2], [3]]


def test_nothing_stays_of_the_references_of_a_table_that_goes(path: Path) -> None:
    with h5.Tables(path, "w") as file:
        for name in ("A", "B", "group/C"):
            file.append(name, np.arange(3))
        for other in ("A", "group/C"):
            file.link("B", other, [[0, 1]])
        file.delete("A")
        assert [*file.file["B/ref"]] == ["group"]
        file.delete("group/C")
        assert [*file.file["B"]] == ["data"]


def test_a_group_of_the_user_stays_when_its_tables_go(path: Path) -> None:
    """Also one whose name only begins as that of references does."""
    with h5.Tables(path, "w") as file:
        for name in ("reco/reference/C", "D"):
            file.append(name, np.arange(3))
        file.link("D", "reco/reference/C", [[0, 1]])
        file.attrs("reco/reference")["note"] = "mine"
        file.delete("reco/reference/C")
        assert file.attrs("reco/reference")["note"] == "mine"
        assert [*file.file["D"]] == ["data"]


def test_what_h5py_does_to_a_file_is_seen(path: Path) -> None:
    with h5.Tables(path, "w") as file:
        for name in ("group/A", "B"):
            file.append(name, np.arange(3))
        old = file["group/A"]
        file.file.move("group", "other")
        assert "group/A" not in file
        file.append("group/A", np.arange(5.0))
        assert file["group/A", :].tolist() == [0, 1, 2, 3, 4]
        assert file["other/A"] == old
        del file.file["B"]
        assert "B" not in file
        file.append("B", np.arange(3))
        file.link("B", "group/A", [[0, 0]])
        file["B"].resize(5, axis=0)
        file.link("B", "group/A", [[4, 1]])
        assert file["B", "group/A", [0, 4]].tolist() == [[0], [1]]


def test_room_of_tables_that_were_deleted_is_used_again(path: Path) -> None:
    with h5.Tables(path, "w") as file:
        for _ in range(5):
            file.append("a", np.ones(1_000_000))
            file.delete("a")
        file.append("a", np.ones(1_000_000))
    assert os.path.getsize(path) < 2 * 8_000_000


def test_a_file_that_is_forgotten_is_closed_at_once(path: Path) -> None:
    file = h5.Tables(path, "w")
    file.append("a", np.arange(3))
    gone = weakref.ref(file)
    gc.disable()
    try:
        del file
        assert gone() is None
    finally:
        gc.enable()
    with h5.Tables(path, "r+") as again:
        assert again["a", :].tolist() == [0, 1, 2]


def test_few_datasets_stay_open(path: Path) -> None:
    with h5.Tables(path, "w") as file:
        for number in range(40):
            file.append(f"t{number}", np.full(10, number))
            file.append("all", np.full(1, number))
        opened = h5py.h5f.get_obj_count(file.file.id, h5py.h5f.OBJ_DATASET)
        assert opened <= datasets.OPEN
        assert file.file.id.get_access_plist().get_cache()[2] == tables.CACHE
        assert [file[f"t{number}", 3].tolist() for number in range(40)] == [[number] for number in range(40)]
        assert file["all", :].tolist() == [*range(40)]


def test_a_file_behind_a_link_does_not_stay_open(path: Path) -> None:
    other = path.with_name("other.h5")
    with h5.Tables(other, "w") as file:
        file.append("a", np.arange(3))
    with h5.Tables(path, "w") as file:
        file.file["a"] = h5py.ExternalLink(str(other), "a")
        assert file["a", :].tolist() == [0, 1, 2]
        with h5.Tables(other, "r+") as linked:
            linked.append("a", np.arange(1))
        assert file["a", :].tolist() == [0, 1, 2, 0]


def test_pairs_in_any_order_are_noted_in_one_pass(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "NOTED", 10)
    passes = []
    enlarge = regions._enlarge
    monkeypatch.setattr(regions, "_enlarge", lambda region, *rest: [passes.append(region.name), enlarge(region, *rest)])
    with h5.Tables(path, "w") as file:
        for name in "ab":
            file.append(name, np.arange(100))
        pairs = np.stack([np.arange(100), np.random.default_rng(0).permutation(100)], axis=1)
        file.link("a", "b", pairs)
        assert passes == ["/a/ref/b/ref_region"] * 10 + ["/b/ref/a/ref_region"]
        assert file["a", "b", :].ravel().tolist() == pairs[:, 1].tolist()


@pytest.mark.parametrize(
    ("row", "chunks"),
    [
        ((), (8192,)),
        ((100,), (81, 100)),
        ((100, 100, 3), (1, 100, 100, 3)),
        ((3, 1 << 20), (1, 1, 1 << 17)),
        ((1 << 29,), (1, 1 << 17)),
    ],
    ids=["number", "vector", "image", "wide", "wider than HDF5 allows"],
)
def test_a_chunk_of_a_new_table_is_64_kilobytes_of_whole_rows(path: Path, row: tuple[int, ...], chunks: tuple[int, ...]) -> None:
    with h5.Tables(path, "w") as file:
        assert file.create("a", "f8", row).chunks == chunks
        assert file.create("empty", "f8", (*row, 0)).shape == (0, *row, 0)


@pytest.fixture
def three(path: Path) -> Iterator[Any]:
    with h5.Tables(path, "w") as file:
        for name, rows in (("A", 10), ("B", 100), ("C", 1000)):
            file.append(name, np.arange(rows))
        file.link("A", "B", [[row // 10, row] for row in range(100)])
        file.link("C", "B", [[row, row // 10] for row in range(1000)])
        yield file


def test_chains(three: Any) -> None:
    one, two, four = np.ogrid[:10, :10, :10]
    np.testing.assert_array_equal(three["A", "B", :10], (10 * one + two)[..., 0])
    np.testing.assert_array_equal(three["A", "B", "C", :10], 100 * one + 10 * two + four)
    assert three["A", "B", "C", 3][0, 4].tolist() == [*range(340, 350)]
    assert three["C", "B", "A", [123, 999]].tolist() == [[[1]], [[9]]]
    assert three["A", -1].tolist() == [9]
    assert three["C", [5, -1, 5]].tolist() == [5, 999, 5]
    for one_, other, each in (("A", "B", 10), ("B", "A", 1), ("B", "C", 10), ("C", "B", 1)):
        regions = three.region(one_, other)[:]
        assert regions.tolist() == [(each * row, each * row + each) for row in range(len(regions))]


def test_it_is_printed_for_people(three: Any) -> None:
    three.attrs("B")["threshold"] = np.float64(0.5)
    three.attrs("B")["made by"] = "a test"
    assert str(three) == (
        "out.h5\n"
        "  A      10 rows  int64\n"
        "  B     100 rows  int64    made by='a test'  threshold=0.5\n"
        "  C    1000 rows  int64\n"
        "  A -> B     100 pairs\n"
        "  C -> B    1000 pairs"
    )
    assert repr(three) == f"<3 tables of {three.path!r}>"


def test_what_is_dropped_is_of_use_meanwhile(path: Path) -> None:
    with h5.Tables(path, "w") as file:
        file.append("stage1/x", np.arange(3))
    with h5.Tables(path, "a", drop=["stage1", "new"]) as file:
        file.append("stage10", np.arange(5))
        file.append("new/y", np.arange(4))
        file.link("stage10", "new/y", [[0, 3], [4, 1]])
        file.link("stage10", "stage1/x", [[1, 2]])
        file.append("stage10", np.arange(5, 7))
        assert file["stage10", "new/y", :].tolist() == [[3], [None], [None], [None], [1], [None], [None]]
        assert file["new/y", "stage10", [1]].tolist() == [[4]]
        assert [*file] == ["new/y", "stage1/x", "stage10"]
        assert [*h5py_names(file.file)] == ["stage1", "stage10"]
    with h5.Tables(path) as file:
        assert [*file] == ["stage10"]
        assert file.links() == []
        assert file["stage10", :].tolist() == [*range(7)]
        assert [*file.file["stage10"]] in (["data"], ["data", "ref"])


def h5py_names(file: Any) -> list[str]:
    return [*file]


def test_a_killed_program_leaves_no_scratch_file(path: Path) -> None:
    code = (
        "import os, signal, sys\nimport numpy as np\nfrom qflow import h5\n"
        "file = h5.Tables(sys.argv[1], 'w', drop='tmp')\nfile.append('tmp', np.arange(10))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -signal.SIGKILL
    assert os.listdir(path.parent) == ["out.h5"]


def test_numbers_that_are_too_large_for_references_widen_them(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "NARROW", np.dtype("u1"))
    with h5.Tables(path, "w", compression="gzip") as file:
        file.append("a", np.arange(300))
        file.link("a", "a", [[0, 255]])
        assert file.ref("a", "a")[0].dtype == "u1"
        attributes = dict(file.ref("a", "a")[0].attrs)
        file.link("a", "a", [[0, 256], [299, 0]])
        ref, _ = file.ref("a", "a")
        assert (ref.dtype, ref.compression, dict(ref.attrs)) == (np.dtype("i8"), "gzip", attributes)
        assert file["a", "a", [0, 299]].tolist() == [[255, 256], [0, None]]


def test_a_failure_to_widen_references_can_be_repeated(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "NARROW", np.dtype("u1"))
    with h5.Tables(path, "w", compression="gzip") as file:
        file.append("a", np.arange(300))
        file.link("a", "a", [[0, 255]])
        with monkeypatch.context() as patch:
            patch.setattr(tables, "runs", lambda *_: 1 / 0)  # amid it, as where the disk is full
            with pytest.raises(ZeroDivisionError):
                file.link("a", "a", [[0, 256]])
        file.link("a", "a", [[0, 256]])
        assert file["a", "a", [0]].tolist() == [[255, 256]]
        assert [*file.file["a/ref/a"]] == ["ref", "ref_region"]


def test_a_failure_to_widen_a_region_links_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5.Tables(path, "w") as file:
        file.append("a", np.arange(3))
        file.append("b", np.arange(3))
        monkeypatch.setattr(tables, "region_dtype", np.dtype([("start", "i1"), ("stop", "i1")]))
        file.link("a", "b", [[0, 0]] * 126)
        monkeypatch.undo()
        with monkeypatch.context() as patch:
            patch.setattr(tables, "runs", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                file.link("a", "b", [[0, 1], [0, 2], [1, 2]])
        file.link("a", "b", [[0, 1], [0, 2], [1, 2]])
        assert len(file.ref("a", "b")[0]) == 129
        assert file.region("a", "b")[:].tolist() == [(0, 128), (128, 129), (0, 0)]
        assert file["a", "b", 1].tolist() == [[2]]


def test_what_lies_beside_references_that_are_widened_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "NARROW", np.dtype("u1"))
    with h5.Tables(path, "w") as file:
        for name in ("a", "b", "b/wide"):
            file.append(name, np.arange(300))
        file.link("a", "b/wide", [[0, 1], [2, 2]])
        file.link("a", "b", [[0, 255]])
        file.link("a", "b", [[299, 256]])
        assert file["a", "b/wide", [0, 2]].tolist() == [[1], [2]]
        assert file["a", "b", [0, 299]].tolist() == [[255], [256]]


def test_texts_of_any_length(path: Path) -> None:
    """Types that are equal for NumPy, but not for HDF5."""
    with h5.Tables(path, "w") as file:
        with pytest.raises(qf.GraphError, match="of a type that HDF5 has, but got object"):
            file.append("names", np.array(["a", "bcd"], object))
        file.append("names", np.array(["a", "bcd"], h5py.string_dtype()))
        file.append("names", np.array(["ef"], object))
        file.append("names", np.array([b"g"]))
        assert file["names", :].tolist() == [b"a", b"bcd", b"ef", b"g"]


def test_a_compression_is_kept_with_its_level(path: Path) -> None:
    with h5py.File(path, "w") as file:  # as somebody else made them
        options = {"compression": "gzip", "compression_opts": 9, "shuffle": True, "chunks": (8, 2), "maxshape": (None, 2)}
        file.create_dataset("a/ref/b/ref", (0, 2), "u1", **options)
        for one, other in ("ab", "ba"):
            file[f"{one}/data"] = np.arange(300)
            file.create_dataset(f"{one}/ref/{other}/ref_region", (300,), [("start", "i4"), ("stop", "i4")], maxshape=(None,))
    with h5.Tables(path, "r+") as file:
        file.link("a", "b", [[299, 2]])
        ref, _ = file.ref("a", "b")
        assert (ref.dtype, ref.compression, ref.compression_opts, ref.shuffle) == ("i8", "gzip", 9, True)


def test_a_table_has_one_name_however_it_is_written(path: Path) -> None:
    with h5.Tables(path, "w") as file:
        file.append("reco//a", np.arange(2))
        file.append("c", np.arange(2))
        file.link("/reco///a/", "c", [[0, 0], [1, 1]])
        file.append("reco/a", np.arange(3))
        assert file.links() == file.links("reco//a") == [("reco/a", "c")]
        assert file["reco/a", "c", [4, 1]].tolist() == [[None], [1]]
        file.delete("reco//a")
        assert (file.links(), [*file]) == ([], ["c"])


def test_what_is_masked_is_not_written(path: Path) -> None:
    masked = np.ma.array([1, 2, 3], mask=[False, True, False])
    with h5.Tables(path, "w") as file:
        with pytest.raises(qf.GraphError, match=r"The table 'a' gets rows without a mask.*`rows.filled\(0\)`"):
            file.append("a", masked)
        assert [*file] == []
        file.append("a", masked.filled(0))
        file.append("a", masked[::2])
        assert file["a", :].tolist() == [1, 0, 3, 1, 3]
        file.link("a", "a", np.ma.array([[0, 0], [1, 2], [4, 4]], mask=[[0, 0], [0, 1], [0, 0]]))
        assert file.ref("a", "a")[0][:].tolist() == [[0, 0], [4, 4]]
        file.link("a", "a", np.ma.masked_all((2, 2), int))
        file.link("a", "a", [np.ma.array([0, 0], mask=[False, True])])
        assert len(file.ref("a", "a")[0]) == 2
        with pytest.raises(qf.GraphError, match="without a mask"):
            file.append("b", [masked, masked])


def test_a_group_is_no_table(path: Path) -> None:
    """Tables may lie in a group named data."""
    with h5.Tables(path, "w") as file:
        file.append("run/data", np.arange(3))
        assert [*file] == ["run/data"]
        assert "run/data" in file
        assert "run" not in file
        with pytest.raises(KeyError, match="no table 'run'; there are 'run/data'"):
            file["run"]
        with pytest.raises(qf.GraphError, match="'run' can't be a table, for 'run/data' is a group"):
            file.append("run", np.arange(3))
        with pytest.raises(qf.GraphError, match="'run/data/data/x' can't be a table, for 'run/data/data' is a dataset"):
            file.append("run/data/data/x", np.arange(3))


@pytest.mark.parametrize(
    ("what", "error", "said"),
    [
        (lambda file: file["hits", :], KeyError, "no table 'hits'; there are 'A', 'B', 'C'"),
        (lambda file: file["A", "C", :], KeyError, "no references between 'A' and 'C'; there are: 'A' -> 'B', 'C' -> 'B'"),
        (lambda file: file["A", 10], IndexError, "Row 10 is selected of a table with 10 rows"),
        (lambda file: file[3], qf.GraphError, 'Write `file\\["hits"\\]`'),
        (lambda file: file.link("A", "B", [[0, 1], [0, 100]]), IndexError, "row 100 of 'B', which has 100 rows. Nothing was"),
        (lambda file: file.link("A", "B", [[0, -1]]), IndexError, "row -1 of 'B'"),
        (lambda file: file.link("A", "B", [0, 1]), qf.GraphError, "integers \\[pairs, 2\\], but got ndarray int64\\[2\\]"),
        (lambda file: file.link("A", "B", [[0.5, 1]]), qf.GraphError, "but got ndarray float64\\[1, 2\\]"),
        (lambda file: file.append("A", [0.5]), qf.GraphError, "The rows of 'A' are int64, but got float64"),
        (lambda file: file.append("A", [[1, 2]]), qf.GraphError, "The rows of 'A' are int64, but got int64\\[2\\]"),
        (lambda file: file.append("A", 3), qf.GraphError, "an array of at least one dimension"),
        (lambda file: file.create("A", [("x", "f4", (2,))]), qf.GraphError, "'A' of int64, not of x float32\\[2\\]"),
        (lambda file: file.delete("D"), KeyError, "has no 'D'; there are the tables 'A', 'B', 'C'"),
        (lambda file: file.create("", int), qf.GraphError, "A table has a name"),
        (lambda file: file.create("./A", int), qf.GraphError, "of which no part is 'ref' or '.', but got './A'"),
        (lambda file: file.append("D", ["text"]), qf.GraphError, "of a type that HDF5 has, but got <U4. For texts write bytes"),
        (lambda file: file.create("D", "M8[s]"), qf.GraphError, "of a type that HDF5 has, .*For times write numbers"),
    ],
)
def test_what_is_wrong_is_told_and_the_file_is_as_it_was(three: Any, what: Any, error: type, said: str) -> None:
    before = str(three)
    with pytest.raises(error, match=said):
        what(three)
    assert str(three) == before


def test_files_that_can_not_be_opened_are_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"missing\.h5"):
        h5.Tables(tmp_path / "missing.h5")
    (tmp_path / "text.h5").write_text("text")
    with pytest.raises(OSError, match=r"No complete HDF5 file.*text\.h5"):
        h5.Tables(tmp_path / "text.h5", "a")
    with pytest.raises(qf.GraphError, match="`mode` is one of"):
        h5.Tables(tmp_path / "a.h5", "rw")
    with h5.Tables(tmp_path / "a.h5", "x") as file:
        file.append("x", np.arange(3))
    with pytest.raises(OSError, match=r"a\.h5"):
        h5.Tables(tmp_path / "a.h5", "x")
    with h5.Tables(tmp_path / "a.h5") as file:
        with pytest.raises(qf.GraphError, match="is open for reading"):
            file.append("y", np.arange(3))
        with pytest.raises(KeyError, match="has no 'y'"):
            file.attrs("y")
    assert repr(file).startswith("<closed")
    with h5py.File(tmp_path / "fixed.h5", "w") as fixed:
        fixed["x/data"] = np.arange(3)
    with h5.Tables(tmp_path / "fixed.h5", "a") as file:
        assert file["x", 1:].tolist() == [1, 2]
        with pytest.raises(qf.GraphError, match="can't grow"):
            file.append("x", np.arange(3))
