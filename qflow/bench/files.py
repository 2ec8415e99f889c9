"""Files: a folder of arrays into another, by qflow, BigMultiPipe, ``Pool.map`` and a loop.

Each has an interpreter of its own, in turns. The step takes as much memory as the data again and computes little. Where the page
cache holds the files, reading, copying and writing is measured, and not the disk. For tiny files the figure is what one
costs beside the loop. Memory is that of all processes together, and of the largest.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import tempfile
from pathlib import Path

from qflow.bench.installed import compiled
from qflow.bench.turns import Figures, figures_of, in_turns, medians

MODULE = "qflow.bench.filing"
KEPT = 1e9  # bytes of outputs that are kept until the end


class Files:
    """The command ``python -m qflow.bench files``."""

    HELP = "How fast a folder of files becomes another: qflow, BigMultiPipe, Pool.map, and a loop."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """What the command takes."""
        parser.add_argument("--files", type=int, default=64, help="default: %(default)s")
        parser.add_argument("--megabytes", type=float, default=64, help="of a file (default: %(default)s)")
        parser.add_argument("--tiny", type=int, default=10_000, help="files of 1 KB, in a second table (default: %(default)s)")
        parser.add_argument("--n", type=int, default=2, help="workers (default: %(default)s)")
        parser.add_argument("--repeats", type=int, default=5, help="in turns, of which medians count (default: %(default)s)")
        parser.add_argument("--folder", help="where the files are made (default: a temporary one)")

    def run(self, arguments: argparse.Namespace) -> int:
        """Measure and print."""
        with tempfile.TemporaryDirectory(prefix="qflow-bench-", dir=arguments.folder) as temporary:
            folder = Path(temporary)
            first = compiled(folder / "installed")
            for title, number, size in (
                ("large", arguments.files, int(arguments.megabytes * 1e6)),
                ("tiny", arguments.tiny, 1000),
            ):
                if number:
                    _print(_turns(folder / title, number, size, arguments, first), number, size, arguments.n)
                    shutil.rmtree(folder / title)
        return 0


def _turns(folder: Path, number: int, size: int, arguments: argparse.Namespace, first: list[str]) -> dict[str, list[Figures]]:
    """The figures of each system, turn by turn."""
    import numpy as np

    (folder / "in").mkdir(parents=True)
    for each in range(number):
        np.save(folder / "in" / f"{each:05}.npy", np.full(size // 8, float(each)))
    systems = ["qflow", "Pool.map", "loop"]
    if importlib.util.find_spec("bigmultipipe"):
        systems.insert(1, "BigMultiPipe")
    found: dict[str, list[Figures]] = {system: [] for system in systems}
    for turn, system in in_turns(systems, arguments.repeats):
        (folder / "out").mkdir()
        found[system].append(figures_of(MODULE, [system, str(folder), str(arguments.n)], first=first))
        assert len(list((folder / "out").iterdir())) == number
        # On ext4, who makes many files soon after as many were deleted pays for that: their inodes are not reused at once.
        (folder / "out").rename(folder / f"{turn}-{system}")
        if number * size > KEPT:
            shutil.rmtree(folder / f"{turn}-{system}")
    return found


def _print(found: dict[str, list[Figures]], number: int, size: int, n: int) -> None:
    print(f"{number} files of {size / 1e6:g} MB, n={n}")
    print(f"{'':16}{'seconds':>9}{'us a file':>11}{'GB/s':>7}{'first, s':>10}{'opened by then':>16}{'peak, MB':>10}{'of one':>8}")
    for system, turns in found.items():
        of = medians(turns)
        print(
            f"{system:16}{of['seconds']:9.2f}{of['seconds'] / number * 1e6:11.0f}{number * size / of['seconds'] / 1e9:7.2f}"
            f"{of['first']:10.2f}{of['opened']:16.0f}{of['peak'] / 1e6:10.0f}{of['largest'] / 1e6:8.0f}"
        )
