"""Template: what the values of one structure have in common, and code made for that structure alone.

Values that share a cell mostly look alike: the same keys, the same types, arrays of the same shape. Then their
structure is written down once, and of each value only what differs: its leaves, each in a column of its own.

    {"x": float32[2560], "y": int}          structure
     x  | 10240 bytes | 10240 bytes | ...   column of the arrays
     y  | 8 bytes     | 8 bytes     | ...   column of the numbers

Leaves are numbers, numpy scalars, contiguous arrays and CPU tensors; short text, bytes and paths are pickled behind the
columns. For each structure there are functions that check a value, store one and load many, and for a value that has a
cell of its own others that fill the cell and view it, compiled as `dataclasses` compiles its methods. On 2 shared
cores they take 0.3, 0.5 and 0.5 us for an array, the general way (`codec`) 10 us and 6 us. The way of a dict of 20
tensors, 1 MB, into its cell and out of it takes 80 us, in loops over its columns 101 us; 27 of them are the copy.

What a value shares with itself would be lost in columns (the same array twice, two views on the same memory), so such
a value has no template, and neither has one of a subclass (but named tuples of ours), or with attributes, gradients or gaps.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import math
import operator
import pickle
import struct
import sys
from ast import literal_eval
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from qflow.graph.plan import SMALL
from qflow.runtime.parts import LARGE, Input, Taken, is_ours
from qflow.runtime.store import any_stores, store_at

Spec = Any  # a word for a leaf, or a tuple of a word, its details and the specs inside

DEPTH, LEAVES = 4, 64  # of a structure that has a template
ENDS = 64  # bytes at each end of an array that are digested
TEXTS, ODD = 256, 8  # characters of one text, and how many texts
ROW = SMALL // 8  # bytes of a value that shares a cell with others like it
LEAST, MORE = -(1 << 63), 1 << 63  # of an integer in a column
WHOLE = 0x401  # numpy's flags for C order and writable
SCALARS = {dtype.type: dtype.str for dtype in map(np.dtype, "?bhilBHILefdFD") if np.dtype(dtype.str).type is dtype.type}
WORDS = {int: "int", float: "float", bool: "bool", type(None): "none", str: "odd", bytes: "odd"}
FORMATS = {"int": ("q", 8), "float": ("d", 8), "bool": ("?", 1)}
NUMBERS = {word: struct.Struct(f"={code}") for word, (code, _) in FORMATS.items()}


def describe(value: Any, depth: int = DEPTH) -> Spec:
    """The structure of a value, or None if it has no template."""
    kind = type(value)
    word = WORDS.get(kind)
    if word is not None:
        if word == "odd" and len(value) >= TEXTS:
            return None
        return word if word != "int" or LEAST <= value < MORE else None
    if kind in SCALARS:
        return "scalar", SCALARS[kind]
    if kind is np.ndarray:
        return _array("array", value)
    if depth and (kind in (dict, list, tuple) or _everywhere(kind)):
        return _container(kind, value, depth)
    pathlib = sys.modules.get("pathlib")
    if pathlib is not None and kind is pathlib.PosixPath:
        return "path" if len(str(value)) < TEXTS else None
    torch = sys.modules.get("torch")
    if torch is not None and kind is torch.Tensor:
        return _tensor(torch, value)
    return None


def _array(word: str, value: np.ndarray[Any, Any]) -> Spec:
    dtype = value.dtype
    plain = dtype.kind in "biufcmMSU" and dtype.metadata is None and dtype.itemsize and dtype.isnative
    whole = value.ndim and value.flags.c_contiguous and (value.flags.writeable or is_ours(value))
    return (word, dtype.str, value.shape) if plain and whole else None


def _tensor(torch: Any, value: Any) -> Spec:
    plain = value.is_cpu and value.layout is torch.strided and not value.requires_grad and not value.__dict__
    if not plain or value.is_quantized or value.is_nested or getattr(value, "has_names", bool)():
        return None
    if _lent((value,)):
        return None
    try:
        return _array("tensor", value.numpy())
    except (TypeError, RuntimeError):
        return None


def _container(kind: type, value: Any, depth: int) -> Spec:
    if len(value) > LEAVES:
        return None
    if kind is dict:
        if not all(type(key) in (str, int) for key in value):
            return None
        inside = tuple(describe(each, depth - 1) for each in value.values())
        found: Spec = ("dict", tuple(value), *inside)
    else:
        inside = tuple(describe(each, depth - 1) for each in value)
        found = (kind.__name__, len(value), *inside) if kind in (list, tuple) else (kind.__qualname__, kind.__module__, *inside)
    text = repr(found)
    return None if None in inside or text.count("'odd'") + text.count("'path'") > ODD else found


def _everywhere(kind: type) -> bool:
    """Whether it is a named tuple that every process of a run can import: one of qflow's. Of others nobody knows."""
    if kind.__bases__ != (tuple,) or not hasattr(kind, "_fields") or not kind.__module__.startswith("qflow."):
        return False
    return getattr(sys.modules.get(kind.__module__), kind.__qualname__, None) is kind


