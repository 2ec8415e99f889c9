"""The watch over leaks sees each kind of leak."""

from __future__ import annotations

import mmap
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qflow.testing import leaks

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
ORPHAN = f"import subprocess; print(subprocess.Popen({SLEEP!r}, stdout=subprocess.DEVNULL).pid, flush=True)"


def process() -> Callable[[], object]:
    child = subprocess.Popen(SLEEP)
    return lambda: (child.kill(), child.wait())


def orphan() -> Callable[[], object]:
    pid = int(subprocess.run([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, check=True).stdout)
    return lambda: os.kill(pid, signal.SIGKILL)


def zombie() -> Callable[[], object]:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    return child.wait


def thread() -> Callable[[], object]:
    done = threading.Event()
    worker = threading.Thread(target=done.wait, daemon=True)
    worker.start()
    return lambda: (done.set(), worker.join())


def descriptor() -> Callable[[], object]:
    number = os.open(os.devnull, os.O_RDONLY)
    return lambda: os.close(number)


def mapping() -> Callable[[], object]:
    number = os.memfd_create("qflow-test")
    os.truncate(number, mmap.PAGESIZE)
    memory = mmap.mmap(number, mmap.PAGESIZE)
    os.close(number)
    return memory.close


def shm() -> Callable[[], object]:
    entry = Path("/dev/shm", f"qflow-test-{os.getpid()}")
    entry.touch()
    return entry.unlink


def handler() -> Callable[[], object]:
    before = signal.signal(signal.SIGUSR2, lambda *_: None)
    return lambda: signal.signal(signal.SIGUSR2, before)


def limit() -> Callable[[], object]:
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    changed = 0 if soft else 1 if hard else None
    if changed is None:
        pytest.skip("the limit of core files is 0 here and can't be changed")
    resource.setrlimit(resource.RLIMIT_CORE, (changed, hard))
    return lambda: resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


def folder() -> Callable[[], object]:
    before = os.getcwd()
    os.chdir("/")
    return lambda: os.chdir(before)


KINDS = {
    process: "process",
    orphan: "process",
    zombie: "process",
    thread: "thread",
    descriptor: "descriptor",
    mapping: "mapping",
    shm: "/dev/shm entry",
    handler: "changed signal handler SIGUSR2",
    limit: "changed RLIMIT_CORE",
    folder: "changed working directory",
}


@pytest.mark.parametrize("leak", KINDS, ids=lambda leak: leak.__name__)
def test_each_kind_of_leak_is_found_and_forgotten_when_it_is_gone(leak: Callable[[], Callable[[], object]]) -> None:
    before = leaks.snapshot()
    undo = leak()
    try:
        found = leaks.left_over(before, patience=0)
    finally:
        undo()
    assert any(each.startswith(KINDS[leak]) for each in found), found
    assert leaks.left_over(before) == []


def test_what_is_on_its_way_out_is_waited_for() -> None:
    before = leaks.snapshot()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.3)"])
    reaper = threading.Thread(target=child.wait)
    reaper.start()
    assert leaks.left_over(before) == []
    reaper.join()


def test_what_was_there_before_is_no_leak() -> None:
    undo = process()
    try:
        assert leaks.left_over(leaks.snapshot(), patience=0) == []
    finally:
        undo()


def test_the_fixture_fails_the_test_that_leaks(tmp_path: Path) -> None:
    """A run of pytest by itself, with this folder's conftest."""
    tests = Path(__file__).parent
    (tmp_path / "conftest.py").write_text((tests / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text(
        "import os\ndef test_leaks(): os.open(os.devnull, os.O_RDONLY)\ndef test_clean(): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)]
    path = os.pathsep.join([str(tests), *sys.path])
    found = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, check=False)
    assert found.returncode == 1
    assert "left behind" in found.stdout
    assert "descriptor" in found.stdout
    assert "2 passed, 1 error" in found.stdout


def test_a_block_that_leaks_is_an_assertion_error() -> None:
    with pytest.raises(AssertionError, match=r"left behind:\n  descriptor \d+ -> /dev/null"), leaks.nothing_left(patience=0):
        undo = descriptor()
    undo()
    with leaks.nothing_left():
        descriptor()()


def test_an_error_in_the_block_is_what_is_seen() -> None:
    with pytest.raises(LookupError), leaks.nothing_left(patience=0):
        undo = descriptor()
        raise LookupError
    undo()


@pytest.fixture(scope="module")
def warm() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(SLEEP)
    yield child
    child.kill()
    child.wait()


def test_warm_workers_of_a_module_may_stay(warm: subprocess.Popen[bytes]) -> None:
    assert warm.poll() is None
