"""Skewed: items of 2 ms of which 1 in 100 takes 200 ms, sleeping; the ideal is 8 workers that are never idle."""

from __future__ import annotations

import time

from qflow.bench.throughput.workload import Bare, Workload

_FAST, _SLOW, _N = 0.002, 0.2, 8
_ITEMS, _LAST = 4_000, 3_000  # after the last slow one there is enough for the other 7 workers to do


def slow(number: int) -> bool:
    """Whether an item is one of the slow ones: one in each hundred, at another place in each.

    >>> sum(map(slow, range(3_000))), sum(map(slow, range(4_000)))
    (30, 30)
    """
    hundred, place = divmod(number, 100)
    return number < _LAST and place == (37 * hundred + 11) % 100


def wait(number: int) -> int:
    time.sleep(_SLOW if slow(number) else _FAST)
    return number


def ideal(count: int) -> float:
    """Seconds of 8 workers that are never idle."""
    return sum(_SLOW if slow(number) else _FAST for number in range(count)) / _N


SKEWED = Workload(
    "1 % of the items 100 times slower, sleeping; as they come",
    (wait,),
    n=_N,
    ordered=False,
    least=_ITEMS,
    most=_ITEMS,
    checked=10,
    block=1,
    chunks=(1, 2, 4),
    bare=Bare("8 workers, never idle", ideal),
    quick=True,
)
ORDERED = SKEWED.but(title="1 % of the items 100 times slower, sleeping; in order", ordered=True, quick=False)
