"""Shared: ``qf.shared(x)``, a large list, array or tensor that lies in memory once and is read by every process.

A list becomes a `SharedSequence` over a column of bytes, an array and a tensor stay what they are:

    elements  str, bytes, Path               int, float, bool          all others
    bytes     text text text ... | ends      number number ...         pickle pickle ... | ends

The bytes are a `store`'s. A sequence, and every view on it, or on an array or tensor, travels as a reference to the store
wherever somebody holds that, else as a copy of its own elements.
"""

from __future__ import annotations

import functools
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar, final, overload

import cloudpickle
import numpy as np
from numpy.typing import NDArray

from qflow.errors import GraphError, TransportError, describe, got
from qflow.runtime.store import HEAD, Reference, Store, Writer, any_stores, holding, opened, store_at, store_of, travelling

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
S = TypeVar("S", bound=np.generic)

CHUNK = 1 << 16  # elements that are written at once
SHOWN = 3  # elements of a repr
TEXT = "utf-8", "surrogatepass"

PATHLIB = "pathlib", "pathlib._local"
_PATHS = frozenset({"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"})  # of pathlib, loaded when there is one
_NUMBERS = {"int": "q", "float": "d", "bool": "?"}  # as `array` and `memoryview` call them
_PICKLED = "pickled"


@overload
def shared(values: NDArray[S]) -> NDArray[S]: ...
@overload
def shared(values: Tensor) -> Tensor: ...
@overload
def shared(values: Sequence[T]) -> Sequence[T]: ...
def shared(values: Any) -> Any:
    """Put a large index into memory once, for all workers to read.

    >>> import qflow as qf
    >>> paths = qf.shared([f"event-{number}.h5" for number in range(1000)])
    >>> list(qf.run(qf.process(n=2)(lambda number: paths[number]), [3, -1]))
    ['event-3.h5', 'event-999.h5']
    >>> paths[10:20]
    qf.shared(['event-10.h5', 'event-11.h5', 'event-12.h5', ...])  # 10 elements

    A list becomes a read-only sequence that gives equal elements of the same types: ``x[3]``, ``x[-1]``, ``x[np.int64(3)]``,
    a slice is a view without a copy, an array of ints or bools picks a list. Each reading makes the element anew, in about 1 us.
    An array becomes a read-only array, a tensor a tensor whose changes stay in the process that makes them; both are plain
    ones, and their views lie there, too.

    Steps may use it as closure, global, argument or attribute; a run's source may be it or have it, or views on it, in its
    items. Workers get a reference and map the same pages; what a worker itself has made is sent as a copy. Other programs'
    pickle copies arrays and tensors; of a sequence it takes a reference, too, good while the process that pickled it keeps it.
    A module that workers import makes its own in each: give it to steps as an argument.

    Memory: the elements' bytes (UTF-8 for text, 8 for a number, 1 for a bool; where they are not all str, bytes, Path, int, float
    or bool, a pickle of each, which takes about 2 us to read), and, but for numbers, 4 more for each (8 above 4 GiB). They lie in
    anonymous shared memory, which goes with the last object on it. While it is made, 4 more for each.

    Args:
        values: a sequence (list, tuple), a numpy array without objects, or a dense tensor of the CPU without gradient.
            What is shared already is given back.
    Raises:
        GraphError: it is none of these.
        TransportError: an element can't be pickled.
        ResourceError: the machine has no room for it.
    """
    if isinstance(values, SharedSequence):
        return values
    if isinstance(values, np.ndarray):
        return _shared_array(values)
    if isinstance(values, getattr(sys.modules.get("torch"), "Tensor", ())):
        return _shared_tensor(values)
    if not isinstance(values, Sequence) or isinstance(values, str | bytes | bytearray | memoryview):
        raise GraphError(f"`qf.shared` takes a list, array or tensor, but got {got(values)}. {advice(values)}")
    return _shared_sequence(values)


