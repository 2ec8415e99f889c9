"""Marks: ``process``, ``pool`` and ``thread`` promise workers to a function.

The marked function stays a plain callable: ``read(x)`` is its own result. A marked class binds
constructor arguments when it is called. ``using`` and ``bind`` make changed copies; a step and its
copies pickle as a name and what was changed, when the name leads to this very step.
"""

from __future__ import annotations

import builtins
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import takewhile
from operator import is_
from typing import Any, ClassVar, Concatenate, Generic, ParamSpec, Protocol, TypeVar, Unpack, cast, final, overload

from qflow.errors import GraphError, describe, got
from qflow.graph.carrier import Carrier
from qflow.graph.context import Context, Setting
from qflow.graph.flow import (
    Accumulator,
    Beginning,
    Each,
    Filter,
    Flow,
    Joins,
    Map,
    Operator,
    Queue,
    Sourced,
    Stream,
    differing,
    results,
    row_length,
    through,
)
from qflow.graph.function import (
    Composite,
    Function,
    arguments_text,
    callable_text,
    function_of,
    function_text,
    opened,
    resolve_name,
)
from qflow.graph.markers import CLOSE, Quoted
from qflow.graph.options import MarkOptions, Options, Retry, RunOptions, options_of, workers
from qflow.graph.regroup import grouped
from qflow.graph.sizes import budget, count

A = TypeVar("A", contravariant=True)
B = TypeVar("B", covariant=True)
P = ParamSpec("P")
R = TypeVar("R")
X = TypeVar("X")
Y = TypeVar("Y")
Z = TypeVar("Z")

map_ = builtins.map  # `map` is this module's own


