"""Table: verdicts as text for a terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qflow.bench.rows import ROWS
from qflow.bench.systems import named
from qflow.bench.verdict import Summary, Verdict, summary

Verdicts = Mapping[tuple[str, str], Verdict]  # (system, row) -> verdict

SUMS = {
    "hangs": "hangs",
    "losses": "silent losses and changes",
    "orphans": "processes left",
    "crashes": "crashes of the script",
    "recovered": "all results though a worker died",
}


def column(verdicts: Verdicts, system: str) -> Summary:
    """The sums over one system."""
    return summary((verdict, ROWS[row].survivable) for (name, row), verdict in verdicts.items() if name == system)


def text(verdicts: Verdicts) -> str:
    """Columns of equal width, the worst marked by ``!``."""
    head, *rows = _rows(verdicts, "!{}", "{}")
    widths = [max(map(len, cells)) for cells in zip(head, *rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)]
    lines.insert(1 + len(_names(verdicts)), "-" * max(map(len, lines)))
    return "\n".join(lines)


def markdown(verdicts: Verdicts) -> str:
    """A table of Markdown, the worst in bold."""
    head, *rows = _rows(verdicts, "**{}**", "**{}**")
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in [head, ["---"] * len(head), *rows]
    )


def _rows(verdicts: Verdicts, bad: str, sums: str) -> list[list[str]]:
    """The head, a row for each fault, a row for each sum."""
    systems = _systems(verdicts)
    columns = [column(verdicts, system) for system in systems]
    survivable = any(ROWS[row].survivable for row in _names(verdicts))
    shown = {name: title for name, title in SUMS.items() if survivable or name != "recovered"}
    return [
        ["", *(named(system).title for system in systems)],
        *([ROWS[row].title, *(_cell(verdicts, system, row, bad) for system in systems)] for row in _names(verdicts)),
        *([sums.format(title), *(str(getattr(sums_of, name)) for sums_of in columns)] for name, title in shown.items()),
    ]


def _cell(verdicts: Verdicts, system: str, row: str, bad: str) -> str:
    verdict = verdicts.get((system, row))
    if verdict is None:
        return "-"
    return bad.format(verdict) if verdict.bad else str(verdict)


def _systems(verdicts: Verdicts) -> Sequence[str]:
    return list(dict.fromkeys(system for system, _ in verdicts))


def _names(verdicts: Verdicts) -> Sequence[str]:
    return list(dict.fromkeys(row for _, row in verdicts))
