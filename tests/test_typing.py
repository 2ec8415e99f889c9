"""Type checkers accept right wirings, find their element types, and reject wrong ones, line by line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SAMPLES = Path(__file__).parent / "typing"
CHECKERS = {"mypy": ["mypy", "--strict"], "pyright": ["pyright"]}


def wrong_lines(checker: str, *samples: str) -> dict[str, set[int]]:
    """The lines of each sample with an error, as the checker reports them."""
    paths = [str(SAMPLES / sample) for sample in samples]
    found = subprocess.run(
        [sys.executable, "-m", *CHECKERS[checker], *paths], capture_output=True, text=True, check=False, cwd=SAMPLES.parent.parent
    )
    assert found.returncode in (0, 1), found.stdout + found.stderr
    errors: dict[str, set[int]] = {sample: set() for sample in samples}
    for sample, line in re.findall(r"(\w+\.py):(\d+)[^\n]*\berror\b", found.stdout):
        errors.setdefault(sample, set()).add(int(line))
    return errors


def marked_lines(sample: str) -> set[int]:
    return {number for number, line in enumerate((SAMPLES / sample).read_text().splitlines(), 1) if line.endswith("# wrong")}


@pytest.mark.parametrize("checker", CHECKERS)
def test_right_wirings_pass_and_wrong_ones_are_found_where_they_stand(checker: str) -> None:
    errors = wrong_lines(checker, "right.py", "wrong.py")
    assert errors == {"right.py": set(), "wrong.py": marked_lines("wrong.py")}


@pytest.mark.slow
def test_lambdas_are_any() -> None:
    assert wrong_lines("mypy", "lambdas.py") == {"lambdas.py": set()}