class Column(NamedTuple):
    """Of one leaf: its word, the dtype and shape of a row, and the bytes of one."""

    word: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int

    @property
    def plain(self) -> bool:
        """Whether its rows are plain numbers."""
        return self.word in FORMATS

    def viewed(self, read_only: bool) -> bool:
        """Whether it is a view on the cell of a value that has one of its own: a private copy of a tensor is none."""
        return self.nbytes >= LARGE and not (read_only and self.word == "tensor")


class Alone(NamedTuple):
    """Functions for a value that has a cell of its own.

    ``fill(region, leaves, *starts)`` copies its leaves to where each column starts. ``views`` by whether it is a worker's
    input, read-only: ``view(region, odd, lease, *starts)`` -> the value, whose large arrays are views on ``lease``, the same
    bytes; None where nothing is viewed.
    """

    fill: Callable[..., None]
    views: dict[bool, Callable[..., Any] | None]


class Template:
    """A structure, with the code made for it.

    Attributes:
        key: the structure as bytes, by which the other side knows it.
        columns: of the leaves that are stored; those of "odd" leaves are none, but together one pickle.
        row: bytes of a value in all columns.
        odd: whether there are odd leaves; ``most_odd``: bytes of their pickle at most; ``no_odd``: in their place.
        large: whether a value has a cell of its own.
        number: the type of the values, if they are plain numbers.
        check: whether a value is of this structure.
        leaves: of one that is: what each column stores, and the odd leaves.
    """

    def __init__(self, spec: Spec) -> None:
        self.key = repr(spec).encode()
        self.number = {"int": int, "float": float}.get(spec) if isinstance(spec, str) else None
        self._code = code = _Code(spec)
        self.columns = code.columns
        self.odd = bool(code.odd)
        self.most_odd = (4 * TEXTS + 16) * len(code.odd) + 16 if code.odd else 0
        self.no_odd = (None,) * len(code.odd)
        self.row = sum(column.nbytes for column in self.columns)
        self.large = self.row > ROW
        names = [f"c{number}" for number in range(len(self.columns))]
        scope = {**code.scope, "dumps": pickle.dumps}
        exec(_source(code, names), scope)
        self.check: Callable[[Any], bool] = scope["check"]
        self.leaves: Callable[[Any], tuple[Any, ...]] = scope["leaves"]
        self._storer, self._loader = scope["storer"], scope["loader"]

    @functools.cached_property
    def alone(self) -> Alone:
        """What a value needs that has a cell of its own."""
        scope = dict(self._code.scope)
        exec(_source_alone(self._code), scope)
        views = {
            read_only: scope[name] if any(column.viewed(read_only) for column in self.columns) else None
            for read_only, name in ((False, "view"), (True, "view_read_only"))
        }
        return Alone(scope["fill"], views)

    def storer(self, columns: Iterable[Any], put_odd: Callable[[int, bytes], bool] | None) -> Callable[[int, Any], bool]:
        """A function that stores a value in a row of some columns -> whether it could; another one may have been begun.

        ``put_odd`` puts the pickle of its odd leaves somewhere -> whether there is room.
        """
        store: Callable[[int, Any], bool] = self._storer(put_odd, *columns)
        return store

    def values(self, columns: Iterable[list[Any]], odd: list[tuple[Any, ...]], count: int) -> list[Any]:
        """So many values, from those of each column."""
        found: list[Any] = self._loader(count, odd, *columns)
        return found


