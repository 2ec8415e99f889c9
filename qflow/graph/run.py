"""Run: an iterator over a flow's results that can be closed, and what it tells of its steps and of what failed."""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast

from qflow.errors import GraphError, StepTimeout, got
from qflow.graph.options import RunOptions

if TYPE_CHECKING:
    from qflow.graph.path import Path
    from qflow.graph.plan import Plan
    from qflow.graph.resume import Failing, Resumption

UNKNOWN = (
    "The number of results is not known before they came: the source, a generator step, `qf.filter`, `qf.unpack` "
    "or `qf.repack` decides it."
)

A = TypeVar("A")
B = TypeVar("B")


@dataclasses.dataclass(frozen=True)
class ItemFailure:
    """An item that failed: what happened, and where.

    Attributes:
        error: the exception, with its worker's traceback as cause.
        step: the step that failed.
        index: the item's index path: its number in the source, then its position among the results of each iterator.
        item: its type, shape or short repr.
        worker: process id of the worker, None where there is none.
        attempts: how often it was tried.
        value: with ``on_error="collect"`` what the step was given, if it can be sent; else None.
        fatal: no policy may skip it: the source itself failed, or a step gave up.
    """

    error: BaseException
    step: str
    index: tuple[int, ...] | None
    item: str | None
    worker: int | None = None
    attempts: int = 1
    value: Any = None
    fatal: bool = False


class Told(Exception):
    """What an engine raises in place of a result, with its index path; no value, for that may be anything."""

    def __init__(self, failure: ItemFailure, path: Path = ()) -> None:
        self.failure, self.path = failure, path


class NotYet(Exception):
    """An engine has no result within the time that `Run.next` gives it."""


