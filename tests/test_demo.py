"""The demo: its data are honest and written once, its options say what is right, its memory is measured and capped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from qflow.demo import cap, folder, report
from qflow.demo.events import EVENT_BYTES
from qflow.demo.memory import Peak, pss, tree
from qflow.demo.split import DIGITS, PICTURES
from qflow.demo.writing import write
from qflow.graph import bytesizes

SIZE = 2_000_000

MAIN = [sys.executable, "-m", "qflow"]
HOLDS_100MB = "import sys; kept = b'x' * 10**8; "
WAITS = "print('ready', flush=True); sys.stdin.read()"


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> folder.Layout:
    """Complete data of 2 MB."""
    return written(folder.layout(tmp_path_factory.mktemp("data"), SIZE))


def written(layout: folder.Layout) -> folder.Layout:
    for part in folder.incomplete(layout):
        list(write(part))
    return layout


def column(part: folder.Part, key: str) -> np.ndarray:
    with h5py.File(part.path) as file:
        return np.asarray(file[key])


def columns(parts: tuple[folder.Part, ...], key: str) -> np.ndarray:
    return np.concatenate([column(part, key) for part in parts])


def qflow(*arguments: str, timeout: float = 100, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MAIN, *arguments], capture_output=True, text=True, timeout=timeout, check=False, env={**os.environ, **environment}
    )


# ---- the data


def test_no_digit_and_no_picture_is_on_both_sides(layout: folder.Layout) -> None:
    assert not set(DIGITS["train"]) & set(DIGITS["heldout"])
    assert len({*DIGITS["train"], *DIGITS["heldout"]}) == 1797
    assert not set(PICTURES["train"]) & set(PICTURES["heldout"])
    for side, parts in (("train", layout.train), ("heldout", layout.heldout)):
        assert set(columns(parts, "digit")) <= set(DIGITS[side])
        for part in parts:
            with h5py.File(part.path) as file:
                assert tuple(file.attrs["pictures"]) == PICTURES[side]
                assert max(file["picture"]) < len(PICTURES[side])


def test_no_pixels_of_a_held_out_picture_are_trained_on() -> None:
    from qflow.demo.pictures import material

    def squares(side: str) -> set[bytes]:
        """All 12 x 12 squares of a grid, but plain ones, as black corners."""
        pictures = material(side).pictures
        cut = (p[y : y + 12, x : x + 12] for p in pictures for y in range(0, len(p), 12) for x in range(0, p.shape[1], 12))
        return {square.tobytes() for square in cut if square.std() > 8}

    assert not squares("train") & squares("heldout")


def test_labels_are_those_of_the_digits(layout: folder.Layout) -> None:
    from sklearn.datasets import load_digits

    assert (load_digits().target[columns(layout.parts, "digit")] == columns(layout.parts, "label")).all()


def test_digits_occur_equally_often_when_the_data_are_tiled() -> None:
    from qflow.demo.events import blocks
    from qflow.demo.pictures import Material

    few = Material(np.arange(3), np.zeros((3, 8, 8), np.float32), np.arange(3), (np.zeros((200, 200, 3), np.uint8),))
    counts = np.bincount(np.concatenate([block.label for block in blocks(few, 0, 200, seed=0)]))
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("size", [1_000_000, 200_000_000, 4_000_000_000, 3 * 2**30])
def test_the_data_are_as_large_as_asked(size: int) -> None:
    layout = folder.layout(Path("nowhere"), size)
    assert size - EVENT_BYTES < folder.events(layout.parts) * EVENT_BYTES <= size
    assert all(part.stop > part.start for part in layout.parts)
    assert max(folder.events([part]) for part in layout.parts) * EVENT_BYTES <= folder.FILE_BYTES + EVENT_BYTES


def test_the_files_are_as_large_as_asked(layout: folder.Layout) -> None:
    assert sum(part.path.stat().st_size for part in layout.parts) == pytest.approx(SIZE, rel=0.05)


def test_complete_files_are_used_again(layout: folder.Layout) -> None:
    times = [part.path.stat().st_mtime_ns for part in layout.parts]
    written(layout)
    assert times == [part.path.stat().st_mtime_ns for part in layout.parts]


def without_recipe(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file.attrs["recipe"]


def of_another_recipe(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file.attrs["recipe"] = file.attrs["recipe"].replace('"seed": 2', '"seed": 3')


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def of_another_format(path: Path) -> None:
    path.write_text("no HDF5")


@pytest.mark.parametrize("harm", [Path.unlink, truncated, without_recipe, of_another_recipe, of_another_format])
def test_only_what_is_incomplete_is_written_again(layout: folder.Layout, harm) -> None:
    harmed, before = layout.train[1], column(layout.train[1], "image")
    harm(harmed.path)
    assert folder.incomplete(layout) == [harmed]
    written(layout)
    assert (column(harmed, "image") == before).all()


def test_a_writer_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    part = folder.layout(tmp_path, 20_000_000).train[0]
    stopped = write(part)
    next(stopped)
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
    stopped.close()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    part = folder.layout(tmp_path, SIZE).heldout[0]
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left, other = (tmp_path / f"{part.path.name}.{process}.part" for process in (ended.pid, os.getpid()))
    left.touch()
    list(write(part))
    assert [path.name for path in tmp_path.iterdir()] == [part.path.name]
    assert not other.exists()


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    with pytest.raises(OSError, match=r"has 1GB free, but the data take 4GB\. Choose another --folder"):
        folder.incomplete(folder.layout(tmp_path / "data", 4 * 10**9))
    assert not list((tmp_path / "data").iterdir())


def test_the_cache_folder_is_where_xdg_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/some/cache")
    assert folder.default_folder() == Path("/some/cache/qflow/demo")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert folder.default_folder() == Path.home() / ".cache/qflow/demo"


# ---- the flow


def test_the_flow_gives_what_serial_gives(layout: folder.Layout) -> None:
    from qflow import h5
    from qflow.demo.steps import pipeline

    chunks = h5.chunks([part.path for part in layout.train], 17, key="label")
    with pipeline(8, 2) as pipe:
        batches = list(pipe(chunks))
    expected = list(pipe(chunks, engine="serial"))
    assert sum(len(labels) for _, labels in expected) == folder.events(layout.train)
    for (images, labels), (other_images, other_labels) in zip(batches, expected, strict=True):
        assert images.shape[1:] == (2, 32, 32)
        assert images.equal(other_images)
        assert labels.equal(other_labels)


# ---- the command


@pytest.mark.parametrize("text", ["", "4", "GB", "-1GB", "0MB", "4potatoes", "1,5GB", "nanGB", "4 G B"])
def test_a_wrong_size_says_how_to_write_one(text: str) -> None:
    with pytest.raises(ValueError, match=r"got .*; write a number and a unit, as 500MB, 4GB or 1GiB"):
        bytesizes.parse(text)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "required: command"),
        ("dmo", "invalid choice: 'dmo' (choose from 'demo', 'h5')"),
        ("demo --epoch 3", "no option '--epoch' (did you mean '--epochs'?)"),
        ("demo 4GB", "no option '4GB'; there are --help, --size"),
        ("demo --size 4potatoes", "--size: got '4potatoes'; write a number and a unit"),
        ("demo --size 5kB", "--size: got '5kB'; at least 1MB"),
        ("demo --memory 1", "--memory: got '1'; write a number and a unit"),
        ("demo --rows 0", "--rows: got '0'; write a whole number of at least 1"),
        ("demo --workers 2.5", "--workers: got '2.5'; write a whole number of at least 1"),
        ("demo --engine ray", "invalid choice: 'ray' (choose from 'processes', 'serial')"),
    ],
)
def test_a_wrong_option_says_what_is_right(arguments: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    from qflow.__main__ import main

    with pytest.raises(SystemExit) as left:
        main(arguments.split())
    assert left.value.code == 2
    assert said in capsys.readouterr().err


def test_the_command_line_answers() -> None:
    import qflow as qf

    assert qflow("--version").stdout == f"qflow {qf.__version__}\n"
    assert "--memory SIZE" in qflow("demo", "--help").stdout
    assert qflow("demo", "--rows", "none").returncode == 2


def test_a_folder_that_cannot_be_made_is_an_error_and_no_traceback() -> None:
    done = qflow("demo", "--folder", "/proc/demo")
    assert (done.returncode, done.stderr) == (
        1, "qflow demo: The folder /proc/demo can't be made: No such file or directory. Choose another --folder.\n"
    )  # fmt: skip


@pytest.mark.parametrize("package", ["h5py", "sklearn", "skimage", "tqdm"])
def test_a_missing_package_says_what_to_install(package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from qflow.__main__ import main; sys.exit(main(['demo']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"qflow demo: {package} can't be imported. Install what the demo needs: pip install 'qflow[examples]'\n"


def demo(layout: folder.Layout, *arguments: str) -> subprocess.CompletedProcess[str]:
    where = layout.parts[0].path.parent
    return qflow("demo", "--folder", str(where), "--size", "2MB", "--rows", "20", "--batch", "8", "--epochs", "2", *arguments)


@pytest.mark.slow
def test_the_demo_runs_serially(tmp_path: Path) -> None:
    done = demo(folder.layout(tmp_path, SIZE), "--engine", "serial")
    assert done.returncode == 0, done.stderr
    assert "5 of 5 files written" in done.stdout
    assert "accuracy     " in done.stdout
    assert "engine='serial', in the last epoch\n" in done.stdout
    assert "memory cap   none" in done.stdout
    assert "epoch 2/2" in done.stderr  # the bar


def test_the_demo_runs_in_processes_under_a_cap(layout: folder.Layout) -> None:
    done = demo(layout, "--memory", "2GB", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "all 5 files are there from an earlier run" in done.stdout
    assert "no digit and no picture is on both sides" in done.stdout
    assert "memory cap   2GB for " in done.stdout
    assert "times the serial rate" in done.stdout
    assert "chunks | read(('image', 'label')) | transform.using(n=2) | qf.repack(8) | collate | qf.queue(4)" in done.stdout
    busy = done.stdout.partition("busy share of each step's workers")[2]
    assert [line.split()[0] for line in busy.splitlines()[1:5]] == ["read", "transform", "collate", "training"]
    assert "summed PSS of" in busy


# ---- memory


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[str]]:
    """A process that holds 100 MB."""
    yield from running(HOLDS_100MB + WAITS)


@pytest.fixture
def family() -> Iterator[subprocess.Popen[str]]:
    """A process that holds 100 MB, with a child that shares them and a grandchild that does too."""
    yield from running(HOLDS_100MB + "import os; os.fork() or os.fork() or print('ready', flush=True); os.read(0, 1)")


def running(code: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()
        for child in tree(process.pid)[1:]:
            os.kill(child, 9)


def test_pss_is_what_a_process_takes(holder: subprocess.Popen[str]) -> None:
    assert 100e6 < pss(holder.pid) < 130e6
    assert tree(holder.pid) == [holder.pid]


def test_shared_pages_count_once_in_the_peak_of_a_tree(family: subprocess.Popen[str]) -> None:
    with Peak(family.pid) as peak:
        assert len(tree(family.pid)) == 3
        peak.measure()
    assert 100e6 < peak.bytes < 150e6
    assert peak.processes == 3


def test_a_process_that_has_ended_takes_nothing() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert pss(ended.pid) == 0


@pytest.mark.parametrize(("memory", "status"), [(None, 0), (10**9, 0), (10**8, 1)])
def test_a_peak_above_the_cap_fails(memory: int | None, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    peak = Peak(os.getpid())
    peak.bytes = 500_000_000
    assert report.judge(peak, memory) == status
    said = capsys.readouterr()
    assert "peak memory  500MB summed PSS" in said.out
    assert ("the peak of 500MB is above --memory 100MB" in said.err) == bool(status)


def test_memory_that_does_not_suffice_is_an_error_and_leaves_no_group(layout: folder.Layout) -> None:
    done = demo(layout, "--memory", "40MB")
    assert done.returncode == 1
    assert "the job did not keep to --memory 40MB" in done.stderr
    assert "write a larger --memory" in done.stderr
    mounts, own = Path("/proc/self/mounts").read_text(), Path("/proc/self/cgroup").read_text()
    assert not [left for parent in cap.parents(mounts, own) for left in parent.folder.glob("qflow-demo-*")]


def test_the_kernel_keeps_all_processes_of_a_group_to_the_limit() -> None:
    group = cap.new_group(60_000_000)
    if group is None:
        pytest.skip("no memory cgroup can be made here")
    group.remove()
    code = f"from qflow.demo import cap; status = cap.fork_capped(60_000_000); {HOLDS_100MB}"
    done = subprocess.run(
        [sys.executable, "-c", f"{code} sys.exit(status if isinstance(status, int) else 0)"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "the kernel ended 1 of its processes" in done.stderr


def test_where_no_group_can_be_made_each_process_is_limited() -> None:
    code = (
        "import sys; from qflow.demo import cap; cap.new_group = lambda size: None; status = cap.fork_capped(60_000_000)\n"
        "if isinstance(status, int): sys.exit(status)\n"
        "print(status)\n"
        "try: kept = b'x' * 10**8\n"
        "except MemoryError: sys.exit(7)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 7
    assert done.stdout == "60MB for each process (RLIMIT_DATA; no cgroup can be made here)\n"


def test_a_group_is_made_below_the_own_one_or_beside_it(tmp_path: Path) -> None:
    first = f"cgroup {tmp_path}/memory cgroup rw,memory 0 0\ncgroup {tmp_path}/cpu cgroup rw,cpu 0 0\n"
    found = list(cap.parents(first, "4:cpu:/x\n3:memory:/job/7\n0::/\n"))
    assert [(group.version, group.folder) for group in found] == [(1, tmp_path / "memory/job/7"), (1, tmp_path / "memory")]

    slice_, scope = tmp_path / "slice", tmp_path / "slice/scope"
    scope.mkdir(parents=True)
    (slice_ / "cgroup.subtree_control").write_text("cpu memory pids\n")
    (scope / "cgroup.subtree_control").write_text("\n")
    found = list(cap.parents(f"cgroup2 {tmp_path} cgroup2 rw 0 0\n", "0::/slice/scope\n"))
    assert [(group.version, group.folder) for group in found] == [(2, slice_)]