def _source(code: _Code, names: list[str]) -> str:
    """The functions."""
    checks = [f"        if {test}: return False" if test else f"        {line}" for test, line in code.steps]
    stores = [f"        {name}[k] = {leaf}" for name, leaf in zip(names, code.leaves, strict=True)]
    if code.odd:
        stores.append(f"        if not put_odd(k, dumps({_tuple(code.odd)}, 5)): return False")
    arguments = "".join(f", {name}" for name in names)
    each, columns = [f"w{number}" for number in range(len(names))], [*names]
    if code.odd:
        each, columns = [*each, "odd"], [*columns, "odds"]
    loop = f"for {', '.join(each)}, in zip({', '.join(columns)})" if each else "for _ in range(count)"
    return "\n".join(
        [
            "def check(v):",
            *(line[4:] for line in checks),
            "    return True",
            "def leaves(v):",
            *(line[4:] for line in checks),
            f"    return {_tuple([*code.leaves, _tuple(code.odd)])}",
            f"def storer(put_odd{arguments}):",
            "    def store(k, v):",
            *checks,
            *stores,
            "        return True",
            "    return store",
            f"def loader(count, odds{arguments}):",
            f"    return [{code.expression} {loop}]",
        ]
    )


def _source_alone(code: _Code) -> str:
    """Those for a value that has a cell of its own."""
    numbers = range(len(code.columns))
    arguments = "".join(f", c{number}" for number in numbers)
    lines = [
        f"def fill(region, leaves{arguments}):",
        f"    {_tuple([*(f'w{number}' for number in numbers), '_'])} = leaves",
        *(f"    {code.write(number)}" for number in numbers),
    ]
    for name, read_only in (("view", False), ("view_read_only", True)):
        lines += [
            f"def {name}(region, odd, lease{arguments}):",
            *(f"    w{number} = {code.read(number, read_only=read_only)}" for number in numbers),
            f"    return {code.expression}",
        ]
    return "\n".join(lines)


def _tuple(names: list[str]) -> str:
    return f"({''.join(f'{name}, ' for name in names)})"


