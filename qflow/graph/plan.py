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
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from qflow.errors import GraphError
from qflow.graph import bytesizes
from qflow.graph.context import Context
from qflow.graph.flow import Each, Filter, Operator, Queue, Stream, differing, through
from qflow.graph.options import NOTHING, Options
from qflow.graph.repeat import EachTime, Repeat
from qflow.graph.shard import Shard

SMALL = 512 * 1024  # bytes of a small item at most
WAITING = 1 << 22  # bytes of items that an unwritten queue lets wait, when there are several
MANY = 4096  # of them at most
SHARING = 4  # thread steps that share threads, at most


class Part(NamedTuple):
    """A thread step that shares the threads of a group: its name, its calls at once, and its place among the operators."""

    name: str
    n: int
    place: int


@dataclasses.dataclass(frozen=True)
class Group:
    """Operators that one set of workers runs: a name, the operators, and how many workers of which kind.

    Attributes:
        options: of the marked one.
        labels: of the operators, names that differ in the whole flow.
        parts: the steps, where several share its threads.
    """

    name: str
    operators: tuple[Operator[Any, Any], ...]
    n: int
    placement: str
    options: Options = NOTHING
    labels: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()

    @property
    def stream(self) -> bool:
        """Whether it needs the items in order, in one worker."""
        return not all(isinstance(operator, Each) for operator in self.operators)

    @property
    def carries(self) -> bool:
        """Whether its values are carriers, as files are."""
        return any(each.carries for operator in self.operators for each in operator.inside)

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
        feed, feed_labels: operators that run where the source is read, and their names in the flow.
        groups: the groups, in order.
        bounds: items that may wait before each group, and at last before the consumer; None: not
            written, one item or as many as fit in 4 MiB, at most 4096.
        operators: what was planned, with sizes read: the meaning of the groups together.
        budgets: bytes of shared memory of each channel; None: as much as its bound lets it take.
        times: how often the source is read; None: for ever.
        shard: the part of the source that is read.
        last: what is done with results in the process that takes them.
        notes: what operators tell each other when a run begins; see `context`.
    """

    feed: tuple[Operator[Any, Any], ...]
    groups: tuple[Group, ...]
    bounds: tuple[int | None, ...]
    operators: tuple[Operator[Any, Any], ...] = ()
    budgets: tuple[int | None, ...] = ()
    feed_labels: tuple[str, ...] = ()
    times: int | None = 1
    shard: Shard | None = None
    last: Operator[Any, Any] | None = None
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def context(self, context: Context) -> Context:
        """A run's context as its steps see it."""
        stored = next((operator.of_rank for operator in self.row if operator.stored), 0)
        rank = stored if self.shard is None else self.shard.now.index
        carries = any(each.carries for operator in self.row for each in operator.inside)
        return dataclasses.replace(
            context, repeats=self.times != 1, rank=rank, numbered=stored > 0, carries=carries, notes=self.notes
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """Of the row."""
        return (*self.feed_labels, *(label for group in self.groups for label in group.labels))

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
        rows = [("source", "1 thread of this process", operators_text([*filter(None, [self.shard]), *self.feed]))]
        rows += [(group.name, workers_text(group), inside_text(group)) for group in self.groups]
        names, workers = (max(len(row[column]) for row in rows) for column in (0, 1))
        steps = [f"{name:<{names}}  {who:<{workers}}  {inside}".rstrip() for name, who, inside in rows]
        channels = zip(self.bounds, self.budgets or (None,) * len(self.bounds), self.workers, strict=True)
        waits = [f"  |  {bound_text(bound)}{budget_text(budget, n)}" for bound, budget, n in channels]
        end = "consumer" if self.last is None else f"consumer  {self.last.name}"
        return "\n".join([*itertools.chain.from_iterable(zip(steps, waits, strict=True)), end])


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
    if group.parts:
        return " + ".join(str(part.n) for part in group.parts) + " threads in 1 process"
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


def _shares(step: Operator[Any, Any]) -> bool:
    """Whether a marked step may share threads with others."""
    options = step.options
    plain = options.timeout is None and not options.limited and not any(function.builds for function in step.functions)
    return step.placement == "thread" and plain


def _counted(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"


@dataclasses.dataclass
class _Draft:
    """A group while it is put together."""

    operators: list[Operator[Any, Any]]
    n: int
    placement: str
    marked: Operator[Any, Any] | None = None
    parts: list[Part] = dataclasses.field(default_factory=list)

    @property
    def name(self) -> str:
        if self.parts:
            return "+".join(part.name for part in self.parts)
        return self.marked.name if self.marked else "+".join(operator.name for operator in self.operators)

    def joins(self, operator: Operator[Any, Any]) -> bool:
        """Whether a thread step may share the threads of this group: then it is given the very objects.

        Not behind a stream, which has one worker. Not where one item becomes several, on which it works side by side. Nor
        where a mark says more than how many: it is about a step of its own. Nor where instances are built, of which there
        would be one for each thread.
        """
        if self.marked is None or len(self.parts) == SHARING or not all(map(_shares, (self.marked, operator))):
            return False
        plain = (isinstance(each, Filter) or (isinstance(each, Each) and each.length(1) is not None) for each in self.operators)
        return operator.retry is None and all(plain)

    def join(self, operator: Operator[Any, Any]) -> None:
        """Let a thread step share the threads."""
        if not self.parts:
            assert self.marked is not None
            self.parts.append(Part(self.marked.name, self.n, self.operators.index(self.marked)))
        self.parts.append(Part(operator.name, operator.workers or 1, len(self.operators)))
        self.operators.append(operator)
        self.n += operator.workers or 1

    def takes_after(self, operator: Operator[Any, Any]) -> bool:
        return self.n == 1 or isinstance(operator, Each)

    def takes_before(self, operators: Sequence[Operator[Any, Any]]) -> bool:
        return self.n == 1 or all(isinstance(operator, Each) and not operator.expands for operator in operators)


def make_plan(operators: Sequence[Operator[Any, Any]], defaults: Options, memory: int | None = None) -> Plan:
    """Resolve sizes, lower, fuse and name; the defaults are for marks that say nothing, ``memory`` for all channels."""
    resolved = tuple(operator.filled(defaults).resolve() for operator in operators)
    flat, last = _ended([part for operator in resolved for part in operator.lower()])
    flat, shard = _sharded(flat)
    flat, times = _repeated(flat)
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
        elif operator.placement is not None and not waiting and bounds[-1] is None and drafts and drafts[-1].joins(operator):
            drafts[-1].join(operator)
        elif operator.placement is not None:
            draft = _Draft([operator], operator.workers or 1, operator.placement, operator)
            settle(draft)
            drafts.append(draft)
            bounds.append(None)
        elif not waiting and bounds[-1] is None and drafts and drafts[-1].takes_after(operator):
            drafts[-1].operators.append(operator)
        elif not waiting and bounds[-1] is None and not drafts and operator.feeds:
            feed.append(operator)
        else:
            waiting.append(operator)
    settle(None)
    labels = _labels([operator.names for operator in flat if not isinstance(operator, Queue)])
    feed_labels = tuple(itertools.islice(labels, len(feed)))
    groups = tuple(
        dataclasses.replace(group, labels=tuple(itertools.islice(labels, len(group.operators)))) for group in _named(drafts)
    )
    plan = Plan(tuple(feed), groups, tuple(bounds), resolved, feed_labels=feed_labels, times=times, shard=shard, last=last)
    return dataclasses.replace(plan, budgets=tuple(_budgets(plan, written, memory)))


def _labels(names: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """For each operator its last name, which differs from all others."""
    free = differing(name for each in names for name in each)
    return (next(itertools.islice(free, len(each) - 1, None)) for each in names)


def _ended(operators: list[Operator[Any, Any]]) -> tuple[list[Operator[Any, Any]], Operator[Any, Any] | None]:
    """The operators before one that stands at the end, and that."""
    rest, last = (operators[:-1], operators[-1]) if operators and operators[-1].last else (operators, None)
    for operator in rest:
        if operator.last:
            raise GraphError(f"`{operator!r}` stands at the end of a flow: `pipe | {operator!r}`. Steps work before it.")
    return rest, last


def _sharded(operators: list[Operator[Any, Any]]) -> tuple[list[Operator[Any, Any]], Shard | None]:
    """The operators behind a `Shard`, and that."""
    first, rest = (operators[0], operators[1:]) if operators and isinstance(operators[0], Shard) else (None, operators)
    for operator in rest:
        if isinstance(operator, Shard):
            raise GraphError(f"`{operator!r}` stands right behind the source: `xs | {operator!r} | ...`. It picks items of that.")
    return rest, first


def _repeated(operators: Sequence[Operator[Any, Any]]) -> tuple[list[Operator[Any, Any]], int | None]:
    """The operators without `Repeat`, those before it as they are in one repetition, and how many there are."""
    places = [number for number, operator in enumerate(operators) if isinstance(operator, Repeat)]
    if len(places) > 1:
        raise GraphError("A flow has one `qf.repeat`, but this one has two. Multiply their numbers.")
    for place in places:
        repeat = operators[place]
        assert isinstance(repeat, Repeat)
        if repeat.times != 1:
            spans = (EachTime(each) if isinstance(each, Stream) and each.spans else each for each in operators[:place])
            return [*spans, *operators[place + 1 :]], repeat.times
    return [operator for operator in operators if not isinstance(operator, Repeat)], 1


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
    names = [draft.name for draft in drafts]
    for draft, free in zip(drafts, differing(names), strict=True):
        options = draft.marked.options if draft.marked else NOTHING
        parts = [
            part._replace(name=name) for part, name in zip(draft.parts, differing(part.name for part in draft.parts), strict=True)
        ]
        yield Group(free, tuple(draft.operators), draft.n, draft.placement, options, parts=tuple(parts))
