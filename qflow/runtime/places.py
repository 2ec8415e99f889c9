"""Places: where in an item the value lies that can't be sent, and which classes a pickle names."""

from __future__ import annotations

import functools
import io
import pickle
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import repeat, takewhile
from typing import Any

import numpy as np

from qflow.errors import describe
from qflow.graph.function import Function

PATIENCE = 1.0  # seconds of search
LEAVES = frozenset({int, float, bool, str, bytes, bytearray, type(None), complex})

Way = tuple[str, Any, Any]  # a form and a key: the step to a value; and the way of what holds it


def find(value: Any, seen: Sequence[Any], sendable: Callable[[Any], bool]) -> str:
    """In words, where in an item the last of the objects that its pickler has seen lies.

    What a ``__reduce__`` or ``__getstate__`` makes lies nowhere in the item; then the place of the last object
    before it that can't be sent is told.
    """
    if not seen:
        return f"item is {describe(value)}"
    seen = seen[-16:]
    culprit, end = seen[-1], time.monotonic() + PATIENCE
    found = dict(_places(value, {id(part) for part in seen}, end))
    for part in reversed(seen):
        if id(part) in found and time.monotonic() < end and (part is culprit or not sendable(part)):
            way, holder = found[id(part)]
            return f"item{_text(way)} is {describe(holder)}" + ("" if part is culprit else f", which holds {describe(culprit)}")
    return f"item is {describe(value)}, which holds {describe(culprit)}"


def _places(value: Any, wanted: set[int], end: float) -> Iterator[tuple[int, tuple[Way | None, Any]]]:
    """Identity of wanted objects -> the way to it, or to an instance of it, and what lies there; those near the top last."""
    waiting: deque[tuple[Any, Way | None]] = deque([(value, None)])
    met: dict[int, Any] = {}  # held, so that no identity is used again
    found: list[tuple[int, tuple[Way | None, Any]]] = []
    while waiting and time.monotonic() < end:
        part, way = waiting.popleft()
        found += [(id(each), (way, part)) for each in (part, type(part)) if id(each) in wanted]  # a class: its instance
        if id(part) not in met:
            met[id(part)] = part
            parts = takewhile(lambda _: time.monotonic() < end, inside(part))
            waiting.extend((each, (form, key, way)) for form, key, each in parts if type(each) not in LEAVES)
    yield from reversed(found)


def _text(way: Way | None) -> str:
    steps: list[str] = []
    while way is not None:
        form, key, way = way
        steps.append(form % (key if form == ".%s" else describe(key)))
    text = "".join(reversed(steps))
    return text if len(text) < 300 else f"{text[:140]} ... {text[-140:]}"


def inside(value: Any) -> Iterator[tuple[str, Any, Any]]:
    """What a value is made of, and the steps to it."""
    if isinstance(value, type | type(sys)):
        return
    with suppress(Exception):
        if isinstance(value, dict):
            yield from (("[%s]", key, each) for key, each in value.items())
            yield from ((" key %s", key, key) for key in value)
        elif isinstance(value, tuple) and hasattr(value, "_fields"):
            yield from ((".%s", name, each) for name, each in zip(value._fields, value, strict=True))
        elif isinstance(value, list | tuple | deque) or (isinstance(value, np.ndarray) and value.dtype.hasobject):
            yield from (("[%s]", number, each) for number, each in enumerate(value))
        elif isinstance(value, set | frozenset):
            yield from (("{%s}", each, each) for each in value)
        elif callable(value):
            yield from ((".%s", name, each) for name, each in captured(value))
        yield from ((".%s", name, each) for name, each in getattr(value, "__dict__", {}).items())
        for kind in type(value).__mro__:
            slots = vars(kind).get("__slots__", ())
            for name in [slots] if isinstance(slots, str) else slots:
                if hasattr(value, name):
                    yield ".%s", name, getattr(value, name)


class _Hollow:
    """Stands for whatever a pickle names; takes all that is done to it and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Hollow:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def nothing(self, *_: Any, **__: Any) -> _Hollow:
        return self

    __call__ = __setstate__ = __setitem__ = append = extend = add = update = nothing


class _Names(pickle.Unpickler):
    """Reads a pickle without running any of it, and notes what it names."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.names: dict[str, None] = {}

    def find_class(self, module: str, name: str) -> Any:
        if name == "_make_skeleton_class":  # of a class that travels by value: metaclass, name, bases, ...
            return lambda _, name, *__: (self.names.setdefault(name), _Hollow)[1]
        if module.partition(".")[0] not in ("qflow", "numpy", "torch", "builtins", "copyreg", "collections", "cloudpickle"):
            self.names[f"{module}.{name}"] = None
        return _Hollow


def classes_in(pickled: memoryview) -> list[str]:
    """The first three classes and functions of the user that a pickle names; nothing of them is run."""
    reader = _Names(io.BytesIO(pickled), buffers=repeat(b""))
    with suppress(Exception):
        reader.load()
    return list(reader.names)[:3]


def captured(function: Callable[..., Any]) -> list[tuple[str, Any]]:
    """What a function carries with it: closure, globals it names, defaults, attributes of a bound object."""
    found: list[tuple[str, Any]] = []
    function = getattr(function, "func", function)
    bound = getattr(function, "__self__", None)
    if bound is not None and not isinstance(bound, type(sys)):
        found.append(("self", bound))
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None)
    if code is None:
        found += [] if bound is not None else list(getattr(function, "__dict__", {}).items())
        return found
    cells = zip(code.co_freevars, getattr(function, "__closure__", None) or (), strict=False)
    for name, cell in cells:
        try:
            found.append((name, cell.cell_contents))
        except ValueError:
            continue
    scope = getattr(function, "__globals__", {})
    found += [(name, scope[name]) for name in code.co_names if name in scope]
    found += [("a default", value) for value in getattr(function, "__defaults__", None) or ()]
    return found


def carried(function: Function) -> list[tuple[str, Any]]:
    """What a step's function carries: what it captures, and the arguments that are bound to it or to its class."""
    args, kwargs = function.init or ((), ())
    partial = function.call if isinstance(function.call, functools.partial) else functools.partial(print)
    return [
        *captured(function.call),
        *partial.keywords.items(),
        *function.bound,
        *kwargs,
        *((f"argument {number}", value) for number, value in enumerate((*partial.args, *args))),
    ]
