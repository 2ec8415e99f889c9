"""Command: ``python -m qflow.bench`` without a subcommand: measure the throughput of qflow and its peers, and report."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qflow.bench import machine
from qflow.bench.installed import compiled
from qflow.bench.matrix import names_of
from qflow.bench.throughput import report
from qflow.bench.throughput.figures import Figure, Measurement, best_setting, figures
from qflow.bench.throughput.goals import reached
from qflow.bench.throughput.measure import BARE
from qflow.bench.throughput.peer import Setting
from qflow.bench.throughput.peers import OWN, PEERS, peer_of
from qflow.bench.throughput.running import Running
from qflow.bench.throughput.workload import Workload
from qflow.bench.throughput.workloads import WORKLOADS

_QUICK_CELLS = 2  # settings of each peer that --quick tries


class Throughput:
    """The command."""

    HELP = "Measure qflow's defaults beside its installed peers at their best: results per second, CPU, memory, start-up."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The options; names are separated by commas."""
        add = parser.add_argument
        add("--quick", action="store_true", help="the workloads that tell most, 2 settings of each peer, 3 turns; minutes")
        add("--all", action="store_true", help="also what takes long: 4 GB of HDF5 with 1 GB of memory")
        add("--only", type=names_of(WORKLOADS, "workload"), metavar="WORKLOADS", help=f"of {', '.join(WORKLOADS)}")
        peers = names_of(PEERS, "peer", own=":")
        add("--peers", type=peers, metavar="NAMES", help=f"of {', '.join(PEERS)}; or module:attribute of your own")
        add("--repeats", type=int, metavar="N", help="turns that count (default: 5, with --quick 3)")
        add(
            "--seconds",
            type=float,
            metavar="S",
            help="that an epoch should take in each measurement (default: 1.5, with --quick 0.5)",
        )
        add("--limit", type=float, default=90.0, metavar="S", help="until a measurement hangs (default: %(default)g)")
        add("--folder", type=Path, metavar="PATH", help="where the workloads' files are kept (default: nowhere)")
        add("--json", type=Path, metavar="FILE", help="write every measurement")
        add("--plot", type=Path, metavar="FILE", help="draw the rates, as .png, .svg or .pdf; needs matplotlib")

    def run(self, arguments: argparse.Namespace) -> int:
        """Measure and print; 1 if qflow failed anywhere, else 0."""
        if arguments.plot and importlib.util.find_spec("matplotlib") is None:
            _say("--plot needs matplotlib: pip install matplotlib")
            return 2
        chosen = plan_of(arguments)
        with tempfile.TemporaryDirectory(prefix="qflow-bench-") as temporary:
            folder = arguments.folder or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            running = Running(folder, chosen.seconds, arguments.limit, compiled(Path(temporary, "installed")))
            try:
                found = list(measure(chosen, running))
            except KeyboardInterrupt:
                _say("interrupted")
                return 130
        return conclude(chosen, found, arguments)


@dataclass(frozen=True)
class Chosen:
    """What is to be measured: workloads, systems, how many settings of each, how many turns, how long each.

    Attributes:
        brief: of the systems, only the quick ones, and those that a workload names.
    """

    workloads: Sequence[str]
    systems: Sequence[str]
    cells: int
    turns: int
    seconds: float
    brief: bool = False


def plan_of(arguments: argparse.Namespace) -> Chosen:
    """The plan that options describe."""
    quick = arguments.quick
    workloads = arguments.only or [name for name, each in WORKLOADS.items() if _wanted(each, quick, arguments.all)]
    also = {peer for name in workloads for peer in WORKLOADS[name].also}
    peers = arguments.peers or [name for name, peer in PEERS.items() if peer.quick or not quick or name in also]
    return Chosen(
        [name for name in workloads if _possible(name)],
        list(dict.fromkeys([*OWN, *peers])),
        _QUICK_CELLS if quick else sys.maxsize,
        arguments.repeats or (3 if quick else 5),
        arguments.seconds or (0.5 if quick else 1.5),
        quick and not arguments.peers,
    )


def _wanted(workload: Workload, quick: bool, everything: bool) -> bool:
    return everything or (workload.quick if quick else not workload.rare)


def _possible(name: str) -> bool:
    """Whether what a workload needs is installed; says what is missing."""
    missing = [package for package in WORKLOADS[name].packages if importlib.util.find_spec(package) is None]
    if missing:
        _say(f"{name} is left out: {', '.join(missing)} is not installed")
    return not missing


