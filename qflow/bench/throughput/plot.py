"""Plot: the rates as bars on a logarithmic scale, a panel for each workload."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qflow.bench.throughput.figures import Figure
from qflow.bench.throughput.measure import BARE
from qflow.bench.throughput.report import short, title_of
from qflow.bench.throughput.workloads import WORKLOADS

_COLUMNS = 2
_COLOURS = {"qflow": "#d1495b", "serial": "#b8b8b8", BARE: "#b8b8b8"}
_PEER = "#30638e"


def plot(found: Sequence[Figure], file: Path, footer: str) -> None:
    """Save the picture; its kind is that of the file's name.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure as Picture

    names = list(dict.fromkeys(each.workload for each in found if each.rate))
    lines = -(-len(names) // _COLUMNS) or 1
    picture = Picture(figsize=(7 * _COLUMNS, 3.6 * lines), layout="constrained")
    panels = list(picture.subplots(lines, _COLUMNS, squeeze=False).flat)
    shown = {name: [each for each in found if each.workload == name and each.rate] for name in names}
    most = max(map(len, shown.values()), default=0)
    for panel, name in zip(panels, names, strict=False):
        _bars(panel, shown[name], name)
        panel.set_ylim(len(shown[name]) - most - 0.5, len(shown[name]) - 0.5)  # all bars are as thick
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    picture.supxlabel(footer, fontsize=7)
    picture.savefig(file, dpi=120)


def _bars(panel: Any, found: Sequence[Figure], name: str) -> None:
    here = sorted(found, key=lambda each: each.rate)
    rates = [each.rate for each in here]
    spread = [[each.rate - each.low for each in here], [each.high - each.rate for each in here]]
    bars = panel.barh(
        [title_of(each.system, name) for each in here],
        rates,
        xerr=spread,
        color=[_COLOURS.get(each.system, _PEER) for each in here],
        error_kw={"elinewidth": 0.8},
    )
    panel.bar_label(bars, [f" {short(rate)}" for rate in rates], fontsize=7)
    panel.set_xscale("log")
    panel.margins(x=0.15)
    panel.set_title(WORKLOADS[name].title, fontsize=9)
    panel.set_xlabel(f"{WORKLOADS[name].unit}/s", fontsize=8)
    panel.tick_params(which="both", labelsize=7)
    panel.spines[["top", "right"]].set_visible(False)
