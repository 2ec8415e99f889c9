"""Fingerprint: a digest of what a function does and what a value is, the same in every process with the same code and data.

Of a function: its code, its defaults, what it closes over, and the functions, classes and values that it names in its module; all
of that of functions in the user's own files, and names and versions of what is installed. What an attribute of an object turns
out to be, and what is imported inside of a function, is not followed. Of a source: its items, or the values by which an object
is pickled; of names of files that exist their size and time of change, too.

Source of the digest: BLAKE2b (RFC 7693).
"""

from __future__ import annotations

import copyreg
import functools
import marshal
import os
import stat
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Any

SCALARS = frozenset({int, float, bool, complex, str, bytes, type(None)})
SLOTS = "__slots__"
DEEP = 4000  # calls


class Unknown(Exception):
    """A value of which nobody can tell whether it is the same another time."""


def fingerprint(*values: Any, files: bool = False, lenient: bool = False) -> str:
    """32 hexadecimal digits for values.

    >>> fingerprint(lambda x: x + 1) == fingerprint(lambda x: x + 1), fingerprint(lambda x: x + 2) == fingerprint(lambda x: x + 1)
    (True, False)

    Args:
        files: texts and paths that name files stand for these.
        lenient: of iterators, locks and their like it is enough what they are; around functions it always is.
    Raises:
        Unknown: an iterator, or an object that can't be pickled, or that holds others too deeply.
    """
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, DEEP))
    try:
        return _Walk(files, lenient).digest(values).hex()
    except RecursionError:
        raise Unknown(f"nested too deeply, {DEEP} calls") from None
    finally:
        sys.setrecursionlimit(before)


class _Walk:
    """One look through values; it knows those that it is in, for they may hold themselves, and those that it has done."""

    def __init__(self, files: bool, lenient: bool) -> None:
        self._files, self._lenient = files, lenient
        self._inside: list[int] = []
        self._done: dict[int, tuple[bytes, Any]] = {}

    def digest(self, value: Any) -> bytes:
        kind = type(value)
        if kind in SCALARS:
            return _hash(kind.__name__, repr(value), self._file(value))
        if id(value) in self._done:
            return self._done[id(value)][0]
        if id(value) in self._inside:
            return _hash("again", str(len(self._inside) - self._inside.index(id(value))))
        self._inside.append(id(value))
        found = _hash(f"{kind.__module__}.{kind.__qualname__}", *self._parts(value))
        self._inside.pop()
        self._done[id(value)] = found, value
        return found

    def _parts(self, value: Any) -> list[bytes | str]:
        """What makes up a value."""
        match value:
            case list() | tuple() if type(value) in (list, tuple):
                if all(type(each) in SCALARS for each in value):  # version 2 knows no references: equal values, equal bytes
                    return [marshal.dumps(value, 2), *(self._file(each) for each in value if type(each) is str)]
                return [*map(self.digest, value)]
            case dict() if type(value) is dict:
                return [self.digest(each) for pair in value.items() for each in pair]
            case set() | frozenset():
                return sorted(map(self.digest, value))
            case range() | slice():
                return [repr(value)]
            case types.ModuleType():
                return [_module(value.__name__)]
            case types.CodeType():
                return self._code(value)
            case types.FunctionType():
                return self._function(value)
            case types.MethodType():
                return [self.digest(value.__func__), self.digest(value.__self__)]
            case functools.partial():
                return [self.digest(each) for each in (value.func, value.args, value.keywords)]
            case types.BuiltinFunctionType() | types.MethodWrapperType() if _bound(value):
                return [value.__name__, self.digest(value.__self__)]
            case types.BuiltinFunctionType() | types.WrapperDescriptorType() | types.MethodDescriptorType():
                return [str(value.__qualname__), _module(getattr(value, "__module__", None))]
            case types.CellType():
                return [self.digest(_content(value))]
            case staticmethod() | classmethod():
                return [self.digest(value.__func__)]
            case property():
                return [self.digest(each) for each in (value.fget, value.fset, value.fdel)]
            case type():
                return self._class(value)
            case os.PathLike():
                return [os.fspath(value), self._file(os.fspath(value))]
            case memoryview() | bytearray():
                return [bytes(value)]
        return self._object(value)

    def _file(self, value: Any) -> str:
        if not self._files or type(value) is not str or not 0 < len(value) < 4096:
            return ""
        try:
            found = os.stat(value)
        except (OSError, ValueError):
            return ""
        return "a folder" if stat.S_ISDIR(found.st_mode) else f"{found.st_size} {found.st_mtime_ns}"

    def _code(self, code: types.CodeType) -> list[bytes | str]:
        names = [code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars]
        counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
        return [code.co_code, repr(names), repr(counts), *map(self.digest, code.co_consts)]

    def _function(self, function: types.FunctionType) -> list[bytes | str]:
        if _installed(function.__module__):
            return [function.__qualname__, _module(function.__module__)]
        names = _names(function.__code__)
        named = {name: function.__globals__[name] for name in names if name in function.__globals__}
        named |= {str(number): _content(cell) for number, cell in enumerate(function.__closure__ or ())}
        lenient, self._lenient = self._lenient, True
        try:
            around = [part for value in named.values() for part in self._around(value, names)]
            more = function.__code__, function.__defaults__, function.__kwdefaults__
            return [repr([*named]), *map(self.digest, more), *around]
        finally:
            self._lenient = lenient

    def _around(self, value: Any, names: list[str], deep: int = 4) -> Iterator[bytes]:
        """What a function refers to; of a module of the user's also what may be one of its names there."""
        yield self.digest(value)
        if isinstance(value, types.ModuleType) and not _installed(value.__name__) and deep:
            for name in names:
                if name in vars(value):
                    yield from self._around(vars(value)[name], names, deep - 1)

    def _class(self, kind: type) -> list[bytes | str]:
        if _installed(kind.__module__):
            return [kind.__qualname__, _module(kind.__module__)]
        skipped = {"__module__", "__dict__", "__weakref__", "__doc__", "__annotations__", *vars(kind).get(SLOTS, ())}
        own = {name: value for name, value in vars(kind).items() if name not in skipped and not name.startswith("_abc")}
        return [kind.__qualname__, *map(self.digest, kind.__bases__), self.digest(own)]

    def _object(self, value: Any) -> list[bytes | str]:
        if isinstance(value, Mapping) and type(value).__module__ == "builtins":  # the namespace of a class
            return [self.digest(dict(value))]
        content = _array(value)
        if content is not None:
            return content
        wrapped = getattr(value, "__wrapped__", None)  # as that of `functools.lru_cache`
        if callable(wrapped) and _installed(type(value).__module__):
            return [self.digest(wrapped)]
        reducer = copyreg.dispatch_table.get(type(value))
        try:
            if hasattr(type(value), "__next__"):
                raise TypeError("an iterator")
            reduced = value.__reduce_ex__(5) if reducer is None else reducer(value)
        except Exception as error:
            if self._lenient:
                return []
            raise Unknown(f"{type(value).__name__}: {error}") from error
        if isinstance(reduced, str):
            return [reduced, _module(type(value).__module__)]
        make, args, *state = reduced
        parts = [self.digest(each) for each in (make, args, *state[:1])]
        return [*parts, *(self.digest([*each]) for each in state[1:3] if each is not None)]


