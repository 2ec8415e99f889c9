"""Source: what may stand at the head of a flow, and how it is read."""

from __future__ import annotations

import sys
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from os import PathLike
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from qflow.errors import GraphError, annotate, describe, got, not_quiet
from qflow.graph.context import PLAIN, Context
from qflow.graph.function import is_iterable

if TYPE_CHECKING:
    from qflow.graph.flow import Sourced

T = TypeVar("T")


def source(values: Iterable[T], *, shuffle: bool = False, seed: int | None = None) -> Sourced[T]:
    """Make any iterable the source of a flow, also one that is callable or defines ``|`` itself.

    >>> import qflow as qf
    >>> list((qf.source({1: "a"}.keys()) | qf.pack(2))(engine="serial"))
    [[1]]

    A sampler of PyTorch, also without `source`, gives its indices, in an order that follows the run: what it draws depends on the
    run's seed (or, if it has a generator, on the seed with which that was made) and epoch, and one that has ``set_epoch`` is at
    its own epoch plus the run's. The sampler itself stays as it is.

    Args:
        values: an iterable, or a map-style data set (``__len__`` and ``__getitem__``); read lazily.
        shuffle: give them in another order in each epoch, a permutation of all. They are read by index, in the thread that
            reads the source: where that is slow, shuffle the indices: ``qf.source(range(len(xs)), shuffle=True) | read``.
            Holds 4 bytes for each item, and no items.
        seed: of the order; the run's when not given.
    Raises:
        GraphError: ``values`` is not one, or is a str, bytes, path or mapping; or it is to be shuffled and can't be indexed.
    """
    from qflow.graph.flow import Sourced

    check_source(values, explicit=True)
    if not shuffle:
        return Sourced(values)
    from qflow.graph.permuted import Permuted

    return Sourced(Permuted(values, seed))


def check_source(value: Any, *, explicit: bool = False) -> None:
    """A GraphError for what can't be meant as a source."""
    from qflow.graph.flow import Joins, Sourced

    wanted = "A source is an iterable of items, but got"
    if isinstance(value, Joins) and not isinstance(value, Sourced):
        raise GraphError(f"{wanted} {value!r}, a flow without a source. Join flows with `|`: `xs | first | second`.")
    if isinstance(value, UnionType):
        first = value.__args__[0].__name__
        raise GraphError(f"Python takes `{value}` for a union of types. Lift the first one: `qf.map({first}) | ...`.")
    if not is_source(value):
        raise GraphError(f"{wanted} {got(value)}. Did you mean `[x]`, one item, or for a mapping `x.items()`?")
    if getattr(value, "shape", None) == ():
        raise GraphError(f"{wanted} {describe(value)} without dimensions. Did you mean `[x]`, one item?")
    if is_table(value) and not hasattr(type(value), "__iter__"):
        kind = type(value).__name__
        raise GraphError(f"{wanted} a {kind}, which has rows and columns. Write for example `x.to_pylist()`, its rows.")
    if callable(value) and not explicit:
        raise GraphError(
            f"{describe(value)} can be called and can be iterated. "
            "Write `qf.map(x)` for its function or `qf.source(x)` for its items."
        )


def lifted(value: Any) -> Any:
    """What a run reads in place of a source: a sampler of PyTorch follows the run."""
    if "torch.utils.data" in sys.modules:
        from qflow.graph.sampled import Sampled, follows

        return Sampled(value) if follows(value) else value
    return value


def is_source(value: Any) -> bool:
    """It has items, and is not one of the things that are usually meant as one item."""
    whole = isinstance(value, str | bytes | bytearray | PathLike | Mapping)
    return not whole and (is_iterable(value) or hasattr(type(value), "__getitem__"))


def is_table(value: Any) -> bool:
    """A data frame or table: its length counts rows, but iterating it gives columns."""
    return hasattr(value, "columns")


class Source(ABC, Iterable[T]):
    """A source that depends on the run, or that can begin anywhere by itself."""

    @abstractmethod
    def read(self, context: Context, start: int = 0) -> Iterator[T]:
        """The items in a run, from one on."""

    varies = False
    """Its items, or their order, differ from epoch to epoch."""

    def depends(self, context: Context) -> bool:
        """Whether its items, or their order, depend on the seed of the run."""
        return False

    def pick(self, context: Context, numbers: range) -> Iterator[T] | None:
        """The items of these numbers, modulo how many there are; None: they can't be indexed."""
        return None

    def __iter__(self) -> Iterator[T]:
        return self.read(PLAIN)


def items(value: Any, context: Context = PLAIN, start: int = 0) -> Iterator[Any]:
    """The items of a source in a run, lazily, from one on."""
    if isinstance(value, Source):
        return value.read(context, start)
    sized = hasattr(type(value), "__len__")
    if not hasattr(type(value), "__iter__"):
        return (value[index] for index in range(start, len(value))) if sized else islice(iter(value), start, None)
    if start and type(value) in (list, tuple, range):
        there: Any = iter(value)
        there.__setstate__(start)
        return cast("Iterator[Any]", there)
    if start and sized and isinstance(value, Sequence):
        return (value[index] for index in range(start, len(value)))
    return islice(iter(value), start, None) if start else iter(value)


def source_length(value: Any) -> int | None:
    """How many items it has, when it can say so."""
    if is_table(value):
        return None
    try:
        return len(value)
    except (TypeError, NotImplementedError):
        return None


_OURS = 4  # references to an iterator that only we hold: the dict's, the list's tuple, `kept`, the argument
_used: dict[int, Any] = {}  # id -> weak reference, or for zip, map and their kin the iterator itself


def picked(value: Any, context: Context, numbers: range) -> Iterator[Any] | None:
    """The items of a source with these numbers, modulo how many there are; None: it can't be indexed."""
    if isinstance(value, Source):
        return value.pick(context, numbers)
    if isinstance(value, Sequence) or not hasattr(type(value), "__iter__"):
        length = len(value)
        return (value[number % length] for number in numbers)
    return None


def use(value: Any, context: Context = PLAIN, start: int = 0) -> Iterator[Any]:
    """Begin to read a source in a run, from an item on; an iterator can be begun only once."""
    try:
        iterator = items(value, context)
    except StopIteration as error:
        raise annotate(not_quiet(error, "the source, when it was begun,"), "source", None, None) from error
    except GraphError:
        raise
    except Exception as error:
        annotate(error, "source", None, None)
        raise
    _forget()
    if iterator is value:
        key = id(value)
        if key in _used:
            raise GraphError(
                f"The source is an iterator ({type(value).__name__}) that an earlier run has used. "
                "Give a list, a range, or a new iterator for each run."
            )
        try:
            _used[key] = weakref.ref(value, lambda _: _used.pop(key, None))
        except TypeError:
            _used[key] = value
    return items(value, context, start) if start else iterator


def _forget() -> None:
    """Drop the iterators that nobody else holds any more."""
    for key, kept in list(_used.items()):
        if not isinstance(kept, weakref.ref) and sys.getrefcount(kept) == _OURS:
            del _used[key]


def is_grouped(value: Any) -> bool:
    """What `unpack`, `repack` and `pool` take apart: any iterable but str, bytes and mappings."""
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | bytearray | Mapping)
