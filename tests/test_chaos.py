"""Workers die and stop at random moments: `chaos` in short, and at length where there is time."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

SEED = int(os.environ.get("QFLOW_SEED", "0")) or random.randrange(10**6)


def long(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("seconds", "gap", "options"),
    [
        (3, 0.02, ()),
        long(60, 0.005, ()),
        long(120, 0.05, ()),
        long(20, 0.02, ("--start", "fork")),
        long(60, 0.5, ("--start", "spawn")),
        long(30, 0.1, ("--large",)),
    ],
    ids=str,
)
def test_the_output_is_the_same_whoever_dies(seconds, gap, options):
    """Again with the same seed: ``QFLOW_SEED=... pytest tests/test_chaos.py``, or ``python tests/chaos.py --seed ...``."""
    script = Path(__file__).with_name("chaos.py")
    command = [sys.executable, str(script), "--seed", str(SEED), "--seconds", str(seconds), "--gap", str(gap), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 90)
    print(done.stdout)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", done.stdout.partition("\n")[2])}
    assert counts["different"] == 0
    assert counts["died"] <= counts["killed"]  # who was at rest, or dead already, is not counted
    assert counts["died"] >= 0.3 * counts["killed"]
    assert min(counts["runs"], counts["killed"], counts["stopped"], counts["died"]) > 0
