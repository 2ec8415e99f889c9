"""Index: 10 M strings that every worker looks things up in, as the index of a large data set is; ``qf.shared`` holds it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import qflow as qf
from qflow.bench.throughput.workload import Workload

STRINGS = 10_000_000


class Names(Sequence[str]):
    """The index, made one by one, so that the peak of memory is that of the workers and not that of a list."""

    def __len__(self) -> int:
        return STRINGS

    def __getitem__(self, place: Any) -> Any:
        return f"event-{place:08}"

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(STRINGS))


class Look:
    """A number -> whether its string is in its place."""

    def __init__(self, index: Any) -> None:
        self.index = index

    def __call__(self, number: int) -> int:
        place = number * 7919 % STRINGS
        return number if self.index[place] == f"event-{place:08}" else -1


def shared_look() -> Look:
    """The step, whose index is shared."""
    return Look(qf.shared(Names()))


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
