"""Row: operators in a row, given one value at a time; what fails stands among the results.

`Operator.transform` is what an operator means. A row is the same meaning turned round, value by value,
so that an engine can say where each result comes from, go on after a failure, and write down what the
streams keep:

    add(value)    [Each Each] -> Stream -> [Each] -> Stream -> ...    results
    finish()                     Stream -> [Each] -> Stream -> ...    the last results

A result comes with its index path (the source item's number, then the position among the results of
each iterator; a stream numbers its results anew) and with what is known of it: whether it is the `LAST`,
and whether it is a `Failed` in place of a result (which a user's value may be, too). Where that is asked for, results that
are there already may come together, as a list that is known to be `MANY`, with the path of the first.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from qflow.errors import NondeterministicStep, blamed, describe, not_quiet
from qflow.graph.flow import Each, Operator, Stream

Path = tuple[int, ...]
Result = tuple[Path, Any, int]
Results = Generator[Result, None, None]
Eaches = tuple[Each[Any, Any], ...]
Caught = type[BaseException] | tuple[type[BaseException], ...]
NO_ITEM: Any = object()
_EMPTY: list[Any] = []
LAST, FAILED, MANY = 1, 2, 4
_THERE = type(iter(_EMPTY))  # an iterator whose values are there already


class Failed(NamedTuple):
    """In place of a result: what was raised, by which step, for which value, at which try."""

    error: BaseException
    step: str
    what: str | None
    value: Any
    attempts: int = 1


@dataclasses.dataclass
class Watch:
    """What an engine does around the user's code in a row.

    Attributes:
        caught: what user code may raise that is a failure of its item: `Exception` where Ctrl-C arrives,
            `BaseException` in a worker.
        enter: called before user code, inside what is caught.
        leave: called after it.
        copy: keeps a value so that the function it returns gives it afresh, for a step that is tried again.
        many: results may come together.
        digest: of a value and the digest of those before it, to see whether an iterator that is tried again gives the same.
    """

    caught: Caught = Exception
    enter: Callable[[], None] | None = None
    leave: Callable[[], None] | None = None
    copy: Callable[[Any], Callable[[], Any]] | None = None
    digest: Callable[[Any, int], int] | None = None
    many: bool = False

    def call(self, operator: Operator[Any, Any], function: Callable[[Any], Any], value: Any) -> Any:
        """Call a function of an operator."""
        if self.enter is None or not operator.user_code:
            return function(value)
        assert self.leave is not None
        self.enter()
        try:
            result = function(value)
        except self.caught:
            self.leave()
            raise
        self.leave()
        return result


class Row:
    """Operators in a row, at work.

    Args:
        operators: opened (`Operator.opened`).
        watch: around user code.
        states: `states` of a predecessor, to go on where it was.
    """

    def __init__(
        self,
        operators: Sequence[Operator[Any, Any]],
        watch: Watch | None = None,
        states: Sequence[tuple[int, Any]] | None = None,
    ) -> None:
        self._watch = watch or Watch()
        self._parts: list[Eaches] = [()]
        self._streams: list[Stream[Any, Any]] = []
        for operator in operators:
            if isinstance(operator, Stream):
                self._streams.append(operator)
                self._parts.append(())
            elif isinstance(operator, Each):
                self._parts[-1] += (operator,)
        states = states or [(0, None)] * len(self._streams)
        self._given = [given for given, _ in states]
        self._kept = [stream.accumulator(kept) for stream, (_, kept) in zip(self._streams, states, strict=True)]
        self.entered: list[Any] | None = None  # what the first stream has taken, for an engine that writes it down
        self.deep = False  # user code between two streams was called
        self._again = False  # results were given out before

    def add(
        self, value: Any, path: Path, reload: Callable[[], Any] | None = None, called: Callable[[], Any] | None = None
    ) -> Results:
        """The results that a value brings; ``reload`` gives it afresh when a step is tried again.

        ``called``: its first operator was called already, and this gives what it gave.
        """
        if called is not None:
            return through_each(self._parts[0], value, path, self._watch, reload, called)
        return self._after(0, value, path, reload)

    def take(self, values: list[Any]) -> int:
        """Let the first stream take the first of several values, none of which brings a result -> how many.

        They are not among those that have ``entered``.
        """
        return 0 if self._parts[0] or not self._kept else self._kept[0].take(values)

    def enter(self, values: Iterable[Any]) -> None:
        """Let the first stream take values again that had ``entered``; their results were given out."""
        self._again = True
        for value in values:
            for _ in self._given_out(0, self._kept[0].add(value), value, ()):
                pass
        self._again = self.deep = False
        self.entered = []

    def finish(self) -> Results:
        """The results that come when there are no more values."""
        for number, kept in enumerate(self._kept):
            yield from self._given_out(number, kept.finish(), NO_ITEM, (self._given[number],))

    @property
    def missing(self) -> int:
        """How many more values the first stream expects to take before its next result; 0: it can't tell."""
        return 0 if self._parts[0] or not self._kept else self._kept[0].missing

    @property
    def whole(self) -> bool:
        """Whether values that have ``entered`` are still as they came: the first stream takes none of them apart."""
        return bool(self._kept) and self._kept[0].whole

    @property
    def done(self) -> bool:
        """Whether a stream needs no more values."""
        return any(kept.done for kept in self._kept)

    @property
    def states(self) -> list[tuple[int, Any]]:
        """For each stream how many results it has given, and what it keeps."""
        return [(given, kept.state) for given, kept in zip(self._given, self._kept, strict=True)]

    def _after(self, part: int, value: Any, path: Path, reload: Callable[[], Any] | None = None) -> Results:
        """What comes of a value that has passed the streams before ``part``."""
        results = through_each(self._parts[part], value, path, self._watch, reload)
        return results if part == len(self._streams) else self._into(part, results)

    def _into(self, number: int, results: Results) -> Results:
        if number and any(each.user_code for each in self._parts[number]):
            self.deep = True
        for path, value, known in results:
            if known & FAILED:
                yield path, value, FAILED
            else:
                if not number and self.entered is not None:
                    self.entered.append(value)
                yield from self._given_out(number, self._kept[number].add(value), value, path)
            del value  # not kept alive while the next one is made

    def _given_out(self, number: int, results: Iterator[Any], value: Any, path: Path) -> Results:
        """What a stream gives out for a value, through the rest of the row."""
        while True:
            try:
                result = next(results)
            except StopIteration:
                return
            except self._watch.caught as error:
                yield path, failed(error, self._streams[number], value), FAILED
                return
            given = (self._given[number],)
            self._given[number] += 1
            if self._again and number + 1 == len(self._streams):
                continue
            for below, each, known in self._after(number + 1, result, given):
                yield below, each, known & FAILED
                del each
            del result


