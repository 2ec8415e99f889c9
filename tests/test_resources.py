"""What the machine refuses is an error that says how much of what; what is not needed may be missing."""

from __future__ import annotations

import os
import platform
import resource
import socket
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scenario import limited, needs_unshare, script

import qflow as qf
from qflow.runtime.memory import anonymous, mapped, stride_for

# ---- descriptors


@pytest.mark.parametrize(
    "flow",
    ["qf.process(abs)", "qf.process(n=7)(abs) | qf.thread(n=3)(abs) | qf.pack(2) | qf.process(len)", "qf.process(n=120)(abs)"],
)
def test_what_a_plan_needs_of_descriptors_is_known_before(flow: str) -> None:
    done = script(
        f"""
        import os, resource
        import numpy, cloudpickle
        import qflow as qf
        from qflow.runtime import crew
        from qflow.runtime.needs import descriptors_needed

        def works(limit):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit_of_root))
            try:
                crew.Crew(plan, True).close()
            except (qf.ResourceError, OSError):
                return False
            return True

        limit_of_root = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        plan = qf.Flow({flow}).plan()
        workers = sum(1 if group.placement == "thread" else group.n for group in plan.groups)
        streams = sum(group.stream for group in plan.groups)
        least = len(os.listdir("/proc/self/fd")) - 1 + descriptors_needed(crew.shape_of(plan), workers, streams)
        print(works(least), works(least - 1))  # the second is refused before anything is done
        crew.check_descriptors = lambda *_: None
        print(works(least - 3), works(least - 6))  # and would hardly have worked
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True False\nTrue False\n", "")


def test_too_few_descriptors_are_told_in_numbers() -> None:
    done = script(
        """
        import resource
        import qflow as qf
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 400))
        try:
            qf.run(qf.process(n=20)(abs), [0])
        except qf.ResourceError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400))
        print(sum(qf.run(qf.process(n=20)(abs), range(5))))
        """
    )
    assert (done.returncode, done.stderr) == (0, "")
    error, result = done.stdout.splitlines()
    assert error.startswith("20 worker processes of 1 steps need 1"), error
    assert "may have 64 (RLIMIT_NOFILE). It takes `ulimit -n " in error
    assert result == "10"


def test_kept_results_hold_no_descriptors() -> None:
    done = script(
        """
        import os, resource
        import numpy as np
        import qflow as qf
        resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))
        kept = list(qf.run(qf.process(n=2)(lambda i: np.full(20_000, i)), range(500)))
        print(len(kept), all((k == i).all() for i, k in enumerate(kept)))
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "500 True\n", "")


# ---- processes and memory


