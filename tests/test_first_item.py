"""What stands between a call and its first item, counted: what is loaded, where and how often, and who is asked how often."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from typing import Any

import pytest
from scenario import script

import qflow as qf
from qflow.runtime.crew import Crew
from qflow.runtime.nursery import Nursery

# ---- cold


def test_the_nursery_boots_while_its_parent_loads_what_a_run_needs() -> None:
    done = script(
        """
        import sys
        import qflow as qf
        happened = []
        def watch(event, details):
            if event == "subprocess.Popen":
                happened.append("nursery")
            if event == "import" and details[0] in ("numpy", "cloudpickle", "qflow.engines.session"):
                happened.append(details[0])
        sys.addaudithook(watch)
        assert list(qf.run(abs, [-1])) == [1]
        print(*sorted(set(happened), key=happened.index))
        """
    )
    assert done.stdout == "nursery qflow.engines.session numpy cloudpickle\n", done


def test_a_worker_has_loaded_little_more_than_numpy() -> None:
    done = script(
        """
        import subprocess, sys
        import qflow as qf
        code = "import sys, numpy, cloudpickle; print(*sys.modules)"
        least = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
        [loaded] = qf.run(lambda _: list(__import__("sys").modules), [0])
        print(*sorted({"pathlib", "random", "subprocess", "tempfile", "toolz", "torch"} & set(loaded) - set(least)))
        print("numpy" in loaded)
        """
    )
    assert done.stdout == "\nTrue\n", done


def test_a_run_that_fails_before_it_has_workers_leaves_no_nursery() -> None:
    done = script(
        """
        import os, sys, threading
        import qflow as qf
        from qflow.runtime import nursery
        sys.path.append(os.environ["TESTS"])
        from scenario import descendants
        lock = threading.Lock()
        try:
            qf.run(lambda x: lock, [0])
        except qf.GraphError as error:
            print('lock' in str(error), list(descendants(os.getpid())), nursery._shared["forkserver"].users)
        """,
        TESTS=os.path.dirname(__file__),
    )
    assert done.stdout == "True [] 0\n", done


def test_what_steps_import_is_loaded_once_however_many_workers(tmp_path: Any) -> None:
    """By the parent, and by the nursery: packages that stand in a module below the step's, too."""
    packages = tmp_path / "site-packages"
    packages.mkdir()
    for name in ("heavy", "deep"):
        packages.joinpath(f"{name}.py").write_text(
            f"import os\nwith open({str(tmp_path / name)!r}, 'a') as file:\n    print(os.getpid(), file=file)\n"
            "def work(x):\n    return os.getpid()\n"
        )
    tmp_path.joinpath("helping.py").write_text("from deep import work\n")
    tmp_path.joinpath("steps.py").write_text("import heavy, helping\ndef step(x):\n    return helping.work(x)\n")
    done = script(
        f"""
        import sys
        sys.path += [{str(tmp_path)!r}, {str(packages)!r}]
        import steps
        import qflow as qf
        with qf.process(n=8)(steps.step) | qf.queue(1) as pipe:
            for _ in range(2):
                list(pipe(range(50)))
        """
    )
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("heavy", "deep"):
        loaded = tmp_path.joinpath(name).read_text().split()
        assert len(loaded) == len(set(loaded)) == 2, name


