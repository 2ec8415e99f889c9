"""Step: a function, a class or a chain to which workers are promised, as an operator that is still a plain callable.

``using`` and ``bind`` make changed copies; a step and its copies pickle as a name and what was changed, when the name
leads to this very step.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Generic, ParamSpec, TypeVar, Unpack, cast, final

from qflow.graph.carrier import Carrier
from qflow.graph.context import Context
from qflow.graph.flow import Beginning, Each, Operator
from qflow.graph.function import Function, arguments_text, callable_text, function_text, opened, resolve_name
from qflow.graph.options import MarkOptions, Options, Retry, RunOptions, options_of, workers

A = TypeVar("A", contravariant=True)
B = TypeVar("B", covariant=True)
P = ParamSpec("P")
R = TypeVar("R")


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
    return ", ".join([*map(repr, args), *([arguments_text(kwargs)] if kwargs else [])])


def find(name: str) -> Any:
    """The step that a pickled name stands for, imported when it must be."""
    module, _, qualname = name.partition(":")
    __import__(module)
    return resolve_name(module, qualname)


def _changed_copy(origin: Step[Any, Any, Any, Any], bound: Any, init: Any, options: Options) -> Any:
    return origin._changed(Function(origin.function.call, bound, init), options)


@final
class Process(Step[A, B, P, R]):
    """A function with worker processes; see `qf.process`."""

    word = "process"
    placement = "process"


@final
class Thread(Step[A, B, P, R]):
    """A function with worker threads in one process; see `qf.thread`."""

    word = "thread"
    placement = "thread"

    @property
    def awaits(self) -> bool:  # type: ignore[override]
        return self.function.awaits

    def plain(self, context: Context) -> Callable[[Any], Any] | None:
        return None if self.awaits else super().plain(context)
