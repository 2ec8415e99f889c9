"""The bench: it finds what is wrong with systems that are wrong on purpose, and nothing wrong with qflow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qflow.bench import table
from qflow.bench.__main__ import main
from qflow.bench.cell import Bench, Patience
from qflow.bench.fault_rows import FAULTS
from qflow.bench.matrix import measure
from qflow.bench.rows import ROWS
from qflow.bench.systems import SYSTEMS
from qflow.bench.verdict import Evidence, Verdict, judge, summary

HASTY = Bench(Patience(hang=1.0, orphans=0.3))  # for what hangs
CALM = Bench(Patience(hang=30.0, orphans=0.3))  # for what doesn't


@pytest.fixture(autouse=True)
def bad_systems_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@pytest.mark.parametrize(
    ("system", "row", "verdict"),
    [
        ("good", "none", "ok"),
        ("good", "value-error", "R"),
        ("good", "few-descriptors", "ok"),
        ("good", "break", "0.0s"),
        ("good", "parent-killed", "clean"),
        ("good", "ctrl-c", "R"),
        ("good", "masked", "ok"),
        ("loses", "value-error", "S19"),
        ("hangs", "value-error", "H"),
        ("hangs_at_exit", "none", "H"),
        ("leaves", "value-error", "R O1"),
        ("leaves", "parent-killed", "O1"),
        ("doubles", "none", "W"),
        ("negates", "none", "W"),
        ("shuffles", "none", "ok~"),
        ("dies", "none", "X"),
        ("quits", "none", "S0"),
        ("negates", "bfloat16", "other values"),
        ("negates", "read-only", "lost"),
    ],
)
def test_each_wrong_is_found(system: str, row: str, verdict: str) -> None:
    found = str((HASTY if verdict == "H" else CALM).run(f"bad_systems:{system}", row))
    assert found == verdict or (verdict == "0.0s" and found.endswith("s"))


def test_a_hang_says_where() -> None:
    assert "bad_systems.py" in HASTY.run("bad_systems:hangs", "value-error").note


def test_a_system_that_fails_without_a_fault_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    verdicts = dict(measure(CALM, ["bad_systems:doubles", "bad_systems:good"], ["stop-iteration"], jobs=2))
    assert {cell: str(verdict) for cell, verdict in verdicts.items()} == {("bad_systems:good", "stop-iteration"): "S5"}
    assert "doubles is left out" in capsys.readouterr().err


ROWS_OF_QFLOW = "none,value-error,returns-lambda,stop-iteration,killed,killed-once-outside,stuck-break,parent-killed,small-shm"


def test_qflow_neither_hangs_nor_loses_nor_leaves_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    details = tmp_path / "details.json"
    assert main(["faults", "--systems", "qflow", "--rows", ROWS_OF_QFLOW, "--json", str(details)]) == 0
    assert capsys.readouterr().out.startswith(" ")
    assert [cell["row"] for cell in json.loads(details.read_text())["cells"]] == ROWS_OF_QFLOW.split(",")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_qflow_is_green_in_every_row(name: str) -> None:
    verdict = Bench().run("qflow", name)
    assert not verdict.bad, verdict
    if FAULTS[name].survivable or name in ("none", "returns-none", "small-shm", "few-descriptors"):
        assert verdict.kind == "ok", verdict


def test_an_interrupted_bench_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qflow.bench", "faults", "--systems", "bad_systems:hangs", "--rows", "value-error,none"]
    with (
        (tmp_path / "stderr").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True) as bench,
    ):
        while "1/1" not in (tmp_path / "stderr").read_text():
            assert bench.poll() is None
        bench.send_signal(signal.SIGINT)
        assert bench.wait(timeout=30) == 130


def test_the_table_marks_what_is_bad_and_sums_it_up() -> None:
    verdicts = {
        ("qflow", "killed-once"): Verdict("ok", 20),
        ("torch", "killed-once"): Verdict("raised", 3, 5.12),
        ("qflow", "parent-killed"): Verdict("clean"),
        ("torch", "parent-killed"): Verdict("clean", orphans=2),
    }
    lines = table.markdown(verdicts).splitlines()
    assert lines[0] == "|  | qflow | torch |"
    assert lines[2:4] == ["| SIGKILL itself, once | ok | R 5.1s |", "| parent SIGKILLed | clean | **O2** |"]
    assert lines[6] == "| **processes left** | 0 | 1 |"
    assert lines[8] == "| **all results though a worker died** | 1 | 0 |"
    assert "!O2" in table.text(verdicts)


def test_an_end_with_status_0_and_no_result_is_a_silent_loss() -> None:
    assert judge(Evidence(status=0)).kind == "short"
    assert summary([(judge(Evidence(status=0)), False)]).losses == 1


def test_a_name_that_is_not_there_shows_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["faults", "--systems", "ray"])
    assert "There are qflow, torch" in capsys.readouterr().err


def test_every_row_can_be_sent_by_name() -> None:
    for name, row in ROWS.items():
        assert getattr(sys.modules[row.step.__module__], row.step.__qualname__) is row.step, name


def test_what_is_measured_is_loaded_by_nobody_else() -> None:
    peers = {system.package for system in SYSTEMS.values()} - {"", "qflow", "torch"}
    script = "import sys, qflow.bench.__main__; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ).stdout
    assert peers.isdisjoint(loaded.split())
    assert "torch" not in loaded.split()


def test_a_qflow_that_does_not_work_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qflow.bench.cell.Bench.run", lambda *_: Verdict("hung"))
    assert main(["faults", "--systems", "qflow", "--rows", "value-error"]) == 1


def test_the_cost_of_a_message_is_told_for_each_party(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "--rounds", "1"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[-3:] == ["feeder", "worker", "consumer"]
    assert all(float(figure) > 0 for row in rows for figure in row.split()[-3:])


@pytest.mark.usefixtures("dataloader")
def test_the_way_to_a_device_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device", "--device", "cpu", "--megabytes", "1", "--batches", "10", "--repeats", "1"]) == 0
    title, head, *rows = capsys.readouterr().out.splitlines()
    assert title.startswith("cpu, batches of 1.0 MB")
    assert head.split() == ["batches/s", "GB/s", "wait,", "us"]
    assert [row[:42].strip() for row in rows] == [
        "qflow, qf.to_device",
        "qflow, .to(device) in the loop",
        "DataLoader, pinned, .to(non_blocking=True)",
    ]
    assert all(float(figure) > 0 for row in rows for figure in row[42:].split())
