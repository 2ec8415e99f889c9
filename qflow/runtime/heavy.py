"""Heavy: a large container that a step carries, of which every worker would get a copy of its own.

Looked for only when the step's pickle is large, and then at what lies near the top, so that it costs next to nothing.
"""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from qflow.errors import describe
from qflow.graph import bytesizes
from qflow.graph.flow import Operator
from qflow.graph.function import Function, resolve_name
from qflow.graph.plan import Group
from qflow.runtime.places import LEAVES, carried, inside
from qflow.runtime.shared import Pickler, advice
from qflow.runtime.store import Hold, holding, store_at, store_of
from qflow.runtime.whereabouts import users_line

# Elements: as strings of 20 letters they take 7.7 MB, more than a worker itself has of its own (4.5 MB, design notes section 5).
MANY = 100_000
LARGE = 8_000_000  # bytes
FEW = 32  # parts of a value that are looked at
MOST = 500  # values that are looked at


def warn_of_copies(group: Group, pickled: bytes) -> None:
    """Warn of each large container that a group carries; it is pickled in so many bytes."""
    if len(pickled) < MANY:
        return
    found = False
    for name, function in _functions(group.operators):
        for place, value, size in _heavy(function):
            _warn(f"Step {name!r} carries `{place}`, a {type(value).__name__} of {size}", value, place)
            found = True
    if not found and len(pickled) >= LARGE:
        _warn(*_largest(group))


def _warn(what: str, value: Any, place: str) -> None:
    text = f"{what}; every worker gets a copy of its own. {_instead(value, place)}"
    warnings.warn(text, RuntimeWarning, stacklevel=users_line())


def _instead(value: Any, place: str) -> str:
    if isinstance(value, list | tuple | deque | np.ndarray) or hasattr(value, "data_ptr"):
        name = place if place.isidentifier() else "x"
        return f"Write `{name} = qf.shared({name})`, which lies in memory once for all of them."
    if isinstance(value, dict | set | frozenset | str | bytes | bytearray):
        return advice(value)
    return "Write `qf.shared(part)` for its large parts, which lie in memory once for all of them."


def _functions(operators: Iterable[Operator[Any, Any]]) -> Iterator[tuple[str, Function]]:
    """The functions of operators, those in chains, too."""
    for operator in operators:
        function = getattr(operator, "function", None)
        if isinstance(function, Function):
            inner = getattr(function.call, "operators", ())
            yield from _functions(inner) if inner else [(operator.name, function)]


def _heavy(function: Function) -> Iterator[tuple[str, Any, str]]:
    """What is large in what a function carries: its place, itself, and its size in words."""
    waiting = deque(carried(function))
    met: dict[int, Any] = {}  # held, so that no identity is used again
    while waiting and len(met) < MOST:
        place, value = waiting.popleft()
        if id(value) in met or type(value) in LEAVES - {str, bytes, bytearray} or _by_name(value):
            continue
        met[id(value)] = value
        size = _size(value)
        if size:
            yield place, value, size
        else:
            parts = islice(inside(value), FEW)
            waiting.extend((place + form % (key if form == ".%s" else repr(key)), each) for form, key, each in parts)


def _by_name(value: Any) -> bool:
    """Whether it is a function or class that each worker imports."""
    module, name = _attribute(value, "__module__"), _attribute(value, "__qualname__")
    return isinstance(name, str) and module != "__main__" and resolve_name(module, name) is value


def _attribute(value: Any, name: str) -> Any:
    """An attribute of an object that may be anyhow; None when it has none."""
    with contextlib.suppress(Exception):
        return getattr(value, name, None)
    return None


def _size(value: Any) -> str:
    """How large, in words; empty where it does not matter, or it is shared."""
    if isinstance(value, list | tuple | dict | set | frozenset | deque):
        return f"{len(value)} elements" if len(value) >= MANY else ""
    if isinstance(value, str | bytes | bytearray):
        return bytesizes.show(len(value)) if len(value) >= LARGE else ""
    size = _attribute(value, "nbytes")
    return bytesizes.show(size) if isinstance(size, int) and size >= LARGE and not _is_shared(value) else ""


def _is_shared(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return store_of(value) is not None
    torch = sys.modules.get("torch")
    strided = torch is not None and isinstance(value, torch.Tensor) and value.is_cpu and value.layout is torch.strided
    return strided and store_at(value.untyped_storage().data_ptr()) is not None


def _largest(group: Group) -> tuple[str, Any, str]:
    """Of what is large only as a whole, the largest: a sentence, itself and its place."""
    parts = [(name, *part) for name, function in _functions(group.operators) for part in carried(function)]
    name, place, value = max(parts, key=lambda part: _sent(part[2]), default=(group.name, "x", None))
    return f"Step {name!r} carries `{place}`, {describe(value)} of {bytesizes.show(_sent(value))}", value, place


def _sent(value: Any) -> int:
    """Bytes that are sent of a value."""
    file = io.BytesIO()
    with contextlib.suppress(Exception), holding(Hold(room=sys.maxsize)):
        Pickler(file, 5).dump(value)
    return file.tell()
