"""The notebooks run from their stored, empty state, and a pipe in a notebook behaves as one expects of a cell."""

from __future__ import annotations

import ast
import asyncio
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from queue import Empty
from typing import Any

import nbclient
import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager, KernelManager
from jupyter_core.utils import ensure_event_loop
from scenario import Ends

HERE = Path(__file__).parent
NOTEBOOKS = sorted((HERE.parent / "notebooks").glob("*.ipynb"))
MARKS = {
    "01_quickstart": {"qf.process", "qf.pool"},
    "02_imagenet": {"qf.process"},
    "03_files": set[str](),
    "04_tables": set[str](),
}  # that decorate functions in cells
SECONDS = 120  # for one cell; they take a few

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


class ThisPython(KernelSpecManager):  # type: ignore[misc]
    """One kernel, run by the interpreter that runs the tests, whatever is installed on the machine."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        launch = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--HistoryManager.enabled=False"]
        return KernelSpec(argv=launch, display_name="this Python", language="python")


class Kernels(AsyncKernelManager):  # type: ignore[misc]
    """What nbclient starts its kernel with, and ends it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(kernel_spec_manager=ThisPython(), **options)


@pytest.fixture(autouse=True)
def jupyter_in_a_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))


def stored(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


@every_notebook
def test_a_notebook_is_stored_clean(path: Path) -> None:
    notebook = stored(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@every_notebook
def test_a_notebook_imports_libraries_only_and_defines_its_steps_itself(path: Path) -> None:
    tree = ast.parse("\n".join(cell.source for cell in stored(path).cells if cell.cell_type == "code"))
    imported = [node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported += [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
    assert {name.partition(".")[0] for name in imported} <= {
        *sys.stdlib_module_names,
        "PIL",
        "astropy",
        "h5py",
        "matplotlib",
        "numpy",
        "qflow",
        "skimage",
        "sklearn",
        "torch",
    }
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    marks = {ast.unparse(mark).partition("(")[0] for function in functions for mark in function.decorator_list}
    assert MARKS[path.stem] <= marks


@every_notebook
def test_a_notebook_runs_and_shows_its_flow(path: Path, tmp_path: Path) -> None:
    notebook = stored(path)
    place = {"metadata": {"path": str(tmp_path)}}
    asyncio.run(nbclient.NotebookClient(notebook, kernel_manager_class=Kernels, timeout=SECONDS, resources=place).async_execute())
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.output_type == "error"]
    pictures = [output.data for output in outputs if "image/svg+xml" in output.get("data", {})]
    assert pictures
    assert all({"text/plain", "text/html", "image/svg+xml"} == set(data) for data in pictures)


@pytest.fixture(scope="module", autouse=True)
def jupyters_event_loop() -> Iterator[None]:
    """The one that jupyter_client makes on first use and keeps."""
    loop = ensure_event_loop()
    yield
    loop.close()


class Cells:
    """A kernel whose cells are run one after another."""

    def __init__(self, folder: Path) -> None:
        self.manager = KernelManager(kernel_spec_manager=ThisPython())
        self.manager.start_kernel(cwd=str(folder))
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=SECONDS)

    def outputs(self, source: str) -> Iterator[str]:
        """Run a cell: what it prints, and the name of an error that ends it."""
        cell = self.client.execute(source)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            with suppress(Empty):
                message = self.client.get_iopub_msg(timeout=1)
                if message["parent_header"].get("msg_id") != cell:
                    continue
                content = message["content"]
                yield content.get("text") or content.get("ename") or content.get("data", {}).get("text/plain", "")
                if content.get("execution_state") == "idle":
                    return
        raise TimeoutError(f"the cell did not end within {SECONDS} s: {source}")

    def run(self, source: str) -> str:
        return "".join(self.outputs(source))

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=False)
        self.manager.cleanup_resources()


@pytest.fixture
def cells(tmp_path: Path) -> Iterator[Cells]:
    cells = Cells(tmp_path)
    yield cells
    cells.close()


STEPS = """
import dataclasses, logging, os, sys, time, warnings
import qflow as qf

@dataclasses.dataclass
class Event:
    number: int

def change(number):
    return 10 * number

@qf.process(n=2)
def work(event):
    return Event(change(event.number)), os.getpid()

pipe = work | qf.queue(2)

def numbers():
    events, pids = zip(*pipe([Event(number) for number in range(4)]))
    print([event.number for event in events], {type(event) is Event for event in events}, os.getpid() in pids)
"""


def test_functions_and_dataclasses_of_cells_work_in_workers(cells: Cells) -> None:
    cells.run(STEPS)
    assert cells.run("numbers()") == "[0, 10, 20, 30] {True} False\n"


def test_a_function_edited_in_a_later_cell_is_the_one_that_runs(cells: Cells) -> None:
    cells.run(STEPS)
    cells.run("numbers()")
    assert cells.run("def change(number): return number + 1\nnumbers()") == "[1, 2, 3, 4] {True} False\n"


def test_a_dataclass_written_anew_is_the_one_that_runs(cells: Cells) -> None:
    cells.run(STEPS)
    cells.run("numbers()")
    anew = "@dataclasses.dataclass\nclass Event:\n    number: int\n    weight: float = 0.5\n"
    assert cells.run(anew + "numbers()") == "[0, 10, 20, 30] {True} False\n"
    assert cells.run("print(next(iter(pipe([Event(7)])))[0])") == "Event(number=70, weight=0.5)\n"


def test_a_cell_with_steps_run_again_gives_a_pipe_of_the_new_steps(cells: Cells) -> None:
    cells.run(STEPS)
    cells.run("numbers()")
    cells.run(STEPS.replace("Event(change(event.number))", "Event(change(event.number) + 5)"))
    assert cells.run("numbers()") == "[5, 15, 25, 35] {True} False\n"


@pytest.mark.parametrize(
    "say",
    [
        "print('hello from', item)",
        "print('hello from', item, file=sys.stderr)",
        "warnings.warn(f'hello from {item}')",
        "logging.getLogger('physics').warning('hello from %s', item)",
    ],
    ids=["print", "stderr", "warnings", "logging"],
)
def test_what_a_worker_says_stands_under_the_running_cell_with_the_steps_name(cells: Cells, say: str) -> None:
    cells.run(STEPS)
    cells.run(f"@qf.process\ndef speaker(item):\n    {say}\n    return item\npipe = qf.Flow(speaker)")
    for item in (3, 4):  # the second time with warm workers
        said = cells.run(f"list(pipe([{item}]))")
        assert f"hello from {item}" in said
        assert "speaker" in said
        assert f"hello from {7 - item}" not in said


@pytest.mark.parametrize(
    "cell",
    ["for number in pipe([0.05] * 100_000):\n    print(number, flush=True)", "list(pipe([3600]))"],
    ids=["between results", "waiting for one"],
)
def test_an_interrupted_cell_leaves_the_pipe_usable(cells: Cells, cell: str) -> None:
    cells.run(STEPS)
    cells.run("@qf.process(n=2)\ndef slow(seconds):\n    print('begin')\n    time.sleep(seconds)\n    return seconds")
    cells.run("pipe = slow | qf.queue(2)")
    interrupted, said = 0.0, []
    for output in cells.outputs(cell):
        said.append(output)
        if "begin" in output and not interrupted:
            interrupted = time.monotonic()
            cells.manager.interrupt_kernel()
    assert "KeyboardInterrupt" in said
    assert time.monotonic() - interrupted < 5
    assert cells.run("print(list(pipe([0, 0.1])))").endswith("[0, 0.1]\n")


INTERRUPTED = """
def left(pids, seconds=10):
    began = time.monotonic()
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < began + seconds:
        time.sleep(0.005)
    return time.monotonic() - began

@qf.process(n=2)
def stuck(number):
    if number > 5:
        time.sleep(3600)
    return os.getpid()
"""


@pytest.mark.slow
def test_J1_a_cell_interrupted_and_run_again_ten_times_starts_clean(cells: Cells) -> None:
    cells.run(STEPS + INTERRUPTED)
    descriptors = []
    for _ in range(10):
        said = []
        for output in cells.outputs(
            "pids = set()\nfor pid in (stuck | qf.queue(2))(range(100)):\n    pids.add(pid)\n    print('begin')"
        ):
            said.append(output)
            if "".join(said).count("begin") == 6 and "-" not in said:
                said.append("-")
                cells.manager.interrupt_kernel()
        assert said.count("KeyboardInterrupt") == 1
        assert not [text for text in said if "ignored" in text]
        assert float(cells.run("print(left(pids))")) < 1  # after its own grace
        descriptors.append(int(cells.run("print(len(os.listdir('/proc/self/fd')))")))
    assert descriptors[-1] <= descriptors[1]


@pytest.mark.parametrize("state", ["for _ in pipe(range(4)): pass", "run = pipe(Event(n) for n in range(10**9)); next(run)"])
def test_J4_a_kernel_that_is_killed_leaves_nothing(cells: Cells, state: str) -> None:
    cells.run(STEPS + state)
    pids = cells.run(
        "import qflow.engines.warm as warm\nprint(*[m.child.pid for c in warm._crews() for m in c.members.values()])"
    ).split()
    assert len(pids) == 2
    ends = Ends(pids)
    killed = time.monotonic()
    cells.manager.signal_kernel(signal.SIGKILL)
    assert ends.last() - killed < 1


def test_a_kernel_with_warm_workers_ends_when_it_is_told_to(cells: Cells) -> None:
    """Jupyter asks the processes of the kernel's group to end, and waits for them before the kernel goes."""
    cells.run(STEPS)
    assert "[0, 10, 20, 30]" in cells.run("numbers()")
    cells.client.shutdown()
    end = time.monotonic() + 2
    while cells.manager.is_alive() and time.monotonic() < end:
        time.sleep(0.01)
    assert not cells.manager.is_alive()
