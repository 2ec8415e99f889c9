"""What all tests share: the engines, Hypothesis's settings, and the watch over what a test leaves behind."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from qflow.engines import processes
from qflow.runtime import nursery
from qflow.testing import no_leaks as no_leaks

ENGINES = ["serial", "processes"]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background; what is interrupted here should hear it
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "qflow", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.register_profile("ci", settings.get_profile("qflow"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "qflow")

if start := os.environ.get("QFLOW_TEST_START"):  # by `test_starts`: all tests with workers that start in another way
    processes.engine._start = start
    processes.Processes.__init__.__kwdefaults__["start"] = start

collect_ignore_glob = ["typing/*", "mpi_flows.py"]  # samples for the type checkers, wrong on purpose; of an interpreter with MPI


def pytest_collection_finish() -> None:
    """What all tests have imported stays: no garbage collection looks at it again, of which each test needs one or two."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Where libraries and killed programs leave what they do; it goes as pytest's own."""
    os.environ["TMPDIR"] = str(tmp_path_factory.mktemp("left"))
    tempfile.tempdir = None  # asked for before


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """Every engine, by name."""
    return str(request.param)


@pytest.fixture(autouse=True)
def nothing_is_left(warm_nursery: None, no_leaks: None) -> None:
    """Every test here is watched."""


@pytest.fixture
def warm_nursery() -> None:
    """The process that makes workers stays over all tests, so that not each of them loads torch anew."""
    nursery.acquire()


@pytest.fixture(scope="module")
def one_nursery() -> Iterator[None]:
    """The same with what it has loaded, for all tests of a module: each pipe that is closed would end the last one's."""
    held = nursery.acquire()
    yield
    nursery.release(held)


@pytest.fixture
def dataloader(no_leaks: None) -> Iterator[None]:
    """DataLoader sets a handler of SIGCHLD, which goes again; what is left is looked for afterwards."""
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, before)