def advice(values: Any) -> str:
    """What to write for a value that can't be shared as it is."""
    if isinstance(values, str | bytes | bytearray | memoryview):
        return "For one text write `qf.shared([x])`, for its bytes `qf.shared(np.frombuffer(x, np.uint8))`."
    if isinstance(values, Mapping):
        return "Write `keys, values = qf.shared(list(x)), qf.shared(list(x.values()))`, sorted to be searched by `bisect`."
    if isinstance(values, AbstractSet):
        return "Write `qf.shared(sorted(x))`, and search it by `bisect`."
    if hasattr(values, "to_numpy"):
        return "Write `qf.shared(x.to_numpy())`, or `qf.shared(x.tolist())` for texts."
    return "Write `qf.shared(list(x))`." if isinstance(values, Iterable) else "Write `qf.shared([x])` for one element."


# ---- sequences


class Column(NamedTuple):
    """Elements as bytes.

    Attributes:
        form: the name of their type, or "pickled".
        data: their bytes.
        ends: where the first begins and each one ends; None for numbers.
        store: what has the bytes; None where they are this process's own.
    """

    form: str
    data: memoryview
    ends: memoryview | None
    store: Store | None = None

    def reader(self) -> Callable[[int], Any]:
        """What gives the element of a number."""
        data, ends = self.data, self.ends
        if ends is None:
            if not data.nbytes:
                return int  # which nobody will call
            return data.cast(_NUMBERS[self.form]).__getitem__  # type: ignore[call-overload, no-any-return]
        if self.form == "str":
            return lambda number: data[ends[number] : ends[number + 1]].tobytes().decode("utf-8", "surrogatepass")
        make = _MAKE[self.form]
        return lambda number: make(data[ends[number] : ends[number + 1]].tobytes())

    def part(self, start: int, stop: int) -> Column:
        """The elements from one number to another, in bytes of their own."""
        if self.ends is None:
            size = _itemsize(self.form)
            return Column(self.form, self.data[start * size : stop * size], None)
        ends = np.asarray(self.ends[start : stop + 1])
        return Column(self.form, self.data[ends[0] : ends[-1]], memoryview(ends - ends[0]))


def _itemsize(form: str) -> int:
    return np.dtype(_NUMBERS[form]).itemsize


def _path(kind: str, data: bytes) -> Any:
    import pathlib

    return getattr(pathlib, kind)(data.decode(*TEXT))


_MAKE: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    _PICKLED: cloudpickle.loads,
    **{name: functools.partial(_path, name) for name in _PATHS},
}


