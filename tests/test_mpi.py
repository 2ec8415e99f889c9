"""All ranks of an MPI job write one file, by an h5py that was built with MPI (`.ci/mpi` builds one)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from qflow import h5
from qflow.errors import GraphError

PYTHON, MPIEXEC = os.environ.get("QFLOW_MPI_PYTHON", ""), os.environ.get("QFLOW_MPIEXEC", "mpiexec")
slow = pytest.mark.slow
with_mpi = pytest.mark.skipif(
    not PYTHON, reason="no h5py with MPI: `.ci/mpi FOLDER` builds one, where Debian's packages can be had"
)

SCRIPT = """
import os, signal, sys
import numpy as np
import qflow as qf
from qflow import h5

def calib(hits, rng):
    fatal = os.environ.get("FATAL", "")
    if fatal and hits[0] >= 300:
        rank = os.environ.get("RANK_OF")
        if fatal == "raise" + rank:
            raise RuntimeError("broken")
        if fatal == "kill" + rank:
            os.kill(int(os.environ["PARENT"]), signal.SIGKILL)
    return (hits + rng.random(len(hits))).astype("f4")

def spread(calib):
    return [np.full(number % 4, charge) for number, charge in enumerate(calib)]

def cluster(hits, rows, charges, rng):
    number = len(hits) // 3
    here = np.arange(number)
    some = rng.permutation(rows)[:number]
    pairs = {"hits": np.stack([some, here], axis=1), "calib": np.stack([charges[:number], here], axis=1)}
    size = 2 if os.environ.get("FATAL") == "shape" and hits[0] >= 800 else 3
    return h5.linked(rng.random((number, size)), pairs)

def flow():
    flow = h5.rows("hits", size=90) | calib | h5.append("calib", refs="1:1", attrs={"unit": "keV"})
    flow = flow | spread | h5.append("parts", refs={"calib": "1:n"}) | h5.need(rows=("hits", "index"), charges=("calib", "index"))
    flow = flow | cluster | h5.append("clusters", refs={"hits": "pairs", "calib": "pairs"})
    return flow | (lambda hits: hits[:0]) | h5.append("none", dtype="i2")

def kept(hits):
    return hits[hits > 300].astype(">i2")

def some(hits):
    return np.array([]) if hits[0] % 180 else hits.astype("i4")

def fields(hits):
    found = np.zeros(len(hits), "i4, f8, f4")
    found["f0"] = hits
    return found[["f0", "f2"]]

def odd(size=90, last=300):
    flow = h5.rows("hits", size=size) | kept | h5.append("kept") | some | h5.append("some", dtype="i4")
    flow = flow | fields | h5.append("fields")
    late = flow | (lambda hits: qf.SKIP if hits[0] < last else hits * 1) | h5.append("late", refs="1:1", dtype="f4")
    return late | (lambda hits: hits[:0].reshape(0, 1)) | h5.append("none", dtype="i2")

def crossed():
    def linked(other):
        return lambda hits: h5.linked(hits * 1, {other: np.stack([0 * hits, np.arange(len(hits))], axis=1).astype(int)})

    flow = h5.rows("hits", size=90) | linked("more") | h5.append("new", refs={"more": "pairs"})
    return flow | linked("new") | h5.append("more", refs={"new": "pairs"})

FLOWS = {"odd": odd, "crossed": crossed, "few": lambda: odd(size=600), "late": lambda: odd(last=2000)}

if __name__ == "__main__":
    flow = next((FLOWS[word] for word in sys.argv if word in FLOWS), flow)
    os.environ["PARENT"] = str(os.getpid())
    os.environ["RANK_OF"] = os.environ.get("OMPI_COMM_WORLD_RANK", "0")
    print(h5.run(flow(), None if "append" in sys.argv else sys.argv[1], sys.argv[2], n=2, seed=4,
        driver=None if "any" in sys.argv else "mpio", compression="gzip" if "gzip" in sys.argv else None,
        exists="append" if "append" in sys.argv else "refuse",
        resume="resume" in sys.argv, drop=["parts"] if "drop" in sys.argv else []))
