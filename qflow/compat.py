"""Compat: the names of queueflow, for programs that were written for it.

A ``Sequence`` of steps and queues is a flow, and every step here is an operator of that flow; what
is left is the calendar of queueflow: queue an iterable, iterate its results, queue the next one.

    Sequence(ProcessStep(read, 2), Queue(4), PoolStep(transform, nworkers=8), RepackStep(64))
    qf.process(n=2)(read) | qf.queue(4) | qf.pool(n=8)(transform) | qf.repack(64)

Workers are no forks of the moment: what a step takes from an enclosing function travels to them
whenever an iterable is queued, but a ``multiprocessing.Value`` does so only as the size of a step.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest
from multiprocessing.queues import Queue as ProcessQueue
from multiprocessing.synchronize import SEM_VALUE_MAX  # type: ignore[attr-defined]  # the maxsize of a queue without one
from typing import Any

from qflow.errors import GraphError, WorkerDied, got
from qflow.graph.engine import Engine
from qflow.graph.flow import Flow, Joins, Sourced
from qflow.graph.function import callable_text
from qflow.graph.marks import pool, process
from qflow.graph.marks import queue as bounded
from qflow.graph.plan import Group
from qflow.graph.regroup import Pack, Repack, Unpack, pack, repack, unpack
from qflow.graph.run import Run, StepStats
from qflow.graph.sizes import Size, count
from qflow.graph.step import Step


def ProcessStep(
    workerfn: Callable[..., Any], nworkers: int = 1, deamonize: bool = True, name: str | None = None
) -> Step[Any, Any, ..., Any]:
    """``qf.process(n=nworkers)(workerfn)``: one element in, one element out, in order for any ``nworkers``.

    >>> ProcessStep(abs, 2, name="size")
    qf.process(n=2, name='size')(abs)

    Args:
        workerfn: the function; what it returns is passed on, an iterator value by value.
        nworkers: worker processes, at least 1.
        deamonize: of no effect; no worker outlives its parent.
        name: in plans, errors and statistics; the function's name when not given.
    Raises:
        GraphError: an argument is wrong.
    """
    return process(workerfn, n=_workers(nworkers, "ProcessStep"), name=name)


def PoolStep(workerfn: Callable[..., Any], nworkers: int = 1, name: str | None = None) -> Step[Any, Any, ..., Any]:
    """``qf.pool(n=nworkers)(workerfn)``: a list in, a list out, the function on each element, in order.

    >>> PoolStep(abs, nworkers=20)
    qf.pool(n=20)(abs)

    Args:
        workerfn, nworkers, name: as in `ProcessStep`.
    Raises:
        GraphError: an argument is wrong; or, when it comes, an element is not a list.
    """
    return pool(workerfn, n=_workers(nworkers, "PoolStep"), name=name)


def PackStep(nelements: Size) -> Pack:
    """``qf.pack(nelements)``: group elements into lists; the last may be shorter.

    >>> PackStep(4)
    qf.pack(4)

    Args:
        nelements: an int, or a ``multiprocessing.Value`` that is read whenever an iterable is queued.
    Raises:
        GraphError: it is not a whole number of at least 1.
    """
    return pack(nelements)


def UnpackStep() -> Unpack:
    """``qf.unpack()``: the elements of each list, one by one.

    >>> UnpackStep()
    qf.unpack()
    """
    return unpack()


def RepackStep(nelements: Size) -> Repack:
    """``qf.repack(nelements)``: regroup lists of any length into lists of one length; the last may be shorter.

    >>> RepackStep(64)
    qf.repack(64)

    Args:
        nelements: as in `PackStep`.
    Raises:
        GraphError: as in `PackStep`; or, when it comes, an element is not a list.
    """
    return repack(nelements)


def _workers(nworkers: int, step: str) -> int:
    return count(nworkers, "nworkers", f"{step}(function, nworkers=2)")


class Sequence(Iterator[Any]):
    """A flow to which iterables are queued one after another, its workers warm between them.

    >>> from multiprocessing import Queue
    >>> sequence = Sequence(PackStep(2), ProcessStep(sum), Queue(4), engine="serial")
    >>> for total in sequence.queue_iterable([1, 2, 3]):
    ...     print(total)
    3
    3
    >>> list(sequence([10])), sequence.flow
    ([10], qf.pack(2) | qf.process(n=1)(sum) | qf.queue(4))

    Args:
        parts: steps, flows, and queues of ``multiprocessing``, ``torch.multiprocessing`` or ``queue``, which
            stand for their ``maxsize``: one that has none leaves the bound unwritten.
        engine: as in ``flow(source, engine=...)``.
    Raises:
        GraphError: a part is something else.

    Attributes:
        flow: the same as a flow, whose ``repr`` is how qflow writes it.
    """

    def __init__(self, *parts: Any, engine: str | Engine = "processes") -> None:
        self.flow: Flow[Any, Any] = Flow(*(joined for index, part in enumerate(parts) for joined in _joined(index, part)))
        self._engine = engine
        self._run: Run[Any] | None = None
        self._counts: list[StepStats] = []
        self._results = 0
        self._warm = False

    def start(self) -> None:
        """Start the workers now rather than with the first iterable; where they are started: nothing."""
        if not self._warm:
            list(self.queue_iterable(()))

    def stop(self) -> None:
        """End the run and the workers; the next iterable starts new ones."""
        self._end()
        self.flow.close()
        self._warm = False

    def queue_iterable(self, iterable: Iterable[Any]) -> Sequence:
        """Begin a run over ``iterable``; what is left of the one before is dropped. Gives the sequence back.

        Args:
            iterable: as the source of a flow: read lazily, so it may be endless.
        Raises:
            GraphError: it is no source, or an iterator that was used before.
        """
        self._end()
        self._run, self._results, self._warm = self.flow(iterable, engine=self._engine), 0, True
        return self

    __call__ = queue_iterable

    def __iter__(self) -> Sequence:
        return self

    def __next__(self) -> Any:
        if self._run is None:
            raise BufferError("No iterable queued. Write `for x in sequence.queue_iterable(iterable): ...`.")
        try:
            result = next(self._run)
        except BaseException as error:
            self._warm = not isinstance(error, WorkerDied)
            self._end()
            raise
        self._results += 1
        return result

    def _end(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            self._counts = run.stats()
            run.close()

    def queue_status(self) -> list[tuple[int | None, int | None]]:
        """For each queue: how many elements wait, and at most how many; None: not counted, not written.

        >>> Sequence(ProcessStep(abs), queue.Queue(4), engine="serial").queue_status()
        [(None, None), (None, 4)]
        """
        stats = self._stats()
        given = [None, *(each.results if each else None for each in stats)]
        taken = [*(each.items if each else None for each in stats), self._results]
        return [(_waiting(a, b, most), most) for a, b, most in zip(given, taken, self.flow.plan().bounds, strict=True)]

    def process_status(self) -> list[tuple[int, int]]:
        """For each group of workers: how many are alive, and how many there should be.

        >>> Sequence(ProcessStep(abs, 3), engine="serial").process_status()
        [(0, 3)]
        """
        return [(group.n if self._warm else 0, group.n) for group in self.flow.plan().groups]

    def process_names(self) -> list[list[str]]:
        """For each group of workers: their names.

        >>> Sequence(ProcessStep(abs, 3), engine="serial").process_names()
        [['abs-0', 'abs-1', 'abs-2']]
        """
        return [[f"{group.name}-{index}" for index in range(group.n)] for group in self.flow.plan().groups]

    def flowstatus(self) -> str:
        """Queues and workers as a table, in order: the step after a full queue is the bottleneck.

        >>> print(Sequence(ProcessStep(abs, 3), queue.Queue(4), engine="serial").flowstatus())
        Current Status of Processes and Queues
        Type    | Saturation | Name | Process names | In | Out | Busy
        --------+------------+------+---------------+----+-----+-----
        Queue   | -/1+       |      |               |    |     |
        Process | 0/3        | abs  | abs-0 - abs-2 | -  | -   | -
        Queue   | -/4        |      |               |    |     |

        Saturation: elements that wait / at most (``1+``: not written, one or as many as fit in
        4 MiB), or workers alive / all. In, Out: elements of this run or the last one. Busy: share of the
        workers' time spent in the step. ``-``: the engine does not count it.
        """
        queues = [_queue_row(*status) for status in self.queue_status()]
        workers = map(_worker_row, self.flow.plan().groups, self.process_status(), self.process_names(), self._stats())
        rows = [row for pair in zip_longest(queues, workers) for row in pair if row]
        return "\n".join(["Current Status of Processes and Queues", *_table([_COLUMNS, *rows])])

    def _stats(self) -> list[StepStats | None]:
        """The counts of each group in this run or the last one, where the engine has them."""
        counts = self._counts if self._run is None else self._run.stats()
        named = {each.name: each for each in counts}
        return [named.get(group.name) for group in self.flow.plan().groups]

    def __repr__(self) -> str:
        return f"Sequence({self.flow!r})"


def _joined(index: int, part: Any) -> tuple[Any, ...]:
    """What stands in the flow for a part of a sequence."""
    if isinstance(part, ProcessQueue | queue.Queue):
        maxsize = part.maxsize if isinstance(part, queue.Queue) else part._maxsize  # type: ignore[attr-defined]
        return (bounded(maxsize),) if 0 < maxsize < SEM_VALUE_MAX else ()
    if isinstance(part, Joins) and not isinstance(part, Sourced):
        return (part,)
    raise GraphError(f"A Sequence is made of steps, flows and queues, but part {index + 1} is {got(part)}. {_hint(part)}")


def _hint(part: Any) -> str:
    """What to write in place of what is no part of a sequence."""
    if isinstance(part, Sourced):
        return "Leave its source out and give it to `queue_iterable`."
    if isinstance(part, Sequence):
        return "Write `sequence.flow`."
    if getattr(part, "__module__", None) == __name__:
        return f"Call it: `{callable_text(part)}(...)`."
    if callable(part):
        return f"Write `ProcessStep({callable_text(part)})`."
    if isinstance(part, tuple | list):
        return "Write `Sequence(*steps)`."
    return "Write for example `Sequence(ProcessStep(read, 2), Queue(4))`."


_COLUMNS = ("Type", "Saturation", "Name", "Process names", "In", "Out", "Busy")


def _waiting(given: int | None, taken: int | None, most: int | None) -> int | None:
    if given is None or taken is None:
        return None
    waiting = max(0, given - taken)  # the counts are read one after the other
    return waiting if most is None else min(waiting, most)  # the rest is in the hands of workers that wait to put it


def _queue_row(waiting: int | None, most: int | None) -> tuple[str, ...]:
    return "Queue", f"{'-' if waiting is None else waiting}/{most or '1+'}", "", "", "", "", ""


def _worker_row(group: Group, status: tuple[int, int], names: list[str], stats: StepStats | None) -> tuple[str, ...]:
    several = names[0] if len(names) == 1 else f"{names[0]} - {names[-1]}"
    counts = ("-", "-", "-") if stats is None else (str(stats.items), str(stats.results), f"{stats.share:.0%}")
    return group.placement.capitalize(), "{}/{}".format(*status), group.name, several, *counts


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows as lines with aligned columns; the first is the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *body = [" | ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return [head, "-+-".join("-" * width for width in widths), *body]