@final
class SharedSequence(Sequence[T]):
    """Elements of a column, made when they are read; those that a slice chose.

    Equal to a list, or another one, with equal elements; not hashable, as a list is not.
    """

    __slots__ = ("__weakref__", "_column", "_numbers", "_read")
    __hash__: ClassVar[None]  # type: ignore[assignment]

    def __init__(self, column: Column, numbers: range, read: Callable[[int], T] | None = None) -> None:
        self._column, self._numbers = column, numbers
        self._read = read or column.reader()

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    @overload
    def __getitem__(self, index: NDArray[Any] | list[int]) -> list[T]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return SharedSequence(self._column, self._numbers[index], self._read)
        try:
            number = self._numbers[index]
        except IndexError:
            raise IndexError(f"index {index} is out of range: there are {len(self)} elements") from None
        except TypeError:
            return self._picked(index)
        return self._read(number)

    def _picked(self, index: Any) -> list[T]:
        chosen = np.asarray(index if isinstance(index, np.ndarray | list) else None)
        if chosen.ndim != 1 or (chosen.dtype.kind not in "iub" and len(chosen)):
            raise TypeError(f"an index is an int, a slice, or an array of ints or bools, but got {got(index)}")
        if chosen.dtype.kind == "b":
            if len(chosen) != len(self):
                raise IndexError(f"a mask of {len(chosen)} bools does not fit {len(self)} elements")
            chosen = np.flatnonzero(chosen)
        return [self[number] for number in chosen.tolist()]

    def __iter__(self) -> Iterator[T]:
        return map(self._read, self._numbers)

    def __reversed__(self) -> Iterator[T]:
        return map(self._read, reversed(self._numbers))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, SharedSequence) and other._column is self._column and other._numbers == self._numbers:
            return True
        if not isinstance(other, SharedSequence | list):
            return NotImplemented
        return len(self) == len(other) and all(mine is theirs or mine == theirs for mine, theirs in zip(self, other, strict=True))

    def __repr__(self) -> str:
        shown = [*map(describe, self[:SHOWN])]
        if len(self) <= SHOWN:
            return f"qf.shared([{', '.join(shown)}])"
        return f"qf.shared([{', '.join(shown)}, ...])  # {len(self)} elements"

    def __copy__(self) -> SharedSequence[T]:
        return self

    def __deepcopy__(self, memo: Any) -> SharedSequence[T]:
        return self

    # ---- travelling

    def __reduce__(self) -> tuple[Any, ...]:
        store = self._column.store
        return self._as_reference(None if store is None else store.refer()) or self._as_copy()

    def reduced(self) -> tuple[Any, ...]:
        """As `__reduce__`, by reference only if this thread's hold has the store."""
        store, hold = self._column.store, travelling.hold
        return self._as_reference(None if store is None or hold is None else hold.refer(store)) or self._as_copy()

    def _as_reference(self, reference: Reference | None) -> tuple[Any, ...] | None:
        if reference is None:
            return None
        form, data, ends, _ = self._column
        layout = form, data.nbytes, *(("", 0) if ends is None else (ends.format, len(ends)))
        return _referred, (tuple(reference), *layout, self._numbers)

    def _as_copy(self) -> tuple[Any, ...]:
        numbers = self._numbers
        if numbers.step != 1:
            return _copied, (list(self),)
        form, data, ends, _ = self._column.part(numbers.start, numbers.stop) if numbers else Column(_PICKLED, *_NOTHING)
        return _rebuilt, (form, np.frombuffer(data, np.uint8), None if ends is None else np.asarray(ends), len(numbers))


_NOTHING = memoryview(b""), memoryview(bytes(4)).cast("I")


def _referred(reference: tuple[Any, ...], form: str, size: int, code: str, count: int, numbers: range) -> SharedSequence[Any]:
    store = opened(Reference(*reference))
    return SharedSequence(_column(store, form, size, code, count), numbers)


def _column(store: Store, form: str, size: int, code: str, count: int) -> Column:
    """The column that lies in a store: its data, then its ends, aligned to 64 bytes."""
    content = memoryview(store)[HEAD:]
    start = _aligned(size)
    ends = content[start : start + count * np.dtype(code).itemsize].cast(code) if code else None  # type: ignore[call-overload]
    return Column(form, content[:size], ends, store)


def _rebuilt(form: str, data: NDArray[Any], ends: NDArray[Any] | None, count: int) -> SharedSequence[Any]:
    column = Column(form, memoryview(data), None if ends is None else memoryview(ends))  # type: ignore[arg-type]
    return SharedSequence(column, range(count))


def _copied(values: list[T]) -> SharedSequence[T]:
    data = io.BytesIO()
    form, ends = _write(values, data.write)
    own = None if ends is None else memoryview(np.concatenate(list(_joined(ends))))  # type: ignore[arg-type]
    return SharedSequence(Column(form, data.getbuffer(), own), range(len(values)))


# ---- making


def _shared_sequence(values: Sequence[T]) -> SharedSequence[T]:
    with Writer() as writer, holding(None):
        form, lengths = _write(values, writer.write)
        size = writer.size
        code, count = "", 0
        if lengths is not None:
            writer.write(bytes(_aligned(size) - size))
            for part in _joined(lengths):
                code = part.dtype.char
                count += len(part)
                writer.write(part)
        store = writer.store()
    count = count - 1 if code else size // _itemsize(form)
    return SharedSequence(_column(store, form, size, code, count + 1 if code else 0), range(count))


def _aligned(size: int) -> int:
    return (size + 63) & -64


