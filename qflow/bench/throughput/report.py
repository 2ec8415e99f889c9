"""Report: figures as tables of Markdown that can be read in a terminal, too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from qflow.bench.throughput.figures import TIMES, Figure, Measurement
from qflow.bench.throughput.goals import best_peer, reached
from qflow.bench.throughput.measure import BARE
from qflow.bench.throughput.peers import peer_of
from qflow.bench.throughput.workloads import WORKLOADS

LEGEND = """\
Rates are medians of whole epochs, from the call to the last result, in warm workers where a system keeps them; their least
and largest value stand behind. start: seconds from the call to the first result of the first epoch, imports included.
CPU: of all processes, consumer: of its thread alone, both in us a result. memory: peak of the summed PSS. faults: minor page
faults a result, mappings: new lines of /proc/PID/maps a result, both from the first fifth of the results to the last tenth.
settings: the grid of each peer, of which the best was measured again in turn; qflow runs its defaults, and where a flow may be
written in several ways, the best of them."""

Column = tuple[str, Callable[[Figure], str]]


def title_of(system: str, workload: str) -> str:
    """The name of a system in tables."""
    bound = WORKLOADS[workload].bare
    return bound.title if system == BARE and bound else peer_of(system).title


def details(found: Iterable[Figure], measurements: Sequence[Measurement], workload: str) -> str:
    """The table of one workload: a line for each system, the fastest first."""
    here = sorted((each for each in found if each.workload == workload), key=lambda each: (not each.values, -_goodness(each)))
    columns = list(_columns(workload, here, measurements))
    rows = [[cell(each) if each.values else "" for _, cell in columns] for each in here]
    head = ["", *(name for name, _ in columns), "settings"]
    lines = [[title_of(each.system, workload), *row, _settings(each, measurements)] for each, row in zip(here, rows, strict=True)]
    return f"**{WORKLOADS[workload].title}** (`{workload}`)\n\n{table([head, *lines])}"


def _goodness(each: Figure) -> float:
    return each.rate or (1 / each.values["cold"] if "cold" in each.values else 0.0)


def _columns(workload: str, here: Sequence[Figure], measurements: Sequence[Measurement]) -> Iterator[Column]:
    if WORKLOADS[workload].measure == "first":
        yield from ((f"{name} s", lambda each, name=name: f"{each.values[name]:.4f}") for name in TIMES)
        yield "memory MB", lambda each: _value(each, "pss", 1e-6, "{:.0f}")
        return
    size, ours = WORKLOADS[workload].size, next((each for each in here if each.system == "qflow"), None)
    yield f"{WORKLOADS[workload].unit}/s", lambda each: f"{short(each.rate)} ({short(each.low)}-{short(each.high)})"
    if size >= 1 << 16:
        yield "GB/s", lambda each: f"{each.rate * size / 1e9:.2f}"
    if ours and ours.rate:
        yield "of qflow", lambda each: f"{each.rate / ours.rate:.3g}"
    yield "start", lambda each: _value(each, "start", 1, "{:.2f}")
    yield "CPU", lambda each: _value(each, "cpu", 1e6, "{:.3g}")
    yield "consumer", lambda each: _value(each, "consumer", 1e6, "{:.3g}")
    yield "memory MB", lambda each: _value(each, "pss", 1e-6, "{:.0f}")
    yield "faults", lambda each: _value(each, "faults", 1, "{:.2g}")
    yield "mappings", lambda each: _value(each, "mappings", 1, "{:.2g}")


def _value(each: Figure, name: str, times: float, form: str) -> str:
    return form.format(each.values[name] * times) if name in each.values else ""


def _settings(each: Figure, measurements: Sequence[Measurement]) -> str:
    """The cells of a grid with the rate that chose among them; the chosen one in bold; and the note."""
    tries = [one for one in measurements if (one.workload, one.system, one.turn) == (each.workload, each.system, 0)]
    cells = [_cell(one, one.setting == each.setting) for one in tries if one.setting]
    return "; ".join([*cells, *([each.note] if each.note else [])])


def _cell(one: Measurement, chosen: bool) -> str:
    words = " ".join(f"{name}={value}" for name, value in one.setting.items())
    reached = one.failed or (short(one.goodness) if "rate" in one.result else f"{one.result['cold']:.2f} s")
    return f"**{words}**: {reached}" if chosen else f"{words}: {reached}"


def summary(found: Sequence[Figure]) -> str:
    """A line for each workload: qflow, the baselines and the best peer."""
    known = {(each.workload, each.system): each for each in found}
    rates = [name for name in dict.fromkeys(each.workload for each in found) if WORKLOADS[name].measure == "rate"]
    head = ["results/s", "qflow", "serial loop", "bound", "torch DataLoader", "best peer across processes", "qflow beside it"]
    return table([head, *(_line(known, name) for name in rates)])


def _line(known: Mapping[tuple[str, str], Figure], name: str) -> list[str]:
    rates = [known[name, system].rate if (name, system) in known else 0.0 for system in ("qflow", "serial", BARE, "torch")]
    best = best_peer(known.values(), name)
    bound = WORKLOADS[name].bare
    shown = [short(rate) if rate else "" for rate in rates]
    if rates[2] and bound:
        shown[2] += f" ({bound.title})"
    beside = f"{rates[0] / best.rate:.2f}" if best and rates[0] else ""
    return [WORKLOADS[name].title, *shown, f"{short(best.rate)} ({title_of(best.system, name)})" if best else "", beside]


def goals(found: Sequence[Figure]) -> str:
    """A line for each goal."""
    rows = [
        [goal.workload, goal.words, _amount(goal.wanted, goal.unit, goal.most), f"{value:.3g} {goal.unit}".strip(), met]
        for goal, value in reached(found)
        for met in ["yes" if goal.met(value) else "no"]
    ]
    return table([["workload", "goal", "wanted", "reached", "met"], *rows])


def _amount(wanted: float, unit: str, most: bool) -> str:
    return f"at {'most' if most else 'least'} {wanted:g} {unit}".strip()


def short(number: float) -> str:
    """Three digits and a unit.

    >>> short(6_123_456), short(45_678), short(1_234), short(98.76), short(1.234)
    ('6.12 M', '45.7 k', '1.23 k', '98.8', '1.23')
    """
    size, unit = next((pair for pair in [(1e6, " M"), (1e3, " k")] if number >= pair[0]), (1.0, ""))
    digits = number / size
    return f"{digits:.{2 if digits < 10 else 1 if digits < 100 else 0}f}{unit}"


def table(rows: Sequence[Sequence[Any]]) -> str:
    """Markdown in columns of equal width.

    >>> print(table([["a", "b"], ["long", "1"]]))
    | a    | b |
    | ---- | - |
    | long | 1 |
    """
    widths = [max(1, *(len(cell) for cell in column)) for column in zip(*rows, strict=True)]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], ["-" * width for width in widths], *lines[1:]])
