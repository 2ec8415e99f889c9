"""The nursery, and the ways to make workers: forkserver, spawn and fork give the same results."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pickle
import resource
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scenario import assert_gone, children_of, killed_parent, limited, needs_unshare, script

import qflow as qf
from qflow.engines.processes import Processes
from qflow.engines.warm import warm_of
from qflow.runtime.child import Child, ended, kill
from qflow.runtime.nursery import Nursery, NurseryDied

# ---- the nursery by itself


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    made = Nursery(worker="plain_worker")
    yield made
    made.close()


def workers(nursery: Nursery, numbers: list[int], **task: int) -> list[tuple[Child, list[int]]]:
    """New workers, each with what it says: its number, its process and its parent."""
    read, write = os.pipe()
    with os.fdopen(read) as said:
        try:
            children = nursery.fork([write], numbers, pickle.dumps(task))
        finally:
            os.close(write)
        lines = sorted(([int(word) for word in said.readline().split()] for _ in numbers), key=lambda words: words[1])
    return list(zip(sorted(children), lines, strict=True))


def test_any_workers_can_be_made_again(nursery: Nursery) -> None:
    first = workers(nursery, [0, 1, 2])
    again = workers(nursery, [2, 0])
    assert sorted(number for _, (number, *_) in again) == [0, 2]
    assert {parent for _, (_, _, parent) in first + again} == {nursery.pid}
    for child, (_, pid, _) in first + again:
        assert child.pid == pid
        kill(child)
        child.close()


def test_a_killed_worker_is_reaped_with_its_status_and_its_memory(nursery: Nursery) -> None:
    ((child, _),) = workers(nursery, [0], memory=200 << 20)
    assert not ended(child, 0)
    kill(child)
    status, peak = nursery.reap(child.pid)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert 200 << 20 < peak < 600 << 20
    with pytest.raises(ChildProcessError):  # whoever has that number now is left alone
        nursery.reap(child.pid)
    child.close()


def test_a_worker_that_exits_is_reaped_with_its_code(nursery: Nursery) -> None:
    ((child, _),) = workers(nursery, [0], code=7)
    assert ended(child, 2)
    assert os.waitstatus_to_exitcode(nursery.reap(child.pid).status) == 7
    child.close()


def test_a_request_that_is_refused_leaves_the_nursery_at_work(nursery: Nursery) -> None:
    ((child, _),) = workers(nursery, [0])
    with pytest.raises(qf.ResourceError, match="2 worker processes could not be started"), limited(resource.RLIMIT_NOFILE, 0):
        nursery.fork([], [1, 2], pickle.dumps({}))  # no descriptors left for what would show their end
    assert nursery.alive
    assert not ended(child, 0)
    assert children_of(nursery.pid) == {child.pid}
    kill(child)
    child.close()


def test_a_nursery_that_has_died_says_so(nursery: Nursery) -> None:
    ((child, _),) = workers(nursery, [0])
    os.kill(nursery.pid, signal.SIGKILL)
    assert ended(child, 2)  # its workers go with it
    child.close()
    with pytest.raises(NurseryDied):
        nursery.reap(child.pid)
    assert not nursery.alive
    with pytest.raises(NurseryDied):
        workers(nursery, [0])


# ---- the same results


STARTS = ["forkserver", "spawn", "fork"]


@pytest.fixture(params=["forkserver", *(pytest.param(start, marks=pytest.mark.slow) for start in ("spawn", "fork"))])
def start(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def run_with(start: str, flow: Any, source: Any, **options: Any) -> list[Any]:
    return list(qf.run(flow, source, engine=Processes(start=start), **options))


@dataclasses.dataclass
class Event:
    number: int
    data: np.ndarray


class Adding:
    """Counts what it has seen, so that its state would tell if it were shared."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, event: Event) -> Event:
        self.seen += 1
        return Event(event.number + self.seen, event.data + 1)


