"""Flow: operators joined by ``|``.

An operator's meaning is one pure function on streams, `Operator.transform`. A flow is a tuple of
operators: joining is concatenation, so ``|`` is associative and the empty flow is its identity.
Building a flow starts nothing; calling it with a source hands its plan to an engine.

    left | right     left: operator, flow, function or class (lifted), or an iterable (the source)
                     right: operator, flow, function or class
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, Generic, NamedTuple, Self, TypeAlias, TypeVar, cast, final, overload

from qflow.errors import GraphError, blame, got, not_quiet
from qflow.graph import start as starting
from qflow.graph.accumulator import Accumulator
from qflow.graph.carrier import Carrier
from qflow.graph.context import Context, Setting
from qflow.graph.engine import release
from qflow.graph.function import Function, function_of, function_text, is_function, opened
from qflow.graph.markers import SKIP
from qflow.graph.options import NOTHING, Options, Retry, RunOptions
from qflow.graph.source import Source, check_source, is_source

if TYPE_CHECKING:
    from qflow.graph.plan import Plan
    from qflow.graph.rebatch import Rebatch
    from qflow.graph.regroup import Pack, Repack, Unpack
    from qflow.graph.repeat import Repeat
    from qflow.graph.shuffle import Shuffle
    from qflow.graph.take import Take

    Same: TypeAlias = Repeat | Shuffle | Take  # their results are their values
    from qflow.graph.engine import Engine
    from qflow.graph.run import ItemFailure, Run

A = TypeVar("A", contravariant=True)
B = TypeVar("B", covariant=True)
C = TypeVar("C")
T = TypeVar("T")
Z = TypeVar("Z")

ALL = 1 << 32  # elements of a value, more than there are


class Joins(ABC, Generic[A, B]):
    """What stands on either side of ``|``."""

    __slots__ = ()

    # numpy and pandas hand over to us instead of mapping `|` over their elements.
    __array_ufunc__: ClassVar[None] = None
    __pandas_priority__: ClassVar[int] = 10_000

    @property
    @abstractmethod
    def operators(self) -> tuple[Operator[Any, Any], ...]:
        """The operators, in order."""

    if not TYPE_CHECKING:  # for a checker a flow is no iterable; here the error says what to write

        def __iter__(self):
            raise GraphError(
                f"{self!r} has no source, so it can't be iterated. Write `for x in pipe(source): ...`; "
                "a dict's keys or items stand left of `|` as `qf.source(d.items())`."
            )

    @overload
    def __or__(self, other: Queue | Filter[B] | Rebatch | Same) -> Flow[A, B]: ...
    @overload
    def __or__(self, other: Pack) -> Flow[A, list[B]]: ...
    @overload
    def __or__(self: Joins[Z, Iterable[T]], other: Unpack) -> Flow[Z, T]: ...
    @overload
    def __or__(self: Joins[Z, Iterable[T]], other: Repack) -> Flow[Z, list[T]]: ...
    @overload
    def __or__(self, other: Joins[B, C]) -> Flow[A, C]: ...
    @overload
    def __or__(self: Joins[Z, Carrier], other: Callable[Concatenate[Any, ...], Any]) -> Flow[Z, Carrier]: ...
    @overload
    def __or__(self, other: Callable[[B], Iterator[C]]) -> Flow[A, C]: ...
    @overload
    def __or__(self, other: Callable[[B], C]) -> Flow[A, C]: ...
    def __or__(self, other: Any) -> Any:
        return Flow(self, other)

    @overload
    def __ror__(self, other: Iterable[A]) -> Sourced[B]: ...
    @overload
    def __ror__(self, other: Callable[[Z], Iterator[A]]) -> Flow[Z, B]: ...
    @overload
    def __ror__(self, other: Callable[[Z], A]) -> Flow[Z, B]: ...
    def __ror__(self, other: Any) -> Any:
        if is_function(other):
            return Flow(Map(function_of(other, "qf.map")), self)
        check_source(other)
        return Sourced(other, *self.operators)


class Operator(Joins[A, B]):
    """One step of a flow, as a value; `transform` is its meaning.

    Engines look at the shape (`Each` or `Stream`), at ``n`` and at ``placement``, never at a kind.
    """

    placement: ClassVar[str | None] = None
    """Where it runs: ``"process"`` or ``"thread"`` for marked steps; None: in a neighbour's worker."""
    expands: ClassVar[bool] = False
    """Many values come from one, so that it should run before they are spread over workers."""
    user_code: ClassVar[bool] = False
    """It calls functions of the user."""
    awaits: bool = False
    """What its function gives is to be waited for."""
    feeds: ClassVar[bool] = False
    """Behind the source it runs where that is read."""
    last: ClassVar[bool] = False
    """It stands at the end of a flow, and works in the process that takes the results; see `follow`."""
    locks: bool = False
    """A device reads the results where they lie in shared memory, which therefore keeps its pages."""
    options: Options = NOTHING
    """What a mark promises."""
    stored: str | None = None
    """What it reads in place of the source: a fingerprint of that and the steps before."""
    of_rank: int = 0
    """Whose part of the source it reads so."""
    gives: frozenset[str] = frozenset()
    """Parameters of functions behind it for which its values bring something along."""
    owns: frozenset[str] = frozenset()
    """Those of them that no run can give."""
    backs: frozenset[str] = frozenset()
    """Parameters that it gives to functions before it, too."""
    takes: frozenset[str] = frozenset()
    """Parameters of a run that it takes by itself, beside those that its functions name."""
    carries: bool = False
    """Its values are carriers; see `carrier`."""
    lands: ClassVar[bool] = False
    """Its values say what has become of carriers, and where they were put."""
    adrift: ClassVar[str] = ""
    """What to say of its carriers where nothing behind it `lands`."""
    setting: Setting | None = None
    """Of a copy at work: the run on which it depends, and its name among the operators of the flow."""

    @property
    def workers(self) -> int | None:
        """How many workers; None: as many as the run says, else 1."""
        return 1

    @property
    def retry(self) -> Retry | None:
        """What it tries again."""
        return None

    @property
    def inside(self) -> tuple[Operator[Any, Any], ...]:
        """Itself, or the operators of which it is made."""
        return (self,)

    @property
    def functions(self) -> tuple[Function, ...]:
        """The functions of the user that it calls."""
        return ()

    def depends(self, context: Context) -> bool:
        """Whether what it does depends on the run, beside its data."""
        return (self.user_code and context.seeded) or any(function.asks(context) for function in self.functions)

    def within(self, setting: Setting) -> Operator[A, B]:
        """A copy that works in a run."""
        changed = object.__new__(type(self))
        vars(changed).update({**vars(self), "setting": setting})
        if "function" in vars(self):
            vars(changed)["function"] = vars(self)["function"].within(setting)
        return changed

    @property
    def operators(self) -> tuple[Operator[Any, Any], ...]:
        return (self,)

    @property
    @abstractmethod
    def name(self) -> str:
        """The step's name in plans, errors and statistics."""

    @property
    def names(self) -> tuple[str, ...]:
        """Its name, behind those of the operators in whose place it stands."""
        return (self.name,)

    @property
    def meaning(self) -> str:
        """What it does, in words: the same for all operators that give the same."""
        return repr(self)

    @abstractmethod
    def transform(self, values: Iterator[Any]) -> Iterator[Any]:
        """The stream of results for a stream of values, lazily and in order."""

    def length(self, items: int) -> int | None:
        """How many values come out for so many coming in; None: not known before they came."""
        return None

    def resolve(self) -> Operator[A, B]:
        """Itself with every size read, ready for one run."""
        return self

    def filled(self, defaults: Options) -> Operator[A, B]:
        """Itself with a run's defaults where its mark says nothing."""
        return self

    def lower(self) -> tuple[Operator[Any, Any], ...]:
        """The operators an engine runs in its place."""
        return (self,)

    def opened(self) -> Operator[A, B]:
        """Itself with the user's classes built, ready for one worker."""
        return self

    def begins(self, before: tuple[Operator[Any, Any], ...], source: Any, options: RunOptions) -> Beginning | None:
        """What a run has in place of a source, the operators before this one, and itself; None: just those."""
        return None

    def follow(self, run: Run[Any]) -> Run[Any]:
        """What its user iterates in place of a run, for an operator that is `last`."""
        return run

    if not TYPE_CHECKING:  # for a checker it can't be called; here the error says what to write

        def __call__(self, *args, **options):
            raise GraphError(
                f"{self!r} is an operator and can't be called. Run it by itself as `xs | {self!r}` or `qf.run({self!r}, xs)`."
            )


