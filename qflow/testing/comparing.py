"""Comparing: where two values differ, in words; equal means of the same type, dtype and shape, too."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np

from qflow.errors import describe


class Difference(NamedTuple):
    """Where two values differ, as code behind the name of a value, and what is there in each."""

    place: str
    first: str
    second: str

    def told(self, name: str) -> str:
        """In words, for two values of one name, one after the other.

        >>> Difference("[0].dtype", "float32", "float64").told("result")
        'result[0].dtype was float32, then float64'
        """
        return f"{name}{self.place} was {self.first}, then {self.second}"


def difference(first: Any, second: Any) -> Difference | None:
    """The first place where two values differ, or None.

    >>> difference({"x": [1, 2]}, {"x": [1, 2.0]})
    Difference(place="['x'][1]", first='2 of type int', second='2.0 of type float')
    >>> difference(np.array([1.0, np.nan]), np.array([1.0, np.nan])) is None
    True

    Arrays and tensors are compared by dtype, shape and elements, containers element by element, other
    objects by their ``equals`` or ``==``, or, where these do not say yes, by what they are pickled as. NaN
    equals NaN. Functions, classes and modules are equal to themselves only.
    """
    return next(_unlike(first, second, "", {}), None)


Seen = dict[tuple[int, int], tuple[Any, Any]]  # pairs under comparison; they live on, else others would get their ids


def _unlike(first: Any, second: Any, place: str, seen: Seen) -> Iterator[Difference]:
    """The differences of two values."""
    if first is second or (id(first), id(second)) in seen:
        return
    seen[id(first), id(second)] = first, second
    torch = sys.modules.get("torch")
    if type(first) is not type(second):
        yield Difference(place, *(f"{describe(each)} of type {type(each).__name__}" for each in (first, second)))
    elif type(first) is np.ndarray or isinstance(first, np.generic):
        yield from _unlike_arrays(np.asarray(first), np.asarray(second), place, seen)
    elif torch is not None and isinstance(first, torch.Tensor):
        yield from _unlike_tensors(first, second, place)
    elif isinstance(first, dict):
        yield from _unlike_items(_by_key(first), _by_key(second), place, seen)
    elif isinstance(first, list | tuple | deque):
        yield from _unlike_items(_by_number(first), _by_number(second), place, seen)
    elif not _equal(first, second):
        yield from _unlike_objects(first, second, place, seen)


def _unlike_arrays(first: Any, second: Any, place: str, seen: Seen) -> Iterator[Difference]:
    yield from _unlike_attributes(first, second, place, ("dtype", "shape"))
    if first.dtype != second.dtype or first.shape != second.shape:
        return
    if first.dtype.hasobject:
        yield from _unlike(first.tolist(), second.tolist(), place, seen)
    elif first.dtype.names:
        for name in first.dtype.names:
            yield from _unlike(first[name], second[name], f"{place}[{name!r}]", seen)
    else:
        unequal = (first != second) & ~((first != first) & (second != second))
        for index in map(tuple, np.argwhere(unequal)[:1].tolist()):
            yield Difference(_element(place, index), str(first[index]), str(second[index]))


def _unlike_tensors(first: Any, second: Any, place: str) -> Iterator[Difference]:
    yield from _unlike_attributes(first, second, place, ("dtype", "shape", "device", "layout", "requires_grad"))
    if first.dtype != second.dtype or first.shape != second.shape:
        return
    one, other = (_dense(each.detach()) for each in (first, second))
    unequal = (one != other) & ~((one != one) & (other != other))
    for index in map(tuple, unequal.nonzero()[:1].tolist()):
        yield Difference(_element(place, index), str(one[index].item()), str(other[index].item()))


def _dense(tensor: Any) -> Any:
    """A tensor that compares element by element."""
    tensor = tensor.dequantize() if tensor.is_quantized else tensor
    return tensor.to_dense() if tensor.layout is not sys.modules["torch"].strided else tensor


def _element(place: str, index: tuple[int, ...]) -> str:
    return f"{place}[{', '.join(map(str, index))}]" if index else place


def _unlike_attributes(first: Any, second: Any, place: str, names: Iterable[str]) -> Iterator[Difference]:
    for name in names:
        if getattr(first, name) != getattr(second, name):
            yield Difference(f"{place}.{name}", str(getattr(first, name)), str(getattr(second, name)))


def _unlike_items(first: dict[str, Any], second: dict[str, Any], place: str, seen: Seen) -> Iterator[Difference]:
    """The differences of what two values are made of, by place."""
    for key in first | second:
        if key in first and key in second:
            yield from _unlike(first[key], second[key], place + key, seen)
        else:
            yield Difference(place + key, *(describe(part[key]) if key in part else "absent" for part in (first, second)))


def _by_key(value: dict[Any, Any]) -> dict[str, Any]:
    return {f"[{describe(key)}]": part for key, part in value.items()}


def _by_number(value: Iterable[Any]) -> dict[str, Any]:
    return {f"[{number}]": part for number, part in enumerate(value)}


def _equal(first: Any, second: Any) -> bool:
    """Whether two values of one type say that they are equal; NaN does not, but is meant."""
    try:
        equals = getattr(type(first), "equals", None)  # as tables of pandas, polars and pyarrow have
        return bool(equals(first, second) if equals else first == second or (first != first and second != second))
    except Exception:
        return False


def _unlike_objects(first: Any, second: Any, place: str, seen: Seen) -> Iterator[Difference]:
    """The differences of what two objects are pickled as."""
    tables = hasattr(type(first), "equals")
    parts = (None, None) if tables else (_pickled(first), _pickled(second))
    if parts[0] is None or parts[1] is None:
        one, other = describe(first), describe(second)
        yield Difference(place, one, other if one != other else "another " + other)
    else:
        yield from _unlike_items(parts[0], parts[1], place, seen)


def _pickled(value: Any) -> dict[str, Any] | None:
    """What an object is made of, by place; None: it is no object made of parts."""
    if isinstance(value, int | float | complex | str | bytes | bytearray | set | frozenset | FunctionType | type | ModuleType):
        return None
    try:
        reduced = value.__reduce_ex__(4)
    except Exception:
        return None
    if isinstance(reduced, str):
        return None
    make, args, *more = reduced
    state, listed, keyed = (*more, None, None, None)[:3]
    found = {".__reduce__()": (make, args), "[:]": list(listed or ()), ".items()": list(keyed or ())}
    for part in state if _slotted(state) else (state,):
        found |= {f".{name}": each for name, each in part.items()} if isinstance(part, dict) else {".__getstate__()": part}
    return found


def _slotted(state: Any) -> bool:
    """Whether a state is that of attributes, and of those in slots."""
    return isinstance(state, tuple) and len(state) == 2 and isinstance(state[0], dict | None) and isinstance(state[1], dict)
