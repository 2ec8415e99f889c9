"""Marks: ``process``, ``pool`` and ``thread`` promise workers to a function.

The marked function stays a plain callable: ``read(x)`` is its own result. A marked class binds constructor arguments when
it is called (`step`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, Unpack, overload

from qflow.errors import GraphError, describe, got
from qflow.graph.chain import Chain
from qflow.graph.flow import Each, Filter, Flow, Joins, Map, Operator, Queue, Sourced
from qflow.graph.function import Function, function_of
from qflow.graph.options import MarkOptions, options_of
from qflow.graph.pool import Pool
from qflow.graph.sizes import budget, count
from qflow.graph.step import Process, Step, Thread

A = TypeVar("A", contravariant=True)
B = TypeVar("B", covariant=True)
P = ParamSpec("P")
X = TypeVar("X")
Y = TypeVar("Y")


def _markable(value: Any, word: str) -> Function:
    """The function that is to be marked, or a GraphError."""
    if isinstance(value, Step) or (isinstance(value, Flow) and any(isinstance(each, Step) for each in value.operators)):
        raise GraphError(
            f"A mark inside a mark: `qf.{word}` got {value!r}, which has workers already. "
            "Write `step.using(n=...)` to change them, or mark the plain function."
        )
    if isinstance(value, Sourced | Queue) or (isinstance(value, Flow | Operator) and not _fits(value)):
        raise GraphError(
            f"`qf.{word}` marks a function, a class, or a chain of `qf.map` and `qf.filter`, or of `qf.files`, but got {value!r}."
        )
    if word == "pool" and isinstance(value, Flow | Operator) and any(each.carries for each in value.operators):
        raise GraphError(
            f"`qf.pool` works on the elements of lists, but `qf.files` takes a list of names as one item: got {value!r}. "
            "Write `qf.process(n=...)(...)`, and for lists of names `qf.unpack()` before it."
        )
    if isinstance(value, Flow | Operator):
        return Function(Chain(value.operators))
    if not callable(value):
        hint = f"Write `qf.{word}(n={value})`." if isinstance(value, int) else f"Write `qf.{word}(function)`."
        raise GraphError(f"`qf.{word}` marks a function, but got {got(value)}. {hint}")
    return function_of(value, f"qf.{word}")


def _fits(value: Flow[Any, Any] | Operator[Any, Any]) -> bool:
    return bool(value.operators) and all(isinstance(each, Each) and not each.expands for each in value.operators)


def _mark(kind: type[Any], function: Any, given: Mapping[str, Any]) -> Any:
    word = kind.word
    options = options_of(given, f"qf.{word}({{}})")

    def mark(function: Any, *more: Any) -> Any:
        if more:
            raise GraphError(f"`qf.{word}` takes one argument, the function, but got also {describe(more[0])}.")
        return kind(_markable(function, word), options)

    return mark if function is _NOTHING else mark(function)


_NOTHING: Any = object()


class Called(Protocol[A, B]):
    """The type of a class's instances that can be called with one item."""

    def __call__(self, item: A, /) -> B: ...


class StepMark(Protocol):
    """The type of ``qf.process(n=2)`` and ``qf.thread(n=2)``."""

    @overload
    def __call__(self, function: Joins[X, Y], /) -> Step[X, Y, [X], Y]: ...
    @overload
    def __call__(self, function: type[Called[X, Y]], /) -> Step[X, Y, ..., Step[X, Y, [X], Y]]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[X, P], Iterator[Y]], /) -> Step[X, Y, Concatenate[X, P], Iterator[Y]]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[X, P], Y], /) -> Step[X, Y, Concatenate[X, P], Y]: ...


class PoolMark(Protocol):
    """The type of ``qf.pool(n=2)``."""

    @overload
    def __call__(self, function: Joins[X, Y], /) -> Step[Iterable[X], list[Y], [X], Y]: ...
    @overload
    def __call__(
        self, function: type[Called[X, Y]], /
    ) -> Step[Iterable[X], list[Y], ..., Step[Iterable[X], list[Y], [X], Y]]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[X, P], Iterator[Y]], /
    ) -> Step[Iterable[X], list[Y], Concatenate[X, P], Iterator[Y]]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[X, P], Y], /) -> Step[Iterable[X], list[Y], Concatenate[X, P], Y]: ...