class Beginning(NamedTuple):
    """How a run begins.

    Attributes:
        source, operators: the source and the first operators.
        ended: what is called when it is over, with whether it came to its end.
        whole: this is the whole beginning, so that no operator before is asked.
        notes: what the operators are told in this run, as `Context.notes`.
        failed: what stands in place of an item that failed, with ``on_error="report"``, which is then the default.
        workers: what a mark's ``n`` becomes.
    """

    source: Any
    operators: tuple[Operator[Any, Any], ...]
    ended: Callable[[Run[Any], bool], None] | None = None
    whole: bool = False
    notes: Mapping[str, Any] = {}
    failed: Callable[[ItemFailure], Any] | None = None
    workers: Callable[[Any], Any] | None = None


class Each(Operator[A, B]):
    """Shape: one value in, 0 to k values out, each value by itself; any number of workers."""

    @abstractmethod
    def outputs(self, value: Any) -> Iterable[Any]:
        """What comes out for one value."""

    def plain(self, context: Context) -> Callable[[Any], Any] | None:
        """The function, if `outputs` is what its result stands for, and no more."""
        return None

    def given(self, result: Any) -> Iterable[Any]:
        """The values that a result of the function stands for."""
        return results(result)

    def transform(self, values: Iterator[Any]) -> Iterator[Any]:
        each = cast("Each[Any, Any]", self.opened())
        for value in values:
            yield from each.called(value)
            del value  # not kept alive while the next one is waited for

    def called(self, value: Any) -> Iterable[Any]:
        """What comes out for one value; what is raised meanwhile is known to be of this step."""
        try:
            outputs = self.outputs(value)
        except StopIteration as error:
            raise self._loud(error, value) from error
        except Exception as error:
            blame(error, self.name, value)
            raise
        return outputs if type(outputs) is tuple else self._watched(outputs, value)

    def _watched(self, outputs: Iterable[Any], value: Any) -> Iterator[Any]:
        try:
            yield from outputs
        except StopIteration as error:
            raise self._loud(error, value) from error
        except Exception as error:
            blame(error, self.name, value)
            raise

    def _loud(self, error: StopIteration, value: Any) -> BaseException:
        """PEP 479 would hide which step it was."""
        return blame(not_quiet(error, f"step {self.name!r}"), self.name, value)