def through_each(
    operators: Eaches,
    value: Any,
    path: Path,
    watch: Watch,
    reload: Callable[[], Any] | None = None,
    called: Callable[[], Any] | None = None,
) -> Results:
    """What operators that work item by item make of one value: the same values as their transforms, piped.

    A step with ``retry`` is tried again from this value on; what an iterator has given by then is not given twice.
    """
    given, current = NONE, value
    attempts: dict[int, int] = {}  # of each operator
    if reload is None and watch.copy is not None and any(operator.retry for operator in operators):
        reload = watch.copy(value)
    while True:
        problem, given = yield from _try(operators, current, path, watch, given, called)
        called = None
        if problem is None:
            return
        error, operator, at, below = problem
        retry = operator.retry
        attempts[id(operator)] = tried = attempts.get(id(operator), 0) + 1
        if retry is None or tried > retry.times or not isinstance(error, retry.errors):
            yield (*path, *below), failed(error, operator, at, tried), FAILED if given.number else FAILED | LAST
            return
        time.sleep(retry.wait)
        current = value if reload is None else reload()


class Given(NamedTuple):
    """What an iterator has given by now: how many results, and, where it may be tried again, their digest."""

    number: int = 0
    digest: int = 0


NONE = Given()
Problem = tuple[BaseException, Each[Any, Any], Any, Path]  # what was raised, by which operator, for what, at which of its results


def _try(
    operators: Eaches, value: Any, path: Path, watch: Watch, given: Given, called: Callable[[], Any] | None
) -> Generator[Result, None, tuple[Problem | None, Given]]:
    """One try -> the problem, if any, and what an iterator has given by now."""
    for number, operator in enumerate(operators):
        try:
            outputs = watch.call(operator, operator.outputs, value) if called is None else called()
        except watch.caught as error:
            return (error, operator, value, ()), given
        if type(outputs) is not tuple:
            raised, at, given = yield from _several(operator, operators[number + 1 :], iter(outputs), path, watch, given)
            return (None if raised is None else (raised, operator, value, (at,))), given
        if not outputs:
            return None, given
        value, called = outputs[0], None
    yield path, value, LAST
    return None, given


def _several(
    operator: Each[Any, Any], operators: Eaches, results: Iterator[Any], path: Path, watch: Watch, given: Given
) -> Generator[Result, None, tuple[BaseException | None, int, Given]]:
    """The results of an iterator, each through the operators after it, but for those given before -> error, its place, given."""
    position = digest = 0
    if watch.many and type(results) is _THERE and not operators and operator.retry is None:
        found = [*results]
        yield (*path, 0), found, MANY
        return None, len(found), Given(len(found))
    digested = None if operator.retry is None else watch.digest
    while True:
        try:
            each = watch.call(operator, next, results)
        except StopIteration:
            return (fewer(position, given.number) if position < given.number else None), position, given
        except watch.caught as error:
            return error, position, given
        digest = 0 if digested is None else digested(each, digest)
        if position >= given.number:
            given = Given(position + 1, digest)
            for below, result, known in through_each(operators, each, (*path, position), watch):
                yield below, result, known & (FAILED | MANY)
        elif position + 1 == given.number and digest != given.digest:
            return other(), position, given
        position += 1
        del each


def fewer(now: int, before: int) -> NondeterministicStep:
    """The error for results that were given and do not come again."""
    return NondeterministicStep(
        f"The step gave {now} results when it was tried again, but at least {before} before. "
        "It must give the same results for the same item; let random numbers depend on the item alone."
    )


def other() -> NondeterministicStep:
    """The error for results that are others than those that were given before."""
    return NondeterministicStep(
        "The step gave other results when it was tried again than before, some of which are already given out. "
        "It must give the same results for the same item; let random numbers depend on the item alone."
    )


def failed(error: BaseException, operator: Operator[Any, Any], value: Any, attempts: int = 1) -> Failed:
    """What was raised by an operator for a value."""
    name, what = blamed(error) or (operator.name, None if value is NO_ITEM else describe(value))
    if isinstance(error, StopIteration):
        error = not_quiet(error, f"step {name!r}")
    return Failed(error, name, what, value, attempts)
