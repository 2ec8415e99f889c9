"""Mutants in real processes: a copy of the package with one place changed, whose runs must come out wrong."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import mutants
import pytest

import qflow

RUNS = Path(__file__).with_name("small_runs.py")


def copied(folder, name):
    """A copy of the package under a mutant, or under none."""
    shutil.copytree(Path(qflow.__file__).parent, folder / "qflow", ignore=shutil.ignore_patterns("__pycache__"))
    for module in mutants.MODULES:
        (folder / "qflow" / "runtime" / f"{module}.py").write_text(mutants.text(module, name))
    return folder


def small_runs(folder, seconds):
    """What the small runs with the package in a folder print, and how they end; None if they hang."""
    with subprocess.Popen(
        [sys.executable, shutil.copy(RUNS, folder)],  # beside the package, which is found there first
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as child:
        try:
            out, _ = child.communicate(timeout=seconds)
            return child.returncode, out
        except subprocess.TimeoutExpired:
            return None, ""
        finally:
            if child.returncode is None:
                os.killpg(child.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("name", mutants.seen_by("processes"))
def test_removing_a_line_is_noticed_by_real_processes(name, tmp_path):
    status, out = small_runs(copied(tmp_path, name), 300)
    print(out[-2000:])
    assert status != 0


@pytest.mark.slow
def test_a_copy_that_is_not_changed_runs_well(tmp_path):
    assert small_runs(copied(tmp_path, None), 300) == (0, "all the same\n")
