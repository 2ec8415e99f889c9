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


@pytest.mark.parametrize(
    ("seconds", "gap"),
    [(6, 0.02), pytest.param(60, 0.005, marks=pytest.mark.slow), pytest.param(120, 0.05, marks=pytest.mark.slow)],
)
def test_the_output_is_the_same_whoever_dies(seconds, gap):
    """Again with the same seed: ``QFLOW_SEED=... pytest tests/test_chaos.py``, or ``python tests/chaos.py --seed ...``."""
    script = Path(__file__).with_name("chaos.py")
    command = [sys.executable, str(script), "--seed", str(SEED), "--seconds", str(seconds), "--gap", str(gap)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 90)
    print(done.stdout)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", done.stdout.partition("\n")[2])}
    assert counts["different"] == 0
    assert min(counts["runs"], counts["killed"], counts["stopped"], counts["died"]) > 0
