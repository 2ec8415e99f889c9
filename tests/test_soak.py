"""The soak passes, and what judges it sees each kind of leak."""

from __future__ import annotations

import itertools
import json
import mmap
import os
import re
import statistics
import subprocess
import sys
import threading
from pathlib import Path
from random import Random

import numpy as np
import pytest
from slopes import COUNTS, Sample, Series, growing, sample, slope, table
from soak import KINDS, SIZES, Item, digest, same


def series(minutes=30, **changed):
    """A process of 40 MB that stays as it is, but for what is a function of the minute."""
    rng = Random(1)
    still = {"rss": 90, "private": 40, "anonymous": 40, "shared": 10} | dict.fromkeys(COUNTS, 7)
    noise = {"anonymous": lambda: rng.gauss(0, 0.5)}
    return Series(
        "soak",
        1,
        [
            Sample(
                minute,
                **{
                    what: (changed[what](minute) if what in changed else value) + noise.get(what, lambda: 0)()
                    for what, value in still.items()
                },
            )
            for minute in np.arange(0, minutes, 1 / 12)
        ],
    )


def test_a_process_that_stays_as_it_is_does_not_grow():
    assert growing(series()) == []


def test_a_process_may_become_warm():
    assert growing(series(anonymous=lambda minute: 40 - 20 * np.exp(-minute), threads=lambda minute: 3 + (minute > 5))) == []


def test_samples_out_of_line_move_nothing():
    spikes = Random(2)
    assert (
        growing(series(anonymous=lambda minute: 40 + 300 * (spikes.random() < 0.1), mappings=lambda m: 7 + (m % 3 < 0.2))) == []
    )


@pytest.mark.parametrize(
    "leak", [lambda minute: 7 + int(30 * minute), lambda minute: 7 + int(minute / 5), lambda minute: 7 + (minute > 20)]
)
def test_one_more_of_anything_that_is_counted_is_seen(leak):
    for what in COUNTS:
        (found,) = growing(series(**{what: leak}))
        assert found.startswith(f"{what} ")


@pytest.mark.parametrize(("a_minute", "grows"), [(0.3, True), (2, True), (0.05, False), (-0.3, False)])
def test_memory_that_grows_is_seen(a_minute, grows):
    found = growing(series(anonymous=lambda minute: 40 + a_minute * minute))
    assert [line[:7] for line in found] == ["memory "] * grows


def test_memory_of_a_short_soak_is_not_judged():
    assert growing(series(minutes=5, anonymous=lambda minute: 40 + minute)) == []
    assert growing(series(minutes=5, threads=lambda minute: int(minute)))


def test_the_slope_is_the_median_of_all_slopes():
    rng = Random(1)
    points = [(rng.random(), rng.random()) for _ in range(50)]
    slopes = [(d - b) / (c - a) for (a, b), (c, d) in itertools.combinations(points, 2)]
    assert slope(*zip(*points, strict=True)) == pytest.approx(statistics.median(slopes))
    assert slope([1.0], [5.0]) == 0


def test_a_sample_counts_what_the_process_has():
    before = sample(os.getpid(), 0)
    kept = [os.open(os.devnull, os.O_RDONLY), os.memfd_create("qflow-test")]
    os.truncate(kept[1], 1 << 22)
    gone, wait = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: (gone.wait(), wait.set()))
    thread.start()
    child = subprocess.Popen(["sleep", "60"])
    private = np.frombuffer(mmap.mmap(-1, 1 << 25))  # memory that the heap does not have already
    private[:] = 1
    with mmap.mmap(kept[1], 1 << 22) as memory:
        memory[:] = b"x" * (1 << 22)
        now = sample(os.getpid(), 1)
    child.kill()
    child.wait()
    gone.set()
    thread.join()
    for fd in kept:
        os.close(fd)
    assert (now.threads, now.children, now.mappings) == (before.threads + 1, before.children + 1, before.mappings + 1)
    assert now.descriptors == before.descriptors + 3  # the mapping has one of its own
    assert now.private - before.private > 0.9 * private.nbytes / (1 << 20)
    assert now.shared - before.shared == 4
    assert now.rss > now.anonymous > now.private / 2
    with pytest.raises(ProcessLookupError):
        sample(child.pid, 1)
    assert "soak" in table([Series("soak", 1, [before, now])])


def test_what_the_soak_expects_is_what_the_serial_engine_gives():
    items = [Item(n, SIZES[1]) for n in range(40)]
    for kind in KINDS.values():
        given, expected = list(kind.flow(2)(kind.source(items), engine="serial")), list(kind.expected(items, True))
        full = list(kind.expected(items, False))
        assert same(given, expected)
        assert same(full, given[: len(full)])
        assert not same(given, given[:-1])
        assert digest(given) == digest(expected) != digest(given[1:])


def test_the_soaks_comparison_sees_a_wrong_value():
    rows = np.arange(5)
    assert same({"x": (1, rows)}, {"x": (1, rows.copy())})
    for other in ({"x": (1, rows + 1)}, {"y": (1, rows)}, {"x": [1, rows]}, {"x": (1, rows.astype(float))}, {"x": (1,)}):
        assert not same({"x": (1, rows)}, other)


def soak(*options):
    command = [sys.executable, str(Path(__file__).with_name("soak.py")), "--minutes", "1", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_minute_of_soak(tmp_path):
    done = soak("--seed", "1", "--json", str(tmp_path / "soak.json"))
    assert done.stdout.endswith("passed\n"), done.stdout
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "soak.json").read_text().startswith('{"seen": {')


@pytest.mark.slow
@pytest.mark.parametrize(("leak", "seen"), [("fds", "descriptors"), ("threads", "threads"), ("cells", "mappings")])
def test_a_leak_in_the_soak_is_seen(leak, seen):
    done = soak("--seed", "3", "--leak", leak)
    assert done.returncode == 1
    assert f": {seen} " in done.stdout.partition("FAILED")[2], done.stdout


@pytest.mark.slow
def test_a_leak_of_memory_is_seen(tmp_path):
    """1 MiB an epoch: found, and as large as it is, which warming up within a minute is not."""
    done = soak("--seed", "3", "--leak", "memory", "--enough", "0.5", "--json", str(tmp_path / "soak.json"))
    assert done.returncode == 1
    (slope,) = re.findall(r"FAILED: soak \(\d+\): memory .* \+([\d.]+) MB/min", done.stdout)
    seen = json.loads((tmp_path / "soak.json").read_text())
    minutes = seen["series"][0]["samples"][-1]["minute"]
    assert 0.6 < float(slope) / (seen["seen"]["epochs"] / minutes) < 1.6
