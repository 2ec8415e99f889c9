"""Folders are layers, imports point down only, and what is heavy is loaded by nobody who does not need it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import qflow as qf

PACKAGE = Path(qf.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))

UPPER = "watch", "h5", "files", "train", "testing", "compat"
LEVELS = (
    {"errors": 0, "disk": 0, "graph": 1, "runtime": 2, "engines": 3}
    | dict.fromkeys(UPPER, 4)
    | {"demo": 5, "config": 5, "bench": 6, "__main__": 6}
)
# The package's own file names everything; it is imported by nothing below the upper layers.
ROOT = 4

PUBLIC = {
    "SKIP",
    "repeat",
    "shard",
    "shuffle",
    "take",
    "Flow",
    "GraphError",
    "InternalError",
    "QFlowError",
    "ItemFailure",
    "NondeterministicStep",
    "ResourceError",
    "StepTimeout",
    "Run",
    "StepError",
    "TransportError",
    "WorkerDied",
    "cache",
    "empty",
    "engines",
    "filter",
    "map",
    "mix",
    "pack",
    "pool",
    "process",
    "queue",
    "rebatch",
    "repack",
    "run",
    "shared",
    "source",
    "thread",
    "to_device",
    "unpack",
}


def layer(name: str) -> str:
    """The layer of a dotted module name below qflow, or "" for qflow itself."""
    return name.split(".")[1] if "." in name else ""


def module_of(path: Path) -> str:
    parts = ["qflow", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, also inside functions and for type checkers only."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, each.name) for each in names)
            case ast.ImportFrom(module=None) | ast.ImportFrom(level=1 | 2 | 3):
                yield node.lineno, "a relative import"
            case ast.ImportFrom(module="qflow", names=names):
                yield from ((node.lineno, f"qflow.{each.name}" if is_module(each.name) else "qflow") for each in names)
            case ast.ImportFrom(module=str(module)):
                yield node.lineno, module


def is_module(name: str) -> bool:
    return (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    here = layer(module_of(path))
    if not here:
        return
    assert here in LEVELS, f"{here} has no layer: give it one in this test"
    for line, module in imports(path):
        assert module != "a relative import", f"{path}:{line}"
        if module.split(".")[0] != "qflow":
            continue
        there = layer(module)
        level = LEVELS[there] if there else ROOT
        assert level < LEVELS[here] or there == here or level == LEVELS[here] == ROOT, f"{path}:{line} imports {module}"


def test_the_language_knows_nothing_of_torch() -> None:
    for path in (PACKAGE / "graph").rglob("*.py"):
        draws = path.name == "context.py"  # in functions, where a run needs random numbers
        heavy = {"torch", "h5py", "multiprocessing"} | (set() if draws else {"numpy"})
        assert heavy.isdisjoint(module.split(".")[0] for _, module in imports(path)), path


def test_peers_are_imported_by_the_bench_only() -> None:
    peers = {"bigmultipipe", "torchdata", "loky", "joblib", "mpire", "spdl", "grain", "pypeln", "ray", "h5flow"}
    for path in SOURCES:
        if layer(module_of(path)) != "bench":
            assert peers.isdisjoint(module.split(".")[0] for _, module in imports(path)), path


def loaded_by(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after some code."""
    script = f"import sys\n{code}\nprint(*sorted(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split())


def test_importing_qflow_loads_nothing_heavy() -> None:
    loaded = loaded_by("import qflow")
    assert loaded.isdisjoint(
        {
            "torch",
            "h5py",
            "numpy",
            "cloudpickle",
            "multiprocessing",
            "asyncio",
            "IPython",
            "sklearn",
            "skimage",
            "toolz",
            "socket",
        }
    )
    assert {
        module for module in loaded if module.startswith("qflow.") and layer(module) not in ("errors", "graph", "engines")
    } == set()
    assert "qflow.engines.processes" not in loaded


def test_describing_a_flow_loads_nothing_heavy() -> None:
    code = (
        "import qflow as qf\nflow = range(3) | qf.process(abs) | qf.repack(4)\nrepr(flow), flow.plan(), flow._repr_mimebundle_()"
    )
    assert loaded_by(code).isdisjoint({"torch", "h5py", "numpy", "cloudpickle", "multiprocessing"})


def test_each_public_name_is_exported_once() -> None:
    assert set(qf.__all__) == PUBLIC
    assert len(qf.__all__) == len(set(qf.__all__))
    for name in qf.__all__:
        assert getattr(qf, name) is not None
    exported = [name for name in vars(qf) if not name.startswith("_") and not isinstance(getattr(qf, name), type(sys))]
    assert set(exported) - {"annotations", "Any", "TYPE_CHECKING"} <= PUBLIC | {
        "Sequence",
        "ProcessStep",
        "PoolStep",
        "PackStep",
        "UnpackStep",
        "RepackStep",
    }


def test_public_names_have_docstrings() -> None:
    for name in qf.__all__:
        assert name == "SKIP" or getattr(qf, name).__doc__, name


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'colour'"):
        qf.colour  # noqa: B018


def test_the_typing_marker_is_shipped() -> None:
    assert (PACKAGE / "py.typed").exists()