def _write(values: Sequence[Any], write: Callable[[Any], Any]) -> tuple[str, list[NDArray[Any]] | None]:
    """Write the elements' bytes -> their form, and the lengths of each if they have not all the same."""
    form = _form_of(values)
    elements = iter(values)
    chunks = iter(lambda: list(islice(elements, CHUNK)), [])
    if form in _NUMBERS:
        for chunk in chunks:
            write(np.array(chunk, _NUMBERS[form]))
        return form, None
    pickler = _Elements()
    lengths = []
    for chunk in chunks:
        joined, sizes = _parts(form, chunk, pickler)
        write(joined)
        lengths.append(sizes)
    return form, lengths


def _form_of(values: Sequence[Any]) -> str:
    """How elements are written: plainly if all are of one type, else pickled."""
    kinds = {*map(type, values)}
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind is int:
        return "int" if min(values) >= -(1 << 63) and max(values) < 1 << 63 else _PICKLED
    if kind in (str, bytes, float, bool) or (kind is not None and kind.__module__ in PATHLIB and kind.__name__ in _PATHS):
        return str(kind.__name__)
    return _PICKLED


def _parts(form: str, chunk: list[Any], pickler: _Elements) -> tuple[bytes, NDArray[Any]]:
    """The elements of a chunk as bytes, and the length of each."""
    if form == _PICKLED:
        parts = [*map(pickler.pickled, chunk)]
    elif form == "bytes":
        parts = chunk
    else:
        texts = chunk if form == "str" else [*map(str, chunk)]
        joined = "".join(texts)
        if joined.isascii():
            return joined.encode(), _lengths(texts)
        parts = [text.encode(*TEXT) for text in texts]
    return b"".join(parts), _lengths(parts)


def _lengths(parts: Sequence[Any]) -> NDArray[Any]:
    lengths = np.fromiter(map(len, parts), np.uint64, len(parts))
    return lengths if len(lengths) and lengths.max() >> 32 else lengths.astype(np.uint32)


