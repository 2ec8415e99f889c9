"""Goals: what qflow wants to reach, as ratios within one run, and what it has reached."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from qflow.bench.throughput.figures import Figure
from qflow.bench.throughput.measure import BARE
from qflow.bench.throughput.peers import OWN, peer_of
from qflow.bench.throughput.workloads import WORKLOADS

Figures = Mapping[tuple[str, str], Figure]  # (workload, system) -> figure

# Less than one in a hundred items: the interpreter of a consumer grows a list now and then.
_NONE = 0.01


@dataclass(frozen=True)
class Goal:
    """One goal.

    Attributes:
        workload: its name.
        words: what is compared.
        value: the figures -> the value, or None where they don't have it.
        wanted: the least that is wanted, or the most.
        most: ``wanted`` is the most.
        unit: of both.
    """

    workload: str
    words: str
    value: Callable[[Figures], float | None]
    wanted: float
    most: bool = False
    unit: str = "x"

    def met(self, value: float) -> bool:
        return value <= self.wanted if self.most else value >= self.wanted


def reached(found: Iterable[Figure]) -> Iterator[tuple[Goal, float]]:
    """The goals that figures tell about, and what was reached."""
    known = {(each.workload, each.system): each for each in found if each.values}
    for goal in GOALS:
        value = goal.value(known)
        if value is not None:
            yield goal, value


def beside(workload: str, systems: str | tuple[str, ...], wanted: float, words: str) -> Goal:
    """qflow's rate over that of one system, or of the best of several."""
    names = (systems,) if isinstance(systems, str) else systems

    def value(found: Figures) -> float | None:
        ours, theirs = found.get((workload, "qflow")), [each for name in names if (each := found.get((workload, name)))]
        return ours.rate / max(each.rate for each in theirs) if ours and theirs else None

    return Goal(workload, f"beside {words}", value, wanted)


def beside_best(workload: str, wanted: float, *, threads: bool = False) -> Goal:
    """qflow's rate over that of the best peer."""

    def value(found: Figures) -> float | None:
        ours, best = found.get((workload, "qflow")), best_peer(found.values(), workload, threads=threads)
        return ours.rate / best.rate if ours and best else None

    return Goal(workload, "beside the best peer" + ("" if threads else " that crosses processes"), value, wanted)


def best_peer(found: Iterable[Figure], workload: str, *, threads: bool = False) -> Figure | None:
    """The fastest peer whose results come from other processes, or of all."""
    peers = [
        each
        for each in found
        if each.workload == workload
        and each.system not in (*OWN, BARE)
        and each.rate
        and (threads or peer_of(each.system).crosses)
    ]
    return max(peers, key=lambda each: each.rate, default=None)


def bytes_beside(workload: str, other: str, wanted: float) -> Goal:
    """qflow's bytes per second in one workload over those in another."""

    def value(found: Figures) -> float | None:
        one, two = found.get((workload, "qflow")), found.get((other, "qflow"))
        return one.rate * WORKLOADS[workload].size / (two.rate * WORKLOADS[other].size) if one and two else None

    return Goal(workload, f"bytes beside {other}", value, wanted)


def at_most(workload: str, name: str, wanted: float, words: str, unit: str, *, times: float = 1.0) -> Goal:
    """A value of qflow's."""

    def value(found: Figures) -> float | None:
        ours = found.get((workload, "qflow"))
        return ours.values[name] * times if ours and name in ours.values else None

    return Goal(workload, words, value, wanted, True, unit)


def hop(workload: str, steps: int, wanted: float) -> Goal:
    """Wall time of an item over its hops: into each step, and to the consumer."""

    def value(found: Figures) -> float | None:
        ours = found.get((workload, "qflow"))
        return 1e6 / ours.rate / (steps + 1) if ours else None

    return Goal(workload, "an item and hop", value, wanted, True, "us")


def memory_beside(workload: str, other: str, wanted: float) -> Goal:
    """qflow's peak memory in one workload over that in another."""

    def value(found: Figures) -> float | None:
        one, two = found.get((workload, "qflow")), found.get((other, "qflow"))
        return one.values["pss"] / two.values["pss"] if one and two else None

    return Goal(workload, f"memory beside {other}", value, wanted, True)


GOALS: list[Goal] = [
    beside_best("array", 10),
    beside("array", BARE, 0.6, "np.copyto"),
    at_most("array", "consumer", 50, "CPU of the consumer's thread per array", "us", times=1e6),
    at_most("array", "faults", _NONE, "page faults per array", ""),
    at_most("array", "mappings", _NONE, "new mappings per array", ""),
    beside("array-through", BARE, 0.3, "np.copyto"),
    beside_best("array-16mb", 5),
    bytes_beside("tensor", "array", 0.85),
    bytes_beside("tensors", "array", 0.85),
    beside_best("samples", 3),
    beside("ints", "pool_chunked", 1, "Pool.imap, chunked by hand"),
    beside("ints", "torch", 50, "the DataLoader"),
    *(hop(f"null-{steps}", steps, 1) for steps in (1, 3, 6)),
    *(hop(f"null-{steps}-array", steps, 15) for steps in (1, 3, 6)),
    beside("python", BARE, 0.97, "2 bare processes"),
    beside("skewed", BARE, 0.95, "the ideal"),
    beside("skewed-ordered", BARE, 0.85, "the ideal"),
    beside("hdf5", "torch", 2, "the DataLoader"),
    beside("hdf5", "torch_batched", 2, "the DataLoader, batched by hand"),
    beside("hdf5", "serial", 1, "the serial loop"),
    beside_best("hdf5-heavy", 1, threads=True),
    beside("jpeg", ("torch", "torch_batched"), 1.2, "the better DataLoader"),
    beside("jpeg", ("spdl_threads", "spdl_pool", "spdl_subprocess"), 1.2, "the best of SPDL"),
    beside("jpeg", BARE, 0.95, "2 bare processes"),
    at_most("first", "warm", 5, "warm pipe", "ms", times=1e3),
    at_most("first", "second", 5, "second epoch", "ms", times=1e3),
    at_most("first", "cold", 0.3, "cold, from the interpreter's start", "s"),
    at_most("hdf5-large", "pss", 1000, "peak memory", "MB", times=1e-6),
    memory_beside("index-n8", "index-n1", 1.3),
]
