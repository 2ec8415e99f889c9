"""Python: 5 ms of pure Python that holds the GIL, beside what two bare processes can do."""

from __future__ import annotations

import os
import time
from functools import partial

from qflow.bench.throughput.workload import Bare, Step, Workload

_ROUNDS = 100_000  # 5 ms on a core of 3 GHz; a number of rounds and not a time, so that everybody does the same


def rounds(number: int, count: int) -> int:
    """Pure Python, about 50 ns a round."""
    for _ in range(count):
        number = (number * 1103515245 + 12345) & 0x7FFFFFFF
    return number


def compute(number: int) -> tuple[int, int]:
    return number, rounds(number, _ROUNDS)


def number_of(item: tuple[int, int]) -> int:
    return item[0]


def whole(item: tuple[int, int]) -> int | None:
    return item[0] if tuple(item) == compute(item[0]) else None


def two_processes(step: Step, count: int) -> float:
    """Seconds that 2 forked processes take to do half of the items each."""
    step(0)  # what it imports, they have
    children, (gate, go) = [], os.pipe()
    for share in (range(0, count, 2), range(1, count, 2)):
        child = os.fork()
        if not child:
            os.close(go)
            os.read(gate, 1)
            for number in share:
                step(number)
            os._exit(0)
        children.append(child)
    time.sleep(0.05)
    began = time.perf_counter()
    os.close(go)
    for child in children:
        os.waitpid(child, 0)
    return time.perf_counter() - began


PYTHON = Workload(
    "5 ms of pure Python",
    (compute,),
    glance=number_of,
    look=whole,
    least=100,
    most=2_000,
    checked=20,
    block=1,
    chunks=(2, 8),
    bare=Bare("2 bare processes", partial(two_processes, compute)),
    quick=True,
)
