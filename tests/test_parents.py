"""The parent is killed, in every state of its own and of its workers; and programs in which a run is only a guest (C6, J4)."""

from __future__ import annotations

import itertools
import os
import signal
import time

import pytest
from scenario import Ends, program, script

PARENT = """
    import itertools, os, signal, sys, threading, time
    from pathlib import Path
    import qflow as qf
    folder, state, worker = Path({folder!r}), {state!r}, {worker!r}
    engine = qf.engines.Processes(start={start!r})
    def mark():
        folder.joinpath(str(os.getpid())).touch()
    class Step:
        def __init__(self):
            if worker in ("being built", "waiting for room"):
                mark()
            if worker == "being built":
                time.sleep(60)
        def __call__(self, x):
            if x >= 3 or state == "starting":
                if worker != "waiting for room":
                    mark()
                if worker == "sleeping":
                    time.sleep(60)
                if worker == "in C code":
                    __import__("re").match("(a|aa)+$", "a" * 60 + "b")
                if worker == "stopped":
                    os.kill(os.getpid(), signal.SIGSTOP)
            return bytes(1_000_000)
    def workers():
        while len(found := os.listdir(folder)) < 2:
            time.sleep(0.001)
        return found
    def say(*pids):
        print(*pids, flush=True)
        time.sleep(60)
    pipe = qf.process(n=2)(Step) | qf.queue(2)
    if state == "starting":
        threading.Thread(target=lambda: say(*workers())).start()
        for _ in pipe(itertools.count(), engine=engine): pass
    run = pipe(itertools.count(), engine=engine)
    if state == "iterating":
        threading.Thread(target=lambda: say(*workers())).start()
        for _ in run: pass
    taken = [next(run) for _ in range(3 if worker != "being built" else 0)]
    pids = workers()
    if state == "closing":
        threading.Thread(target=lambda: (time.sleep(0.05), say(*pids))).start()
        while True:
            run.close()
            time.sleep(60)
    say(*pids)
"""
STATES = ["starting", "iterating", "idle", "closing"]
WORKERS = ["sleeping", "waiting for room", "in C code", "being built", "stopped"]
OTHERS = [pytest.param(start, marks=pytest.mark.slow) for start in ("spawn", "fork")]


@pytest.mark.parametrize("start", ["forkserver", *OTHERS])
@pytest.mark.parametrize(("state", "worker"), [*itertools.product(STATES, WORKERS)])
def test_C12_nothing_is_left_within_a_second_when_the_parent_is_killed(state, worker, start, tmp_path):
    with program(PARENT.format(folder=str(tmp_path), state=state, worker=worker, start=start)) as child:
        pids = child.stdout.readline().split()
        assert len(pids) >= 2
        ends = Ends(pids)
        killed = time.monotonic()
        os.kill(child.pid, signal.SIGKILL)
        assert ends.last() - killed < 1


def test_C12_a_parent_that_is_killed_while_its_first_workers_are_made_leaves_none():
    """Killed after 5, 10, 15 ... milliseconds of its start."""
    for step in range(1, 60, 6):
        text = """
            import os, signal, threading, time
            import qflow as qf
            signal.setitimer(signal.ITIMER_REAL, {seconds})
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            list(qf.run(qf.process(n=4)(lambda x: time.sleep(60)), range(9)))
        """
        with program(text.format(seconds=0.005 * step)) as child:
            assert child.wait(10) == -signal.SIGKILL


# ---- a guest in other programs


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_C6_a_run_inside_a_worker_of_a_multiprocessing_pool(method, tmp_path):
    (tmp_path / "guest.py").write_text(
        "import qflow as qf\ndef inner(n):\n    return list(qf.run(qf.process(n=2)(abs), range(-n, 0)))\n"
    )
    done = script(
        f"""
        import multiprocessing
        import guest
        with multiprocessing.get_context({method!r}).Pool(2) as pool:
            print(pool.map(guest.inner, [3, 0, 1]))
            pool.close()
            pool.join()
        """,
        PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[[3, 2, 1], [], [1]]\n", "")


def test_C6_a_run_inside_a_worker_of_a_data_loader():
    done = script(
        """
        import torch
        import qflow as qf
        class Data(torch.utils.data.Dataset):
            def __len__(self):
                return 4
            def __getitem__(self, n):
                return sum(qf.run(qf.process(n=2)(abs), range(-n, 0)))
        for _ in range(2):
            print(*[batch.tolist() for batch in torch.utils.data.DataLoader(Data(), batch_size=2, num_workers=2)])
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[0, 1] [3, 6]\n" * 2, "")
