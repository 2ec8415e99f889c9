"""Slopes: whether a process grows, judged from samples of it over time.

A leak is a slope, not a size: a process may be large, and become larger while it warms up, but it must not go on
growing. The slope is Theil and Sen's, the median of the slopes between all pairs of samples, over the last 70 %
of a series; a few samples out of line do not move it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

WARMING = 0.3  # of a series, its beginning
MOST_SLOPE = 0.2  # MB of memory a minute
MOST_GROWTH = 0.05  # of memory, from the begin to the end of what is judged
ENOUGH = 10.0  # minutes from which on memory is judged; before, a process that warms up looks like one that leaks
COUNTS = ("descriptors", "threads", "children", "mappings")


class Sample(NamedTuple):
    """A process at one moment.

    Attributes:
        minute: since the begin.
        rss: MB of memory.
        private: MB that no other process has, without qflow's shared memory.
        anonymous: MB of its own, shared with its copies or not; unlike ``private`` it does not move as those come and
            go. This is what is judged.
        shared: MB of qflow's shared memory that it has touched.
        mappings: of qflow's shared memory.
        objects: that the garbage collector of this process knows; of other processes -1.
    """

    minute: float
    rss: float
    private: float
    anonymous: float
    shared: float
    descriptors: int
    threads: int
    children: int
    mappings: int
    objects: int = -1


class Series(NamedTuple):
    """The samples of one process."""

    name: str
    pid: int
    samples: list[Sample]

    def column(self, what: str) -> np.ndarray:
        """One number of every sample that is judged."""
        return np.array([getattr(sample, what) for sample in self.judged])

    @property
    def judged(self) -> list[Sample]:
        """The samples after the process has become warm."""
        first, last = self.samples[0].minute, self.samples[-1].minute
        return [sample for sample in self.samples if sample.minute >= first + WARMING * (last - first)]

    @property
    def minutes(self) -> float:
        """From its first sample to its last."""
        return self.samples[-1].minute - self.samples[0].minute

    def slope(self, what: str) -> float:
        """Growth a minute."""
        return slope(self.column("minute"), self.column(what))

    def ends(self, what: str) -> tuple[float, float]:
        """What it begins and ends with: medians of the first and last tenth."""
        column = self.column(what)
        tenth = max(1, len(column) // 10)
        return float(np.median(column[:tenth])), float(np.median(column[-tenth:]))


def slope(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float:
    """Theil and Sen's slope.

    >>> slope([0, 1, 2, 3], [1, 3, 100, 7])
    2.0
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    first, second = np.triu_indices(len(x), 1)
    return float(np.median((y[second] - y[first]) / (x[second] - x[first]))) if len(first) else 0.0


def growing(series: Series, enough: float = ENOUGH) -> list[str]:
    """In words, what of a process grows and must not."""
    found = []
    for what in COUNTS:
        (begin, end), a_minute = series.ends(what), series.slope(what)
        if a_minute > 0 or end > begin:
            found.append(f"{what} {begin:g} -> {end:g}, {a_minute:+.3g}/min")
    if series.minutes >= enough:
        (begin, end), a_minute = series.ends("anonymous"), series.slope("anonymous")
        if a_minute >= MOST_SLOPE or end - begin >= MOST_GROWTH * begin:
            found.append(f"memory {begin:.1f} -> {end:.1f} MB, {a_minute:+.3f} MB/min")
    return found


def sample(pid: int, minute: float, objects: int = -1) -> Sample:
    """What a process has now, or ProcessLookupError."""
    try:
        folder = Path("/proc", str(pid))
        memory = Counted(folder.joinpath("smaps").read_text())
        tasks = os.listdir(folder / "task")
        children = sum(len(_text(folder / "task" / task / "children").split()) for task in tasks)
        descriptors = [fd for fd in os.listdir(folder / "fd") if "/proc/" not in _link(folder / "fd" / fd)]
    except FileNotFoundError as error:
        raise ProcessLookupError(pid) from error
    numbers = memory.rss, memory.private, memory.anonymous, memory.shared
    return Sample(minute, *numbers, len(descriptors), len(tasks), children, memory.mappings, objects)


class Counted:
    """The memory of a process, from the text of its smaps, proc(5)."""

    def __init__(self, text: str) -> None:
        self.rss = self.private = self.anonymous = self.shared = 0.0
        self.mappings = 0
        for head, numbers in _areas(text):
            self.rss += numbers["Rss"]
            if "memfd:qflow" in head:
                self.mappings += 1
                self.shared += numbers["Rss"]
            else:
                self.private += numbers["Private_Clean"] + numbers["Private_Dirty"]
                self.anonymous += numbers["Anonymous"]


def _areas(text: str) -> Iterator[tuple[str, dict[str, float]]]:
    """Each mapping: its line, and its sizes in MB."""
    parts = re.split(r"^([0-9a-f]+-[0-9a-f]+ .*)$", text, flags=re.MULTILINE)
    for head, body in zip(parts[1::2], parts[2::2], strict=True):
        yield head, {name: int(kb) / 1024 for name, kb in re.findall(r"^(\w+): +(\d+) kB$", body, re.MULTILINE)}


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text()
    return ""


def _link(path: Path) -> str:
    with suppress(OSError):
        return os.readlink(path)
    return "/proc/"  # closed meanwhile: the one by which the folder was listed


def table(rows: Sequence[Series]) -> str:
    """What became of each process, one a line: begin, end and slope of its memory, begin and end of its counts."""
    lines = [
        f"{'process':<22} {'pid':>7} {'min':>5} {'rss':>7} {'private MB':>15} {'own MB':>15} {'MB/min':>7} {'shared':>7} "
        + " ".join(f"{what:>13}" for what in (*COUNTS, "objects"))
    ]
    for series in rows:
        (private, private_end), (own, own_end) = series.ends("private"), series.ends("anonymous")
        counts = (f"{b:g}>{e:g}" for b, e in (series.ends(what) for what in (*COUNTS, "objects")))
        lines.append(
            f"{series.name:<22} {series.pid:>7} {series.minutes:>5.1f} {series.ends('rss')[1]:>7.1f} "
            f"{private:>7.2f}>{private_end:<7.2f} {own:>7.2f}>{own_end:<7.2f} {series.slope('anonymous'):>+7.3f} "
            f"{series.ends('shared')[1]:>7.1f} " + " ".join(f"{count:>13}" for count in counts)
        )
    return "\n".join(lines)