class Stream(Operator[A, B]):
    """Shape: a stream in, a stream out; one worker."""

    words: ClassVar[int] = 1
    """How many numbers `Accumulator.origin` adds to the path."""
    spans: ClassVar[bool] = True
    """Its results may be made of values of two repetitions of the source."""

    @abstractmethod
    def accumulator(self, state: Any = None) -> Accumulator:
        """Its meaning value by value, from the beginning or from the state of another one on."""

    def transform(self, values: Iterator[Any]) -> Iterator[Any]:
        kept = self.accumulator()
        while not kept.done:
            try:
                value = next(values)
            except StopIteration:
                break
            yield from kept.add(value)
            del value  # not kept alive while the next one is waited for
        yield from kept.finish()


def results(result: Any) -> Iterable[Any]:
    """The values that a function's result stands for: itself, none (SKIP), or those of an iterator."""
    if result is SKIP:
        return ()
    if isinstance(result, Iterator):
        return (value for value in result if value is not SKIP)
    return (result,)


class Calls(Each[A, B]):
    """A function without workers of its own."""

    user_code = True
    made_by: ClassVar[str]

    def __init__(self, function: Function) -> None:
        self.function = function

    @property
    def name(self) -> str:
        return self.function.name

    @property
    def meaning(self) -> str:
        return f"{self.made_by}({self.name})"

    @property
    def functions(self) -> tuple[Function, ...]:
        return self.function.parts

    def opened(self) -> Self:
        return opened(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Calls) and (type(self), self.function) == (type(other), other.function)

    def __hash__(self) -> int:
        return hash((type(self), self.function))

    def __repr__(self) -> str:
        return f"{self.made_by}({function_text(self.function)})"


@final
class Map(Calls[A, B]):
    """Gives what a function gives; see `map`."""

    made_by = "qf.map"

    def outputs(self, value: Any) -> Iterable[Any]:
        return value.mapped(self.function) if isinstance(value, Carrier) else self.given(self.function(value))

    def plain(self, context: Context) -> Callable[[Any], Any] | None:
        return self.function.plain(context)

    def length(self, items: int) -> int | None:
        return self.function.length(items)


@final
class Filter(Calls[A, Any]):
    """Keeps the values for which a predicate holds; see `filter`."""

    made_by = "qf.filter"

    def outputs(self, value: Any) -> Iterable[Any]:
        if isinstance(value, Carrier):
            return value.filtered(self.function)
        return (value,) if self.function(value) else ()