def _joined(lengths: list[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """Where the first element begins, and each one ends, in parts, as narrow as can be."""
    total = sum(int(part.sum(dtype=np.uint64)) for part in lengths)
    code = "I" if total < 1 << 32 else "Q"
    yield np.zeros(1, code)
    at = 0
    for part in lengths:
        ends = np.cumsum(part, dtype=np.uint64) + np.uint64(at)
        at = int(ends[-1])
        yield ends.astype(code)


# ---- arrays and tensors


def _shared_array(values: NDArray[Any]) -> NDArray[Any]:
    if store_of(values) is not None:
        return values
    if values.dtype.hasobject:
        raise GraphError(f"`qf.shared` takes arrays without objects, but got {describe(values)}. Write `qf.shared(x.tolist())`.")
    if type(values) not in (np.ndarray, np.memmap):
        raise GraphError(
            f"`qf.shared` takes plain arrays, but got {got(values)}. Write `qf.shared(np.asarray(x))`, if that is all of it."
        )
    turned = values.flags.f_contiguous and not values.flags.c_contiguous
    source = np.asarray(values.T if turned else values)
    with Writer(writable=True) as writer:
        for part in _rows(source):
            writer.write(part)
        store = writer.store()
    made = _array_on(store, values.dtype, 0, source.shape)
    return made.T if turned else made


def _rows(values: NDArray[Any]) -> Iterator[Any]:
    """The bytes of an array in C order, without a copy of the whole."""
    if not values.nbytes:
        return
    if values.flags.c_contiguous:
        yield values.reshape(-1).view(np.uint8)
        return
    step = max(1, len(values) * (1 << 22) // values.nbytes)
    for start in range(0, len(values), step):
        yield np.ascontiguousarray(values[start : start + step]).reshape(-1).view(np.uint8)


def _array(reference: tuple[Any, ...], *layout: Any) -> NDArray[Any]:
    return _array_on(opened(Reference(*reference)), *layout)


def _array_on(
    store: Store, dtype: Any, start: int, shape: tuple[int, ...], strides: tuple[int, ...] | None = None
) -> NDArray[Any]:
    array: NDArray[Any] = np.ndarray(shape, dtype, store, HEAD + start, strides)
    array.flags.writeable = False
    return array


def _shared_tensor(values: Any) -> Any:
    torch = sys.modules["torch"]
    said = f"`qf.shared` takes dense tensors of the CPU without gradient, but got {describe(values)}"
    if values.requires_grad:
        raise GraphError(f"{said} with `requires_grad`. Write `qf.shared(x.detach())`.")
    if not values.is_cpu:
        raise GraphError(f"{said} on {values.device}. Write `qf.shared(x.cpu())`.")
    if values.layout is not torch.strided or values.is_quantized or values.is_nested:
        raise GraphError(f"{said}, which is sparse, quantized or nested. Write `qf.shared(x.to_dense())`, or share its parts.")
    if type(values) is not torch.Tensor:
        raise GraphError(f"{said} of type {type(values).__name__}. Write `qf.shared(x.as_subclass(torch.Tensor))`.")
    if store_at(values.untyped_storage().data_ptr()) is not None or not values.numel():
        return values
    plain = values.resolve_conj().resolve_neg().contiguous()
    with Writer(writable=True) as writer:
        writer.write(plain.reshape(-1).view(torch.uint8).numpy())
        store = writer.store()
    return _tensor_on(store, plain.dtype, 0, plain.shape, plain.stride())


def _tensor(reference: tuple[Any, ...], dtype: str, *layout: Any) -> Any:
    import torch  # only where a tensor is met

    return _tensor_on(opened(Reference(*reference)), getattr(torch, dtype), *layout)


def _tensor_on(store: Store, dtype: Any, start: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
    torch = sys.modules["torch"]
    whole = torch.frombuffer(store, dtype=torch.uint8, offset=HEAD)
    return torch.empty(0, dtype=dtype).set_(whole.untyped_storage(), start, shape, strides)


# ---- on the way


def referred(value: Any) -> tuple[Any, ...] | None:
    """An array or tensor on a store as a reference, if this thread's hold has the store."""
    hold = travelling.hold
    if hold is None or not any_stores():
        return None
    if type(value) is np.ndarray:
        store = store_of(value)
        reference = None if store is None or not value.nbytes else hold.refer(store)
        if store is None or reference is None:
            return None
        start = value.__array_interface__["data"][0] - store.address
        return _array, (tuple(reference), value.dtype, start, value.shape, value.strides)
    if type(value) is getattr(sys.modules.get("torch"), "Tensor", None) and _is_plain(value):
        store = store_at(value.untyped_storage().data_ptr())
        reference = None if store is None else hold.refer(store)
        dtype = str(value.dtype).removeprefix("torch.")
        return reference and (_tensor, (tuple(reference), dtype, value.storage_offset(), tuple(value.shape), value.stride()))
    return None


def _is_plain(value: Any) -> bool:
    """Whether a tensor is nothing but numbers at an address."""
    if not value.is_cpu or value.layout is not sys.modules["torch"].strided or value.is_quantized or value.is_nested:
        return False
    return not (value.requires_grad or value.is_conj() or value.is_neg() or value.__dict__)


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles steps and elements: by value what others can't import, and what is shared as this thread's hold has it."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is SharedSequence:
            return value.reduced()
        return referred(value) or super().reducer_override(value)


class _Elements:
    """Pickles element after element, with a pickler that is made once."""

    def __init__(self) -> None:
        self._file = io.BytesIO()
        self._pickler = Pickler(self._file, 5)
        self._number = 0

    def pickled(self, value: Any) -> bytes:
        """One of them, by itself."""
        self._file.seek(0)
        self._pickler.clear_memo()
        try:
            self._pickler.dump(value)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise TransportError(f"Element {self._number} can't be shared: it is {describe(value)} ({reason}).") from error
        self._number += 1
        self._file.truncate()
        return self._file.getvalue()
