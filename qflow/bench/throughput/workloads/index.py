"""Index: 10 M strings that every worker looks things up in, as the index of a large data set is.

``qf.shared`` holds it; until there is such a thing, nobody is measured.
"""

from __future__ import annotations

from typing import Any

from qflow.bench.throughput.workload import Workload

STRINGS = 10_000_000


def names() -> list[str]:
    """The index."""
    return [f"event-{number:08}" for number in range(STRINGS)]


class Look:
    """A number -> whether its string is in its place."""

    def __init__(self, index: Any) -> None:
        self.index = index

    def __call__(self, number: int) -> int:
        place = number * 7919 % STRINGS
        return number if self.index[place] == f"event-{place:08}" else -1


def shared_look() -> Look:
    """The step, whose index is shared."""
    import qflow as qf

    return Look(qf.shared(names()))


def lookups(n: int) -> Workload:
    """The workload with so many workers."""
    return Workload(
        f"lookups in 10 M strings, n={n}",
        make=shared_look,
        n=n,
        least=200_000,
        most=200_000,
        checked=1_000,
        block=1_000,
        watched=True,
        rare=True,
        only=("qflow",),
    )