def test_what_hdf5_needs_is_loaded_once_however_many_workers(tmp_path: Any) -> None:
    """By the parent, and by the nursery, also where no function of the user names it."""
    pytest.importorskip("h5py")
    tmp_path.joinpath("sitecustomize.py").write_text(
        "import os, sys\n"
        "def watch(event, details):\n"
        "    if event == 'import' and details[0] == 'h5py':\n"
        f"        with open({str(tmp_path / 'loaded')!r}, 'a') as file:\n            print(os.getpid(), file=file)\n"
        "sys.addaudithook(watch)\n"
    )
    done = script(
        f"""
        import numpy as np
        import qflow as qf
        from qflow import h5
        path = {str(tmp_path / "x.h5")!r}
        with h5.Tables(path, "w") as file:
            file.append("x", np.arange(100.0))
        with h5.read("x/data", n=4) | qf.queue(1) as pipe:
            assert len(list(pipe(h5.chunks(path, 10, key="x/data")))) == 10
            h5.run(h5.rows("x", size=10) | np.abs | h5.append("y"), path, path + ".out", n=4)
        """,
        PYTHONPATH=str(tmp_path) + os.pathsep + os.environ.get("PYTHONPATH", ""),
    )
    assert (done.returncode, done.stderr) == (0, "")
    loaded = tmp_path.joinpath("loaded").read_text().split()
    assert len(loaded) == len(set(loaded)) == 2


@pytest.mark.parametrize("others", [0, 3], ids=["few", "more than a message takes"])
def test_hdf5_is_loaded_with_the_variables_that_its_parent_has_then(tmp_path: Any, others: int) -> None:
    """Though the nursery was there before they were set."""
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["x"] = [1, 2, 3]
    done = script(
        f"""
        import fcntl, os
        import qflow as qf
        with open({str(path)!r}, "rb") as held, qf.process(lambda _: os.getpid()) | qf.queue(1) as alive:
            fcntl.flock(held, fcntl.LOCK_EX)
            workers = list(alive([0]))
            os.environ["HDF5_USE_FILE_LOCKING"] = "FALSE"
            os.environ.update({{f"OTHER{{number}}": 100_000 * "x" for number in range({others})}})
            from qflow import h5
            pipe = h5.read("x", n=2) | qf.queue(1)
            print([len(rows) for rows in pipe([(({str(path)!r}, 0, 3),)])], list(alive([0])) == workers)
        """,
        HDF5_USE_FILE_LOCKING=None,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[3] True\n", ""), done


# ---- counted where it happens, in the real thing


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of all requests to nurseries."""
    words: list[str] = []
    send = Nursery._send

    def noted(self: Nursery, message: tuple[Any, ...], *rest: Any) -> None:
        words.append(message[0])
        send(self, message, *rest)

    monkeypatch.setattr(Nursery, "_send", noted)
    return words


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All start messages to workers."""
    messages: list[Any] = []
    send = Crew.send

    def noted(self: Crew, member: Any, start: bytes) -> None:
        messages.append(pickle.loads(start[8:]))
        send(self, member, start)

    monkeypatch.setattr(Crew, "send", noted)
    return messages


class Costly:
    """Counts, in the parent, how often it is pickled, and in each worker how often it is rebuilt."""

    pickled = 0
    rebuilt: Counter[int] = Counter()

    def __reduce__(self) -> Any:
        Costly.pickled += 1
        return rebuilt, ()


def rebuilt() -> Costly:
    Costly.rebuilt[os.getpid()] += 1
    return Costly()


def test_all_workers_are_ordered_in_one_request_and_warm_ones_need_none(asked: list[str], told: list[Any]) -> None:
    with qf.process(n=3)(abs) | qf.process(n=5)(abs) as pipe:
        assert list(pipe([-1])) == [1]
        assert Counter(asked) - Counter({"load": 1}) == Counter({"fds": 1, "fork": 1, "made": 1})
        assert len(told) == 8
        for _ in range(3):
            asked.clear()
            told.clear()
            assert list(pipe([-1])) == [1]
            assert asked == []
            assert len(told) == 8


def test_a_closure_is_pickled_once_a_run_and_rebuilt_once_a_worker(told: list[Any]) -> None:
    costly = Costly()

    def step(x: int) -> int:
        return type(costly).rebuilt[os.getpid()]

    Costly.pickled = 0
    with qf.Flow(qf.process(n=4)(step)) as pipe:
        for run in range(1, 4):
            assert set(pipe(range(40))) == {1}
            assert Costly.pickled == run
    assert [message.group is None for message in told] == [False] * 4 + [True] * 8
