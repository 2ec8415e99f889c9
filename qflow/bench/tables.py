"""Tables: a loop over the rows of a table of an HDF5 file that appends a table and links it, by qflow, h5flow and a plain loop.

Each has an interpreter of its own, in turns, and makes a copy of the input that it appends to. The light stage multiplies; the
other one also computes for some milliseconds in Python, for each slice.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from pathlib import Path

from qflow.bench.installed import compiled
from qflow.bench.turns import Figures, figures_of, in_turns, medians

MODULE = "qflow.bench.tabling"


class Tables:
    """The command ``python -m qflow.bench tables``."""

    HELP = "How fast a loop over the rows of an HDF5 table appends and links another one: qflow, h5flow, and a plain loop."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """What the command takes."""
        parser.add_argument("--rows", type=int, default=10_000_000, help="for the light stage (default: %(default)s)")
        parser.add_argument("--slice", type=int, default=16_384, help="rows of a slice (default: %(default)s)")
        parser.add_argument("--slices", type=int, default=100, help="of the stage that computes (default: %(default)s)")
        parser.add_argument("--milliseconds", type=float, default=20, help="that it does for each (default: %(default)s)")
        parser.add_argument("--repeats", type=int, default=3, help="in turns, of which medians count (default: %(default)s)")
        parser.add_argument("--folder", help="where the files are made (default: a temporary one)")

    def run(self, arguments: argparse.Namespace) -> int:
        """Measure and print."""
        with tempfile.TemporaryDirectory(prefix="qflow-bench-", dir=arguments.folder) as temporary:
            folder = Path(temporary)
            first = compiled(folder / "installed")
            for rows, work in ((arguments.rows, 0.0), (arguments.slices * arguments.slice, arguments.milliseconds / 1000)):
                if rows:
                    _print(_turns(folder, rows, work, arguments, first), rows, work, arguments.slice)
        return 0


def _turns(folder: Path, rows: int, work: float, arguments: argparse.Namespace, first: list[str]) -> dict[str, list[Figures]]:
    """The figures of each system, turn by turn."""
    import h5py  # type: ignore[import-untyped]
    import numpy as np

    with h5py.File(folder / "in.h5", "w") as file:
        data = file.create_dataset("hits/data", (rows,), "f4", chunks=(arguments.slice,), maxshape=(None,))
        for start in range(0, rows, 1 << 20):
            stop = min(rows, start + (1 << 20))
            data[start:stop] = np.arange(start, stop)
    systems = ["qflow-1", "qflow-2", "qflow-serial", "loop"]
    if importlib.util.find_spec("h5flow"):
        systems.insert(3, "h5flow")
    found: dict[str, list[Figures]] = {system: [] for system in systems}
    for _, system in in_turns(systems, arguments.repeats):
        out = folder / "out.h5"
        out.unlink(missing_ok=True)
        found[system].append(figures_of(MODULE, [system, str(folder / "in.h5"), str(out), str(work)], first=first, cwd=folder))
        with h5py.File(out) as file:
            for start in range(0, rows, 1 << 20):
                stop = min(rows, start + (1 << 20))
                assert (file["calib/data"][start:stop] == 0.5 * file["hits/data"][start:stop]).all()
                assert (file["hits/ref/calib/ref"][start:stop] == np.arange(start, stop)[:, None]).all()
    return found


def _print(found: dict[str, list[Figures]], rows: int, work: float, size: int) -> None:
    print(f"{rows} rows, {-(-rows // size)} slices, {1000 * work:g} ms of Python for each")
    print(f"{'':16}{'seconds':>9}{'M rows/s':>10}{'ms a slice':>12}{'peak, MB':>10}")
    for system, turns in found.items():
        of = medians(turns)
        each = of["seconds"] / -(-rows // size) * 1000
        print(f"{system:16}{of['seconds']:9.2f}{rows / of['seconds'] / 1e6:10.2f}{each:12.2f}{of['peak'] / 1e6:10.0f}")
