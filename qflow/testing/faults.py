"""Faults: a step's function that fails, is slow, or ends its worker, for the items that a test chooses.

A fault wraps the plain function, below the mark, and keeps its name:

    qf.process(n=2)(failing(read, on=3))

A class whose instances are the step gives such a class, a marked step gives a step with the same mark.
``on`` chooses the items: a value, a list, tuple, set or range of values, or a predicate. Which try of an
item it is, the engine knows, so that ``times=1`` holds for each item, whatever worker gets it.
"""

from __future__ import annotations

import copy
import ctypes
import functools
import os
import signal
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

from qflow.errors import GraphError, describe, got
from qflow.graph.flow import Flow, Operator
from qflow.graph.function import Function, makes_callables
from qflow.graph.sizes import count
from qflow.graph.step import Step
from qflow.runtime.whereabouts import Death, attempt, here

F = TypeVar("F", bound=Callable[..., Any])


def every(item: Any) -> bool:
    """Chooses every item."""
    return True


def failing(
    function: F, *, on: Any = every, error: BaseException | type[BaseException] = ValueError, times: int | None = None
) -> F:
    """The function, but it raises for some items.

    >>> import qflow as qf
    >>> read = qf.process(n=2)(qf.testing.failing(abs, on=-3, error=OSError("gone")))
    >>> list(qf.run(read, [-1, -3, -5], on_error="skip"))
    [1, 5]

    With ``times`` an item fails at its first tries only, so that a retry is seen to help:

    >>> flaky = qf.testing.failing(abs, on={-3, -5}, error=OSError, times=1)
    >>> list(qf.run(qf.process(retry=OSError)(flaky), [-1, -3, -5]))
    [1, 3, 5]

    Args:
        function: a step's function, class, or marked step.
        on: which items: a value, a list, tuple, set or range of values, or a predicate; every item when not given.
        error: what is raised: an exception, or a type of exception.
        times: at how many tries of an item, counted in every engine; None: at all of them.
    Raises:
        GraphError: an argument is wrong.
    """
    if not isinstance(error, BaseException) and not (isinstance(error, type) and issubclass(error, BaseException)):
        raise GraphError(f"`error` is an exception or a type of exception, but got {got(error)}. Write `error=OSError`.")
    chosen = _choice(on, times, "failing")

    def fail(item: Any) -> None:
        if chosen(item):
            raise copy.copy(error) if isinstance(error, BaseException) else error(f"failing on {describe(item)}")

    return _before(function, fail, "failing")


