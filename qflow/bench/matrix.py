"""Matrix: rows beside systems, measured cell by cell and printed; a command of the bench."""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qflow.bench import machine, table
from qflow.bench.cell import Bench, Interrupted, Patience
from qflow.bench.row import Row
from qflow.bench.rows import CONTROL
from qflow.bench.systems import SYSTEMS, named
from qflow.bench.verdict import LEGEND, Verdict

Cell = tuple[str, str]  # (system, row)


@dataclass(frozen=True)
class Matrix:
    """A command: what it does in a line, its rows, and the systems it has columns for."""

    HELP: str
    rows: Mapping[str, Row]
    systems: Sequence[str]

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The options; names are separated by commas."""
        add = parser.add_argument
        systems, rows = names_of(SYSTEMS, "system", own=":"), names_of(self.rows, "row")
        own = "or module:function of your own"
        add("--systems", type=systems, default=self.systems, metavar="NAMES", help=f"of {', '.join(SYSTEMS)}; {own}")
        add("--rows", "--faults", type=rows, default=list(self.rows), metavar="NAMES", help=f"of {', '.join(self.rows)}")
        parser.set_defaults(quick=False)
        if any(row.quick for row in self.rows.values()):
            add("--quick", action="store_true", help="only the rows that tell most")
        add("--jobs", type=int, default=1, metavar="N", help="cells at a time; more than 1 makes times longer (default: 1)")
        add("--repeat", type=int, default=1, metavar="N", help="tries of each cell, of which the worst counts (default: 1)")
        seconds: dict[str, Any] = {"type": float, "metavar": "SECONDS"}
        add("--patience", **seconds, default=Patience.hang, help="until it is a hang (default: %(default)g)")
        add("--orphans", **seconds, default=Patience.orphans, help="until processes must be gone (default: %(default)g)")
        add("--json", type=Path, metavar="FILE", help="write every verdict with its details")
        add("--markdown", action="store_true", help="print the table as Markdown")

    def run(self, arguments: argparse.Namespace) -> int:
        """Measure and print; 1 if qflow fails without a fault, hangs, loses, changes or leaves something, else 0."""
        rows = [name for name in arguments.rows if self.rows[name].quick or not arguments.quick]
        bench = Bench(Patience(hang=arguments.patience, orphans=arguments.orphans), arguments.repeat)
        # Not by KeyboardInterrupt, which may come while the pool of threads holds a lock.
        before = signal.signal(signal.SIGINT, lambda *_: bench.stop.set())
        try:
            verdicts = dict(measure(bench, present(arguments.systems), rows, jobs=arguments.jobs))
        except Interrupted:
            _say("interrupted")
            return 130
        finally:
            signal.signal(signal.SIGINT, before)
        report(verdicts, arguments)
        own = [verdict for (system, _), verdict in verdicts.items() if system == "qflow"]
        return int("qflow" in arguments.systems and (not own or any(verdict.bad for verdict in own)))


def present(names: Sequence[str]) -> list[str]:
    """The systems whose packages are installed; says which are not."""
    for name in names:
        if not named(name).installed:
            _say(f"{named(name).title} is left out: {named(name).package} is not installed")
    return [name for name in names if named(name).installed]


def measure(bench: Bench, systems: Sequence[str], rows: Sequence[str], *, jobs: int = 1) -> Iterator[tuple[Cell, Verdict]]:
    """Each cell and its verdict, row after row; a system that fails without a fault is left out."""
    with ThreadPoolExecutor(jobs) as threads:
        try:
            controls = dict(_run(bench, threads, [(system, CONTROL) for system in systems]))
            works = [system for system in systems if _works(system, controls[system, CONTROL])]
            yield from ((cell, verdict) for cell, verdict in controls.items() if CONTROL in rows and cell[0] in works)
            yield from _run(bench, threads, [(system, row) for row in rows if row != CONTROL for system in works])
        except BaseException:
            bench.stop.set()
            threads.shutdown(cancel_futures=True)
            raise


def _works(system: str, verdict: Verdict) -> bool:
    works = verdict.kind in ("ok", "unordered") and not verdict.orphans
    if not works:
        _say(f"{named(system).title} is left out, it fails without a fault: {verdict} {verdict.note}")
    return works


def _run(bench: Bench, threads: ThreadPoolExecutor, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Verdict]]:
    running = [threads.submit(bench.run, *cell) for cell in cells]
    for number, (cell, future) in enumerate(zip(cells, running, strict=True), 1):
        while not future.done():
            wait([future], timeout=1)  # not for ever: a signal that comes just before a wait is handled after it
        verdict = future.result()
        _say(f"{number}/{len(cells)} {': '.join(cell)}: {verdict}  {' '.join(verdict.note.split())[:100]}")
        yield cell, verdict


def report(verdicts: Mapping[Cell, Verdict], arguments: argparse.Namespace) -> None:
    """Print the table, and write the details."""
    versions = machine.versions(dict.fromkeys(system for system, _ in verdicts))
    print((table.markdown if arguments.markdown else table.text)(verdicts))
    print(f"\n{LEGEND}\n\n{machine.here()}; {', '.join(f'{package} {version}' for package, version in versions.items())}")
    if arguments.json:
        arguments.json.write_text(json.dumps(_details(verdicts, versions), indent=1) + "\n")


def _details(verdicts: Mapping[Cell, Verdict], versions: Mapping[str, str]) -> dict[str, object]:
    cells = [
        {"system": system, "row": row, "text": str(verdict), **dataclasses.asdict(verdict)}
        for (system, row), verdict in verdicts.items()
    ]
    sums = {system: dataclasses.asdict(table.column(verdicts, system)) for system, _ in verdicts}
    return {"machine": machine.here(), "versions": dict(versions), "sums": sums, "cells": cells}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def names_of(known: Mapping[str, object], what: str, *, own: str = "") -> Callable[[str], list[str]]:
    """A type of argparse: names separated by commas; ``own`` stands in a name that needn't be known."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known and not (own and own in name):
                raise argparse.ArgumentTypeError(f"no {what} {name!r}. There are {', '.join(known)}.")
        return names

    return parse
