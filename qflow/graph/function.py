"""Function: the user's callable inside a step, with what is bound to it.

A function is called as it is. A class whose instances are callable is built once per worker
(`Function.open`) and its instance is called. Other classes are called like functions.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from qflow.errors import GraphError, got

F = TypeVar("F")


class Composite(ABC):
    """A callable made of operators, as `process` marks a chain of maps."""

    @abstractmethod
    def __call__(self, value: Any) -> Any:
        """Its result for one value."""

    @abstractmethod
    def opened(self) -> Composite:
        """Itself with the user's classes built, or itself when there are none."""

    @abstractmethod
    def length(self, items: int) -> int | None:
        """As `Operator.length`."""


@dataclasses.dataclass(frozen=True)
class Function:
    """A callable, keyword arguments bound to it, and the constructor's arguments if it is a class."""

    call: Callable[..., Any]
    bound: tuple[tuple[str, Any], ...] = ()
    init: tuple[tuple[Any, ...], tuple[tuple[str, Any], ...]] | None = None

    @property
    def name(self) -> str:
        """A short name for plans and errors."""
        name = getattr(self.call, "__name__", None) or getattr(getattr(self.call, "func", None), "__name__", None)
        return "lambda" if name == "<lambda>" else str(name or type(self.call).__name__)

    @property
    def builds(self) -> bool:
        """Whether it is a class whose instances are called."""
        return makes_callables(self.call)

    def open(self) -> Function:
        """The class built; a function as it is."""
        call: Any = self.call
        if isinstance(call, Composite):
            ready = call.opened()
            return self if ready is call else Function(ready, self.bound)
        if not self.builds:
            return self
        args, kwargs = self.init or ((), ())
        return Function(call(*args, **dict(kwargs)), self.bound)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call: Any = self.call
        return call(*args, **{**dict(self.bound), **kwargs}) if self.bound else call(*args, **kwargs)

    def plain(self) -> Callable[[Any], Any]:
        """What to call with nothing but a value."""
        return self if self.bound else self.call

    def length(self, items: int) -> int | None:
        """One result an item, unless it is written as a generator."""
        call: Any = self.call
        if isinstance(call, Composite):
            return call.length(items)
        written = call if inspect.isroutine(call) or isinstance(call, functools.partial) else call.__call__
        return None if inspect.isgeneratorfunction(inspect.unwrap(written)) else items

    def __hash__(self) -> int:
        return hash((Function, self.call))


def makes_callables(value: object) -> bool:
    """A class whose instances can be called."""
    return isinstance(value, type) and any("__call__" in vars(base) for base in value.__mro__)


def opened(operator: F) -> F:
    """A copy of an operator with its ``function`` opened, or itself when there is nothing to build."""
    function: Function = operator.function  # type: ignore[attr-defined]
    ready = function.open()
    if ready is function:
        return operator
    changed = object.__new__(type(operator))
    vars(changed).update({**vars(operator), "function": ready})
    return changed


def is_iterable(value: object) -> bool:
    """It has an iterator, or is a map-style data set: a length and items."""
    kind = type(value)
    return hasattr(kind, "__iter__") or (hasattr(kind, "__getitem__") and hasattr(kind, "__len__"))


def is_function(value: object) -> bool:
    """What can only be meant to be called: a function, class, method, partial or callable object."""
    return callable(value) and not is_iterable(value)


def function_of(value: Any, word: str) -> Function:
    """The callable as a Function, or a GraphError."""
    if not callable(value):
        raise GraphError(f"`{word}` takes a function, but got {got(value)}. Write for example `{word}(str.upper)`.")
    return Function(value)


def resolve_name(module: str | None, qualname: str | None) -> object:
    """What a module's qualified name stands for now, or None."""
    value: object = sys.modules.get(module or "")
    for part in (qualname or "<none>").split("."):
        value = getattr(value, part, None)
    return value


def callable_text(call: Any) -> str:
    """A callable as the source has it: its name, or where a lambda stands."""
    code = getattr(call, "__code__", None)
    name = getattr(call, "__qualname__", None)
    if getattr(call, "__name__", "") == "<lambda>" and code is not None:
        return f"<lambda {code.co_filename.rpartition('/')[2]}:{code.co_firstlineno}>"
    if name is None:
        return repr(call)
    name = str(name).rpartition("<locals>.")[2]
    module = getattr(call, "__module__", None)
    return f"np.{name}" if module == "numpy" else name


def arguments_text(pairs: Iterable[tuple[str, Any]]) -> str:
    """Keyword arguments as the source has them."""
    return ", ".join(f"{key}={value!r}" for key, value in pairs)


def function_text(function: Function) -> str:
    """A Function as the source has it."""
    return callable_text(function.call)
