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
from typing import Any, NamedTuple, TypeVar

from qflow.errors import GraphError, got
from qflow.graph.context import RNG, Context, Setting, fresh

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

    @property
    @abstractmethod
    def functions(self) -> tuple[Function, ...]:
        """Those of the operators."""

    @abstractmethod
    def within(self, setting: Setting) -> Composite:
        """As `Function.within`."""


@dataclasses.dataclass(frozen=True)
class Function:
    """A callable, keyword arguments bound to it, and the constructor's arguments if it is a class.

    Attributes:
        setting: where it is called in a run; it is given what it asks for there.
    """

    call: Callable[..., Any]
    bound: tuple[tuple[str, Any], ...] = ()
    init: tuple[tuple[Any, ...], tuple[tuple[str, Any], ...]] | None = None
    setting: Setting | None = None

    @property
    def name(self) -> str:
        """A short name for plans and errors."""
        name = getattr(self.call, "__name__", None) or getattr(getattr(self.call, "func", None), "__name__", None)
        return "lambda" if name == "<lambda>" else str(name or type(self.call).__name__)

    @property
    def written(self) -> Any:
        """What is called, of an instance or class that can be called its method."""
        call: Any = self.call
        plain = inspect.isroutine(call) or isinstance(call, functools.partial) or (isinstance(call, type) and not self.builds)
        return inspect.unwrap(call if plain else call.__call__)

    @property
    def awaits(self) -> bool:
        """Whether it is written with ``async def``."""
        return inspect.iscoroutinefunction(self.written) or inspect.isasyncgenfunction(self.written)

    @property
    def builds(self) -> bool:
        """Whether it is a class whose instances are called."""
        return makes_callables(self.call)

    @property
    def parts(self) -> tuple[Function, ...]:
        """Itself, or the functions that it is made of."""
        return self.call.functions if isinstance(self.call, Composite) else (self,)

    @functools.cached_property
    def parameters(self) -> dict[str, Parameter]:
        """Its parameters but for the first and those that are bound, by name; of all its parts, where it is made of several."""
        if isinstance(self.call, Composite):
            return {name: each for part in self.parts for name, each in part.parameters.items()}
        bound = dict(self.bound)
        return {name: each for name, each in parameters(self.call).items() if name not in bound}

    @functools.cached_property
    def inputs(self) -> Inputs:
        """What it can be given by name, the first of its parameters, too, but not what is bound."""
        names, first, placed = inputs_of(self.call)
        bound = dict(self.bound)
        left = {name: default for name, default in names.items() if name not in bound}
        return Inputs(left, None if first in bound else first, placed)

    @property
    def needs(self) -> list[str]:
        """Of these, those that must be given, but for `RNG`."""
        return [name for name, each in self.parameters.items() if name != RNG and not each.default]

    def asks(self, context: Context) -> bool:
        """Whether a run has something for one of them."""
        return any(Setting(context, "").gives(name) for name in self.parameters)

    def within(self, setting: Setting) -> Function:
        """Itself as it is called in a run."""
        if isinstance(self.call, Composite):
            return dataclasses.replace(self, call=self.call.within(setting))
        return dataclasses.replace(self, setting=setting)

    @functools.cached_property
    def _given(self) -> tuple[str, ...]:
        """The names for which it is given something; outside of a run that is a fresh generator, if it needs one."""
        if self.setting is not None:
            return tuple(name for name in self.parameters if self.setting.gives(name))
        rng = self.parameters.get(RNG)
        return () if rng is None or rng.default or isinstance(self.call, Composite) else (RNG,)

    def open(self) -> Function:
        """The class built; a function as it is."""
        call: Any = self.call
        if isinstance(call, Composite):
            ready = call.opened()
            return self if ready is call else dataclasses.replace(self, call=ready)
        if not self.builds:
            return self
        args, kwargs = self.init or ((), ())
        return Function(call(*args, **dict(kwargs)), self.bound, None, self.setting)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call: Any = self.call
        if self._given:
            left = [name for name in self._given if name not in kwargs and not self.parameters[name].among(args)]
            kwargs |= {name: fresh() for name in left} if self.setting is None else self.setting.answer(left)
        return call(*args, **{**dict(self.bound), **kwargs}) if self.bound else call(*args, **kwargs)

    @property
    def single(self) -> bool:
        """Whether it is one function."""
        return not isinstance(self.call, Composite)

    def plain(self, context: Context) -> Callable[[Any], Any] | None:
        """What to call with nothing but a value, if the run gives nothing else."""
        return None if self.asks(context) or (context.carries and self.single) else self if self.bound else self.call

    def length(self, items: int) -> int | None:
        """One result an item, unless it is written as a generator."""
        call: Any = self.call
        if isinstance(call, Composite):
            return call.length(items)
        return None if inspect.isgeneratorfunction(self.written) or inspect.isasyncgenfunction(self.written) else items

    def __hash__(self) -> int:
        return hash((Function, self.call))

    def __reduce__(self) -> tuple[Any, ...]:
        return Function, (self.call, self.bound, self.init, self.setting)