def slow(function: F, *, seconds: float, on: Any = every) -> F:
    """The function, but it takes longer for some items.

    >>> import qflow as qf
    >>> read = qf.process(n=2, timeout=0.5)(qf.testing.slow(abs, seconds=60, on=-1))
    >>> run = qf.run(read, [-1, -2, -3], on_error="skip")
    >>> list(run), [type(failure.error) for failure in run.failures]
    ([2, 3], [<class 'qflow.errors.StepTimeout'>])

    Args:
        function, on: as in `failing`.
        seconds: spent asleep, before the function is called.
    Raises:
        GraphError: an argument is wrong.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0:
        raise GraphError(f"`seconds` is a number of at least 0, but got {got(seconds)}. Write `seconds=0.1`.")
    chosen = _choice(on, None, "slow")

    def sleep(item: Any) -> None:
        if chosen(item):
            time.sleep(seconds)

    return _before(function, sleep, "slow")


def dying(function: F, *, on: Any = every, how: str = "kill", times: int | None = 1) -> F:
    """The function, but its worker process ends when it is called for some items.

    >>> import qflow as qf
    >>> read = qf.process(n=2)(qf.testing.dying(abs, on=-3))
    >>> list(qf.run(read, [-1, -3, -5]))                    # a fresh worker repeats the item
    [1, 3, 5]
    >>> read = qf.process(n=2)(qf.testing.dying(abs, on=-3, times=None))
    >>> run = qf.run(read, [-1, -3, -5], on_error="skip")
    >>> list(run), [failure.error.attempts for failure in run.failures]
    ([1, 5], [2])

    In the simulated engine it ends a simulated worker, however it is told to. Elsewhere there is no worker
    that could end, and it raises GraphError: in the serial engine, and when it is called directly.

    Args:
        function, on: as in `failing`.
        how: ``"kill"`` (SIGKILL, as the system does when memory is short), ``"exit"`` (without a word, with
            code 7), ``"segfault"``, or ``"abort"``.
        times: at how many tries of an item; None: at all of them, which no engine survives: it is `WorkerDied`.
    Raises:
        GraphError: an argument is wrong; or, when an item comes, there is no worker.
    """
    if how not in _ENDS:
        raise GraphError(f"`how` is one of {', '.join(map(repr, _ENDS))}, but got {got(how)}.")
    chosen = _choice(on, times, "dying")

    def die(item: Any) -> None:
        if chosen(item):
            _end(how)

    return _before(function, die, "dying")


_ENDS: dict[str, Callable[[], object]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: os._exit(7),
    "segfault": lambda: ctypes.string_at(0),
    "abort": os.abort,
}


def _end(how: str) -> None:
    """End this worker; never a process that is none."""
    if here.info is None:
        raise GraphError(
            "`qf.testing.dying` ends the worker that calls it, but there is none here. "
            'Run the flow with engine="processes", or with engine=qf.engines.Simulated(seed) in this process.'
        )
    if here.simulated:
        raise Death
    _ENDS[how]()


def _choice(on: Any, times: int | None, word: str) -> Callable[[Any], bool]:
    """Whether an item is one of those meant, at a try that is meant."""
    if times is not None:
        count(times, "times", f"qf.testing.{word}(function, times=1)")

    def chosen(item: Any) -> bool:
        return (times is None or attempt() <= times) and _meant(on, item)

    return chosen


def _meant(on: Any, item: Any) -> bool:
    """Whether ``on`` holds for an item."""
    if callable(on):
        return bool(on(item))
    several = on if isinstance(on, list | tuple | set | frozenset | range) else (on,)
    return any(_equal(item, each) for each in several)


def _equal(item: Any, value: Any) -> bool:
    """Whether two values are equal; arrays are when all their elements are."""
    equal = item == value
    return bool(equal.all() if hasattr(equal, "all") else equal)


def _before(function: F, act: Callable[[Any], None], word: str) -> F:
    """What is called like ``function``, but acts on each item first."""
    if isinstance(function, Step):
        own = function.function
        return cast(F, type(function)(Function(_before(own.call, act, word), own.bound, own.init), function.options))
    if isinstance(function, Flow | Operator) or not callable(function):
        raise GraphError(
            f"`qf.testing.{word}` takes a function, a class or a marked step, but got {got(function)}. "
            f"Wrap the function of one step: `qf.process(qf.testing.{word}(function))`."
        )
    return cast(F, _class_before(function, act) if makes_callables(function) else _function_before(function, act))


def _function_before(function: Callable[..., Any], act: Callable[[Any], None]) -> Callable[..., Any]:
    @functools.wraps(function)
    def acts_first(item: Any, /, *args: Any, **kwargs: Any) -> Any:
        act(item)
        return function(item, *args, **kwargs)

    if not hasattr(function, "__name__"):  # as a partial
        acts_first.__name__ = acts_first.__qualname__ = Function(function).name
    return acts_first


def _class_before(base: Any, act: Callable[[Any], None]) -> type:
    class ActsFirst(base):  # type: ignore[misc]
        def __call__(self, item: Any, /, *args: Any, **kwargs: Any) -> Any:
            act(item)
            return super().__call__(item, *args, **kwargs)

    for attribute in functools.WRAPPER_ASSIGNMENTS:
        if hasattr(base, attribute):
            setattr(ActsFirst, attribute, getattr(base, attribute))
    return ActsFirst