def _array(value: Any) -> list[bytes | str] | None:
    """The bytes of an array or tensor."""
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if torch is not None and type(value) in (torch.Tensor, torch.nn.Parameter) and value.layout is torch.strided:
        plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous().view(-1)
        raw = plain.view(torch.uint8).numpy().data if value.numel() else b""
        return [str(value.dtype), str(tuple(value.shape)), str(value.requires_grad), _hash(raw)]
    if numpy is not None and type(value) in (numpy.ndarray, numpy.memmap) and not value.dtype.hasobject:
        return [str(value.dtype), str(value.shape), _hash(numpy.ascontiguousarray(value).reshape(-1).view(numpy.uint8).data)]
    return None


def _names(code: types.CodeType) -> list[str]:
    """The global names that code may look up, that of functions inside it, too."""
    inner = (name for each in code.co_consts if isinstance(each, types.CodeType) for name in _names(each))
    return sorted({*code.co_names, *inner})


def _bound(function: Any) -> bool:
    """Whether a built-in one is a method of an object."""
    return not isinstance(function.__self__, types.ModuleType | None)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return "empty"


def _module(name: str | None) -> str:
    """A module's name and version, or its text, if it is the user's."""
    module = sys.modules.get(name or "")
    if not _installed(name):
        file = getattr(module, "__file__", None)
        if file is None or not os.path.isfile(file):
            return str(name)
        with open(file, "rb") as text:
            return f"{name} {_hash(text.read()).hex()}"
    top = sys.modules.get(str(name).partition(".")[0])
    return f"{name} {getattr(top, '__version__', '')}"


@functools.lru_cache(4096)
def _installed(name: str | None) -> bool:
    """Whether a module is Python's, or was installed, and has a version."""
    module = sys.modules.get(name or "")
    if module is None or name == "__main__":
        return False
    file = getattr(module, "__file__", None)
    if file is None:
        return True
    paths = sysconfig.get_paths()
    return any(os.path.abspath(file).startswith(paths[each] + os.sep) for each in ("stdlib", "platstdlib", "purelib", "platlib"))


def _hash(*parts: Any) -> bytes:
    found = blake2b(digest_size=16)
    for part in parts:
        raw = part.encode(errors="surrogatepass") if isinstance(part, str) else part
        found.update(len(raw).to_bytes(8, "little"))
        found.update(raw)
    return found.digest()
