"""Verdict: what the consumer of a system got from a fault, judged from evidence alone; and the sums over a system."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["raised", "ok", "unordered", "short", "wrong", "hung", "left", "clean", "crashed", "absent", "changed", "differs"]

LEGEND = """\
R = an exception reached the consumer (seconds after the fault, from 1 s on); ok = all results, right and in order;
ok~ = all, in another order; Sk = the loop ended normally with k results; W = it ended with wrong or doubled results;
H = hung; On = n processes alive 10 s after the script's end; X = the script itself crashed; a time = from the break to
the script's end; clean = no process left; words = what is different; n/a = can't be
made here; a/b = in a of b tries."""

_WORDS: dict[Kind, str] = {
    "raised": "R",
    "ok": "ok",
    "unordered": "ok~",
    "wrong": "W",
    "hung": "H",
    "clean": "clean",
    "crashed": "X",
    "absent": "n/a",
}
_BAD: set[Kind] = {"short", "wrong", "hung", "crashed", "changed"}


@dataclass(frozen=True)
class Evidence:
    """What was seen of a cell.

    Attributes:
        ending: what the script wrote at its end, or "" if nothing.
        count: how many results the consumer got.
        seconds: from the fault to the end that was written; from the break, or the parent's death, to the script's end.
        text: the exception, or how the results differ.
        status: the script's exit status, or None if it had to be killed.
        orphans: how many of its processes were alive long after its end.
        busy: whether its processes were still computing when it was killed.
        stack: where its main thread was then.
    """

    ending: str = ""
    count: int = 0
    seconds: float = 0.0
    text: str = ""
    status: int | None = 0
    orphans: int = 0
    busy: bool = False
    stack: str = ""


@dataclass(frozen=True)
class Verdict:
    """One cell of the matrix; prints as it is read in the table.

    Attributes:
        share: how many of how many tries went so, if not all.
    """

    kind: Kind
    count: int = 0
    seconds: float = 0.0
    orphans: int = 0
    note: str = ""
    share: str = ""

    @property
    def bad(self) -> bool:
        """Whether the user is left without a result and without an error, or with processes."""
        return self.kind in _BAD or self.orphans > 0

    def __str__(self) -> str:
        orphans = f"O{self.orphans}" if self.orphans else ""
        if self.kind == "clean" and orphans:
            return " ".join(filter(None, (orphans, self.share)))
        return " ".join(filter(None, (self._word(), orphans, self.share)))

    def _word(self) -> str:
        match self.kind:
            case "short":
                return f"S{self.count}"
            case "changed" | "differs":
                return self.note.strip()
            case "left":
                return f"{self.seconds:.1f}s"
            case "raised" if self.seconds >= 1:
                return f"R {self.seconds:.1f}s"
            case kind:
                return _WORDS[kind]


def judge(evidence: Evidence, *, parent_dies: bool = False) -> Verdict:
    """The verdict on a cell.

    >>> str(judge(Evidence("short", count=19)))
    'S19'
    >>> str(judge(Evidence("raised", seconds=1.12, orphans=2)))
    'R 1.1s O2'
    >>> str(judge(Evidence(status=None)))
    'H'
    """
    kind, note = _kind(evidence, parent_dies)
    return Verdict(kind, evidence.count, round(evidence.seconds, 2), evidence.orphans, note)


def _kind(evidence: Evidence, parent_dies: bool) -> tuple[Kind, str]:
    match evidence:
        case Evidence(status=None, ending=""):
            return "hung", evidence.stack
        case Evidence(status=None):
            return "hung", f"after its end ({evidence.ending} {evidence.text}): {evidence.stack}"
        case _ if parent_dies:
            return "clean", ""
        case Evidence(ending="", status=0):
            return "short", "the script ended with status 0 in the middle of the loop"
        case Evidence(ending="", status=int(status)):
            return "crashed", f"the script died of {_cause(status)}: {evidence.text}"
        case Evidence(ending="raised" | "ok" | "unordered" | "short" | "wrong" | "left" | "changed" | "differs" as kind):
            return kind, evidence.text
    raise ValueError(f"no verdict for {evidence}")


def _cause(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """The worst of several tries of one cell; says how many were like it.

    >>> print(worst([Verdict("raised"), Verdict("hung"), Verdict("raised")]))
    H 1/3
    """
    found = max(verdicts, key=_severity)
    like = sum(_severity(verdict) == _severity(found) for verdict in verdicts)
    return found if like == len(verdicts) else replace(found, share=f"{like}/{len(verdicts)}")


def _severity(verdict: Verdict) -> tuple[int, int]:
    kinds: list[Kind] = ["ok", "unordered", "raised", "crashed", "hung", "changed", "short", "wrong"]
    return kinds.index(verdict.kind) if verdict.kind in kinds else 0, min(verdict.orphans, 1)


@dataclass(frozen=True)
class Summary:
    """The sums over a system's column.

    Attributes:
        hangs: cells in which it hung.
        losses: cells in which the loop ended normally with too few, wrong or changed results.
        orphans: cells after which processes were left.
        crashes: cells in which the script itself died.
        recovered: cells in which all results came although a worker had died.
    """

    hangs: int = 0
    losses: int = 0
    orphans: int = 0
    crashes: int = 0
    recovered: int = 0


def summary(verdicts: Iterable[tuple[Verdict, bool]]) -> Summary:
    """The sums over (verdict, whether the fault could be survived).

    >>> summary([(Verdict("hung"), False), (Verdict("ok"), True), (Verdict("short", 3, orphans=1), False)])
    Summary(hangs=1, losses=1, orphans=1, crashes=0, recovered=1)
    """
    cells = list(verdicts)
    return Summary(
        hangs=sum(verdict.kind == "hung" for verdict, _ in cells),
        losses=sum(verdict.kind in ("short", "wrong", "changed") for verdict, _ in cells),
        orphans=sum(verdict.orphans > 0 for verdict, _ in cells),
        crashes=sum(verdict.kind == "crashed" for verdict, _ in cells),
        recovered=sum(survivable and verdict.kind in ("ok", "unordered") for verdict, survivable in cells),
    )
