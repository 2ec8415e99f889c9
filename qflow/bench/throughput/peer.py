"""Peer: a system under test: how it runs a job, and the settings worth trying.

``open`` is a context, as its documentation would write it, that gives a function; each call of that function is an epoch:
an iterable of the results of the job's first so many items. Workers stay for the next epoch where a peer can do so. A peer
is imported inside ``open``, in the process that measures it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from qflow.bench.throughput.workload import Workload

Setting = Mapping[str, Any]
Epoch = Callable[[int], Iterable[Any]]  # how many items -> their results
Grid = Callable[[Workload], Sequence[Setting] | str]


def untuned(workload: Workload) -> Sequence[Setting]:
    """The grid of a system that runs its defaults."""
    return [{}]


@dataclass(frozen=True)
class Peer:
    """A system under test.

    Attributes:
        title: its name in tables.
        open: a job and a setting -> the context.
        grid: a workload -> the settings worth trying, likely ones first; or why it isn't built for this, in words.
        package: what has to be installed, or "" for the standard library.
        crosses: its results come from other processes.
        quick: whether ``--quick`` has it.
    """

    title: str
    open: Callable[..., AbstractContextManager[Epoch]]
    grid: Grid = untuned
    package: str = ""
    crosses: bool = True
    quick: bool = True

    @property
    def installed(self) -> bool:
        """Whether its package is there."""
        return not self.package or importlib.util.find_spec(self.package) is not None

    @property
    def version(self) -> str:
        """Of its package; "" where there is none."""
        if not self.package or not self.installed:
            return ""
        import importlib.metadata  # it takes long to load

        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:  # a folder on the path
            return str(getattr(importlib.import_module(self.package), "__version__", "?"))

    def settings(self, workload: Workload) -> Sequence[Setting] | str:
        """The grid, or why there is none."""
        if not self.installed:
            return f"{self.package} is not installed"
        return self.grid(workload)


def one_stage(workload: Workload) -> str:
    """Why a system with one kind of worker can't show what a hop costs; "" where that is not asked."""
    return "it has one stage" if len(workload.steps) > 1 else ""


def own_source(workload: Workload) -> str:
    """The same for a system whose source runs inside its workers."""
    return "its source runs in its workers" if workload.here else one_stage(workload)
