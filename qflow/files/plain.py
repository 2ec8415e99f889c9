"""Plain: metadata as JSON that anybody may read, and back; what JSON has no word for is an object with one key, its kind.

    np.float64(1.5)  {"$float64": 1.5}       (1, 2)  {"$tuple": [1, 2]}       np.arange(2)  {"$array": ["int64", [2], "AAAA..."]}

Reading builds these kinds and no others: no code of the file is ever run.
"""

from __future__ import annotations

import base64
import datetime
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


class NotPlain(TypeError):
    """A value that has no such words."""


def to_plain(value: Any) -> Any:
    """What `json` takes, for a value of metadata.

    >>> to_plain({"median": np.float64(1.5), "shape": (2, 3)})
    {'median': {'$float64': 1.5}, 'shape': {'$tuple': [2, 3]}}

    Raises:
        NotPlain: there is no word for it.
    """
    kind = type(value)
    if kind is float and not math.isfinite(value):
        return {"$float": repr(value)}
    if kind in (str, int, float, bool, type(None)):
        return value
    if kind is list:
        return [*map(to_plain, value)]
    if isinstance(value, Mapping):
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: to_plain(each) for key, each in value.items()}
        return {"$dict": [[to_plain(key), to_plain(each)] for key, each in value.items()]}
    if isinstance(value, np.generic) and _SCALARS.get(kind.__name__.rstrip("_")) is kind:
        return {f"${kind.__name__.rstrip('_')}": to_plain(value.item())}
    if kind is np.ndarray and value.dtype.kind in "biufc":
        return {"$array": [value.dtype.str, list(value.shape), base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()]}
    for name, (known, write, _) in _KINDS.items():
        if kind is known or (known is Path and isinstance(value, Path)):
            return {name: write(value)}
    raise NotPlain(f"{kind.__name__}: {value!r:.80}")


def from_plain(value: Any) -> Any:
    """The value again.

    Raises:
        ValueError, TypeError: these are no such words.
    """
    if isinstance(value, list):
        return [*map(from_plain, value)]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((name, words),) = value.items()
        if name == "$dict":
            return {from_plain(key): from_plain(each) for key, each in words}
        if name == "$float":
            return float(words)
        if name == "$array":
            dtype, shape, data = words
            if np.dtype(dtype).kind not in "biufc":
                raise ValueError(f"an array of {dtype!r}")
            return np.frombuffer(base64.b64decode(data), dtype).reshape(shape).copy()
        if name in _KINDS:
            return _KINDS[name][2](words)
        if name.startswith("$") and name[1:] in _SCALARS:
            return _SCALARS[name[1:]](from_plain(words))
    for name in value:
        if name.startswith("$"):
            raise ValueError(f"unknown words {name!r}")
    return {key: from_plain(each) for key, each in value.items()}


def _many(kind: type[Any]) -> tuple[type[Any], Callable[[Any], Any], Callable[[Any], Any]]:
    return kind, lambda values: [*map(to_plain, values)], lambda words: kind(map(from_plain, words))


_NUMBERS = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128"
_SCALARS: dict[str, Any] = {name: np.dtype(name).type for name in (*_NUMBERS.split(), "str")}
_KINDS: dict[str, tuple[type[Any], Callable[[Any], Any], Callable[[Any], Any]]] = {
    "$tuple": _many(tuple),
    "$set": _many(set),
    "$frozenset": _many(frozenset),
    "$complex": (complex, lambda value: [to_plain(value.real), to_plain(value.imag)], lambda w: complex(*map(from_plain, w))),
    "$bytes": (bytes, lambda value: base64.b64encode(value).decode(), base64.b64decode),
    "$path": (Path, str, Path),
    "$datetime": (datetime.datetime, datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    "$date": (datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    "$time": (datetime.time, datetime.time.isoformat, datetime.time.fromisoformat),
}
