"""The bench of throughput: what it tells is right, what is wrong has no figure, and every grid is shown."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import qflow as qf
from qflow.bench.throughput import report
from qflow.bench.throughput.command import Throughput, grid_of, plan_of
from qflow.bench.throughput.figures import Figure, Measurement, figures
from qflow.bench.throughput.goals import GOALS, best_peer, reached
from qflow.bench.throughput.measure import BARE
from qflow.bench.throughput.peers import OWN, PEERS, peer_of
from qflow.bench.throughput.rate import steady
from qflow.bench.throughput.tally import Tally
from qflow.bench.throughput.workload import Workload, numbers
from qflow.bench.throughput.workloads import WORKLOADS, hdf5, index, jpeg

BRIEF = ["--repeats", "1", "--seconds", "0.01"]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own that can import the bad peers."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "qflow.bench", *BRIEF, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def lines_of(text: str) -> dict[str, str]:
    """The first line of each system."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return {line.split("|")[1].strip(): line for line in reversed(lines)}


def test_a_run_tells_tables_goals_json_and_the_grid(tmp_path: Path) -> None:
    file = tmp_path / "all.json"
    run = bench("--only", "ints", "--peers", "pool_chunked", "--quick", "--json", str(file))
    assert run.returncode == 0, run.stderr
    lines = lines_of(run.stdout)
    assert "chunksize=10000" in lines["multiprocessing.Pool, chunked by hand"]
    assert "chunksize=4000" in lines["multiprocessing.Pool, chunked by hand"]
    assert {"qflow", "serial loop", "ints through one step"} < set(lines)
    assert "beside Pool.imap, chunked by hand" in run.stdout
    assert "numpy" in run.stdout.splitlines()[-1]
    details = json.loads(file.read_text())
    assert {figure["system"]: figure["note"] for figure in details["figures"]} == dict.fromkeys(
        ["qflow", "serial", "pool_chunked"], ""
    )
    assert {"rate", "start", "cpu", "consumer", "pss", "faults", "mappings"} < set(details["figures"][0]["values"])
    tried = [each["setting"] for each in details["measurements"] if (each["system"], each["turn"]) == ("pool_chunked", 0)]
    assert tried == [{"chunksize": 10000}, {"chunksize": 4000}]


@pytest.mark.slow
def test_what_is_wrong_has_no_figure() -> None:
    names = ["LOSES", "DOUBLES", "WRONG", "SHUFFLES", "RAISES", "DIES", "TUNED", "ABSENT", "UNBUILT"]
    run = bench("--only", "ints", "--peers", ",".join(f"bad_peers:{name}" for name in names))
    assert run.returncode == 0, run.stderr
    lines = lines_of(run.stdout)
    words = {
        "loses": "void: 1 of 1000 results is missing",
        "doubles": "void: 1 of 1001 results are wrong or doubled",
        "wrong": "void: 1000 of 1000 results are wrong or doubled",
        "shuffles": "order not kept",
        "raises": "OSError: no more of it",
        "dies": "died with status 3",
        "tuned": "**speed=high**",
        "absent": "no_such_package is not installed",
        "unbuilt": "it is for other things",
    }
    assert {name: text in lines[name] for name, text in words.items()} == dict.fromkeys(words, True), run.stdout
    figureless = [name for name in words if not lines[name].split("|")[2].strip()]
    assert figureless == ["loses", "doubles", "wrong", "raises", "dies", "absent", "unbuilt"]
    assert "speed=low: " in lines["tuned"]
    assert "speed=none: ValueError: this setting doesn't work" in lines["tuned"]


@pytest.mark.slow
def test_a_peer_that_hangs_has_a_limit() -> None:
    run = bench("--only", "ints", "--peers", "bad_peers:HANGS", "--limit", "3")
    assert "hung: no result after 3 s" in lines_of(run.stdout)["hangs"]


@pytest.mark.slow
def test_the_time_to_the_first_item_is_a_workload(tmp_path: Path) -> None:
    run = bench("--only", "first", "--peers", "pool")
    assert run.returncode == 0, run.stderr
    assert "cold s" in run.stdout
    assert "second epoch" in run.stdout