class Step(Each[A, B], Generic[A, B, P, R]):
    """A marked function: an operator with workers, and still the function."""

    user_code = True
    word: ClassVar[str]

    def __init__(self, function: Function, options: Options, origin: Step[Any, Any, Any, Any] | None = None) -> None:
        self.function, self.options, self._origin = function, options, origin
        for attribute in functools.WRAPPER_ASSIGNMENTS:
            if hasattr(function.call, attribute):
                vars(self)[attribute] = getattr(function.call, attribute)
        vars(self)["__wrapped__"] = function.call

    @property
    def name(self) -> str:
        return self.options.name or self.function.name

    @property
    def workers(self) -> int | None:
        return self.options.n if isinstance(self.options.n, int) else None

    def resolve(self) -> Step[A, B, P, R]:
        n = self.options.n
        return self if n is None or isinstance(n, int) else self._changed(options=dataclasses.replace(self.options, n=workers(n)))

    @property
    def retry(self) -> Retry | None:
        return self.options.retry

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        function = self.function
        if function.builds and function.init is None:
            return cast(R, self._changed(function=Function(function.call, function.bound, (args, tuple(kwargs.items())))))
        if function.builds:  # one instance for direct calls, as one worker has one
            if "_instance" not in vars(self):
                vars(self)["_instance"] = function.open()
            function = vars(self)["_instance"]
        return cast(R, function(*args, **kwargs))

    def using(self, **options: Unpack[MarkOptions]) -> Step[A, B, P, R]:
        """A copy with other options.

        >>> import qflow as qf
        >>> qf.process(n=2)(abs).using(n=8)
        qf.process(n=8)(abs)
        """
        return self._changed(options=options_of(options, self.name + ".using({})").over(self.options))

    def filled(self, defaults: Options) -> Step[A, B, P, R]:
        options = self.options.over(defaults)
        return self if options == self.options else self._changed(options=options)

    def bind(self, **arguments: Any) -> Step[A, B, P, R]:
        """A copy with keyword arguments of its function fixed.

        >>> import qflow as qf
        >>> qf.process(round).bind(ndigits=1)(2.345)
        2.3
        """
        bound = {**dict(self.function.bound), **arguments}
        return self._changed(function=Function(self.function.call, tuple(bound.items()), self.function.init))

    def _changed(self, function: Function | None = None, options: Options | None = None) -> Step[A, B, P, R]:
        return type(self)(function or self.function, options or self.options, self._origin or self)

    def outputs(self, value: Any) -> Iterable[Any]:
        if isinstance(value, Carrier) and self.function.single:
            return value.mapped(self.function)
        return self.given(self.function(value))

    @property
    def inside(self) -> tuple[Operator[Any, Any], ...]:
        return (self,) if self.function.single else self.function.call.operators  # type: ignore[attr-defined]

    def depends(self, context: Context) -> bool:
        return super().depends(context) or any(each is not self and each.depends(context) for each in self.inside)

    def begins(self, before: tuple[Operator[Any, Any], ...], source: Any, options: RunOptions) -> Beginning | None:
        within = before
        for each in self.inside:
            found = None if each is self else each.begins(within, source, options)
            if found is not None:
                n = self.options.n if found.workers is None else found.workers(self.options.n)
                marked = self if n == self.options.n else self._changed(options=dataclasses.replace(self.options, n=n))
                last = each is self.inside[-1]
                operators = (*found.operators[: len(before)], marked)
                return found._replace(operators=operators, failed=found.failed if last else None)
            within = (*within, each)
        return None

    @property
    def meaning(self) -> str:
        return f"qf.{'pool' if self.word == 'pool' else 'map'}({self.name})"

    @property
    def functions(self) -> tuple[Function, ...]:
        return self.function.parts

    def plain(self, context: Context) -> Callable[[Any], Any] | None:
        """The function, if all that is done with a value is to call it, but for values that are markers of ours."""
        return self.function.plain(context) if self.retry is None else None

    def length(self, items: int) -> int | None:
        return self.function.length(items)

    def opened(self) -> Step[A, B, P, R]:
        return opened(self)

    @property
    def _state(self) -> tuple[Any, ...]:
        return self.function, self.options

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._state == cast("Step[Any, Any, Any, Any]", other)._state

    def __hash__(self) -> int:
        return hash((type(self), self.function))

    def named(self) -> str | None:
        """The module's name by which exactly this step is found, or None."""
        module, qualname = vars(self).get("__module__"), vars(self).get("__qualname__")
        return f"{module}:{qualname}" if resolve_name(module, qualname) is self else None

    def __reduce__(self) -> tuple[Any, ...]:
        name = self.named()
        if name is not None and not name.startswith("__main__:"):
            return find, (name,)
        if self._origin is not None and self._origin.named():
            return _changed_copy, (self._origin, self.function.bound, self.function.init, self.options)
        return type(self), (self.function, self.options)

    def __repr__(self) -> str:
        origin = self._origin or self
        call = origin.function.call
        plain = resolve_name(getattr(call, "__module__", None), getattr(call, "__qualname__", None)) is call
        if plain or getattr(call, "__name__", "") == "<lambda>" or not hasattr(call, "__qualname__"):
            text = f"qf.{self.word}{_options(self.options.given())}({function_text(self.function)})"
            text += self._built_with(origin)
        else:
            text = callable_text(call) + self._built_with(origin)
            if self.options != origin.options:
                text += f".using{_options(self.options.given())}"
        return text + (f".bind({arguments_text(self.function.bound)})" if self.function.bound != origin.function.bound else "")

    def _built_with(self, origin: Step[Any, Any, Any, Any]) -> str:
        return f"({_call_text(self.function.init)})" if self.function.init != origin.function.init else ""


def _options(given: list[tuple[str, Any]]) -> str:
    return f"({arguments_text(given)})" if given else ""


def _call_text(init: Any) -> str:
    args, kwargs = init
    return ", ".join([*map_(repr, args), *([arguments_text(kwargs)] if kwargs else [])])


def find(name: str) -> Any:
    """The step that a pickled name stands for, imported when it must be."""
    module, _, qualname = name.partition(":")
    __import__(module)
    return resolve_name(module, qualname)


def _changed_copy(origin: Step[Any, Any, Any, Any], bound: Any, init: Any, options: Options) -> Any:
    return origin._changed(Function(origin.function.call, bound, init), options)


@final
class Process(Step[A, B, P, R]):
    """A function with worker processes; see `process`."""

    word = "process"
    placement = "process"


@final
class Thread(Step[A, B, P, R]):
    """A function with worker threads in one process; see `thread`."""

    word = "thread"
    placement = "thread"

    @property
    def awaits(self) -> bool:  # type: ignore[override]
        return self.function.awaits

    def plain(self, context: Context) -> Callable[[Any], Any] | None:
        return None if self.awaits else super().plain(context)


