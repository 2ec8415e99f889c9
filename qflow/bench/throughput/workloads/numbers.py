"""Numbers: the smallest items, through one step that adds 1, and through 1, 3 and 6 that do nothing."""

from __future__ import annotations

from functools import partial

from qflow.bench.throughput.workload import Lazy, Workload, same
from qflow.bench.throughput.workloads import arrays, stock

SMALL = 64 << 10


def plus_one(number: int) -> int:
    return number + 1


def sums(start: int, stop: int) -> list[int]:
    return list(range(start + 1, stop + 1))


INTS = Workload(
    "ints through one step",
    (plus_one,),
    sums,
    least=2_000,
    most=4_000_000,
    checked=1_000,
    block=1_000,
    chunks=(256, 1_000, 4_000, 10_000),
    quick=True,
)


def nulls(steps: int) -> Workload:
    """Ints through so many steps of 1 worker that do nothing."""
    plural = f"{steps} steps that do" if steps > 1 else "1 step that does"
    return Workload(
        f"ints through {plural} nothing, 1 worker each",
        (same,) * steps,
        n=1,
        least=2_000,
        most=1_000_000,
        checked=1_000,
        block=1_000,
        chunks=(256, 1_000, 4_000),
    )


def small_arrays(steps: int) -> Workload:
    """Arrays of 64 KB from the consumer's process through so many steps that do nothing."""
    return nulls(steps).but(
        title=f"arrays of 64 KB from the source, {nulls(steps).title.removeprefix('ints ')}",
        items=partial(Lazy, partial(arrays.array, size=SMALL)),
        keys=partial(arrays.keys, size=SMALL),
        glance=arrays.key,
        look=partial(arrays.whole, size=SMALL),
        here=True,
        size=SMALL,
        least=300,
        most=200_000,
        checked=2 * stock.variety(SMALL),
        block=50,
        chunks=(4, 16),
    )
