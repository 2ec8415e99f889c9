"""Draw: a flow as a picture, SVG made of nothing but shapes and presentation attributes.

    source --> [ read     ] --> [ transform ] --> [ collate            ] --<= 4--> consumer
               [ ## 2     ]     [ #####.. 20]     [ # 1                ]
               [ read |.. ]                       [ gather | repack |..]

A box is one group of the plan: squares are its processes, dots its threads, below stand the operators
that share the workers. Renderers that sanitize notebooks strip <style>, classes and scripts, so there
are none. The same flow gives the same text, and drawing never raises: what can't be read is drawn as written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from html import escape
from itertools import accumulate, pairwise
from textwrap import wrap
from typing import Any
from unicodedata import east_asian_width

from qflow.graph.flow import Flow, Operator, Queue, Sourced
from qflow.graph.plan import Group, Plan, bound_text, inside_text, operators_text, workers_text

WIDTH = 880  # pixels of a row; about what a notebook's output area has
MARGIN, ROW_GAP, PADDING = 14, 24, 12
MOST_CARDS, MOST_COLUMNS = 6, 26
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
SANS = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
PROCESS, THREAD = "#3b82f6", "#d97706"  # at least 3 : 1 against white and against #111
INK = "currentColor"


@dataclasses.dataclass(frozen=True)
class Box:
    """What one box says; ``n`` is 0 for the two ends, which have no workers."""

    title: str
    caption: str
    inside: str = ""
    n: int = 0
    placement: str = ""

    @property
    def lines(self) -> list[str]:
        """The operators, in a few short lines."""
        return [_cut(line, MOST_COLUMNS + 6) for line in wrap(self.inside, MOST_COLUMNS + 6, max_lines=3, placeholder=" …")]

    @property
    def cards(self) -> int:
        """The width of its row of workers."""
        return min(self.n, MOST_CARDS) * 13 + 5 if self.n else 0

    @property
    def width(self) -> int:
        """What the estimated widths of its texts need; in a monospaced font a letter takes 0.6 of its height."""
        title, operators = _columns(_cut(self.title)) * 7.9, max(map(_columns, self.lines), default=0) * 6.1
        return round(max(title, self.cards + len(self.caption) * 6.1, operators)) + 2 * PADDING

    @property
    def height(self) -> int:
        return 52 + 14 * len(self.lines)


@dataclasses.dataclass(frozen=True)
class Placed:
    """A box and where it stands; the boxes of a row are of one height."""

    box: Box
    left: float
    top: float
    height: float

    @property
    def right(self) -> float:
        return self.left + self.box.width

    @property
    def middle(self) -> float:
        return self.top + self.height / 2

    @property
    def bottom(self) -> float:
        return self.top + self.height


def picture(flow: Flow[Any, Any]) -> dict[str, str]:
    """How a notebook shows a flow."""
    return {"text/plain": repr(flow), "text/html": svg(flow), "image/svg+xml": svg(flow, literal=True)}


def svg(flow: Flow[Any, Any], *, literal: bool = False) -> str:
    """A flow as SVG: with the page's colours, or with literal ones on a ground of its own.

    Args:
        flow: with or without a source.
        literal: True for ``image/svg+xml``, which sees no page around it.
    """
    plan = _plan(flow)
    boxes = [*_boxes(flow, plan)]
    placed = [*_place(boxes, plan.bounds)]
    arrows = [_arrow(*ends, bound) for ends, bound in zip(pairwise(placed), plan.bounds, strict=True)]
    width, height = max(each.right for each in placed) + MARGIN, placed[-1].bottom + MARGIN
    ground = _tag("rect", x=0.5, y=0.5, width=width - 1, height=height - 1, rx=8, fill="#ffffff", stroke="#d0d7de")
    return _tag(
        "svg",
        *([ground] if literal else []),
        *arrows,
        *map(_draw, placed),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
        role="img",
        aria_label=_label(boxes, plan),
        font_family=SANS,
        font_size=11,
        **({"color": "#1f2328"} if literal else {"style": "max-width:100%;height:auto"}),
    )


def _plan(flow: Flow[Any, Any]) -> Plan:
    """The flow's plan, or where a size can't be read now its operators as written, one by one."""
    try:
        return flow.plan()
    except Exception:
        return _as_written(flow.operators)


def _as_written(operators: Sequence[Operator[Any, Any]]) -> Plan:
    """A plan without sizes and fusion: each operator a group, each queue a bound."""
    groups: list[Group] = []
    bounds: list[int | None] = [None]
    last = operators[-1] if operators and operators[-1].last else None
    for operator in operators[: len(operators) - (last is not None)]:
        if isinstance(operator, Queue):
            bounds[-1] = operator.maxsize
        else:
            groups.append(Group(operator.name, (operator,), operator.workers or 1, operator.placement or "process"))
            bounds.append(None)
    return Plan((), tuple(groups), tuple(bounds), last=last)


def _boxes(flow: Flow[Any, Any], plan: Plan) -> Iterator[Box]:
    source = _cut(type(flow.source).__name__) if isinstance(flow, Sourced) else "any iterable"
    yield Box("source", source, operators_text([*filter(None, [plan.shard]), *plan.feed]))
    for group in plan.groups:
        yield Box(group.name, workers_text(group), inside_text(group), group.n, group.placement)
    yield Box("consumer", "your loop", "" if plan.last is None else plan.last.name)


def _label(boxes: Sequence[Box], plan: Plan) -> str:
    """The picture in one line, for those who hear it."""
    steps = [f"{box.title} ({box.caption})" for box in boxes]
    waits = ["" if bound is None else f" at most {bound} waiting," for bound in plan.bounds]
    return "flow: " + steps[0] + "".join(f",{wait} then {step}" for wait, step in zip(waits, steps[1:], strict=True))


def _place(boxes: Sequence[Box], bounds: Sequence[int | None]) -> Iterator[Placed]:
    """The boxes in rows, as many to a row as fit."""
    rows: list[list[tuple[Box, float]]] = [[]]
    right: float = MARGIN
    for box, gap in zip(boxes, [0, *map(_gap, bounds)], strict=True):
        if rows[-1] and right + gap + box.width > WIDTH:
            rows.append([])
            right = MARGIN
        rows[-1].append((box, right + gap))
        right += gap + box.width
    top: float = MARGIN
    for row in rows:
        height = max(box.height for box, _ in row)
        yield from (Placed(box, left, top, height) for box, left in row)
        top += height + ROW_GAP


def _gap(bound: int | None) -> float:
    """The length of an arrow, with room for its bound."""
    return max(30, 20 + len(_bound(bound)) * 6.5)


def _bound(bound: int | None) -> str:
    return "" if bound is None else f"≤ {bound}"


def _arrow(start: Placed, end: Placed, bound: int | None) -> str:
    """An arrow from box to box, at a row's end through the gap below it; its bound stands above."""
    wraps = end.top > start.top
    tail = MARGIN / 2 if wraps else start.right
    around = f"h{MARGIN / 2:g} V{start.bottom + ROW_GAP / 2:g} H{tail:g} V{end.middle:g} " if wraps else ""
    line = f"M{start.right:g} {start.middle:g} {around}H{end.left - 6:g}"
    return _tag(
        "g",
        _tag("title", _xml(bound_text(bound))),
        _tag("path", d=line, fill="none", stroke=INK, stroke_opacity=0.6, stroke_width=1.3, stroke_linejoin="round"),
        _tag("path", d=f"M{end.left - 1:g} {end.middle:g} l-8 -4 v8 z", fill=INK, fill_opacity=0.75),
        _text((tail + end.left - 6) / 2, end.middle - 6, _bound(bound), text_anchor="middle"),
    )


