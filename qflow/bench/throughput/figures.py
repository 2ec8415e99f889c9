"""Figures: what many measurements come to: the best setting of each system, medians with their spread."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qflow.bench.throughput.rate import Result

TIMES = ("cold", "call", "second", "warm")


@dataclass(frozen=True)
class Measurement:
    """One measurement.

    Attributes:
        turn: 0 for the one that chooses the setting and watches memory, which does not count otherwise.
    """

    workload: str
    system: str
    setting: Mapping[str, Any]
    turn: int
    result: Result

    @property
    def failed(self) -> str:
        """What went wrong, or ""."""
        return str(self.result.get("failed", ""))

    @property
    def goodness(self) -> float:
        """The larger, the better; of two that failed none is."""
        if self.failed:
            return -1.0
        return float(self.result["rate"]) if "rate" in self.result else 1 / float(self.result["cold"])


@dataclass(frozen=True)
class Figure:
    """One system on one workload.

    Attributes:
        setting: the best of the grid.
        values: name -> median over the turns, of a measurement's names.
        low, high: the least and the largest rate.
        turns: how many were measured.
        note: why there are no values, or what is to be said of them.
    """

    workload: str
    system: str
    setting: Mapping[str, Any]
    values: Mapping[str, float]
    low: float = 0.0
    high: float = 0.0
    turns: int = 0
    note: str = ""

    @property
    def rate(self) -> float:
        return self.values.get("rate", 0.0)


def best_setting(tries: Sequence[Measurement]) -> Measurement:
    """The best of several tries of one system on one workload."""
    return max(tries, key=lambda each: each.goodness)


def figure(measurements: Sequence[Measurement]) -> Figure:
    """The figure of one system on one workload: of one lossy turn none is left."""
    best = best_setting([each for each in measurements if each.turn == 0])
    turns = [each.result for each in measurements if each.turn and each.setting == best.setting] or [best.result]
    failed = next((str(each["failed"]) for each in turns if "failed" in each), "")
    if failed:
        return Figure(best.workload, best.system, best.setting, {}, turns=len(turns), note=failed)
    names = [name for name, value in turns[0].items() if isinstance(value, int | float) and not isinstance(value, bool)]
    values = {name: statistics.median(turn[name] for turn in turns) for name in names}
    if "pss" in best.result:
        values["pss"] = best.result["pss"]
    rates = [float(turn.get("rate", 0.0)) for turn in turns]
    note = "" if all(turn.get("ordered", True) for turn in turns) else "order not kept"
    return Figure(best.workload, best.system, best.setting, values, min(rates), max(rates), len(turns), note)


def figures(measurements: Iterable[Measurement]) -> list[Figure]:
    """All figures, in the order of their first measurement."""
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for each in measurements:
        groups.setdefault((each.workload, each.system), []).append(each)
    return [figure(group) for group in groups.values()]
