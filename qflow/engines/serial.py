"""Serial: a flow in the caller's thread, one value at a time; it defines what a flow means.

The operators stand in one `Row`, so ``print`` and ``pdb`` work in every step; laws test that it gives
what the operators' transforms give, piped.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, final
from zlib import crc32

from qflow.errors import annotate
from qflow.graph.flow import Flow
from qflow.graph.options import RunOptions
from qflow.graph.plan import Plan
from qflow.graph.row import FAILED, Result, Row, Watch
from qflow.graph.run import Engine, ItemFailure, Run, Told
from qflow.graph.source import use
from qflow.runtime.whereabouts import here


@final
class Serial(Engine):
    """Runs everything in the calling thread; the source is read in ``next``."""

    def start(self, flow: Flow[Any, Any], plan: Plan, source: Iterable[Any], length: int | None, options: RunOptions) -> Run[Any]:
        return SerialRun(plan, source, length, options)


@final
class SerialRun(Run[Any]):
    """A row of the plan's operators, given the source's items."""

    def __init__(self, plan: Plan, source: Iterable[Any], length: int | None, options: RunOptions) -> None:
        super().__init__(length, options)
        self._results = _results(plan, use(source))

    def _next(self) -> Any:
        path, value, known = next(self._results)
        if not known & FAILED:
            return value
        error = annotate(value.error, value.step, path, value.what, attempts=value.attempts)
        kept = value.value if self._options.on_error == "collect" else None
        raise Told(ItemFailure(error, value.step, path, value.what, attempts=value.attempts, value=kept))

    def close(self) -> None:
        self._over = True
        self._results.close()


def _results(plan: Plan, values: Iterator[Any]) -> Generator[Result, None, None]:
    row = Row([operator.opened() for operator in plan.row], Watch(copy=_kept, digest=_digest))
    number = 0
    while not row.done:
        try:
            value = next(values)
        except StopIteration:
            break
        except Exception as error:
            annotate(error, "source", (number,), None)
            raise Told(ItemFailure(error, "source", (number,), None, fatal=True)) from None
        try:
            yield from row.add(value, (number,))
        finally:
            here.retries = 0
        number += 1
        del value  # not kept alive while the next one is waited for
    yield from row.finish()


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
