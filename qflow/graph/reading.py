"""Reading: a run's source, repetition after repetition."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from qflow.errors import GraphError
from qflow.graph.context import Context
from qflow.graph.path import Path
from qflow.graph.plan import Plan
from qflow.graph.resume import FRESH, Resumption
from qflow.graph.shard import Shard
from qflow.graph.source import Source, items, picked, source_length, use


class Reading(NamedTuple):
    """One repetition: what its items' index paths begin with, the number of the first that is read, the items, and by how much
    the number of each is more than that of the one before."""

    head: Path
    number: int
    items: Iterator[Any]
    step: int = 1


def readings(source: Any, plan: Plan, context: Context, resumed: Resumption = FRESH) -> Iterator[Reading]:
    """Begin to read a source for a run; what is wrong with it is raised at once."""
    shard, count = plan.shard, 1 if plan.shard is None else plan.shard.now.count
    if isinstance(source, Source) and count > 1 and source.depends(context) and not context.seeded:
        raise GraphError(
            "A source that is shuffled and sharded needs a seed, for all ranks must shuffle it alike. "
            "Write `pipe(source, seed=0)`, or `qf.source(xs, shuffle=True, seed=0)`."
        )
    first = _begun(source, shard, _at(context, resumed.time), resumed.item, use)
    if plan.times == 1:
        return iter([first])
    if items(source) is source:
        raise GraphError(
            f"`qf.repeat` reads its source again, but this one is an iterator ({type(source).__name__}), which can be read once. "
            "Give a list, a range, or an object whose `__iter__` makes a new iterator."
        )
    times = itertools.count(resumed.time + 1) if plan.times is None else range(resumed.time + 1, plan.times)
    later = (_begun(source, shard, _at(context, time), 0, items)._replace(head=(time,)) for time in times)
    if plan.times is None:
        later = (reading._replace(items=_some(reading.items)) for reading in later)
    return itertools.chain([first._replace(head=(resumed.time,))], later)


def _begun(source: Any, shard: Shard | None, context: Context, start: int, begin: Any) -> Reading:
    """One repetition, from an item on; ``begin`` makes an iterator of a source."""
    if shard is None:
        return Reading((), start, begin(source, context, start))
    length = source_length(source)
    numbers = range(0) if length is None else shard.numbers(length, start)
    values = None if length is None else picked(source, context, numbers)
    if values is None:
        index, count = shard.now.pair
        numbers = range(index, start + index + count, count)[-(-max(0, start - index) // count) :]
        pairs = shard.pick(enumerate(begin(source, context)), lambda: items(source, context))
        values = (value for number, value in pairs if number >= start)
    return Reading((), numbers.start, values, shard.now.count)


def _some(items: Iterator[Any]) -> Iterator[Any]:
    """Items; a GraphError if there are none: they would be waited for for ever."""
    try:
        yield next(items)
    except StopIteration:
        raise GraphError("`qf.repeat()` reads its source for ever, but that has no items, or this part of it has none.") from None
    yield from items


def _at(context: Context, time: int) -> Context:
    return dataclasses.replace(context, epoch=context.epoch + time)