@final
class Queue(Operator[Any, Any]):
    """A bound on what waits at a point of the flow; see `queue`."""

    def __init__(self, maxsize: int, memory: int | None = None) -> None:
        self.maxsize, self.memory = maxsize, memory

    @property
    def name(self) -> str:
        return f"queue({self.maxsize})"

    def transform(self, values: Iterator[Any]) -> Iterator[Any]:
        return values

    def length(self, items: int) -> int:
        return items

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Queue) and (self.maxsize, self.memory) == (other.maxsize, other.memory)

    def __hash__(self) -> int:
        return hash((Queue, self.maxsize, self.memory))

    def __repr__(self) -> str:
        return f"qf.queue({self.maxsize}{'' if self.memory is None else f', memory={self.memory}'})"


class Flow(Joins[A, B]):
    """Operators in a row: a value that runs any number of times.

    >>> import qflow as qf
    >>> qf.Flow() | qf.repack(4) == qf.Flow(qf.repack(4))
    True

    Args:
        parts: operators, flows or functions, joined in this order.

    Iterating needs a source: ``flow(source)`` gives a `Run`. The workers of the process engine stay
    warm between runs until `close`, the end of ``with flow:``, or the flow's garbage collection.
    """

    __slots__ = ("__weakref__", "_operators")
    _operators: tuple[Operator[Any, Any], ...]

    @overload
    def __init__(self: Flow[Z, Z]) -> None: ...
    @overload
    def __init__(self: Flow[Z, C], part: Joins[Z, C], /) -> None: ...
    @overload
    def __init__(self: Flow[Z, C], part: Callable[[Z], Iterator[C]], /) -> None: ...
    @overload
    def __init__(self: Flow[Z, C], part: Callable[[Z], C], /) -> None: ...
    @overload
    def __init__(self: Flow[Any, Any], *parts: Any) -> None: ...
    def __init__(self, *parts: Any) -> None:
        joined = tuple(operator for part in parts for operator in right_operand(part).operators)
        object.__setattr__(self, "_operators", joined)

    @property
    def operators(self) -> tuple[Operator[Any, Any], ...]:
        return self._operators

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"A flow can't be changed, but {name!r} was set. Join a new one with `|`.")

    def __call__(self, *source: Iterable[A], engine: str | Engine = "processes", **options: Any) -> Run[B]:
        """Start a run over ``source``: an iterator of the results, and a context manager.

        >>> import qflow as qf
        >>> list(qf.Flow(qf.pack(2))([1, 2, 3], engine="serial"))
        [[1, 2], [3]]

        Args:
            source: any iterable, read lazily by one thread of this process, no faster than the bounds allow.
            engine: ``"processes"`` (default), ``"serial"``, or an engine of `qflow.engines`.
            options:
                ordered: True (default): results in the order of the source. False: as they come, with more workers busy.
                on_error: ``"raise"`` (default) the first failure, after the results before it; ``"skip"`` failing
                items, which are counted and listed in ``run.failures``; ``"collect"``: as skip, and the list
                has the values that failed; ``"report"``, the default of flows that end with `qflow.files.write`:
                as skip, and a record with the error stands in the item's place.
                max_errors: more skipped items than this end the run with the error of the last.
                memory: bytes of shared memory, or a text as ``"4GB"``, that the items of the run may take together: those
                that wait, and those in the hands of workers and of your loop. Without it, the queues' bounds in
                items decide. It is split over the queues by the items that each may hold; the plan prints the
                parts. A larger item passes alone. What steps and you hold for themselves is not counted.
                seed: from which all random numbers follow: a step that names a parameter ``rng`` is given a
                `numpy.random.Generator` keyed by seed, epoch, step and item, the same whatever ``n``, engine, order or
                retry. When it is given, ``random``, ``np.random`` and torch are seeded for each item, too, but not where
                several threads share them: in thread steps with ``n`` above 1, in neighbours that share their threads,
                and in functions that run in their worker (the plan shows it). Without it one is drawn: ``run.seed``.
                epoch: of the data, 0, 1, ...; another one gives other numbers.
                resume: what `Run.state_dict` has given: the results that came after that one, in a run of the same flow and
                source with any ``n``, engine and bounds. Seed and epoch are those of the state.
                params: values by name, as ``{"training": True}``: a step that names such a parameter is given its value.
                n, retry, timeout, max_items, max_memory: for marks that do not say it; see `process`.
        Raises:
            GraphError: the source or an option is wrong, or the source is an iterator that was used before.
        """
        if len(source) != 1:
            raise GraphError(f"A flow is called with one source, as in `pipe(xs)`, but got {len(source)} arguments.")
        return starting.start(self, source[0], engine, options)

    def plan(self, **options: Any) -> Plan:
        """How an engine runs it: groups of steps, their workers and the channels between them.

        Args:
            options: as a run has them, ``memory``, ``n`` and the other defaults for marks.
        """
        return starting.plan(self, options)

    def close(self) -> None:
        """End its warm workers, if any. The flow can be run again."""
        release(self)

    def __enter__(self) -> Flow[A, B]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._operators == cast("Flow[Any, Any]", other)._operators

    def __hash__(self) -> int:
        return hash((type(self), self._operators))

    def __repr__(self) -> str:
        match self._operators:
            case ():
                return "qf.Flow()"
            case (only,):
                return f"qf.Flow({only!r})"
            case several:
                return " | ".join(map(repr, several))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._operators

    def __copy__(self) -> Flow[A, B]:
        return self

    def __deepcopy__(self, memo: Any) -> Flow[A, B]:
        return self

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        from qflow.graph.draw import picture

        return picture(self)


