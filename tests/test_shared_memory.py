"""Nobody else reads or cuts what a run shares, and what is scribbled over it is an error and not a hang."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import random
import stat
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
from scenario import script
from test_processes import delivered
from test_seconds import workers_of

import qflow as qf
from qflow.runtime import nursery
from qflow.runtime.board import KEPT
from qflow.runtime.memory import Cells, bytes_needed, mapped

SEALED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def shared_of(pid):
    """Descriptors of our memory in a process -> name, mode, seals."""
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            name = os.readlink(path)
            if "memfd:qflow" in name:
                fd = os.open(path, os.O_RDWR)
                yield name, stat.S_IMODE(os.fstat(fd).st_mode), fcntl.fcntl(fd, fcntl.F_GET_SEALS)
                os.close(fd)


@pytest.mark.parametrize("start", ["forkserver", "spawn", "fork"])
def test_shared_memory_is_the_users_alone_and_its_size_is_sealed(start):
    flow = qf.process(n=2)(abs) | qf.pack(2) | qf.process(len) | qf.queue(2)
    with flow, flow(itertools.count(), engine=qf.engines.Processes(start=start)) as run:
        next(run)
        found = [shared for pid in (os.getpid(), *workers_of(flow)) for shared in shared_of(pid)]
    kinds = {name.removeprefix("/memfd:qflow-").split()[0].split("-")[0] for name, _, _ in found}
    assert {"words", "edge", "log", "stack"} <= kinds
    assert {mode for _, mode, _ in found} == {0o600}
    assert all(seals & SEALED == SEALED for name, _, seals in found if "stack" not in name)


def test_no_run_has_a_named_memory_or_the_standard_librarys_tracker():
    done = script(
        """
        import os, sys
        import numpy as np
        import qflow as qf
        from pathlib import Path
        def look(x):
            from multiprocessing import resource_tracker
            names = {path.name for path in Path("/dev/shm").iterdir()} - before
            mine = f"{os.getuid()}"
            names = {name for name in names if str(os.stat(f"/dev/shm/{name}").st_uid) == mine and "qflow" in name}
            return names, resource_tracker._resource_tracker._pid
        def commands():
            for path in Path("/proc").iterdir():
                try:
                    if path.name.isdigit() and tag in path.joinpath("environ").read_bytes():
                        yield path.joinpath("cmdline").read_bytes()
                except OSError:
                    pass
        tag = b"QFLOW_TRACKED=" + os.environ["QFLOW_TRACKED"].encode()
        before = {path.name for path in Path("/dev/shm").iterdir()}
        for start in ("forkserver", "spawn", "fork"):
            pipe = qf.process(n=2)(lambda x: (look(x), np.ones(100_000))[0]) | qf.queue(2)
            with pipe, pipe(range(10), engine=qf.engines.Processes(start=start)) as run:
                assert all(seen == (set(), None) for seen in run), start
                everyone = [*commands()]
                assert len(everyone) > 1
                assert not [command for command in everyone if b"_tracker import" + b" main" in command]
            assert look(0) == (set(), None)
        print("none")
        """,
        QFLOW_TRACKED=uuid.uuid4().hex,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "none\n", "")


def damaged(region, how):
    """Scribble over the head of an item."""
    match how:
        case "ones":
            region[:48] = b"\xff" * 48
        case "zeros":
            region[:48] = bytes(48)
        case "lengths":  # a head that claims 2**60 bytes
            region[8:16] = (1 << 60).to_bytes(8, "little")
        case _:
            bit = random.Random(how).randrange(48 * 8)
            region[bit // 8] ^= 1 << bit % 8


DAMAGES = ["ones", "zeros", "lengths", *range(6)]


@pytest.mark.parametrize("how", DAMAGES)
def test_an_item_whose_head_is_damaged_is_an_error_of_the_consumer(how):
    pipe = qf.process(lambda x: np.full(50_000, x)) | qf.queue(2)
    with pipe:
        with pipe(range(20)) as run:
            next(run)
            channels = run._session.crew.channels
            cells, waiting = channels.leases.cells, channels.board.edges[-1].cell
            while sum(bool(tag) and not tag & KEPT for tag in waiting) < 2:
                time.sleep(0.001)
            for cell, tag in enumerate(waiting):
                if tag and not tag & KEPT:
                    damaged(cells.region(cell), how)
            with pytest.raises(qf.QFlowError, match="head of an item"):
                list(run)
        assert [int(x[0]) for x in pipe(range(3))] == [0, 1, 2]


@pytest.mark.parametrize("how", DAMAGES)
def test_an_item_whose_head_is_damaged_is_an_error_of_a_worker(how, tmp_path):
    go = tmp_path / "go"

    def wait(x):
        while not go.exists():
            time.sleep(0.001)
        return int(x[0])

    pipe = qf.process(lambda x: np.full(50_000, x)) | qf.queue(2) | qf.process(wait)
    with pipe:
        with pipe(range(20)) as run:
            channels = run._session.crew.channels
            shape = channels.shape.edges[1]
            cells = Cells(shape, channels._stride, mapped(channels._edges[1], bytes_needed(shape, channels._stride)))
            words = channels.board.edges[1].cell
            while sum(map(bool, words)) < 3:  # the one at work, and two that wait
                time.sleep(0.001)
            at_work = channels.board.job[2][3] >> 3
            for cell, tag in enumerate(words):
                if tag and cell != at_work:
                    damaged(cells.region(cell), how)
            go.touch()
            values, error = delivered(lambda source: run, None)
            assert isinstance(error, qf.QFlowError)
            assert "head of an item" in str(error)
            assert values == [0]
        del cells
        assert [int(x) for x in pipe(range(3))] == [0, 1, 2]


def test_nothing_else_is_in_the_nursery(tmp_path):
    """It keeps no descriptor of a crew once its workers are made."""
    with qf.process(n=2)(abs) | qf.queue(2) as pipe, pipe(itertools.count()) as run:
        next(run)
        assert not [*shared_of(nursery._shared["forkserver"].nursery.pid)]