def test_results_are_those_of_every_other_engine(start: str) -> None:
    def parts(event: Event) -> Iterator[Event]:
        yield Event(event.number, event.data)
        yield Event(-event.number, event.data * 2)

    flow = qf.process(Adding) | qf.process(n=2)(parts) | qf.pack(3) | qf.thread(n=2)(len)
    source = [Event(i, np.full(30_000, float(i))) for i in range(20)]
    assert run_with(start, flow, source) == list(qf.run(flow, source, engine="serial"))


def test_workers_are_other_processes_and_stay_warm(start: str) -> None:
    pipe = qf.Flow(qf.process(n=2)(lambda _: os.getpid()))
    with pipe:
        first = set(pipe(range(20), engine=(engine := Processes(start=start))))
        assert os.getpid() not in first
        assert set(pipe(range(20), engine=engine)) <= crew_of(pipe)
        assert first <= crew_of(pipe)


def crew_of(pipe: qf.Flow[Any, Any]) -> set[int]:
    crew = warm_of(pipe)._resting
    assert crew is not None
    return {member.child.pid for member in crew.members.values()}


def test_engines_that_start_differently_do_not_share_workers() -> None:
    pipe = qf.Flow(qf.process(lambda _: os.getpid()))
    with pipe:
        pids = [run[0] for run in (list(pipe([0], engine=Processes(start=start))) for start in STARTS)]
        assert len(set(pids)) == 3


def test_errors_say_where_they_happened(start: str) -> None:
    def inverse(x: int) -> float:
        return 1 / x

    with pytest.raises(ZeroDivisionError) as caught:
        run_with(start, qf.process(inverse), [2, 1, 0])
    assert "in step 'inverse', item 2" in caught.value.__notes__[0]


def test_a_dead_worker_ends_the_run(start: str) -> None:
    with pytest.raises(qf.WorkerDied, match="exited with code 7"):
        run_with(start, qf.process(lambda _: os._exit(7)), [0])


@pytest.mark.parametrize("wrong", ["thread", "Fork", None, 3])
def test_a_wrong_start_is_an_error_at_its_line(wrong: Any) -> None:
    with pytest.raises(qf.GraphError, match="`start` is one of 'forkserver', 'spawn', 'fork', but got"):
        Processes(start=wrong)
    with pytest.raises(TypeError):
        Processes("fork")  # type: ignore[misc]


def test_the_engine_is_exported_and_loaded_only_when_it_is_named() -> None:
    code = (
        "import sys, qflow as qf; print('qflow.engines.processes' in sys.modules, "
        "qf.engines.Processes.__module__); print(hasattr(qf.engines, 'Colour'))"
    )
    assert script(code).stdout == "False qflow.engines.processes\nFalse\n"