def _draw(placed: Placed) -> str:
    """A box: frame, name, workers, operators; its tooltip has all of it uncut."""
    box, left, top = placed.box, placed.left + PADDING, placed.top
    look: dict[str, object] = {"fill_opacity": 0.06} if box.n else {"fill_opacity": 0, "stroke_dasharray": "4 3"}
    size = {"width": box.width, "height": placed.height, "rx": 7}
    return _tag(
        "g",
        _tag("title", _xml(": ".join(filter(None, [box.title, box.caption, box.inside])))),
        _tag("rect", x=placed.left, y=top, **size, fill=INK, stroke=INK, stroke_opacity=0.45, **look),
        _text(left, top + 21, _cut(box.title), font_family=MONO, font_size=13, font_weight=600),
        *_workers(box, left, top + 30),
        _text(left + box.cards, top + 39, box.caption, fill_opacity=0.85),
        *(
            _text(left, top + 57 + 14 * number, line, font_family=MONO, font_size=10, fill_opacity=0.75)
            for number, line in enumerate(box.lines)
        ),
    )


def _workers(box: Box, x: float, y: float) -> Iterator[str]:
    """A square for each process, or a dot for each thread in the one square of their process; many fade out."""
    fades = [1.0] * box.n if box.n <= MOST_CARDS else [1.0] * (MOST_CARDS - 3) + [0.7, 0.45, 0.2]
    if box.placement == "thread":
        yield _tag("rect", x=x - 0.5, y=y - 0.5, width=13 * len(fades) - 2, height=11, rx=3, fill="none", stroke=THREAD)
    for place, fade in enumerate(fades):
        left = x + 13 * place
        if box.placement == "thread":
            yield _tag("circle", cx=left + 5, cy=y + 5, r=3, fill=THREAD, fill_opacity=fade)
        else:
            yield _tag("rect", x=left, y=y, width=10, height=10, rx=2, fill=PROCESS, fill_opacity=fade)


def _text(x: float, y: float, text: str, **attributes: object) -> str:
    return _tag("text", _xml(text), x=x, y=y, **{"fill": INK, **attributes}) if text else ""


def _tag(name: str, *content: str, **attributes: object) -> str:
    """One element; ``_`` in a keyword stands for ``-``."""
    words = (f'{key.replace("_", "-")}="{_xml(_short(value))}"' for key, value in attributes.items())
    return f"<{' '.join([name, *words])}>{''.join(content)}</{name}>"


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cut(text: str, columns: int = MOST_COLUMNS) -> str:
    """At most so many columns of it."""
    if _columns(text) <= columns:
        return text
    return "".join(letter for letter, so_far in zip(text, accumulate(map(_columns, text)), strict=True) if so_far < columns) + "…"


def _columns(text: str) -> int:
    """Its width in letters; East Asian ones are two wide."""
    return sum(2 if east_asian_width(letter) in "WF" else 1 for letter in text)


def _xml(text: str) -> str:
    """Escaped, and without what XML does not know."""
    return escape("".join(letter if letter.isprintable() else " " for letter in text))
