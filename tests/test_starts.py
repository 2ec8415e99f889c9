"""Starts: the suite with workers that start in other ways (S1), and from a process whose threads hold locks (S2)."""

from __future__ import annotations

import pytest
from scenario import script
from test_around import suite

import qflow as qf

pytestmark = pytest.mark.slow


FILES = [("test_policies.py", "fork"), ("test_values.py", "fork"), ("test_user_code.py", "fork"), ("test_values.py", "spawn")]


@pytest.mark.parametrize(("file", "start"), FILES)
def test_S1_the_suite_passes_however_workers_start(file, start):
    suite([file], QFLOW_TEST_START=start)


def test_S1_the_switch_switches(monkeypatch):
    """Otherwise the tests above would show nothing."""
    assert qf.engines.Processes()._start == "forkserver"
    with pytest.raises(AssertionError, match="FAILED"):
        suite(["test_starts.py::test_S1_the_switch_switches", "-m", "slow"], QFLOW_TEST_START="spawn")


HOLDING = """
    import logging, os, sys, threading, time, warnings
    import numpy as np
    import torch
    import qflow as qf
    warnings.simplefilter("ignore")
    start, rounds = {start!r}, {rounds}
    logging.basicConfig(stream=sys.stdout, level=logging.ERROR)
    own, stop = threading.RLock(), threading.Event()
    big, tensor = np.ones((150, 150)), torch.ones(150, 150)

    def logs():
        with logging._lock, logging.getLogger().handlers[0].lock:
            time.sleep(0.004)

    def multiplies():
        big @ big

    def multiplies_in_torch():
        tensor @ tensor

    def allocates():
        [bytes(size) for size in range(1, 300_000, 29_973)]

    def imports():
        sys.modules.pop("colorsys", None)
        import colorsys

    def prints():
        print("x" * 100, file=null, flush=True)

    def locks():
        with own:
            time.sleep(0.004)

    def reads():
        os.listdir("/proc/self/fd")

    def again(do):
        while not stop.is_set():
            do()
            time.sleep(0.001)  # or nobody else would have the interpreter

    null = open(os.devnull, "w")
    if start == "fork":  # OpenBLAS: `os.fork` itself hangs while a thread is in a product, without qflow too
        multiplies = reads
    threads = [threading.Thread(target=again, args=(f,), daemon=True) for f in
               (logs, multiplies, multiplies_in_torch, allocates, imports, prints, locks, reads)]
    for thread in threads:
        thread.start()

    def step(x):
        logging.getLogger("a").warning("said")
        return float((np.ones((150, 150)) @ np.ones((150, 150))).sum() + torch.ones(9).sum()) + len(bytes(x))

    if start != "fork":
        from qflow.runtime import nursery
        nursery.acquire(start)  # or each round would load torch anew
    for number in range(rounds):
        with qf.process(n=2)(step) | qf.queue(2) as pipe:  # workers of its own each time
            found = list(pipe(range(5), engine=qf.engines.Processes(start=start), timeout=60))
            assert found == [150.0 ** 3 + 9 + x for x in range(5)], found
        print(number, flush=True)
    os._exit(0)
"""


@pytest.mark.parametrize(("start", "rounds"), [("forkserver", 50), ("fork", 10), ("spawn", 5)])
def test_S2_threads_that_hold_locks_at_the_start_hang_nobody(start, rounds):
    done = script(HOLDING.format(start=start, rounds=rounds), timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line for line in done.stdout.splitlines() if line.isdigit()] == [str(number) for number in range(rounds)]