class _Code:
    """Collects the code of a structure: how a value is taken apart and checked, and how it is built again."""

    def __init__(self, spec: Spec) -> None:
        self.scope: dict[str, Any] = {
            "LEAST": LEAST,
            "MORE": MORE,
            "is_ours": is_ours,
            "apart": _apart,
            "lent": _lent,
            "spread": _spread,
            "ndarray": np.ndarray,
            "Taken": Taken,
            **{f"put_{word}": number.pack_into for word, number in NUMBERS.items()},
            **{f"get_{word}": number.unpack_from for word, number in NUMBERS.items()},
        }
        self.steps: list[tuple[str, str]] = []  # a test by which a value is not of the structure, or a line
        self.columns: list[Column] = []
        self.leaves: list[str] = []  # what is stored in each column
        self.odd: list[str] = []
        self.arrays: list[str] = []
        self.tensors: list[str] = []
        self.containers: list[str] = []
        self.expression = self._part(spec, "v")
        self._apart()

    def _test(self, test: str) -> None:
        self.steps.append((test, ""))

    def _line(self, line: str) -> None:
        self.steps.append(("", line))

    def _constant(self, value: Any) -> str:
        name = f"K{len(self.scope)}"
        self.scope[name] = value
        return name

    def _part(self, spec: Spec, name: str) -> str:
        """Checks for a part -> the expression that builds it."""
        word: str
        details: list[Any]
        word, *details = (spec,) if isinstance(spec, str) else spec
        if word in ("dict", "list", "tuple"):
            return self._container(word, details, name)
        if word == "path":
            return self._path(name)
        if word == "none":
            self._test(f"{name} is not None")
            return "None"
        if word == "odd":
            self._test(f"type({name}) not in {self._constant((str, bytes))} or len({name}) >= {TEXTS}")
            self.odd.append(name)
            return f"odd[{len(self.odd) - 1}]"
        if word in FORMATS:
            self._test(f"type({name}) is not {word}" + (f" or not LEAST <= {name} < MORE" if word == "int" else ""))
            return self._column(Column(word, *FORMATS[word][:1], (), FORMATS[word][1]), name)
        if word == "scalar":
            dtype = np.dtype(details[0])
            self._test(f"type({name}) is not {self._constant(dtype.type)}")
            return self._column(Column(word, details[0], (), dtype.itemsize), name)
        if word not in ("array", "tensor"):
            return self._named(word, details, name)
        return self._array(word, details[0], details[1], name)

    def _path(self, name: str) -> str:
        """A path crosses as its text."""
        from pathlib import PosixPath

        kind = self._constant(PosixPath)
        self._test(f"type({name}) is not {kind} or len(str({name})) >= {TEXTS}")
        self.odd.append(f"str({name})")
        return f"{kind}(odd[{len(self.odd) - 1}])"

    def _named(self, word: str, details: list[Any], name: str) -> str:
        """A named tuple of qflow: its class, and its module."""
        module, *inside = details
        kind = self._constant(getattr(importlib.import_module(module), word))
        self._test(f"type({name}) is not {kind}")
        return f"{kind}{self._each(inside, name)}"

    def _each(self, inside: list[Any], name: str) -> str:
        """The parts of a tuple or its like."""
        names = [f"{name}{number}" for number in range(len(inside))]
        if names:
            self._line(f"{', '.join(names)}, = {name}")
        return _tuple([self._part(each, each_name) for each, each_name in zip(inside, names, strict=True)])

    def _column(self, column: Column, leaf: str) -> str:
        self.columns.append(column)
        self.leaves.append(leaf)
        number = len(self.columns) - 1
        if not column.plain:
            self.scope[f"S{number}"], self.scope[f"D{number}"] = column.shape, np.dtype(column.dtype)
        return f"w{number}"

    def write(self, number: int) -> str:
        """A line that writes leaf ``w`` of a column to where it starts, ``c``, in a region."""
        if self.columns[number].plain:
            return f"put_{self.columns[number].word}(region, c{number}, w{number})"
        return f"ndarray(S{number}, D{number}, region, c{number})[...] = w{number}"

    def read(self, number: int, *, read_only: bool) -> str:
        """An expression for a leaf that starts at ``c`` in a region: a large one as a view on the ``lease`` of the same bytes."""
        column, lies = self.columns[number], f"S{number}, D{number}"
        if column.plain:
            return f"get_{column.word}(region, c{number})[0]"
        if column.word == "scalar":
            return f"ndarray({lies}, region, c{number})[()]"
        if column.viewed(read_only):
            found = f"ndarray({lies}, lease, c{number})"
        elif read_only and column.word == "array":
            return f"ndarray({lies}, Taken.of(region[c{number} : c{number} + {column.nbytes}]))"
        else:
            found = f"ndarray({lies}, region, c{number}).copy()"
        return f"from_numpy({found})" if column.word == "tensor" else found

    def _array(self, word: str, text: str, shape: tuple[int, ...], name: str) -> str:
        dtype = np.dtype(text)
        array = name
        if word == "tensor":
            import torch

            tensor = torch.from_numpy(np.empty(0, dtype)).dtype
            self._test(f"type({name}) is not {self._constant(torch.Tensor)} or {name}.dtype is not {self._constant(tensor)}")
            self._test(f"{name}.__dict__ or {name}.has_names()" if hasattr(torch.Tensor, "has_names") else f"{name}.__dict__")
            self.scope["from_numpy"] = torch.from_numpy
            self.tensors.append(name)
            array = f"{name}_"
            self._line(f"try: {array} = {name}.numpy()")
            self._line("except (TypeError, RuntimeError): return False")
        else:
            self._test(f"type({name}) is not ndarray")
            self.arrays.append(array)
            same = self._constant(dtype)
            self._test(f"{array}.dtype is not {same} and ({array}.dtype != {same} or {array}.dtype.metadata is not None)")
        flags = f"{array}.flags.num & {WHOLE}"
        ours = "" if word == "tensor" else f" and not ({flags} == 1 and is_ours({array}))"
        self._test(f"{array}.shape != {self._constant(shape)} or {flags} != {WHOLE}{ours}")
        return self._column(Column(word, text, shape, dtype.itemsize * math.prod(shape)), array)

    def _container(self, word: str, details: list[Any], name: str) -> str:
        shape, *inside = details
        if word == "tuple":
            self._test(f"type({name}) is not tuple or len({name}) != {shape}")
            return self._each(inside, name)
        names = [f"{name}{number}" for number in range(len(inside))]
        if word == "dict":
            # Their types first: to compare keys of other types may be anybody's code.
            self._test(f"type({name}) is not dict or [*map(type, {name})] != {self._constant([*map(type, shape)])}")
            self._test(f"[*{name}] != {self._constant([*shape])}")
        else:
            self._test(f"type({name}) is not list or len({name}) != {shape}")
        self.containers.append(name)
        if names:
            self._line(f"{', '.join(names)}, = {name}.values()" if word == "dict" else f"{', '.join(names)}, = {name}")
        parts = [self._part(each, each_name) for each, each_name in zip(inside, names, strict=True)]
        if word == "dict":
            return "{" + ", ".join(f"{key!r}: {part}" for key, part in zip(shape, parts, strict=True)) + "}"
        return "[" + ", ".join(parts) + "]"

    def _apart(self) -> None:
        """Check that no part is met twice, and that no two arrays share memory."""
        if len(self.containers) > 1:
            names = ", ".join(self.containers)
            self._test(f"len({{*map(id, ({names}))}}) < {len(self.containers)}")
        if self.tensors:
            self._test(f"lent({_tuple(self.tensors)})")
        if len(self.tensors) > 1 and not self.arrays:
            sizes = [column.nbytes for column in self.columns if column.word == "tensor"]
            self._test(f"not spread([{', '.join(f'{name}.data_ptr()' for name in self.tensors)}], {sizes})")
        elif len(self.arrays) + len(self.tensors) > 1:
            own = [f"{name}.base is not None" for name in self.arrays]
            own += [f"{one} is {other}" for one, other in itertools.combinations(self.arrays, 2)]
            quick = f"({' or '.join(own)}) and " if not self.tensors and len(own) < LEAVES else ""
            self._test(f"{quick}not apart({_tuple(self.arrays)}, {_tuple(self.tensors)})")


