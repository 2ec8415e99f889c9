"""Resume: go on behind a result of an earlier run.

The path of a result says for each stream before it from where it has to go on, down to the source (`path`). So the state of a
run is the path of the last result that was given out, with what must be the same: the flow, seed and epoch.

    source   |  item 17 ...          read from there on
    stream 1 |  ... after 17.5       inputs before that are dropped, its next result is number 40
    stream 2 |  ... after 40         ...
    consumer |  ... after 12         results up to the state's are dropped

Done again is what lies between the origin of the last stream's result and its value: one result and one input of each stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from qflow.errors import GraphError
from qflow.graph.flow import Queue, Stream
from qflow.graph.options import VERSION
from qflow.graph.path import Path, index_of, origin_of
from qflow.graph.row import Start
from qflow.graph.shard import Shard

if TYPE_CHECKING:
    from qflow.graph.options import RunOptions
    from qflow.graph.plan import Plan


Failing = tuple[int, ...]  # which item failed: how many streams it had passed, and its index there


class Resumption(NamedTuple):
    """Where a run begins.

    Attributes:
        time, item: the repetition of the source, and the first item of it that is read.
        feed, groups: where the streams begin of the feed, and of each group.
        told: the indices up to which values were given out, or used up, after so many streams; the last is that of results.
        again: failures that were told of, and come again.
    """

    time: int = 0
    item: int = 0
    feed: tuple[Start, ...] = ()
    groups: tuple[tuple[Start, ...], ...] = ()
    told: tuple[Path, ...] = ()
    again: frozenset[Failing] = frozenset()

    @property
    def starts(self) -> tuple[Start, ...]:
        """Of all streams."""
        return (*self.feed, *(start for group in self.groups for start in group))

    def gave(self, path: Path) -> bool:
        """Whether the earlier run has given out the result with this path."""
        return bool(self.told) and index_of(path) <= self.told[-1]

    def failed(self, failing: Failing) -> bool:
        """Whether the earlier run has told of a failure."""
        passed, *index = failing
        return failing in self.again or (passed < len(self.told) and tuple(index) < self.told[passed])


FRESH = Resumption()


def failing(path: Path) -> Failing:
    """Of the index path of a failure."""
    return streams_passed(path), *index_of(path)


def streams_passed(path: Path) -> int:
    """How many streams a value has passed, as far as its path tells."""
    passed = 0
    while (found := origin_of(path)) is not None:
        passed += 1
        path = path[found[0] : found[1]]
    return passed


def state_of(
    plan: Plan, options: RunOptions, length: int | None, path: Path, results: int, failed: Iterable[Failing]
) -> dict[str, Any]:
    """What a run can be gone on from, in numbers and texts."""
    context = options.context
    at = _resumption(plan, path)
    return {
        "version": VERSION,
        "flow": _meaning(plan),
        "length": length,
        "seed": context.seed,
        "seeded": context.seeded,
        "epoch": context.epoch,
        "shard": None if plan.shard is None else plan.shard.now.pair,
        "stored": next((operator.stored for operator in plan.row if operator.stored), None),
        "path": [int(word) for word in path],
        "results": results,
        "failed": [[*each] for each in failed if not at.failed(each)],
    }


def resumption(plan: Plan, options: RunOptions) -> Resumption:
    """Where a run of a plan begins."""
    if options.resume is None:
        return FRESH
    state = options.resume
    failed = frozenset(tuple(each) for each in state.get("failed", ()))
    return _resumption(plan, tuple(state["path"]))._replace(again=failed)


def _resumption(plan: Plan, path: Path) -> Resumption:
    """Behind a result."""
    if not path:
        return FRESH
    streams = [operator for operator in plan.row if isinstance(operator, Stream)]
    head = 0 if plan.times == 1 else 1  # words of the repetition
    told, starts, at = [index_of(path)], [], path
    for stream in reversed(streams):
        found = origin_of(at)
        assert found is not None, "results of a stream have an origin"
        origin, number = at[found[0] : found[1]], at[found[1]]
        cut = len(origin) - stream.words
        behind = at
        at = origin[:cut] if origin else ()
        starts.append(Start(number, index_of(at), origin[cut:], behind[:head], origin) if origin else Start())
        told.append(index_of(at))
        if not origin:
            break
    missing = len(streams) - len(starts)
    starts += [Start()] * missing
    told += [()] * missing
    time, item = at[0] if head and at else 0, at[head] if at else 0
    if not streams and len(path) == head + 1:
        item += 1  # there were no iterators, so that was all of it
    each = iter(reversed(starts))
    feed = tuple(next(each) for operator in plan.feed if isinstance(operator, Stream))
    groups = tuple(tuple(next(each) for operator in group.operators if isinstance(operator, Stream)) for group in plan.groups)
    return Resumption(time, item, feed, groups, tuple(reversed(told)))


def check_flow(plan: Plan, length: int | None, state: Mapping[str, Any]) -> None:
    """A GraphError that says in what the flow and the source differ from those of the state."""
    there, here = [*state["flow"]], _meaning(plan)
    for number, (before, now) in enumerate(zip(there, here, strict=False), 1):
        if before != now:
            raise GraphError(f"The state is of another flow: operator {number} was {before}, but here it is {now}.")
    if len(there) != len(here):
        raise GraphError(
            f"The state is of another flow: that had {len(there)} operators, {' | '.join(there)}; this one has {len(here)}."
        )
    shard = None if plan.shard is None else plan.shard.now.pair
    before = state.get("shard")
    if (before and [*before]) != shard:
        told = ["all of the source" if each is None else "rank {} of {}".format(*each) for each in (before, shard)]
        raise GraphError(f"The state is of {told[0]}, but this run reads {told[1]}. Each rank goes on from its own state.")
    if length is not None and state.get("length") not in (None, length):
        raise GraphError(f"The state is of a run over {state['length']} items, but this source has {length}.")


def _meaning(plan: Plan) -> list[str]:
    """The operators as far as they decide what comes out."""
    kept = (operator for operator in plan.operators if not isinstance(operator, Queue | Shard) and not operator.last)
    return [operator.meaning for operator in kept]