@overload
def process(function: Joins[X, Y], /, **options: Unpack[MarkOptions]) -> Step[X, Y, [X], Y]: ...
@overload
def process(function: type[Called[X, Y]], /, **options: Unpack[MarkOptions]) -> Step[X, Y, ..., Step[X, Y, [X], Y]]: ...
@overload
def process(
    function: Callable[Concatenate[X, P], Iterator[Y]], /, **options: Unpack[MarkOptions]
) -> Step[X, Y, Concatenate[X, P], Iterator[Y]]: ...
@overload
def process(function: Callable[Concatenate[X, P], Y], /, **options: Unpack[MarkOptions]) -> Step[X, Y, Concatenate[X, P], Y]: ...
@overload
def process(**options: Unpack[MarkOptions]) -> StepMark: ...
def process(function: Any = _NOTHING, /, **options: Any) -> Any:
    """Run a function in worker processes: one item in, one item out.

    >>> import qflow as qf
    >>> double = qf.process(lambda x: 2 * x)
    >>> double(4), list(qf.run(double, range(3), engine="serial"))
    (8, [0, 2, 4])

    Each: T -> the function's result. A result that is an iterator is emitted value by value;
    `SKIP` drops the item. Order: kept, for any ``n``. Runs in: ``n`` processes, with arrays that
    came from another process read-only.

    Args:
        function: a function, lambda, class whose instances are callable (built once per worker),
            or a chain of `map` and `filter`, or of `qflow.files`.
        n: worker processes, at least 1; 1 unless the run says otherwise. ``"auto"``: as many as logical cores
            may be used; a function, as `qflow.files.workers` gives it, is asked when a run starts. A worker may take several
            items at once, about 1 ms of work: an item must not depend on another one of the step being at work.
        name: in plans, errors and statistics; the function's name when not given.
        retry: exceptions to try again, how often, and seconds to wait before, as ``(OSError, 3)`` or
            ``((OSError, KeyError), 3, 0.5)``. The item comes as it came first, and what an iterator has
            given by then is not given twice.
        timeout: seconds that the step may compute without giving a result; then its worker is killed and
            the item fails with `StepTimeout`, which has the worker's stack. To load an item, or to make
            the step, there is a minute at least, for that may import. Not in the serial engine.
        max_items: replace a worker process by a fresh one after so many items, for code that leaks.
        max_memory: replace it between two items when its private memory is above so many bytes,
            a number or a text as ``"2GB"``.
    Raises:
        GraphError: an argument is wrong, or the function is marked already.
    """
    return _mark(Process, function, options)


@overload
def pool(function: Joins[X, Y], /, **options: Unpack[MarkOptions]) -> Step[Iterable[X], list[Y], [X], Y]: ...
@overload
def pool(
    function: type[Called[X, Y]], /, **options: Unpack[MarkOptions]
) -> Step[Iterable[X], list[Y], ..., Step[Iterable[X], list[Y], [X], Y]]: ...
@overload
def pool(
    function: Callable[Concatenate[X, P], Iterator[Y]], /, **options: Unpack[MarkOptions]
) -> Step[Iterable[X], list[Y], Concatenate[X, P], Iterator[Y]]: ...
@overload
def pool(
    function: Callable[Concatenate[X, P], Y], /, **options: Unpack[MarkOptions]
) -> Step[Iterable[X], list[Y], Concatenate[X, P], Y]: ...
@overload
def pool(**options: Unpack[MarkOptions]) -> PoolMark: ...
def pool(function: Any = _NOTHING, /, **options: Any) -> Any:
    """Run a function on every element of a list, in worker processes: a list in, a list out.

    >>> import qflow as qf
    >>> list(qf.run(qf.pool(abs), [[-1, 2], [-3]], engine="serial"))
    [[1, 2], [3]]

    Each: an iterable of T (not a str, bytes or mapping) -> a list of results; an element is treated
    as `process` treats an item. Order: kept, in the list and of the lists. Runs in: ``n`` processes.

    Args:
        function, options: as in `process`.
    Raises:
        GraphError: as in `process`; or, when it comes, an item is not a list.
    """
    return _mark(Pool, function, options)