def grid_of(chosen: Chosen, name: str, system: str) -> Sequence[Setting] | str:
    """The settings of a system to try on a workload, or why there are none."""
    only, also = WORKLOADS[name].only, WORKLOADS[name].also
    if (only and system not in only) or (chosen.brief and not peer_of(system).quick and system not in also):
        return "not asked"
    settings = peer_of(system).settings(WORKLOADS[name])
    return settings if isinstance(settings, str) else settings[: chosen.cells]


def measure(chosen: Chosen, running: Running) -> Iterator[Measurement]:
    """All measurements: workload after workload, and there in turns."""
    for name in chosen.workloads:
        if prepare := WORKLOADS[name].prepare:
            prepare(running.folder)
        grids: dict[str, Sequence[Setting]] = {BARE: [{}]} if WORKLOADS[name].bare else {}
        for system in chosen.systems:
            settings = grid_of(chosen, name, system)
            if isinstance(settings, str):
                _say(f"{name}: {system}: {settings}")
            else:
                grids[system] = settings
        yield from _turns(name, grids, running, 0 if WORKLOADS[name].watched else chosen.turns)


def _turns(name: str, grids: Mapping[str, Sequence[Setting]], running: Running, turns: int) -> Iterator[Measurement]:
    best: dict[str, Measurement] = {}
    for system, settings in grids.items():
        tries = [_measured(running, name, system, setting, 0) for setting in settings]
        yield from tries
        best[system] = best_setting(tries)
    for turn in range(1, turns + 1):
        for system, tried in best.items():
            if not tried.failed:
                yield _measured(running, name, system, tried.setting, turn)


def _measured(running: Running, name: str, system: str, setting: Setting, turn: int) -> Measurement:
    found = Measurement(name, system, setting, turn, running.run(system, name, setting, watched=turn == 0))
    words = found.failed or (report.short(found.result["rate"]) + "/s" if "rate" in found.result else f"{found.goodness:.3g}")
    options = " ".join(f"{key}={value}" for key, value in setting.items())
    _say(f"{name}: turn {turn}: {system} {options}: {words}")
    return found


def conclude(chosen: Chosen, measurements: Sequence[Measurement], arguments: argparse.Namespace) -> int:
    """Print the tables, write the files; the exit status."""
    found = [*figures(measurements), *absent(chosen)]
    packages = {peer_of(name).package: peer_of(name).version for name in chosen.systems}
    versions = {package: version for package, version in packages.items() if version} | _numpy()
    where = f"{machine.here()}; {', '.join(f'{package} {version}' for package, version in versions.items())}"
    for name in chosen.workloads:
        print(report.details(found, measurements, name), end="\n\n")
    print(report.summary(found), end="\n\n")
    print(report.goals(found), end="\n\n")
    print(f"{report.LEGEND}\n\n{where}")
    if arguments.json:
        arguments.json.write_text(json.dumps(_details(chosen, found, measurements, versions), indent=1) + "\n")
    if arguments.plot:
        from qflow.bench.throughput.plot import plot

        plot(found, arguments.plot, where)
    return int(any(each.system == "qflow" and not each.values for each in found if each.note != "not asked"))


def absent(chosen: Chosen) -> Iterator[Figure]:
    """The systems that can't be measured, and why."""
    for name in chosen.workloads:
        for system in chosen.systems:
            reason = grid_of(chosen, name, system)
            if isinstance(reason, str) and reason != "not asked":
                yield Figure(name, system, {}, {}, note=reason)


def _numpy() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("numpy", "h5py") if importlib.util.find_spec(name)}


def _details(
    chosen: Chosen, found: Sequence[Figure], measurements: Sequence[Measurement], versions: Mapping[str, str]
) -> dict[str, Any]:
    goals = [
        {"workload": goal.workload, "goal": goal.words, "wanted": goal.wanted, "most": goal.most, "reached": value, "met": met}
        for goal, value in reached(found)
        for met in [goal.met(value)]
    ]
    return {
        "machine": machine.here(),
        "versions": dict(versions),
        "turns": chosen.turns,
        "seconds": chosen.seconds,
        "figures": [dataclasses.asdict(each) for each in found],
        "goals": goals,
        "measurements": [dataclasses.asdict(each) for each in measurements],
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