def test_a_flow_ends_the_workers_of_an_engine_that_was_never_named(start: str) -> None:
    done = script(
        f"""
        import os
        import qflow as qf
        pipe = qf.Flow(qf.process(lambda _: os.getpid()))
        [pid] = pipe([0], engine=qf.engines.Processes(start={start!r}))
        pipe.close()
        print(os.path.exists(f"/proc/{{pid}}"))
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")


def test_workers_warn_as_their_parent_does_and_load_nothing_for_warnings_that_they_can_not_meet(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("class Mine(UserWarning): pass")
    (tmp_path / "uses.py").write_text(
        "import warnings, mine\n"
        "def step(_):\n"
        "    try:\n"
        "        warnings.warn('from here', mine.Mine)\n"
        "    except mine.Mine:\n"
        "        return 'an error'\n"
    )
    done = script(
        f"""
        import sys, warnings
        import qflow as qf
        sys.path.insert(0, {str(tmp_path)!r})
        import mine, uses
        warnings.filterwarnings("error", category=mine.Mine)
        warnings.filterwarnings("error", "told")
        def step(_):
            try:
                warnings.warn("told")
            except UserWarning:
                return "an error", "mine" in sys.modules
        print(list(qf.run(step, [1])), list(qf.run(uses.step, [1])))
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[('an error', False)] ['an error']\n", "")


# ---- fork


def test_fork_from_a_process_with_threads_warns_once() -> None:
    done = script(
        """
        import threading, warnings
        import qflow as qf
        stop = threading.Event()
        threading.Thread(target=stop.wait).start()
        engine = qf.engines.Processes(start="fork")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                assert list(qf.run(abs, [-1], engine=engine)) == [1]
        stop.set()
        print(len(caught), caught[0].filename, caught[0].category.__name__, caught[0].message)
        """
    )
    assert done.stdout.startswith("1 <string> RuntimeWarning `start='fork'` copies a process with 2 threads"), done
    assert (done.returncode, done.stderr) == (0, "")


def test_fork_from_a_single_thread_says_nothing() -> None:
    done = script("import qflow as qf; print(list(qf.run(abs, [-1], engine=qf.engines.Processes(start='fork'))))")
    assert (done.returncode, done.stdout, done.stderr) == (0, "[1]\n", "")


def test_fork_after_cuda_was_initialised_is_an_error() -> None:
    done = script(
        """
        import sys, types
        import qflow as qf
        sys.modules["torch"] = types.SimpleNamespace(cuda=types.SimpleNamespace(is_initialized=lambda: True))
        try:
            qf.run(abs, [-1], engine=qf.engines.Processes(start="fork"))
        except qf.GraphError as error:
            print(error)
        """
    )
    assert done.stdout.startswith("CUDA is initialised in this process, and a copy of it can't use CUDA."), done


@pytest.mark.filterwarnings("ignore:`start='fork'`:RuntimeWarning")
def test_forked_workers_survive_the_thread_that_made_them() -> None:
    pipe = qf.Flow(qf.process(n=2)(lambda _: os.getpid()))
    engine = Processes(start="fork")
    with pipe:
        pids: set[int] = set()
        thread = threading.Thread(target=lambda: pids.update(pipe(range(20), engine=engine)))
        thread.start()
        thread.join()
        assert set(pipe(range(20), engine=engine)) <= crew_of(pipe)
        assert pids <= crew_of(pipe)


def test_a_forked_worker_holds_no_line_of_another_flow() -> None:
    engine = Processes(start="fork")
    first, second = (qf.Flow(qf.process(open_descriptors)) for _ in range(2))
    with first, second:
        list(first([0], engine=engine))
        crew = warm_of(first)._resting
        assert crew is not None
        assert crew.nursery is not None
        lines = {os.readlink(f"/proc/self/fd/{end.fileno()}") for end in (crew.nursery._socket, crew.members[0].control)}
        (held,) = second([0], engine=engine)
        assert lines.isdisjoint(held)


def open_descriptors(_: int) -> list[str]:
    links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    return [os.readlink(link) for link in links if os.path.lexists(link)]


def test_a_fork_leaves_the_parents_signals_and_wakeup_alone() -> None:
    done = script(
        """
        import os, signal, socket
        import qflow as qf
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        signal.set_wakeup_fd(theirs.fileno())
        signal.signal(signal.SIGUSR2, lambda *_: print("parent's handler"))
        def step(_):
            signal.raise_signal(signal.SIGTERM)
            return signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL and signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
        print(list(qf.run(step, [0], engine=qf.engines.Processes(start="fork"))))
        ours.setblocking(False)
        try:
            print(ours.recv(10))
        except BlockingIOError:
            print("quiet", signal.getsignal(signal.SIGUSR2) is not signal.SIG_DFL)
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[True]\nquiet True\n", "")


def test_objects_of_the_parent_are_not_finalised_in_the_workers() -> None:
    done = script(
        """
        import gc, os
        import qflow as qf
        class Loud:
            def __del__(self):
                os.write(1, f"finalised {os.getpid() == parent}\\n".encode())
        parent = os.getpid()
        gc.disable()
        loud = Loud(); loud.itself = loud; del loud
        def step(x):
            gc.collect()
            return x
        assert list(qf.run(qf.process(n=2)(step), range(4), engine=qf.engines.Processes(start="fork"))) == [0, 1, 2, 3]
        gc.collect()
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "finalised True\n", "")


# ---- the death of the parent, and of the nursery


@pytest.mark.parametrize("state", ["iterating", "idle", "stuck"])
@pytest.mark.parametrize("lacking", ["", "memfd,pidfd,prctl"], ids=["", "without"])
def test_workers_go_when_their_parent_is_killed(start: str, state: str, lacking: str) -> None:
    pids = killed_parent(
        f"""
        import itertools, os, time
        import qflow as qf
        engine = qf.engines.Processes(start={start!r})
        pipe = qf.Flow(qf.process(n=2)(lambda x: time.sleep(60) if {state == "stuck"} and x > 50 else os.getpid()))
        run = pipe(itertools.count() if {state != "idle"} else range(40), engine=engine)
        pids = {{next(run) for _ in range(40)}}
        if {state == "idle"}:
            list(run)
        print(*pids, flush=True)
        """,
        lacking,
    )
    assert_gone(pids)


def test_workers_that_hold_the_interpreter_go_too(start: str) -> None:
    """`re` keeps the GIL while it backtracks: only the kernel ends such a worker."""
    pids = killed_parent(
        f"""
        import os, re
        import qflow as qf
        def stuck(x):
            return os.getpid() if x < 20 else re.match("(a+)+b", "a" * 100)
        run = qf.Flow(qf.process(stuck))(range(30), engine=qf.engines.Processes(start={start!r}))
        print(*{{next(run) for _ in range(20)}}, flush=True)
        """
    )
    assert_gone(pids)


def test_a_new_nursery_is_made_after_one_has_died(start: str) -> None:
    pipe = qf.Flow(qf.process(n=2)(abs))
    with pipe:
        engine = Processes(start=start)
        assert list(pipe([-1], engine=engine)) == [1]
        crew = warm_of(pipe)._resting
        assert crew is not None
        assert crew.nursery is not None
        os.kill(crew.nursery.pid, signal.SIGKILL)
        for member in crew.members.values():
            assert ended(member.child, 2)
        assert list(pipe([-1, -2], engine=engine)) == [1, 2]


def test_a_run_outlives_the_nursery_of_its_workers() -> None:
    pipe = qf.Flow(qf.process(n=2)(abs))
    with pipe, pipe(itertools.count(), engine=Processes(attempts=10)) as run:
        assert next(run) == 0
        nursery = next(iter(warm_of(pipe).sessions)).crew.nursery
        os.kill(nursery.pid, signal.SIGKILL)
        assert list(itertools.islice(run, 500)) == list(range(1, 501))


# ---- the world around


@pytest.mark.parametrize(
    ("start", "lacking"),
    [("forkserver", call) for call in ("memfd", "pidfd", "prctl")] + [(start, "memfd,pidfd,prctl") for start in STARTS],
)
def test_calls_that_the_kernel_lacks_are_done_without(start: str, lacking: str) -> None:
    done = script(
        f"""
        import logging, os
        import numpy as np
        import qflow as qf
        class Keep(logging.Handler):
            def emit(self, record):
                if "A worker of step" not in record.getMessage():
                    records.append(record.getMessage())
        records = []
        logging.getLogger("qflow").addHandler(Keep())
        logging.getLogger("qflow").setLevel(logging.INFO)
        logging.getLogger("qflow").propagate = False
        engine = qf.engines.Processes(start={start!r})
        source = [np.full(100_000, float(i)) for i in range(30)]
        for _ in range(2):
            values = list(qf.run(qf.process(n=2)(lambda x: x + 1), source, engine=engine))
            assert all((value == 1 + i).all() for i, value in enumerate(values)) and len(values) == 30
        try:
            list(qf.run(qf.process(lambda _: os._exit(3)), [0], engine=engine))
        except qf.WorkerDied as error:
            print("exited with code 3" in str(error))
        print(*sorted(record.split()[0] for record in records))
        """,
        QFLOW_WITHOUT=lacking,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"True\n{' '.join(sorted(lacking.split(',')))}\n", "")


def test_calls_that_are_refused_are_done_without(start: str) -> None:
    """A seccomp filter, as a sandbox sets it, answers EPERM."""
    done = script(
        REFUSE
        + f"""
        print(list(qf.run(qf.process(n=2)(abs), [-1, -2], engine=qf.engines.Processes(start={start!r}))))
        """
    )
    assert (done.returncode, done.stdout) == (0, "[1, 2]\n"), done
    assert "prctl" in done.stderr
    assert len(done.stderr.splitlines()) == 1  # the one warning


REFUSE = """
        import ctypes, os, platform, struct
        import qflow as qf
        libc = ctypes.CDLL(None, use_errno=True)
        calls = {"x86_64": (319, 434, 424, 157), "aarch64": (279, 434, 424, 167)}[platform.machine()]
        memfd, pidfd, send, prctl = calls
        def step(code, true, false, k):
            return struct.pack("HBBI", code, true, false, k)
        refused = 0x50000 | 1
        program = b"".join([
            step(0x20, 0, 0, 0),           # the number of the call
            step(0x15, 5, 0, memfd), step(0x15, 4, 0, pidfd), step(0x15, 3, 0, send), step(0x15, 0, 3, prctl),
            step(0x20, 0, 0, 16),          # its first argument: PR_SET_PDEATHSIG, PR_GET_PDEATHSIG
            step(0x25, 1, 0, 2), step(0x06, 0, 0, refused), step(0x06, 0, 0, 0x7FFF0000),
        ])
        class Program(ctypes.Structure):
            _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_char_p)]
        assert libc.prctl(38, 1, 0, 0, 0) == 0
        assert libc.prctl(22, 2, ctypes.byref(Program(len(program) // 8, program))) == 0
        try:
            os.memfd_create("x")
        except PermissionError:
            pass
"""


def test_workers_do_not_take_themselves_for_ranks(start: str) -> None:
    launchers = ["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_FD", "PRTE_X", "MPI_LOCALRANKID", "I_MPI_INFO", "SLURM_PMIX_VERSION"]
    done = script(
        f"""
        import os
        import qflow as qf
        def step(name):
            inherited = open("/proc/self/environ").read() if {start != "fork"} else ""
            return name if name in os.environ or f"\\0{{name}}=" in inherited else ""
        names = {[*launchers, "RANK", "SLURM_PROCID"]}
        print(*qf.run(step, names, engine=qf.engines.Processes(start={start!r})), all(name in os.environ for name in names))
        """,
        **dict.fromkeys([*launchers, "RANK", "SLURM_PROCID"], "0"),
    )
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["RANK", "SLURM_PROCID", "True"], "")