def _lent(tensors: tuple[Any, ...]) -> bool:
    """Whether one of them lies in a store, so that others need only be told where (`shared`)."""
    return any_stores() and any(store_at(each.untyped_storage().data_ptr()) is not None for each in tensors)


def _apart(arrays: tuple[np.ndarray[Any, Any], ...], tensors: tuple[Any, ...]) -> bool:
    """Whether none of them shares memory with another."""
    if not tensors:
        roots = {*map(_root, arrays)}
        if len(roots) == len(arrays) and None not in roots:
            return True
    starts = [array.__array_interface__["data"][0] for array in arrays] + [tensor.data_ptr() for tensor in tensors]
    return _spread(starts, [each.nbytes for each in (*arrays, *tensors)])


def _spread(starts: list[int], sizes: Sequence[int]) -> bool:
    """Whether no two extents have a byte in common: then, and only then, the k-th end comes before the start after the k-th."""
    ends = sorted(map(operator.add, starts, sizes))
    starts.sort()
    return all(map(operator.le, ends, starts[1:]))


def _root(array: np.ndarray[Any, Any]) -> int | None:
    """The object that has the memory of an array and shares it with no other object, as a number."""
    root: Any = array
    while type(root) is np.ndarray and root.base is not None:
        root = root.base
    return id(root) if type(root) in OWNERS else None


OWNERS = frozenset({np.ndarray, bytes, bytearray, Input, Taken})


def digest(leaves: tuple[Any, ...]) -> int:
    """Of the leaves of a value: its numbers and text, and both ends of its arrays, in 32 bits."""
    *stored, odd = leaves
    found = 0
    for leaf in stored:
        if isinstance(leaf, np.ndarray):
            raw = leaf.reshape(-1).view(np.uint8)
            found = crc32(raw[-ENDS:].tobytes(), crc32(raw[:ENDS].tobytes(), found))
        else:
            found = crc32(leaf.tobytes() if isinstance(leaf, np.generic) else repr(leaf).encode(), found)
    return crc32(repr(odd).encode(), found) if odd else found


@functools.lru_cache(maxsize=64)
def of_key(key: bytes) -> Template:
    """The template of a structure as bytes."""
    return Template(literal_eval(key.decode()))


def of_spec(spec: Spec) -> Template:
    """The template of a structure."""
    return of_key(repr(spec).encode())


INT, FLOAT = b"'int'", b"'float'"