@pytest.mark.parametrize("name", [name for name in WORKLOADS if name not in ("hdf5-large", "hdf5-heavy", "index-n1")])
def test_each_workload_tells_right_results_from_wrong_ones(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = WORKLOADS[name]
    for package in workload.packages:
        pytest.importorskip(package)
    monkeypatch.setenv("QFLOW_BENCH_DATA", str(tmp_path))
    monkeypatch.setattr(index, "STRINGS", 100)
    monkeypatch.setattr(jpeg, "TILES", 20)
    if workload.prepare:
        workload.prepare(tmp_path)
    job, count = workload.job(), 10
    results = list(map(job.step, job.items(count)))
    hdf5.opened.cache_clear()
    assert [workload.glance(result) for result in results] == workload.keys(0, count) == [workload.look(each) for each in results]
    assert workload.keys(0, count) + workload.keys(count, count + 5) == workload.keys(0, count + 5)
    assert workload.least <= workload.most
    assert workload.least % workload.multiple == workload.most % workload.multiple == workload.checked % workload.multiple == 0


@pytest.fixture
def tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workload:
    """The workload of JPEG files, with a few of them."""
    pytest.importorskip("skimage")
    monkeypatch.setenv("QFLOW_BENCH_DATA", str(tmp_path))
    monkeypatch.setattr(jpeg, "TILES", 20)
    jpeg.write(tmp_path)
    return jpeg.JPEG


def test_a_batch_of_pictures_is_right_to_the_last_pixel(tiles: Workload) -> None:
    right = jpeg.batch(3)
    assert [tiles.glance(right)] == [tiles.look(right)] == tiles.keys(3, 4) != tiles.keys(2, 3)
    other, order = right.clone(), [1, 0, *range(2, jpeg.SIZE)]
    other[-1, -1, -1, -1] ^= 1
    assert [tiles.look(each) for each in (other, right[order], right[:-1], right.numpy(), right.float())] == [None] * 5
    assert [tiles.glance(right[order])] != tiles.keys(3, 4)


def test_a_tile_is_cut_from_a_photograph(tiles: Workload) -> None:
    for number, cut in enumerate(jpeg._cuts()):
        small = Image.fromarray(cut).resize((jpeg.SIDE, jpeg.SIDE), Image.Resampling.BILINEAR)
        assert abs(jpeg.decode(jpeg.tile(number)) - np.asarray(small, float)).mean() < 4


@pytest.mark.parametrize("flow", ["processes", "threads", "threads, picture by picture"])
def test_pictures_are_the_same_in_whatever_way_the_flow_is_written(tiles: Workload, flow: str) -> None:
    with peer_of("qflow").open(tiles.job(), flow=flow) as epoch:
        assert [tiles.look(found) for found in epoch(2)] == tiles.keys(0, 2)


@pytest.mark.parametrize("name", WORKLOADS)
def test_each_peer_says_what_it_tries_or_why_not(name: str) -> None:
    pickle.loads(pickle.dumps(WORKLOADS[name]))
    for peer in PEERS.values():
        cells = peer.grid(WORKLOADS[name])
        assert cells
        assert isinstance(cells, str) or len(cells) <= 6


def test_a_tally_tells_what_is_missing_wrong_doubled_or_out_of_order() -> None:
    def verdict(*blocks: list[int]) -> tuple[str, bool]:
        tally = Tally(numbers)
        for block in blocks:
            tally.take(block)
        return tally.verdict(4), tally.in_order

    assert verdict([0, 1], [2, 3]) == ("", True)
    assert verdict([0, 2], [1, 3]) == ("", False)
    assert verdict([0], [1]) == ("2 of 4 results are missing", True)
    assert verdict([0, 1], [3]) == ("1 of 4 results is missing", False)
    assert verdict([0, 1], [2, 2]) == ("1 of 4 results are wrong or doubled", False)
    assert verdict([0, 1], [2, 3, 4]) == ("1 of 5 results are wrong or doubled", True)


def of(system: str, rate: float, turn: int = 1, workload: str = "array", **setting: Any) -> Measurement:
    return Measurement(workload, system, setting, turn, {"rate": rate, "consumer": 4e-5, "faults": 0.0, "mappings": 0.0})


@pytest.mark.parametrize("ahead", [1, 30, 100])
def test_who_works_far_ahead_is_not_the_faster_for_it(ahead: int) -> None:
    workload, each = WORKLOADS["ints"], 0.001

    def epoch(count: int) -> Iterator[int]:
        for first in range(0, count, ahead):
            chunk = range(first, min(first + ahead, count))
            time.sleep(each * len(chunk))  # the work
            yield from map(workload.steps[0], chunk)

    found = steady(epoch, workload, 100)
    assert (found["count"], found["rate"]) == (100, 100 / found["seconds"])
    assert found["seconds"] > 100 * each


def test_a_figure_is_the_median_of_the_turns_of_the_best_setting() -> None:
    tries = [of("torch", 5.0, 0, prefetch=2), of("torch", 9.0, 0, prefetch=8)]
    turns = [of("torch", rate, turn, prefetch=8) for turn, rate in enumerate([7.0, 6.0, 8.0], 1)]
    (found,) = figures(tries + turns)
    assert (found.setting, found.rate, found.low, found.high, found.turns) == ({"prefetch": 8}, 7.0, 6.0, 8.0, 3)


def test_one_lossy_turn_voids_a_figure() -> None:
    lossy = Measurement("array", "qflow", {}, 2, {"failed": "void: 1 of 9 results is missing"})
    (found,) = figures([of("qflow", 5.0, 0), of("qflow", 5.0, 1), lossy])
    assert (found.values, found.note) == ({}, "void: 1 of 9 results is missing")


def test_goals_compare_with_the_best_peer_across_processes() -> None:
    rates = {"qflow": 100.0, BARE: 200.0, "serial": 900.0, "torch": 10.0, "mpire": 20.0, "spdl_threads": 800.0}
    found = [Figure("array", system, {}, {"rate": rate, "consumer": 4e-5}) for system, rate in rates.items()]
    best = best_peer(found, "array")
    assert best is not None
    assert best.system == "mpire"
    told = {goal.words: (value, goal.met(value)) for goal, value in reached(found)}
    assert told["beside the best peer that crosses processes"] == (5.0, False)
    assert told["beside np.copyto"] == (0.5, False)
    assert told["CPU of the consumer's thread per array"] == (pytest.approx(40.0), True)
    assert "mpire" in report.summary(found)


def test_a_goal_may_be_about_the_best_of_several_peers() -> None:
    rates = {"qflow": 60.0, "torch": 10.0, "torch_batched": 30.0, "spdl_threads": 50.0}
    told = {
        goal.words: value for goal, value in reached([Figure("jpeg", name, {}, {"rate": rate}) for name, rate in rates.items()])
    }
    assert told == {"beside the better DataLoader": 2.0, "beside the best of SPDL": 1.2}


def test_quick_has_the_peers_that_a_workload_names() -> None:
    parser = argparse.ArgumentParser()
    Throughput().add_arguments(parser)

    def asked(*options: str) -> list[str]:
        chosen = plan_of(parser.parse_args(["--only", "jpeg,ints", *options]))
        return [name for name in ("jpeg", "ints") if grid_of(chosen, name, "spdl_threads") != "not asked"]

    assert asked("--quick") == ["jpeg"]
    assert asked("--quick", "--peers", "spdl_threads") == asked() == ["jpeg", "ints"]


def test_goals_are_about_workloads_and_peers_that_there_are() -> None:
    assert {goal.workload for goal in GOALS} <= set(WORKLOADS)
    assert set(OWN) < set(PEERS)


PLOT = """
import sys
from pathlib import Path
from qflow.bench.throughput.figures import Figure
from qflow.bench.throughput.plot import plot
rates = [("qflow", 5.0), ("bare", 9.0)]
plot([Figure("array", system, {}, {"rate": rate}, rate, rate) for system, rate in rates], Path(sys.argv[1]), "here")
"""


def test_the_plot_is_a_file(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    subprocess.run([sys.executable, "-c", PLOT, str(tmp_path / "rates.svg")], check=True)  # matplotlib keeps its fonts open
    assert "np.copyto loop" in (tmp_path / "rates.svg").read_text()


def test_qflow_is_measured_as_it_is_installed(tmp_path: Path) -> None:
    """A checkout whose bytecode may not be written is compiled once, not by each process that is measured."""
    checkout, copy = tmp_path / "checkout", tmp_path / "copy"
    shutil.copytree(Path(qf.__file__).parent, checkout / "qflow", ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import sys; from pathlib import Path; from qflow.bench.installed import compiled\n"
        "path = compiled(Path(sys.argv[1])); sys.path[:0] = path; del sys.modules['qflow']; import qflow\n"
        "print(path, qflow.__spec__.origin, Path(qflow.__spec__.cached).exists())"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPYCACHEPREFIX"}
    environment |= {"PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
    said = [
        subprocess.run(
            [sys.executable, "-c", code, str(copy)], capture_output=True, text=True, check=True, env=environment, cwd=tmp_path
        ).stdout
        for environment["PYTHONPATH"] in (str(checkout), str(copy))
    ]
    assert said == [f"{[str(copy)]} {copy}/qflow/__init__.py True\n", f"[] {copy}/qflow/__init__.py True\n"]
    assert not list(checkout.rglob("__pycache__"))