THREADS = """
        import numpy as np, os
        import qflow as qf
        import torch
        np.ones((200, 200)) @ np.ones((200, 200))
        def step(_):
            import numpy, threadpoolctl, torch
            return sorted({pool["num_threads"] for pool in threadpoolctl.threadpool_info()}), torch.get_num_threads()
"""


def test_native_libraries_have_one_thread_in_a_worker(start: str) -> None:
    pytest.importorskip("threadpoolctl")
    code = f"{THREADS}\n        print(*qf.run(step, [0], engine=qf.engines.Processes(start={start!r})))"
    unset = dict.fromkeys(["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"])
    assert script(code, **unset).stdout == "([1], 1)\n"
    if start == "fork":  # the others take seconds, and read the variables as they always do
        assert script(code, **{**unset, "OMP_NUM_THREADS": "2"}).stdout == "([2], 2)\n"


def test_programs_that_a_step_starts_inherit_nothing_of_ours(start: str) -> None:
    def step(_: int) -> list[str]:
        command = ["sh", "-c", "for fd in /proc/$$/fd/*; do readlink $fd; done"]
        return subprocess.run(command, close_fds=False, capture_output=True, text=True).stdout.split("\n")

    (held,) = run_with(start, step, [0])
    assert not [link for link in held if "qflow" in link or "socket" in link or "anon_inode" in link]