@final
class Pool(Step[A, B, P, R]):
    """A function applied to the elements of lists; see `pool`.

    An engine runs it as scatter | elements | gather: the elements travel one by one, a CLOSE
    after each list, so that the lists of several items are worked on at the same time.
    """

    word = "pool"
    placement = "process"

    def plain(self, context: Context) -> None:
        return None

    def outputs(self, value: Any) -> Iterable[Any]:
        return ([result for element in grouped(value, "pool") for result in results(self.function(element))],)

    def length(self, items: int) -> int | None:
        return items

    def lower(self) -> tuple[Operator[Any, Any], ...]:
        return Scatter(), Elements(self.function, dataclasses.replace(self.options, name=self.name)), Gather()


@final
class Scatter(Each[Any, Any]):
    """The elements of a list one by one, then CLOSE."""

    expands = feeds = True
    name = "scatter"

    def outputs(self, value: Any) -> Iterable[Any]:
        # The whole list first: what fails in the middle must not leave a list without its CLOSE.
        return iter([*(_quoted(element) for element in grouped(value, "pool")), CLOSE])


def _quoted(element: Any) -> Any:
    return Quoted(element) if element is CLOSE or type(element) is Quoted else element


@final
class Elements(Step[Any, Any, Any, Any]):
    """A pool's function on single elements; CLOSE passes through."""

    word = "pool"
    placement = "process"

    def outputs(self, value: Any) -> Iterable[Any]:
        if value is CLOSE:
            return (CLOSE,)
        return self.given(self.function(value.value if type(value) is Quoted else value))

    def given(self, result: Any) -> Iterable[Any]:
        outputs = results(result)
        quoted = (_quoted(output) for output in outputs)
        return tuple(quoted) if type(outputs) is tuple else quoted


@final
class Gather(Stream[Any, Any]):
    """The lists again, each ended by its CLOSE."""

    name = "gather"
    spans = False

    def accumulator(self, state: Any = None) -> Accumulator:
        return Gathered(state)


@final
class Gathered(Accumulator):
    """The elements of a list that is not yet closed."""

    whole = True

    def __init__(self, state: Any) -> None:
        self._list: list[Any] = list(state or ())
        self._usual = 0  # elements of the list before

    @property
    def missing(self) -> int:
        return max(0, self._usual - len(self._list))

    def add(self, value: Any) -> Iterator[Any]:
        if self.skip:
            self.skip = 0
        elif value is CLOSE:
            gathered, self._list, self._usual = self._list, [], len(self._list)
            yield gathered
        else:
            self._list.append(value.value if type(value) is Quoted else value)

    def take(self, values: list[Any]) -> int:
        taken = [*takewhile(lambda value: value is not CLOSE and type(value) is not Quoted, values)]
        self._list += taken
        return len(taken)

    @property
    def state(self) -> Any:
        return self._list or None


@final
class Chain(Composite):
    """A chain of maps and filters as one function: ``process(n=4)(qf.map(f) | g)``."""

    def __init__(self, operators: tuple[Operator[Any, Any], ...]) -> None:
        self.operators = operators
        self.__name__ = "+".join(operator.name for operator in operators)

    def __call__(self, value: Any) -> Any:
        """Its one result, or an iterator of none or several."""
        operators = self._ready.operators
        for number, operator in enumerate(operators, 1):
            outputs = cast("Each[Any, Any]", operator).called(value)
            if type(outputs) is not tuple:
                return through(operators[number:], iter(outputs))
            if not outputs:
                return iter(())
            (value,) = outputs  # what it was is not kept alive while the next one works
        return iter((value,)) if isinstance(value, Iterator) else value

    @functools.cached_property
    def _ready(self) -> Chain:
        return self.opened()

    def opened(self) -> Chain:
        ready = tuple(operator.opened() for operator in self.operators)
        return self if all(map_(is_, ready, self.operators)) else Chain(ready)

    def length(self, items: int) -> int | None:
        return row_length(self.operators, items)

    @property
    def functions(self) -> tuple[Function, ...]:
        return tuple(function for operator in self.operators for function in operator.functions)

    def within(self, setting: Setting) -> Chain:
        labels = differing(f"{setting.label}.{operator.name}" for operator in self.operators)
        return Chain(
            tuple(
                operator.within(Setting(setting.context, label)) for operator, label in zip(self.operators, labels, strict=True)
            )
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return Chain, (self.operators,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chain) and self.operators == other.operators

    def __hash__(self) -> int:
        return hash(self.operators)

    def __repr__(self) -> str:
        return " | ".join(map_(repr, self.operators))


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