@pytest.mark.parametrize("start", ["forkserver", "spawn", "fork"])
def test_too_few_processes_are_told_in_numbers(start: str) -> None:
    """Real user nobody, whose processes are counted, with root's rights but those that lift the limit."""
    within = ["setpriv", "--ruid=65534", "--bounding-set=-sys_resource,-sys_admin", "--inh-caps=-all"]
    try:
        subprocess.run([*within, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"setpriv can't do it: {error}")
    done = script(
        f"""
        import os, resource
        import qflow as qf
        resource.setrlimit(resource.RLIMIT_NPROC, (20, 20))
        engine = qf.engines.Processes(start={start!r})
        pipe = qf.process(n=60)(abs) | qf.queue(1)
        for _ in range(2):
            try:
                pipe([-1], engine=engine)
            except qf.ResourceError as error:
                print(error, len(os.listdir("/proc/self/fd")))
        print(list(qf.run(qf.process(n=2)(abs), [-1], engine=engine)))
        """,
        within=within,
        OPENBLAS_NUM_THREADS="1",
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    first, second, result = done.stdout.splitlines()
    assert first.startswith("60 worker processes could not be started: [Errno 11] Resource temporarily unavailable"), done
    assert "may have 20 processes and threads (RLIMIT_NPROC)." in first
    assert second == first  # as many descriptors, too
    assert result == "[1]"


def test_few_addresses_make_small_cells_and_not_a_failure() -> None:
    done = script(
        """
        import resource
        import numpy as np
        import qflow as qf
        used = int(open("/proc/self/statm").read().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), used + (2 << 30)))
        print(sum(x.sum() for x in qf.run(qf.process(n=2)(lambda x: x + 1), [np.zeros(100_000)] * 20)))
        try:
            list(qf.run(qf.process(abs), [np.zeros(50_000_000)]))
        except (qf.TransportError, MemoryError) as error:
            print(type(error).__name__, str(error).split(". ")[0])
        """
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("2000000.0\nTransportError An item")


def test_no_addresses_are_an_error_with_numbers() -> None:
    fd = anonymous("test", 1 << 40)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
    with (
        limited(resource.RLIMIT_AS, used + (1 << 20)),
        pytest.raises(qf.ResourceError, match=r"1099511627776 bytes .* \(RLIMIT_AS\)"),
    ):
        mapped(fd, 1 << 40)
    os.close(fd)


def test_a_small_limit_of_file_size_makes_small_cells() -> None:
    with limited(resource.RLIMIT_FSIZE, 64 << 20):
        assert stride_for(4) <= 8 << 20
    done = script(
        """
        import resource
        import qflow as qf
        resource.setrlimit(resource.RLIMIT_FSIZE, (256 << 20, 256 << 20))
        print(list(qf.run(qf.process(n=2)(abs), [-1])))
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[1]\n", "")


# ---- folders that may be missing


WORK = """
        import numpy as np
        import qflow as qf
        source = [np.full(100_000, float(i)) for i in range(10)]
        values = list(qf.run(qf.process(n=2)(lambda x: x * 2) | qf.process(lambda x: x), source))
        print(all((value == 2 * i).all() for i, value in enumerate(values)), len(values))
"""
WORKED = 0, "True 10\n", ""


def test_no_home_no_temporary_folder_and_no_working_directory_are_needed(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    before = f"""
        import os
        os.chdir({str(gone)!r})
        os.rmdir({str(gone)!r})
    """
    done = script(before + WORK, HOME=None, TMPDIR="/proc")
    assert (done.returncode, done.stdout, done.stderr) == WORKED


def mounted(*commands: str) -> list[str]:
    """A private view of the file system, changed by these commands."""
    needs_unshare("--mount")
    return ["unshare", "--mount", "sh", "-ec", "; ".join([*commands, 'exec "$@"']), "sh"]


def test_a_temporary_folder_that_cannot_be_written_is_not_needed() -> None:
    readonly = [f"mount -t tmpfs -o ro tmpfs {folder}" for folder in ("/var/tmp", "/usr/tmp") if os.path.isdir(folder)]
    # /tmp holds what runs here, so it is not hidden but made unwritable.
    done = script(WORK, within=mounted(*readonly, "mount --bind /tmp /tmp", "mount -o remount,ro,bind /tmp"))
    assert (done.returncode, done.stdout, done.stderr) == WORKED


@pytest.mark.parametrize(
    "fill", ["true", "dd if=/dev/zero of=/dev/shm/full bs=4096 status=none 2>/dev/null || true", "umount /dev/shm"]
)
def test_the_folder_of_shared_memory_is_not_needed(fill: str) -> None:
    done = script(WORK, within=mounted("mount -t tmpfs -o size=1m tmpfs /dev/shm", fill))
    assert (done.returncode, done.stdout, done.stderr) == WORKED


FULL = """
        import numpy as np
        import qflow as qf
        qf_error = None
        try:
            list(qf.run(qf.process(lambda n: np.ones(n)) | qf.process(lambda x: x.sum()), {source}))
        except qf.ResourceError as error:
            print(error)
        print(list(qf.run(abs, [-1])))
"""


@pytest.mark.parametrize("source", ["[1, 1_000_000]", "[np.ones(1_000_000, int)]"], ids=["worker", "source"])
def test_a_full_folder_is_an_error_and_not_a_crash_where_there_is_no_memfd(source: str) -> None:
    done = script(FULL.format(source=source), within=mounted("mount -t tmpfs -o size=6m tmpfs /dev/shm"), QFLOW_WITHOUT="memfd")
    error, *_, result = done.stdout.splitlines() or [""]
    assert "bytes of shared memory were refused: [Errno 28] No space left on device" in error, done
    assert error.split()[0].isdigit()
    assert (done.returncode, result, done.stderr) == (0, "[1]", "")


def test_without_memfd_and_without_its_folder_the_temporary_one_serves(tmp_path: Path) -> None:
    within = mounted("mount -t tmpfs -o ro tmpfs /dev/shm")
    done = script(WORK, within=within, QFLOW_WITHOUT="memfd", TMPDIR=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == WORKED
    assert not list(tmp_path.iterdir())
    done = script(WORK, within=within, QFLOW_WITHOUT="memfd", TMPDIR="/proc")
    assert done.returncode == 0 or "ResourceError" in done.stderr


# ---- handles that a step carries


def a_file(folder: Path) -> Any:
    return (folder / "file").open("w")


def a_connection(folder: Path) -> Any:
    return sqlite3.connect(folder / "database")


def an_h5_file(folder: Path) -> Any:
    return pytest.importorskip("h5py").File(folder / "file.h5", "w")


def an_h5_dataset(folder: Path) -> Any:
    return an_h5_file(folder).create_dataset("data", data=np.arange(3))


@pytest.mark.parametrize("start", ["forkserver", "spawn", "fork"])
@pytest.mark.parametrize(
    "make",
    [a_file, a_connection, an_h5_file, an_h5_dataset, lambda _: socket.socket()],
    ids=["file", "sqlite", "h5 file", "h5 dataset", "socket"],
)
def test_an_open_handle_in_a_step_is_refused_by_name(make: Callable[[Path], Any], start: str, tmp_path: Path) -> None:
    handle = make(tmp_path)
    try:

        def step(x: int) -> Any:
            return x, handle

        with pytest.raises(qf.GraphError, match="Step 'step' can't be sent to a worker: it captures `handle`") as caught:
            qf.run(step, [0], engine=qf.engines.Processes(start=start))
        assert "Open or make it inside the function" in str(caught.value)
    finally:
        getattr(handle, "file", handle).close()


def test_an_open_handle_of_a_module_is_refused_where_it_would_be_shared(tmp_path: Path) -> None:
    """A forked worker would read through the parent's file position; other workers open their own."""
    (tmp_path / "steps.py").write_text(
        "import sqlite3\nconnection = sqlite3.connect(':memory:')\n"
        "def step(x):\n    return connection.execute(f'select {x}').fetchone()\n"
    )
    done = script(
        """
        import qflow as qf
        import steps
        print(list(qf.run(steps.step, [3])))
        try:
            qf.run(steps.step, [3], engine=qf.engines.Processes(start="fork"))
        except qf.GraphError as error:
            print(error)
        """,
        PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("[(3,)]\nStep 'step' uses `connection`, <sqlite3.Connection"), done.stdout


def faults_so_far(_):
    """How many pages this process was given, after some arrays of 1 MB were made and freed."""
    several = [np.ones(1 << 17) for _ in range(6)]
    del several
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries are not told what to keep")
def test_memory_that_a_step_frees_is_there_for_its_next_item():
    found = list(qf.Flow(qf.process(faults_so_far))(range(60)))
    assert found[-1] - found[20] < 40
