"""Plan: what an engine runs: groups of operators, their workers, and the channels between them.

    flow    read | transform | qf.repack(64) | collate | qf.queue(4)

    lower   read  scatter  elements  gather  repack  collate  queue(4)
    fuse    [read scatter]--[elements]--[gather repack collate]--4--> consumer

Operators without workers run in a neighbour's worker: those that work item by item with the step
before them, streams with a neighbour that has one worker, else in a worker of their own. Two marked
steps are never fused, and nothing is fused across a written queue.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from qflow.graph.flow import Each, Operator, Queue, through

SMALL = 64 * 1024  # bytes of small items that an unwritten queue lets wait


@dataclasses.dataclass(frozen=True)
class Group:
    """Operators that one set of workers runs: a name, the operators, and how many workers of which kind."""

    name: str
    operators: tuple[Operator[Any, Any], ...]
    n: int
    placement: str

    @property
    def stream(self) -> bool:
        """Whether it needs the items in order, in one worker."""
        return not all(isinstance(operator, Each) for operator in self.operators)

    def transform(self, values: Iterator[Any]) -> Iterator[Any]:
        """Its meaning, as a function on streams."""
        return through(self.operators, values)

    def opened(self) -> Group:
        """Itself with the user's classes built, for one worker."""
        return dataclasses.replace(self, operators=tuple(operator.opened() for operator in self.operators))


@dataclasses.dataclass(frozen=True)
class Plan:
    """Groups in a row and the bounds between them.

    Attributes:
        feed: operators that run where the source is read.
        groups: the groups, in order.
        bounds: items that may wait before each group, and at last before the consumer; None: not
            written, one item or as many small ones as fit in 64 KiB.
    """

    feed: tuple[Operator[Any, Any], ...]
    groups: tuple[Group, ...]
    bounds: tuple[int | None, ...]

    @property
    def workers(self) -> tuple[int, ...]:
        """How many sides put into each channel: the feed, then each group's workers."""
        return (1, *(group.n for group in self.groups))

    def most_alive(self) -> int | None:
        """The most items of a run that exist at once outside the consumer, if each step gives one result
        an item and every queue is written: what waits, and one in each worker's hands."""
        if None in self.bounds:
            return None
        return sum(bound or 0 for bound in self.bounds) + sum(self.workers)

    def __str__(self) -> str:
        rows = [_row("source", "1 thread of this process", self.feed)]
        for bound, group in zip(self.bounds, self.groups, strict=False):
            workers = f"{group.n} {'process' if group.placement == 'process' else 'thread'}{'es'[: 2 * (group.placement == 'process')] if group.n > 1 else ''}{'s' if group.placement == 'thread' and group.n > 1 else ''}"
            if group.placement == "thread":
                workers += " in 1 process"
            rows += [_bound(bound), _row(group.name, workers, group.operators)]
        return "\n".join([*rows, _bound(self.bounds[-1]), "consumer"])


def _row(name: str, workers: str, operators: Sequence[Operator[Any, Any]]) -> str:
    inside = " -> ".join(operator.name for operator in operators)
    return f"{name:<20} {workers}" + (f": {inside}" if inside and inside != name else "")


def _bound(bound: int | None) -> str:
    if bound is None:
        return "  | 1 item waits, or small ones of 64 KiB together"
    return f"  | {bound} item{'s' if bound > 1 else ''} at most wait"


@dataclasses.dataclass
class _Draft:
    """A group while it is put together."""

    operators: list[Operator[Any, Any]]
    n: int
    placement: str
    marked: Operator[Any, Any] | None = None

    def takes_after(self, operator: Operator[Any, Any]) -> bool:
        return self.n == 1 or isinstance(operator, Each)

    def takes_before(self, operators: Sequence[Operator[Any, Any]]) -> bool:
        return self.n == 1 or all(isinstance(operator, Each) and not operator.expands for operator in operators)


def make_plan(operators: Sequence[Operator[Any, Any]], n: int) -> Plan:
    """Resolve sizes, lower, fuse and name; ``n`` is for marks that do not say how many workers."""
    flat = [part for operator in operators for part in operator.resolve().lower()]
    feed: list[Operator[Any, Any]] = []
    drafts: list[_Draft] = []
    bounds: list[int | None] = [None]
    waiting: list[Operator[Any, Any]] = []  # unmarked operators that no group has taken yet

    def settle(before: _Draft | None) -> None:
        """Give what waits to the marked step that follows, else to a group of its own."""
        if not waiting:
            return
        if before is not None and bounds[-1] is None and before.takes_before(waiting):
            before.operators[:0] = waiting
        else:
            drafts.append(_Draft(list(waiting), 1, "process"))
            bounds.append(None)
        waiting.clear()

    for operator in flat:
        if isinstance(operator, Queue):
            settle(None)
            bounds[-1] = operator.maxsize
        elif operator.placement is not None:
            draft = _Draft([operator], operator.workers or n, operator.placement, operator)
            settle_bound = bounds[-1]
            if waiting and settle_bound is not None:
                settle(None)
            settle(draft)
            drafts.append(draft)
            bounds.append(None)
        elif not waiting and bounds[-1] is None and drafts and drafts[-1].takes_after(operator):
            drafts[-1].operators.append(operator)
        elif not waiting and bounds[-1] is None and not drafts and operator.expands and not operator.user_code:
            feed.append(operator)
        else:
            waiting.append(operator)
    settle(None)
    return Plan(tuple(feed), tuple(_named(drafts)), tuple(bounds))


def _named(drafts: Sequence[_Draft]) -> Iterator[Group]:
    """Groups with names that differ: the marked step's, else those of the operators."""
    seen: dict[str, int] = {}
    for draft in drafts:
        name = draft.marked.name if draft.marked else "+".join(operator.name for operator in draft.operators)
        seen[name] = seen.get(name, 0) + 1
        yield Group(name if seen[name] == 1 else f"{name}-{seen[name]}", tuple(draft.operators), draft.n, draft.placement)
