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
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from qflow.graph import bytesizes
from qflow.graph.flow import Each, Operator, Queue, through
from qflow.graph.options import NOTHING, Options

SMALL = 512 * 1024  # bytes of a small item at most
WAITING = 1 << 22  # bytes of items that an unwritten queue lets wait, when there are several
MANY = 4096  # of them at most


@dataclasses.dataclass(frozen=True)
class Group:
    """Operators that one set of workers runs: a name, the operators, and how many workers of which kind."""

    name: str
    operators: tuple[Operator[Any, Any], ...]
    n: int
    placement: str
    options: Options = NOTHING

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
            written, one item or as many as fit in 4 MiB, at most 4096.
        operators: what was planned, with sizes read: the meaning of the groups together.
        budgets: bytes of shared memory of each channel; None: as much as its bound lets it take.
    """

    feed: tuple[Operator[Any, Any], ...]
    groups: tuple[Group, ...]
    bounds: tuple[int | None, ...]
    operators: tuple[Operator[Any, Any], ...] = ()
    budgets: tuple[int | None, ...] = ()

    @property
    def row(self) -> tuple[Operator[Any, Any], ...]:
        """All operators as they run, in order."""
        return (*self.feed, *(operator for group in self.groups for operator in group.operators))

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
        rows = [("source", "1 thread of this process", operators_text(self.feed))]
        rows += [(group.name, workers_text(group), inside_text(group)) for group in self.groups]
        names, workers = (max(len(row[column]) for row in rows) for column in (0, 1))
        steps = [f"{name:<{names}}  {who:<{workers}}  {inside}".rstrip() for name, who, inside in rows]
        channels = zip(self.bounds, self.budgets or (None,) * len(self.bounds), self.workers, strict=True)
        waits = [f"  |  {bound_text(bound)}{budget_text(budget, n)}" for bound, budget, n in channels]
        return "\n".join([*itertools.chain.from_iterable(zip(steps, waits, strict=True)), "consumer"])


def operators_text(operators: Sequence[Operator[Any, Any]]) -> str:
    """Operators in a row, by name.

    >>> import qflow as qf
    >>> operators_text([qf.unpack(), qf.pack(2)])
    'unpack | pack(2)'
    """
    return " | ".join(operator.name for operator in operators)


def inside_text(group: Group) -> str:
    """The operators that share a group's workers; nothing when there is one, named like the group."""
    return operators_text(group.operators) if len(group.operators) > 1 else ""


def workers_text(group: Group) -> str:
    """A group's workers, in words: ``2 processes`` or ``4 threads in 1 process``."""
    if group.placement == "thread":
        return _counted(group.n, "thread", "threads") + " in 1 process"
    return _counted(group.n, "process", "processes")


def bound_text(bound: int | None) -> str:
    """What may wait in one channel, in words."""
    if bound is None:
        return "1 item waits, or several up to 4 MiB together"
    return f"at most {_counted(bound, 'item waits', 'items wait')}"


def budget_text(budget: int | None, producers: int) -> str:
    """The bytes of one channel, in words."""
    if budget is None:
        return ""
    each = f", {bytesizes.show(budget / producers)} of each worker" if producers > 1 else ""
    return f", in {bytesizes.show(budget)}{each}"


def _counted(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"


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


def make_plan(operators: Sequence[Operator[Any, Any]], defaults: Options, memory: int | None = None) -> Plan:
    """Resolve sizes, lower, fuse and name; the defaults are for marks that say nothing, ``memory`` for all channels."""
    resolved = tuple(operator.resolve().filled(defaults) for operator in operators)
    flat = [part for operator in resolved for part in operator.lower()]
    feed: list[Operator[Any, Any]] = []
    drafts: list[_Draft] = []
    bounds: list[int | None] = [None]
    written: dict[int, int | None] = {}  # budgets of channels
    waiting: list[Operator[Any, Any]] = []  # unmarked operators that no group has taken yet

    def settle(before: _Draft | None) -> None:
        """Give what waits to the marked step that follows, else to a group of its own."""
        if not waiting:
            return
        if before is not None and before.takes_before(waiting):
            before.operators[:0] = waiting
        else:
            drafts.append(_Draft(list(waiting), 1, "process"))
            bounds.append(None)
        waiting.clear()

    for operator in flat:
        if isinstance(operator, Queue):
            settle(None)
            bounds[-1] = operator.maxsize
            written[len(bounds) - 1] = operator.memory
        elif operator.placement is not None:
            draft = _Draft([operator], operator.workers or 1, operator.placement, operator)
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
    plan = Plan(tuple(feed), tuple(_named(drafts)), tuple(bounds), resolved)
    return dataclasses.replace(plan, budgets=tuple(_budgets(plan, written, memory)))


def _budgets(plan: Plan, written: dict[int, int | None], memory: int | None) -> Iterator[int | None]:
    """The bytes of each channel: what is written at it, and at most its part of the run's.

    Half of the run's bytes are split evenly, half by the items that a channel may hold: an early channel may hold a few large
    items, and the last one many small ones.
    """
    takers = (*plan.workers[1:], 1)
    items = [max((bound or 1) + n, before) for bound, before, n in zip(plan.bounds, plan.workers, takers, strict=True)]
    for number, most in enumerate(items):
        part = None if memory is None else int(memory * (1 / len(items) + most / sum(items)) / 2)
        yield min((each for each in (written.get(number), part) if each is not None), default=None)


def _named(drafts: Sequence[_Draft]) -> Iterator[Group]:
    """Groups with names that differ: the marked step's, else those of the operators."""
    seen: set[str] = set()
    for draft in drafts:
        name = draft.marked.name if draft.marked else "+".join(operator.name for operator in draft.operators)
        names = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
        free = next(name for name in names if name not in seen)
        seen.add(free)
        options = draft.marked.options if draft.marked else NOTHING
        yield Group(free, tuple(draft.operators), draft.n, draft.placement, options)