@overload
def thread(function: Joins[X, Y], /, **options: Unpack[MarkOptions]) -> Step[X, Y, [X], Y]: ...
@overload
def thread(function: type[Called[X, Y]], /, **options: Unpack[MarkOptions]) -> Step[X, Y, ..., Step[X, Y, [X], Y]]: ...
@overload
def thread(
    function: Callable[Concatenate[X, P], Iterator[Y]], /, **options: Unpack[MarkOptions]
) -> Step[X, Y, Concatenate[X, P], Iterator[Y]]: ...
@overload
def thread(function: Callable[Concatenate[X, P], Y], /, **options: Unpack[MarkOptions]) -> Step[X, Y, Concatenate[X, P], Y]: ...
@overload
def thread(**options: Unpack[MarkOptions]) -> StepMark: ...
def thread(function: Any = _NOTHING, /, **options: Any) -> Any:
    """Run a function in threads of one worker process, for work that waits or releases the GIL.

    >>> import qflow as qf
    >>> list(qf.run(qf.thread(n=4)(len), ["a", "bc"], engine="serial"))
    [1, 2]

    Each, as `process`; a class is built once per thread. A function may be an ``async def``: ``n`` of its calls are waited for at
    once, on one event loop. Runs in: one process with ``n`` threads. Neighbouring thread steps share theirs, and hand on the very
    objects, where none of them is a class, a generator, or marked with more than ``n`` and ``name``.

    Args:
        function, options: as in `process`.
    Raises:
        GraphError: as in `process`.
    """
    return _mark(Thread, function, options)


@overload
def map(function: Callable[[X], Iterator[Y]], /) -> Map[X, Y]: ...
@overload
def map(function: Callable[[X], Y], /) -> Map[X, Y]: ...
def map(function: Any, /) -> Any:
    """Apply a function to each item, in a neighbour's worker.

    >>> import qflow as qf
    >>> list(qf.run(qf.map(str.upper), ["a", "b"], engine="serial"))
    ['A', 'B']

    Each: T -> the function's result, as in `process`. Order: kept. ``f | step`` is ``qf.map(f) | step``.

    Raises:
        GraphError: ``function`` can't be called, or is marked.
    """
    _unmarked(function, "map")
    return Map(function_of(function, "qf.map"))


def filter(predicate: Callable[[X], object], /) -> Filter[X]:
    """Keep the items for which ``predicate`` is true, in a neighbour's worker.

    >>> import qflow as qf
    >>> list(qf.run(qf.filter(bool), [0, 1, 2], engine="serial"))
    [1, 2]

    Each: T -> T or nothing. Order: kept.

    Raises:
        GraphError: ``predicate`` can't be called, or is marked.
    """
    _unmarked(predicate, "filter")
    return Filter(function_of(predicate, "qf.filter"))


def _unmarked(function: Any, word: str) -> None:
    if isinstance(function, Flow | Operator):
        raise GraphError(
            f"`qf.{word}` takes a plain function, but got {function!r}. An operator joins by itself: `{function!r} | ...`."
        )


def queue(maxsize: int, *, memory: int | str | None = None) -> Queue:
    """Let at most ``maxsize`` items wait at this point of the flow.

    >>> import qflow as qf
    >>> qf.pack(2) | qf.queue(4)
    qf.pack(2) | qf.queue(4)

    Stream: unchanged. Leading, it bounds the feed; at the end it is the prefetch depth; of two in a
    row the last wins. Steps are never fused across it. The process engine lets at most 4096 wait.

    Args:
        maxsize: items, at least 1.
        memory: bytes of shared memory, or a text as ``"512MB"``, at least 512 KiB, that they may take together with those
            on which the next step works, or that your loop keeps. Each worker of the step before has an equal share.
            A larger item passes alone, in its turn; small ones are counted by messages of 512 KiB. Not in the serial engine.
    Raises:
        GraphError: ``maxsize`` is not a whole number of at least 1, or ``memory`` is no such size.
    """
    return Queue(count(maxsize, "maxsize", "qf.queue(4)"), budget(memory, 'qf.queue(4, memory="512MB")'))