class Parameter(NamedTuple):
    """One that a function names: the place at which it may stand without its name, and whether it has a default."""

    place: int | None
    default: bool

    def among(self, args: tuple[Any, ...]) -> bool:
        """Whether it is given by its place."""
        return self.place is not None and self.place < len(args)


def parameters(call: Any) -> dict[str, Parameter]:
    """The parameters of a callable after its first, by name; of a class those of its instances; none where nobody can tell."""
    if isinstance(call, Composite) or (isinstance(call, type) and not makes_callables(call)):
        return {}
    found = {}
    own = isinstance(call, type) and not _static(call)  # its instances are asked without `self`
    for place, each in enumerate(_written(call)):
        if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY) and (place > own or each.kind is each.KEYWORD_ONLY):
            by_name = each.kind is each.KEYWORD_ONLY
            found[each.name] = Parameter(None if by_name else place - own, each.default is not each.empty)
    return found


def _written(call: Any) -> list[inspect.Parameter]:
    """The parameters as they are written, of a class those of its instances; none where nobody can tell."""
    asked = call.__call__ if isinstance(call, type) else call
    try:
        written = inspect.signature(asked, follow_wrapped=False)
        if any(each.kind is each.VAR_KEYWORD for each in written.parameters.values()):  # it may hand on what it wraps asks for
            written = inspect.signature(asked)
    except (TypeError, ValueError):
        return []
    return [*written.parameters.values()]


def _static(call: type) -> bool:
    return isinstance(inspect.getattr_static(call, "__call__"), staticmethod)


class Inputs(NamedTuple):
    """What a function can be given by name, and what it takes first.

    Attributes:
        names: that can be given, and whether they have a default.
        first: what it takes by its place, if it does; without a name of its own an empty text.
        placed: what else it wants by its place only.
    """

    names: dict[str, bool]
    first: str | None
    placed: tuple[str, ...] = ()


def inputs_of(call: Any) -> Inputs:
    """The inputs of a callable, the first one, too.

    >>> inputs_of(lambda hits, tracks, *, gain=2.0: 0)
    Inputs(names={'hits': False, 'tracks': False, 'gain': True}, first='hits', placed=())
    >>> inputs_of(len)
    Inputs(names={}, first='', placed=())
    """
    written = _written(call)[1 if makes_callables(call) and not _static(call) else 0 :]
    named = {each.name: each.default is not each.empty for each in written if each.kind in _BY_NAME}
    placed = [each.name for each in written if each.kind is each.POSITIONAL_ONLY and each.default is each.empty]
    head = written[0] if written else None
    if head is None:
        return Inputs(named, None if _none(call) else "")
    if head.kind in (head.POSITIONAL_ONLY, head.VAR_POSITIONAL):
        return Inputs(named, "", tuple(placed[1:]))
    return Inputs(named, head.name if head.kind is head.POSITIONAL_OR_KEYWORD and head.name != RNG else None)


_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _none(call: Any) -> bool:
    """Whether it is known to take nothing."""
    try:
        return not inspect.signature(call.__call__ if isinstance(call, type) else call).parameters
    except (TypeError, ValueError):
        return False


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
    function = Function(value)
    if function.awaits and word != "qf.thread":
        raise GraphError(
            f"`{word}` takes a plain function, but `{function.name}` is written with `async def`. "
            f"Write `qf.thread(n=8)({function.name})`, which waits for 8 of its calls at once."
        )
    return function


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