"""


@pytest.fixture
def inputs(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    with h5.Tables(tmp_path / "in.h5", "w") as file:
        file.append("hits", np.arange(1000.0))
    return tmp_path


def job(count, *script, seconds=100, **environment):
    """A job of so many ranks -> how it ended, and what it said."""
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", **environment}
    start = [MPIEXEC, "--oversubscribe", "-n", str(count), PYTHON] if count > 1 else [sys.executable]
    ended = subprocess.run([*start, *script], env=environment, capture_output=True, text=True, check=False, timeout=seconds)
    return ended.returncode, ended.stdout + ended.stderr


def ranks(folder, count, output, *words, fatal=""):
    """The script above."""
    return job(count, folder / "script.py", folder / "in.h5", folder / output, *words, FATAL=fatal)


def content(path):
    found = {}

    def note(name, each):
        data = (str(each.dtype), each.shape, each.compression, each[:].tobytes()) if isinstance(each, h5py.Dataset) else None
        found[name] = data, {key: str(value) for key, value in each.attrs.items()}

    with h5py.File(path) as file:
        file.visititems(note)
    return found


@with_mpi
@pytest.mark.parametrize(
    ("count", "words"),
    [
        pytest.param(2, [], marks=slow),
        pytest.param(3, [], marks=slow),
        pytest.param(2, ["gzip"], marks=slow),
        (3, ["gzip", "drop"]),
        (2, ["odd", "gzip"]),
        pytest.param(3, ["few"], marks=slow),
        pytest.param(2, ["late"], marks=slow),
    ],
)
def test_ranks_that_write_together_write_what_one_does(inputs, count, words):
    assert ranks(inputs, 1, "one.h5", *words)[0] == 0
    code, text = ranks(inputs, count, "out.h5", *words)
    assert code == 0, text
    assert f"slices={2 if 'few' in words else 12}" in text
    assert content(inputs / "out.h5") == content(inputs / "one.h5")
    assert "drop" not in words or "parts/data" not in content(inputs / "out.h5")
    assert sorted(os.listdir(inputs)) == ["in.h5", "one.h5", "out.h5", "script.py"]


@with_mpi
@pytest.mark.parametrize(("count", "examples"), [(3, 30), pytest.param(2, 300, marks=slow), pytest.param(5, 300, marks=slow)])
def test_any_flow_is_written_together_as_by_one(tmp_path, count, examples):
    script = Path(__file__).with_name("mpi_flows.py")
    code, text = job(count, "-m", "mpi4py", script, tmp_path, str(examples), seconds=100 + examples)  # ends all if one fails
    assert code == 0, text
    assert text.count(f"{examples} examples") == count


@with_mpi
@pytest.mark.parametrize("words", [pytest.param([], marks=slow), ["gzip"]])
def test_they_append_to_what_is_there(inputs, words):
    for output in ("one.h5", "out.h5"):
        for count in (1, 2 if output == "out.h5" else 1):
            code, text = ranks(inputs, count, output, *words, *(["append"] if (inputs / output).exists() else []))
            assert code == 0, text
    assert content(inputs / "out.h5") == content(inputs / "one.h5")
    with h5.Tables(inputs / "out.h5") as file:
        assert len(file["calib"]) == 2000


@with_mpi
@pytest.mark.parametrize(
    "fatal", [pytest.param("raise0", marks=slow), "raise1", pytest.param("kill0", marks=slow), pytest.param("kill1", marks=slow)]
)
def test_when_a_rank_fails_all_end_and_go_on_later(inputs, fatal):
    assert ranks(inputs, 1, "one.h5")[0] == 0
    code, text = ranks(inputs, 2, "out.h5", fatal=fatal)
    assert code, text
    assert ("RuntimeError: broken" in text) == fatal.startswith("raise")
    assert not (inputs / "out.h5").exists()
    code, text = ranks(inputs, 2, "out.h5", "resume")
    assert code == 0, text
    assert content(inputs / "out.h5") == content(inputs / "one.h5")


@with_mpi
def test_what_fails_while_all_write_is_told_to_all(inputs):
    code, text = ranks(inputs, 2, "out.h5", fatal="shape")
    assert code
    assert "The rows of 'clusters' are of shape (3,), but a slice has made some of shape (2,)" in text
    assert not (inputs / "out.h5").exists()


@with_mpi
def test_links_in_both_directions_are_written_by_rank_0(inputs):
    with h5.Tables(inputs / "in.h5", "a") as file:
        file.append("more", np.arange(5.0))
    code, text = ranks(inputs, 2, "out.h5", "crossed")
    assert code
    assert "the flow links 'more' and 'new' twice, in both directions. Leave it out, and rank 0 writes" in text
    assert ranks(inputs, 2, "out.h5", "crossed", "any")[0] == ranks(inputs, 1, "one.h5", "crossed")[0] == 0
    assert content(inputs / "out.h5") == content(inputs / "one.h5")


@pytest.mark.parametrize(("driver", "said"), [("mpio", "this is not rank 0 of 2 of an MPI job"), ("core", "'mpio', 'sec2'")])
def test_it_is_told_where_ranks_can_not_write_together(inputs, driver, said):
    with pytest.raises(GraphError, match=said):
        h5.run(h5.rows("hits") | h5.append("a"), inputs / "in.h5", inputs / "out.h5", shard=(0, 2), driver=driver)


def test_a_rank_alone_writes_alone(inputs):
    flow = h5.rows("hits", size=400) | (lambda hits: hits * 2) | h5.append("a")
    assert h5.run(flow, inputs / "in.h5", inputs / "out.h5", engine="serial", driver="mpio").slices == 3


ALONE = """
import os
import qflow as qf

def begun(_):
    import h5py
    from mpi4py import MPI
    return MPI.Is_initialized()

if __name__ == "__main__":
    print(list(qf.run(qf.process(n=2)(begun), range(2))), os.listdir(os.environ["TMPDIR"]))
"""


@with_mpi
def test_workers_do_not_begin_mpi_for_which_a_daemon_would_stay(tmp_path):
    (tmp_path / "alone.py").write_text(ALONE)
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    ended = subprocess.run([PYTHON, tmp_path / "alone.py"], env=environment, capture_output=True, text=True, check=False)
    assert ended.stdout == "[False, False] []\n", ended.stderr
