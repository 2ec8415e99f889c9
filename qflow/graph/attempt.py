"""Attempt: one value through operators that work item by item; what fails stands among the results.

A step with ``retry`` is tried again; what an iterator has given by then is not given twice.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from qflow.errors import NondeterministicStep, blamed, describe, not_quiet
from qflow.graph.context import PLAIN, Context
from qflow.graph.flow import Each, Operator
from qflow.graph.path import Path, index_of, origin_of

Result = tuple[Path, Any, int]
Results = Generator[Result, None, None]
Eaches = tuple[Each[Any, Any], ...]
Gate = Callable[[Callable[[Any], Any], Any], Any]
Caught = type[BaseException] | tuple[type[BaseException], ...]
NO_ITEM: Any = object()
_EMPTY: list[Any] = []
LAST, FAILED, MANY = 1, 2, 4  # what is known of a result
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
        context: what the run is beside its data.
        gates: through which some operators are called, by their identity.
        wait: for what an ``async def`` gave: the result of a coroutine, or an iterator of an async generator's values.
    """

    caught: Caught = Exception
    enter: Callable[[], None] | None = None
    leave: Callable[[], None] | None = None
    copy: Callable[[Any], Callable[[], Any]] | None = None
    digest: Callable[[Any, int], int] | None = None
    many: bool = False
    context: Context = PLAIN
    gates: Mapping[int, Gate] = dataclasses.field(default_factory=dict)
    wait: Callable[[Any], Any] | None = None

    def call(self, operator: Operator[Any, Any], function: Callable[[Any], Any], value: Any) -> Any:
        """Call a function of an operator."""
        if operator.awaits and function is not next:
            function = partial(self._waited, operator, function)
        if self.enter is None or not operator.user_code:
            return function(value)
        assert self.leave is not None
        gate = self.gates.get(id(operator)) if self.gates else None
        self.enter()
        try:
            result = function(value) if gate is None else gate(function, value)
        except self.caught:
            self.leave()
            raise
        self.leave()
        return result

    def _waited(self, operator: Operator[Any, Any], function: Callable[[Any], Any], value: Any) -> Any:
        assert self.wait is not None
        (given,) = function(value)
        return operator.given(self.wait(given))  # type: ignore[attr-defined]


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
        if operator.setting is not None:
            operator.setting.at(index_of(path), behind=origin_of(path) is not None)
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
        if operator.setting is not None:
            operator.setting.at((*index_of(path), position), behind=origin_of(path) is not None)
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
