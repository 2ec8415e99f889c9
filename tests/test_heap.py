"""Freed memory stays with a worker, until that has grown large: in processes of their own, for malloc is the process's."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

BEGIN = """
import resource
import numpy as np
from qflow.runtime import heap
heap.keep()
def faults(nbytes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(nbytes, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
"""


def run(code: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", BEGIN + code], capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


@pytest.fixture(autouse=True)
def glibc() -> None:
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("another C library than glibc decides by itself what it keeps")


@pytest.mark.parametrize("megabytes", [1, 20, 64, 200])
def test_the_second_array_of_a_size_has_its_pages_already(megabytes: int) -> None:
    first, second = run(f"print(faults({megabytes} << 20), faults({megabytes} << 20))")
    assert second <= max(4, first // 20)


def test_a_process_that_has_grown_large_gives_back_what_is_freed() -> None:
    before, kept, after, freed = run("""
print(held())
np.ones(400 << 20, np.uint8)
heap.look()
print(held())
np.ones(600 << 20, np.uint8)
heap.look()
print(held())
np.ones(100 << 20, np.uint8)
print(held())
""")
    assert kept - before > 390 << 20
    assert after - before < 40 << 20
    assert freed - before < 40 << 20


def test_what_is_kept_does_not_count_as_held_by_the_step() -> None:
    """In a program without torch, of which each worker would have much."""
    (recycled,) = run("""
import qflow as qf
def passing(value):
    return value + int(np.ones(200 << 20, np.uint8)[0]) - 1
with qf.run(qf.process(max_memory="150MB")(passing), range(5)) as run:
    assert list(run) == [*range(5)]
    print(run.stats()[0].recycled)
""")
    assert recycled == 0