class Run(ABC, Iterator[B], Generic[B]):
    """The results of one run, one by one, in order; closes itself at the end, on an error and when dropped.

    As a context manager it is closed when the block is left. ``len(run)`` is the number of results
    where it can be known before they came (a step is taken to give one result an item unless it is
    written as a generator), else TypeError. Iterating an exhausted run is a GraphError.

    Attributes:
        failures: the items that failed so far, in order; with ``on_error="raise"`` at most one.
        seed: from which all its random numbers follow: ``pipe(source, seed=run.seed)`` draws them again.
    """

    ahead: ClassVar[bool] = False
    """Results are made while nobody waits for them."""

    @property
    def cells(self) -> Any:
        """The shared memory in which its results lie, while it runs; None: nowhere."""
        return None

    def __init__(self, length: int | None, options: RunOptions, plan: Plan) -> None:
        self._length = length
        self._options = options
        self._plan = plan
        self._resumption: Resumption | None = None  # while results come that the run before has given
        if options.resume is not None:
            from qflow.graph.resume import resumption

            self._resumption = resumption(plan, options)
        self._dropped = 0  # results that the run before has given
        self._source_length: int | None = None
        self._failed: dict[Failing, None] = {}  # in order; those, too, that the run before has told of, and that may come again
        if self._resumption is not None:
            self._failed = dict.fromkeys(sorted(self._resumption.again))
        self._over = False
        self._endings: list[Callable[[Run[B], bool], None]] = []  # called once it is over, with whether it came to its end
        self._deadline: float | None = None  # of the monotonic clock, for the result that is asked for
        self._report: Callable[[ItemFailure], Any] | None = None  # what stands for an item that failed
        self._reported = 0
        self._ready: deque[B] = deque()  # results that need only be given out
        self.failures: list[ItemFailure] = []
        self.seed = options.context.seed

    @abstractmethod
    def _next(self) -> B:
        """The next result, or `Told` of a failure, or StopIteration at the end; may raise `NotYet` after ``_deadline``."""

    def _last(self) -> tuple[Path, int]:
        """The index path of the last result that was given out, and how many there were; see `path`."""
        raise GraphError(f"{type(self).__name__} does not know the paths of its results.")

    def close(self) -> None:
        """Stop early: the workers go to rest, within a second. Closing twice does nothing."""
        self._over = True
        try:
            self._close()
        finally:
            self._ended(False)

    @abstractmethod
    def _close(self) -> None:
        """Let the workers go to rest."""

    def _closed(self) -> bool:
        """Whether it has been stopped, by any thread."""
        return self._over

    def stats(self) -> list[StepStats]:
        """What each step did so far; empty where the engine does not count."""
        return []

    def __iter__(self) -> Iterator[B]:
        if self._over:
            raise GraphError("This run is exhausted. Start another one: `for x in pipe(source): ...`.")
        return self._each()

    def _each(self) -> Iterator[B]:
        """As `__next__` gives them, at less cost."""
        ready = self._ready
        try:
            while True:
                try:
                    while ready:
                        yield ready.popleft()
                except IndexError:  # another thread is ahead
                    if not self._closed():
                        raise
                try:
                    result = next(self)
                except StopIteration:
                    return
                yield result
                del result  # not kept alive while the next one is waited for
        except GeneratorExit:
            raise
        except BaseException:  # Ctrl-C may have taken a result that nobody got
            self.close()
            raise

    def next(self, timeout: float | None = None) -> B:
        """The next result, as ``next(run)`` gives it, but not later than after so many seconds.

        >>> import qflow as qf
        >>> with qf.run(qf.process(abs), [-1]) as run:
        ...     run.next(timeout=60)
        1

        Args:
            timeout: seconds; None: as long as it takes. Engines that compute in this thread (serial, simulated) take their time.
        Raises:
            StepTimeout: none came. The run goes on, and the next call may give it; nothing is lost.
            StopIteration: there are no more.
        """
        if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout >= 0):
            raise GraphError(f"`timeout` is a number of seconds, but got {got(timeout)}. Write `run.next(timeout=5)`.")
        self._deadline = None if timeout is None else time.monotonic() + timeout
        try:
            return next(self)
        except NotYet:
            raise StepTimeout(f"No result came within {timeout:g} seconds. The run goes on: ask again.") from None
        finally:
            self._deadline = None

    def __next__(self) -> B:
        if self._over:
            raise StopIteration
        try:
            while True:
                try:
                    result = self._next()
                except Told as told:
                    if self._fails(told.failure, told.path) and self._options.on_error == "report":
                        assert self._report is not None
                        self._reported += 1
                        return cast("B", self._report(told.failure))
                else:
                    if self._resumption is None or not self._gave(self._resumption):
                        return result
        except NotYet:
            raise
        except StopIteration:
            self._over = True
            self._close()
            self._ended(True)
            raise
        except BaseException:
            self.close()
            raise

    @property
    def repetition(self) -> int:
        """Of the source, to which the last result belongs."""
        path = self._last()[0]
        return path[0] if path and self._plan.times != 1 else 0

    def _ended(self, whole: bool) -> None:
        while self._endings:
            self._endings.pop()(self, whole)

    def _fails(self, failure: ItemFailure, path: Path) -> bool:
        """List a failure, unless the run before has told of it; one that is raised comes again when the run is gone on from."""
        from qflow.graph.resume import failing

        found = failing(path)
        fresh = failure.fatal or self._resumption is None or not self._resumption.failed(found)
        if fresh:
            self._note(failure)
        self._failed[found] = None
        return fresh

    def _gave(self, resumption: Resumption) -> bool:
        """Whether the run that this one goes on from has given out the last result."""
        gave = resumption.gave(self._last()[0])
        if gave:
            self._dropped += 1
        else:
            self._resumption = None
        return gave

    def state_dict(self) -> dict[str, Any]:
        """From where to go on behind the last result, with ``pipe(source, resume=state)``: numbers and texts, for JSON, too.

        >>> import qflow as qf
        >>> pipe = qf.map(abs) | qf.pack(2)
        >>> run = pipe(range(7), engine="serial")
        >>> next(run)
        [0, 1]
        >>> list(pipe(range(7), resume=run.state_dict()))
        [[2, 3], [4, 5], [6]]

        The results after that are those of the run that is not interrupted, with another ``n``, engine or bounds, too. What is
        done again for them is at most what the steps between two streams (`pack`, `repack`, ...) made one value of; the source
        is read from there on, by index where it is a list or map-style data set. Less than 1 KB. Failures that were skipped are
        not told again; one that was raised is met again.

        Raises:
            GraphError: the run is not ordered.
        """
        if not self._options.ordered:
            raise GraphError("Results that come as they are ready have no place from which to go on. Write `ordered=True`.")
        from qflow.graph.resume import state_of

        path, results = self._last()
        before = 0
        if self._options.resume is not None:
            before = self._options.resume.get("results", 0)
            if results == self._dropped:
                path = tuple(self._options.resume["path"])
        results += before - self._dropped + self._reported
        return state_of(self._plan, self._options, self._source_length, path, results, self._failed)

    def _note(self, failure: ItemFailure) -> None:
        """List a failure, and raise it if it is not to be skipped."""
        self.failures.append(failure)
        most = self._options.max_errors
        if failure.fatal or self._options.on_error == "raise":
            raise failure.error
        if most is not None and len(self.failures) > most:
            failure.error.add_note(f"qflow: {len(self.failures)} items have failed, more than max_errors={most}.")
            raise failure.error

    def __len__(self) -> int:
        if self._length is None:
            raise TypeError(UNKNOWN)
        return self._length

    def __bool__(self) -> bool:
        return True

    def __enter__(self) -> Run[B]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("A run can't be copied or pickled; it holds workers. Pickle the flow instead.")


@dataclasses.dataclass(frozen=True)
class StepStats:
    """Counts of one step in one run.

    Attributes:
        name: the step's name in the plan.
        n: its workers.
        items: values taken so far.
        results: values given so far.
        busy: seconds its workers spent in the step's code, summed.
        share: ``busy`` per worker over the run's seconds so far, 0 to 1: near 1 is the bottleneck.
        failed: items that failed in it and were skipped, or ended the run.
        retried: tries after the first.
        died: workers that died and were replaced.
        recycled: workers that were replaced by ``max_items`` or ``max_memory``.

    Items in the hands of a worker that died are taken again, and counted again.
    """

    name: str
    n: int
    items: int
    results: int
    busy: float
    share: float
    failed: int = 0
    retried: int = 0
    died: int = 0
    recycled: int = 0