def test_locks_that_threads_hold_at_the_start_hang_nobody(start: str) -> None:
    done = script(
        f"""
        import logging, sys, threading, warnings
        import numpy as np
        import qflow as qf
        warnings.simplefilter("ignore")
        handler = logging.StreamHandler()
        stop = threading.Event()
        def busy(number):
            while not stop.is_set():
                with logging._lock, handler.lock:
                    np.ones((100, 100)) @ np.ones((100, 100))
        threads = [threading.Thread(target=busy, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        def step(x):
            logging.getLogger("a").debug("said")
            return float((np.ones((100, 100)) @ np.ones((100, 100))).sum()) + x
        for _ in range(1 if {start == "spawn"} else 3):
            assert list(qf.run(qf.process(n=2)(step), range(3), engine=qf.engines.Processes(start={start!r})))[2] == 1e6 + 2
        stop.set()
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("closed", [[0], [0, 1, 2]])
def test_standard_streams_may_be_closed(start: str, closed: list[int], tmp_path: Path) -> None:
    done = script(
        f"""
        import os
        for fd in {closed}:
            os.close(fd)
        import qflow as qf
        def step(x):
            print(x)
            return [os.readlink(f"/proc/{{os.getppid()}}/fd/{{fd}}") for fd in {closed}]
        values = list(qf.run(qf.process(n=2)(step), range(5), engine=qf.engines.Processes(start={start!r})))
        open({str(tmp_path / "values")!r}, "w").write(repr(values))
        os._exit(0)
        """
    )
    assert (tmp_path / "values").read_text() == repr([["/dev/null"] * len(closed)] * 5), done


CHILDREN = """
        import ctypes, logging, os, signal, threading, time, warnings
        import qflow as qf
        warnings.simplefilter("ignore")
        logging.getLogger("qflow").setLevel(logging.ERROR)
        def zombies():
            found = []
            for pid in filter(str.isdigit, os.listdir("/proc")):
                try:
                    state, parent = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[:2]
                except OSError:
                    continue
                found += [pid] if state == "Z" and int(parent) == os.getpid() else []
            return found
        def work(start):
            pipe = qf.Flow(qf.process(n=2)(abs))
            engine = qf.engines.Processes(start=start)
            assert list(pipe([-1, -2], engine=engine)) == [1, 2]
            try:
                list(qf.run(qf.process(lambda _: os._exit(3)), [0], engine=engine))
            except qf.WorkerDied as error:
                assert "exited with code 3" in str(error), error
            pipe.close()
            time.sleep(0.7)  # a nursery lingers half a second
"""


@pytest.mark.parametrize(
    "before",
    [
        "ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER",
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
        "threading.Thread(target=steal, daemon=True).start()",
    ],
    ids=["subreaper", "ignored", "stolen"],
)
def test_children_of_an_unusual_parent_leave_nothing(start: str, before: str) -> None:
    done = script(
        f"""{CHILDREN}
        def steal():
            while True:
                try:
                    os.waitpid(-1, 0)
                except ChildProcessError:
                    time.sleep(0.001)
        {before}
        work({start!r})
        print(zombies())
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_the_first_process_of_a_container_may_be_the_parent(start: str) -> None:
    needs_unshare("--pid")
    done = script(
        f"""{CHILDREN}
        work({start!r})
        print(os.getpid(), zombies())
        """,
        within=["unshare", "--pid", "--fork", "--mount-proc"],
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 []\n", "")
