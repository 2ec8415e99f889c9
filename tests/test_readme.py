"""The README's examples run as they are written, and its commands are those that CI runs."""

from __future__ import annotations

import doctest
import gc
import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_examples_of_the_readme_do_what_they_say() -> None:
    failed, tried = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert tried > 10
    assert failed == 0
    gc.collect()


def test_the_readme_and_ci_install_and_test_alike() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    assert "pip install -e '.[dev]' && pytest" in README
    assert "-e '.[dev]'" in ci
    assert re.search(r"\bpytest \"\$@\"$", ci, re.MULTILINE)
    assert "'.[examples]' && qflow demo" in README


def test_the_scripts_of_ci_can_be_run() -> None:
    for name in "run", "full":
        script = ROOT / ".ci" / name
        assert os.access(script, os.X_OK)
        subprocess.run(["bash", "-n", script], check=True)
