"""Serial: a flow in the caller's thread, one value at a time; it defines what a flow means.

The operators stand in one `Row`, so ``print`` and ``pdb`` work in every step; laws test that it gives
what the operators' transforms give, piped.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import count
from typing import TYPE_CHECKING, Any, final
from zlib import crc32

from qflow.errors import annotate
from qflow.graph.attempt import FAILED, Result, Watch
from qflow.graph.carrier import reported
from qflow.graph.context import Context, borrowed
from qflow.graph.engine import Engine
from qflow.graph.flow import Flow
from qflow.graph.options import RunOptions
from qflow.graph.path import Path, index_of
from qflow.graph.plan import Plan
from qflow.graph.reading import Reading, readings
from qflow.graph.resume import resumption
from qflow.graph.row import Row
from qflow.graph.run import ItemFailure, Run, Told
from qflow.runtime.whereabouts import here

if TYPE_CHECKING:
    from qflow.runtime.awaiting import Loop


@final
class Serial(Engine):
    """Runs everything in the calling thread; the source is read in ``next``."""

    def start(self, flow: Flow[Any, Any], plan: Plan, source: Iterable[Any], length: int | None, options: RunOptions) -> Run[Any]:
        return SerialRun(plan, source, length, options)


@final
class SerialRun(Run[Any]):
    """A row of the plan's operators, given the source's items."""

    def __init__(self, plan: Plan, source: Iterable[Any], length: int | None, options: RunOptions) -> None:
        super().__init__(length, options, plan)
        begin, context = resumption(plan, options), plan.context(options.context)
        operators = [operator.opened() for operator in plan.row]
        watch = _watch(context)
        loop = None
        if any(operator.awaits for operator in operators):
            from qflow.runtime.awaiting import Loop  # asyncio takes 50 ms to load

            loop = Loop()
            watch.wait = loop.wait
        row = Row(operators, watch, labels=plan.labels, starts=begin.starts)
        self._results = _results(row, readings(source, plan, context, begin), loop)
        self._borrows = row.depends
        self._path: Path = ()
        self._given = 0

    def _next(self) -> Any:
        if self._borrows:
            with borrowed(self._options.context):
                path, value, known = next(self._results)
        else:
            path, value, known = next(self._results)
        if not known & FAILED:
            self._path = path
            self._given += 1
            return value
        index = index_of(path)
        error = annotate(value.error, value.step, index, value.what, attempts=value.attempts)
        kept = reported(value.value) if self._options.collects else None
        raise Told(ItemFailure(error, value.step, index, value.what, attempts=value.attempts, value=kept), path)

    def _last(self) -> tuple[Path, int]:
        return self._path, self._given

    def _close(self) -> None:
        self._results.close()


def _watch(context: Context) -> Watch:
    return Watch(copy=_kept, digest=_digest, context=context)


def _results(row: Row, readings: Iterator[Reading], loop: Loop | None) -> Generator[Result, None, None]:
    try:
        for reading in readings:
            if row.done:
                break
            yield from _results_of(row, reading)
        yield from row.finish()
    finally:
        if loop is not None:
            loop.close()


def _results_of(row: Row, reading: Reading) -> Generator[Result, None, None]:
    """Of one repetition."""
    for number in count(reading.number, reading.step):
        path = (*reading.head, number)
        try:
            value = next(reading.items)
        except StopIteration:
            return
        except Exception as error:
            annotate(error, "source", path, None)
            raise Told(ItemFailure(error, "source", path, None, fatal=True), path) from None
        try:
            yield from row.add(value, path)
        finally:
            here.retries = 0
        del value  # not kept alive while the next one is waited for
        if row.over(reading.head):
            row.cut(reading.head)
            return


def _kept(value: Any) -> Callable[[], Any]:
    """Keep a value for a step that may change it, fail, and be tried again; the tries count for `whereabouts.attempt`."""
    here.retries = 0
    try:
        kept = copy.deepcopy(value)
    except Exception:
        return lambda: _again(value)
    return lambda: _again(copy.deepcopy(kept))


def _digest(value: Any, before: int) -> int:
    """Of a value after others; of one that can't be pickled only that."""
    try:
        return crc32(pickle.dumps(value, 5), before)
    except Exception:
        return before + 1


def _again(value: Any) -> Any:
    here.retries += 1
    return value


engine = Serial()
