"""Cell: one fault in one system, in a session of its own, under a watchdog.

The script of a cell tells by marks how far it is; the watchdog counts from the last mark, so that a
slow start is no hang. Whatever is left of a cell carries its tag and is killed at its end; its temporary
files and its /dev/shm go with it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from qflow.bench import tagged
from qflow.bench.marks import FOLDER, TAG, times
from qflow.bench.row import Signal
from qflow.bench.rows import ROWS
from qflow.bench.scenario import RESULT, STACKS
from qflow.bench.verdict import Evidence, Verdict, judge, worst

_STEP = 0.02  # seconds between two looks at a cell
_SURE = 45.0  # seconds for a second try, where a hang is surprising
_BUSY = 0.2  # of a core: a cell that computes more in its last third may only be slow


@dataclass(frozen=True)
class Patience:
    """How long is waited, in seconds.

    Attributes:
        hang: from the last sign of life to the verdict that it hangs.
        orphans: from the script's end until its processes must be gone.
        start: until the script begins.
    """

    hang: float = 15.0
    orphans: float = 10.0
    start: float = 90.0


class Interrupted(Exception):
    """The bench is to stop."""


@dataclass(frozen=True)
class Bench:
    """Runs cells, each ``repeat`` times; ``stop`` ends those under way."""

    patience: Patience = Patience()
    repeat: int = 1
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)

    def run(self, system: str, name: str) -> Verdict:
        """The verdict on one cell: the worst of its tries."""
        return worst([self._try(system, name) for _ in range(self.repeat)])

    def _try(self, system: str, name: str) -> Verdict:
        """One try; a surprising hang gets a second, longer look."""
        row = ROWS[name]
        if row.shm and not _has_namespaces():
            return Verdict("absent", note="/dev/shm can't be replaced: no mount namespace")
        evidence = self._observe(system, name, self.patience)
        if evidence.status is None and (evidence.busy or system == "qflow") and self.patience.hang < _SURE:
            evidence = self._observe(system, name, dataclasses.replace(self.patience, hang=_SURE))
        return judge(evidence, parent_dies=row.parent_dies)

    def _observe(self, system: str, name: str, patience: Patience) -> Evidence:
        with Running(system, name, patience) as running:
            running.watch(self.stop)
            return running.evidence()


class Running:
    """The script of a cell and all that it starts; a context, at whose end all of it is killed."""

    def __init__(self, system: str, name: str, patience: Patience) -> None:
        self.row, self.patience = ROWS[name], patience
        self.tag, self.folder = uuid.uuid4().hex, Path(tempfile.mkdtemp(prefix="qflow-bench-"))
        self.signalled = self.cpu = 0.0
        self.busy = False
        command = [*own_shm(self.row.shm), sys.executable, "-m", "qflow.bench.scenario", system, name]
        environment = {**os.environ, TAG: self.tag, FOLDER: str(self.folder), "TMPDIR": str(self.folder / "tmp")}
        (self.folder / "tmp").mkdir()
        self.started = time.time()
        with (self.folder / "output").open("wb") as output:
            self.script = subprocess.Popen(
                command, env=environment, start_new_session=True, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def __enter__(self) -> Running:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.script.kill()
        self.script.wait()
        tagged.end(self.tag)
        shutil.rmtree(self.folder, ignore_errors=True)

    def watch(self, stop: threading.Event) -> None:
        """Wait until the script has ended or hangs; send it the signal from outside when it is due."""
        while self.script.poll() is None and (now := time.time()) < (deadline := self.deadline()):
            if stop.wait(_STEP):
                raise Interrupted
            self.act()
            if not self.cpu and now > deadline - self.patience.hang / 3:
                self.cpu = tagged.cpu_seconds(self.tag) or 1e-9

    def marked(self) -> dict[str, float]:
        return times(self.folder)

    def deadline(self) -> float:
        """When it hangs if nothing happens."""
        marked = self.marked()
        if "begun" not in marked:
            return self.started + self.patience.start
        signs = [marked[name] for name in ("begun", "struck", "ready", "left") if name in marked]
        return max(*signs, self.signalled) + self.patience.hang

    def act(self) -> None:
        """Send the row's signal, once, as soon as whom it is for is ready."""
        if self.row.signal and not self.signalled and (target := self._target(self.row.signal)):
            self.signalled = time.time()
            if self.row.signal.to == "group":
                os.killpg(target, self.row.signal.number)
            else:
                tagged.send(target, self.tag, self.row.signal.number)

    def _target(self, sent: Signal) -> int | None:
        marked = self.marked()
        if sent.to == "victim":
            return next((int(name.removeprefix("victim-")) for name in marked if name.startswith("victim-")), None)
        return self.script.pid if "ready" in marked else None

    def evidence(self) -> Evidence:
        """What is there to see, after `watch`."""
        status, ended = self.script.poll(), time.time()
        if status is None:
            self.busy = tagged.cpu_seconds(self.tag) - self.cpu > _BUSY * self.patience.hang / 3
        written = self._written()
        at = written.pop("at", ended)
        last = ended if self.row.leaves or self.row.parent_dies else at
        if not written.get("ending"):
            written["text"] = self._output()
        if written.get("ending") == "ok" and self.row.quiet and (line := self._output()):
            written |= {"ending": "differs", "text": line}
        return Evidence(
            **written,
            seconds=max(0.0, last - self._struck(last)),
            status=status,
            busy=self.busy,
            stack=self._stack() if status is None else "",
            orphans=0 if status is None else tagged.left(self.tag, patience=self.patience.orphans),
        )

    def _struck(self, otherwise: float) -> float:
        """When the fault happened, or the consumer broke."""
        marked = self.marked()
        since = marked.get("left" if self.row.leaves else "struck", 0.0)
        return max(since, self.signalled) or otherwise

    def _written(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.folder / RESULT).read_text()))
        except FileNotFoundError:
            return {}

    def _output(self) -> str:
        """The last line that the script or a worker wrote."""
        lines = (self.folder / "output").read_text(errors="replace").split("\n")
        return next((line[:300] for line in reversed(lines) if line.strip()), "")

    def _stack(self) -> str:
        """Where the main thread of the hanging script is."""
        if not tagged.send(self.script.pid, self.tag, signal.SIGUSR1):
            return ""
        time.sleep(0.3)
        threads = (self.folder / STACKS).read_text(errors="replace").split("\n\n")
        frames = [line.strip() for line in threads[-1].splitlines() if line.lstrip().startswith("File")]
        return " < ".join(frames[:4])


def own_shm(size: int = 0) -> list[str]:
    """The command before a script's that gives it a /dev/shm of its own, where that can be: it goes with the script."""
    return _mounted(size) if _has_namespaces() else []


def _mounted(size: int) -> list[str]:
    mount = f'mount -t tmpfs -o size={size or "50%"} tmpfs /dev/shm && exec "$@"'
    return ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"]), "sh", "-c", mount, "sh"]


@functools.cache
def _has_namespaces() -> bool:
    try:
        return subprocess.run([*_mounted(0), "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False