@final
class Sourced(Flow[Any, B]):
    """A flow with its source: ``xs | a | b``. Iterating it starts a run."""

    __slots__ = ("source",)
    source: Any

    def __init__(self, source: Any, *parts: Any) -> None:
        super().__init__(*parts)
        object.__setattr__(self, "source", source)

    @overload
    def __or__(self, other: Queue | Filter[B] | Rebatch | Same) -> Sourced[B]: ...
    @overload
    def __or__(self, other: Pack) -> Sourced[list[B]]: ...
    @overload
    def __or__(self: Sourced[Iterable[T]], other: Unpack) -> Sourced[T]: ...
    @overload
    def __or__(self: Sourced[Iterable[T]], other: Repack) -> Sourced[list[T]]: ...
    @overload
    def __or__(self, other: Joins[B, C]) -> Sourced[C]: ...
    @overload
    def __or__(self, other: Callable[[B], Iterator[C]]) -> Sourced[C]: ...
    @overload
    def __or__(self, other: Callable[[B], C]) -> Sourced[C]: ...
    def __or__(self, other: Any) -> Any:
        return Sourced(self.source, *self.operators, other)

    def __ror__(self, other: Any) -> Any:
        raise GraphError(f"{got(other)} stands left of {self!r}, which has a source already. A source can only stand first.")

    def __call__(self, *source: Any, engine: str | Engine = "processes", **options: Any) -> Run[B]:
        if source:
            raise GraphError(f"{self!r} has a source already, but got {got(source[0])}. Call it without one: `flow()`.")
        return starting.start(self, self.source, engine, options)

    def __iter__(self) -> Iterator[B]:
        return iter(self())

    def __len__(self) -> int:
        return starting.length(self, self.source)

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sourced) and self.source is other.source and super().__eq__(other)

    __hash__ = Flow.__hash__

    def __repr__(self) -> str:
        text = repr(self.source) if isinstance(self.source, Source) else type(self.source).__name__
        return " | ".join([f"qf.source({text})", *map(repr, self.operators)])

    def __reduce__(self) -> tuple[Any, ...]:
        return Sourced, (self.source, *self.operators)


def right_operand(value: Any) -> Joins[Any, Any]:
    """What may stand right of ``|``, with functions and classes lifted to `map`."""
    if isinstance(value, Sourced):
        raise GraphError(f"A source can only stand first, but {value!r} has one. Put its source leftmost.")
    if isinstance(value, Joins):
        return value
    if is_function(value):
        return Map(function_of(value, "qf.map"))
    if is_source(value):
        check_source(value)  # one that can be called too says so
        raise GraphError(f"A source can only stand first, but {got(value)} stands after `|`. Write `xs | step | ...`.")
    raise GraphError(
        f"`|` joins operators, flows and functions, but got {got(value)}. "
        "Is it a function's result? Mark the function: `@qf.process(n=2)`."
    )


def row_length(operators: Iterable[Operator[Any, Any]], items: int | None) -> int | None:
    """How many values come out of a row of operators for so many coming in, where it is known."""
    for operator in operators:
        items = None if items is None else operator.length(items)
    return items


def through(operators: Iterable[Operator[Any, Any]], values: Iterator[Any]) -> Iterator[Any]:
    """The meaning of a row of operators: each one's transform, piped."""
    from toolz import pipe  # a tenth of what `import qflow` would take, and workers go item by item

    stream: Iterator[Any] = pipe(values, *(operator.transform for operator in operators))
    return stream


def differing(names: Iterable[str]) -> Iterator[str]:
    """Names of which no two are the same: the second ``a`` is ``a-2``."""
    seen: set[str] = set()
    for name in names:
        tries = (name if number == 1 else f"{name}-{number}" for number in count(1))
        free = next(each for each in tries if each not in seen)
        seen.add(free)
        yield free
