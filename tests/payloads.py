"""Payloads: one value of every kind that people send, and when two values are the same.

Each is made anew when asked for, so that nothing a test does to one shows in another. The classes stand
here, in a module that workers can import.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import operator
import pathlib
import re
import tempfile
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import scipy.sparse
import torch
import torch_geometric.data as pyg
from PIL import Image


class Pair(NamedTuple):
    a: Any
    b: Any


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Event:
    energy: float
    hits: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    x: Any


class Slots:
    __slots__ = ("a", "b")

    def __init__(self, a):
        self.a = a

    def __eq__(self, other):
        return self.a == other.a and not hasattr(other, "b")

    __hash__ = None


class Labelled(np.ndarray):
    """The subclass of numpy's manual, with an attribute."""

    def __new__(cls, values, label=None):
        made = np.asarray(values).view(cls)
        made.label = label
        return made

    def __array_finalize__(self, other):
        self.label = getattr(other, "label", None)


class Quantity(np.ndarray):
    """A subclass that pickles itself."""

    def __reduce__(self):
        function, arguments, state = super().__reduce__()
        return function, arguments, (*state, self.unit)

    def __setstate__(self, state):
        super().__setstate__(state[:-1])
        self.unit = state[-1]


class Picture(torch.Tensor):
    """A subclass in torchvision's way."""


class Rebuilt:
    """An object with a way of its own."""

    def __init__(self, a, b):
        self.both = a, b

    def __reduce__(self):
        return Rebuilt, self.both

    def __eq__(self, other):
        return self.both == other.both

    __hash__ = None


def quantity():
    made = np.arange(3.0).view(Quantity)
    made.unit = "GeV"
    return made


def read_only(values):
    values.flags.writeable = False
    return values


def labelled_tensor():
    made = torch.arange(4.0)
    made.label = {"name": "x"}
    return made


def memmap():
    with tempfile.TemporaryFile() as file:
        made = np.memmap(file, np.int32, "w+", shape=(3, 4))
        made[:] = np.arange(12).reshape(3, 4)
        return made


def cyclic():
    made: list[Any] = [1]
    made.append({"me": made})
    return made


def nested(depth):
    return functools.reduce(lambda value, _: {"in": [value]}, range(depth), "core")


FIELDS = np.dtype({"names": ["x", "y"], "formats": ["<f4", ">i8"], "offsets": [0, 8], "itemsize": 24, "titles": ["the x", None]})
PARTICLES = np.dtype([("p", "<f8", (3,)), ("id", [("run", ">u2"), ("name", "U4")]), ("when", "M8[ns]")])
TORCH_DTYPES = sorted(
    {
        value
        for value in vars(torch).values()
        if isinstance(value, torch.dtype) and not re.search(r"bits|torch.q|int[1-7]$", str(value))
    },
    key=str,
)


def tensor_of(dtype, shape=(3, 4)):
    """A tensor of any dtype, whatever torch can compute in it: its bytes count up."""
    raw = torch.arange(int(np.prod(shape)) * dtype.itemsize).remainder(2 if dtype == torch.bool else 120).to(torch.uint8)
    return raw.view(dtype).reshape(shape)


ARRAYS: dict[str, Callable[[], Any]] = {
    "transposed": lambda: np.arange(12.0).reshape(3, 4).T,
    "fortran": lambda: np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "fortran, read-only": lambda: read_only(np.asfortranarray(np.ones((3, 4)))),
    "reversed": lambda: np.arange(12.0)[::-1],
    "reversed, permuted": lambda: np.arange(60.0).reshape(3, 4, 5).transpose(2, 0, 1)[:, ::-1],
    "broadcast": lambda: np.broadcast_to(np.arange(3.0), (1000, 3)),
    "windows": lambda: np.lib.stride_tricks.sliding_window_view(np.arange(100.0), 10),
    "gaps": lambda: np.arange(1000.0).reshape(10, 100)[:, ::7],
    "fortran with gaps": lambda: np.asfortranarray(np.arange(1000.0).reshape(10, 100))[2:5, ::-3],
    "0-d": lambda: np.array(3.5),
    "empty": lambda: np.zeros((0, 5), ">c16"),
    "8-d": lambda: np.arange(256).reshape((2,) * 8).transpose(7, 1, 2, 3, 4, 5, 6, 0),
    "large, read-only": lambda: read_only(np.arange(50_000.0)),
    "large": lambda: np.arange(100_000, dtype=np.float32),
    "big-endian": lambda: np.arange(5, dtype=">i4"),
    "float16": lambda: np.arange(5, dtype=np.float16),
    "longdouble": lambda: np.array([1, np.nan, np.inf], np.longdouble) / 3,
    "complex": lambda: np.array([1j, np.nan], np.complex64),
    "clongdouble": lambda: np.array([1j], np.clongdouble),
    "bool": lambda: np.array([True, False]),
    "datetime": lambda: np.array(["2020-01-01", "NaT"], "M8[ns]"),
    "timedelta": lambda: np.array([1, 2], ">m8[3s]"),
    "text": lambda: np.array(["ä", "longer"], ">U6"),
    "bytes": lambda: np.array([b"a\0b", b""]),
    "void": lambda: np.array([b"abcd"], "V4"),
    "fields": lambda: np.zeros(3, FIELDS),
    "particles": lambda: np.zeros((2, 2), PARTICLES),
    "a field": lambda: np.zeros(30, PARTICLES)["id"]["name"],
    "no fields": lambda: np.zeros(3, []),
    "dtype with metadata": lambda: np.ones(2, np.dtype("f4", metadata={"unit": "m"})),
    "objects": lambda: np.array([1, None, "x", [2]], object),
    "objects, read-only": lambda: read_only(np.array([[1, None], ["x", 2]], object, order="F")),
    "objects in fields": lambda: np.array([(1, "x")], [("a", int), ("b", object)]),
    "variable text": lambda: np.array(["a", "much longer text " * 10], np.dtypes.StringDType()),
    "recarray": lambda: np.zeros(3, FIELDS).view(np.recarray),
    "record": lambda: np.zeros(3, FIELDS).view(np.recarray)[0],
    "matrix": lambda: np.matrix([[1, 2], [3, 4]]),
    "chararray": lambda: np.char.array(["a", "bc"]),
    "masked": lambda: np.ma.masked_array(np.arange(6.0).reshape(2, 3).T, np.eye(3, 2), fill_value=7, hard_mask=True),
    "masked, no mask": lambda: np.ma.masked_array([1, 2]),
    "masked fields": lambda: np.ma.array([(1, 2.0)], mask=[(0, 1)], dtype=[("a", int), ("b", float)]),
    "masked large": lambda: np.ma.masked_less(np.arange(20_000.0), 7),
    "memmap": memmap,
    "subclass": lambda: Labelled([1.0, 2.0], {"unit": "m"})[::-1],
    "subclass of its own": quantity,
    "scalar": lambda: np.float32(1.5),
    "scalar, date": lambda: np.datetime64("2020-01-01T00:00", "m"),
    "scalar, void": lambda: np.zeros(1, PARTICLES)[0],
}

TENSORS: dict[str, Callable[[], Any]] = {
    **{str(dtype): functools.partial(tensor_of, dtype) for dtype in TORCH_DTYPES},
    "tensor, large": lambda: torch.arange(100_000.0),
    "tensor, 0-d": lambda: torch.tensor(2.5),
    "tensor, empty": lambda: torch.empty(3, 0, dtype=torch.int8),
    "channels last": lambda: torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "channels last, one channel": lambda: torch.rand(2, 1, 4, 5).to(memory_format=torch.channels_last),
    "expanded": lambda: torch.arange(3.0).expand(1000, 3),
    "tensor, gaps": lambda: torch.arange(1000).reshape(10, 100).t()[::3],
    "conjugate": lambda: torch.randn(5, dtype=torch.complex64).conj(),
    "conjugate, gaps": lambda: torch.randn(50, dtype=torch.complex64).conj()[::7],
    "negative": lambda: torch.randn(5, dtype=torch.complex64).conj().imag,
    "leaf": lambda: torch.ones(3, requires_grad=True),
    "parameter": lambda: torch.nn.Parameter(torch.arange(4.0)),
    "frozen parameter": lambda: torch.nn.Parameter(torch.arange(4.0), requires_grad=False),
    "subclass of tensor": lambda: torch.rand(3, 4).as_subclass(Picture),
    "leaf of a subclass": lambda: torch.rand(3).as_subclass(Picture).requires_grad_(),
    "attributes": labelled_tensor,
    "coo": lambda: torch.eye(3).to_sparse(),
    "coo, uncoalesced": lambda: torch.sparse_coo_tensor([[0, 0]], [1.0, 2.0], (3,)),
    "csr": lambda: torch.eye(3).to_sparse_csr(),
    "csc": lambda: torch.eye(3).to_sparse_csc(),
    "bsr": lambda: torch.eye(4).to_sparse_bsr((2, 2)),
    "bsc": lambda: torch.eye(4).to_sparse_bsc((2, 2)),
    "sparse leaf": lambda: torch.eye(3).to_sparse().requires_grad_(),
    "quantized": lambda: torch.quantize_per_tensor(torch.arange(4.0), 0.1, 3, torch.quint8),
    "quantized by channel": lambda: torch.quantize_per_channel(torch.ones(2, 3), torch.ones(2), torch.zeros(2), 0, torch.qint8),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.arange(3.0)]),
    "jagged": lambda: torch.nested.nested_tensor([torch.ones(2), torch.arange(3.0)], layout=torch.jagged),
    "meta": lambda: torch.empty(3, 4, device="meta"),
    "packed sequence": lambda: torch.nn.utils.rnn.pack_sequence([torch.ones(3), torch.ones(2)]),
    "state dict": lambda: torch.nn.Linear(3, 4).state_dict(),
    "dtype, shape, device": lambda: (torch.float8_e5m2, torch.Size([3]), torch.device("cpu")),
}

OBJECTS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "scalars": lambda: [True, 2**200, 1.5, 1j, "text", b"bytes", float("inf"), -0.0, ..., NotImplemented, "\ud800"],
    "long bytes": lambda: b"x" * 200_000,
    "long text": lambda: "ä" * 200_000,
    "bytearray": lambda: bytearray(b"ab"),
    "long bytearray": lambda: bytearray(200_000),
    "array.array": lambda: array.array("d", range(10_000)),
    "memoryview": lambda: memoryview(bytearray(range(8))).cast("H"),
    "memoryview, 2-d": lambda: memoryview(np.arange(6.0).reshape(2, 3)),
    "containers": lambda: [{"a": (1, [2])}, {1, 2}, frozenset({3}), collections.deque([4], 9), collections.Counter("aab")],
    "mappings": lambda: [collections.OrderedDict(b=1, a=2), collections.defaultdict(list, a=[1]), {Pair(1, 2): 3}],
    "objects of the user": lambda: [
        Event(1.5, np.arange(3)),
        Frozen([1]),
        Slots(2),
        Pair(1, None),
        Rebuilt(1, 2),
        Colour.RED,
        Event,
    ],
    "standard library": lambda: [
        datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
        decimal.Decimal("1.10"),
        fractions.Fraction(1, 3),
        uuid.UUID(int=5),
        pathlib.Path("a/b"),
        range(3),
        slice(1, 2),
        operator.itemgetter(1),
        len,
    ],
    "cycle": cyclic,
    "500 deep": lambda: nested(250),
    "1000 arrays": lambda: [np.full(5, number) for number in range(1000)],
    "1e5 integers": lambda: list(range(100_000)),
    "pandas": lambda: pd.DataFrame({"a": np.arange(5.0), "b": list("vwxyz"), "c": pd.Categorical(list("aabbc"))}),
    "series": lambda: pd.Series([1, None], index=["x", "y"], dtype="Int64"),
    "polars": lambda: pl.DataFrame({"a": [1, 2], "b": ["x", None]}),
    "arrow": lambda: pa.table({"a": list(range(20_000)), "b": ["x"] * 20_000}),
    "csr matrix": lambda: scipy.sparse.random(30, 40, 0.1, format="csr", random_state=1),
    "graph": lambda: pyg.Data(x=torch.rand(4, 2), edge_index=torch.tensor([[0, 1], [1, 2]]), label="g"),
    "graphs": lambda: pyg.Batch.from_data_list([pyg.Data(x=torch.rand(n, 2)) for n in (2, 3)]),
    "hetero graph": lambda: pyg.HeteroData(
        {"a": {"x": torch.ones(2, 1)}, ("a", "to", "a"): {"edge_index": torch.zeros(2, 1).long()}}
    ),
    "image": lambda: Image.fromarray(np.arange(12, dtype=np.uint8).reshape(2, 2, 3)),
}

PAYLOADS = {**ARRAYS, **TENSORS, **OBJECTS}


def dense(shape, strides, itemsize):
    """Whether an array's bytes have no gaps, so that its strides are kept."""
    return 0 in shape or itemsize + sum((n - 1) * abs(step) for n, step in zip(shape, strides, strict=True)) <= itemsize * int(
        np.prod(shape)
    )


def differs(sent: Any, back: Any, *, flags: bool = True) -> str:
    """How a value is not what was sent, "" if it is; without ``flags`` an array may be read-only."""
    if type(back) is not type(sent):
        return f"{type(sent)} became {type(back)}"
    if type(sent) in (int, str, bytes):
        return "" if sent == back else f"{sent!r:.200} became {back!r:.200}"
    if isinstance(sent, np.ndarray):
        return _array_differs(sent, back, flags)
    if isinstance(sent, torch.Tensor):
        return _tensor_differs(sent, back)
    if isinstance(sent, dict):
        pairs = [*zip(sent, back, strict=True), *zip(sent.values(), back.values(), strict=True)]
    elif isinstance(sent, list | tuple | collections.deque):
        if len(sent) != len(back):
            return f"{len(sent)} became {len(back)} elements"
        pairs = [*zip(sent, back, strict=True)]
    elif isinstance(sent, memoryview):
        pairs = [(f(sent), f(back)) for f in (bytes, operator.attrgetter("format"), operator.attrgetter("shape"))]
    elif isinstance(sent, pd.DataFrame | pd.Series):
        return (
            "" if sent.equals(back) and str(getattr(sent, "dtypes", "")) == str(getattr(back, "dtypes", "")) else "frames differ"
        )
    elif isinstance(sent, pl.DataFrame | pa.Table):
        return "" if sent.equals(back) else "frames differ"
    elif scipy.sparse.issparse(sent):
        pairs = [*zip(vars(sent).values(), vars(back).values(), strict=True)]
    elif isinstance(sent, pyg.Data | pyg.HeteroData):
        pairs = [(sent.to_dict(), back.to_dict())]
    elif dataclasses.is_dataclass(sent) and not isinstance(sent, type):
        pairs = [(getattr(sent, field.name), getattr(back, field.name)) for field in dataclasses.fields(sent)]
    elif isinstance(sent, np.generic):
        pairs = [(sent.dtype, back.dtype), (sent.tobytes(), back.tobytes())]
    elif isinstance(sent, operator.itemgetter):
        pairs = [(repr(sent), repr(back))]
    else:
        return "" if sent == back else f"{sent!r:.200} became {back!r:.200}"
    return next(filter(None, (differs(*pair, flags=flags) for pair in pairs)), "")


def _array_differs(sent, back, flags):
    if (sent.dtype, sent.dtype.metadata, sent.dtype.fields, sent.shape) != (
        back.dtype,
        back.dtype.metadata,
        back.dtype.fields,
        back.shape,
    ):
        return f"{sent.dtype}{sent.shape} became {back.dtype}{back.shape}"
    if flags and back.flags.writeable != sent.flags.writeable:
        return f"writeable became {back.flags.writeable}"
    kept = dense(sent.shape, sent.strides, sent.itemsize) and not sent.dtype.hasobject
    if kept and back.strides != sent.strides and not (sent.flags.c_contiguous and back.flags.c_contiguous):
        return f"strides {sent.strides} became {back.strides}"
    if isinstance(sent, np.ma.MaskedArray):
        own = ("_mask", "_fill_value", "_hardmask", "_baseclass")
        attributes = differs({name: vars(sent)[name] for name in own}, {name: vars(back)[name] for name in own}, flags=flags)
    elif isinstance(sent, np.memmap):
        attributes = "a file" if back.filename is not None else ""
    else:
        attributes = differs(getattr(sent, "__dict__", {}), getattr(back, "__dict__", {}))
    if attributes:
        return "attributes: " + attributes
    if sent.dtype.hasobject:
        return differs(sent.tolist(), back.tolist(), flags=flags)
    return "" if np.ndarray.tobytes(sent) == np.ndarray.tobytes(back) else "other bytes"


def _tensor_differs(sent, back):
    facts = ("dtype", "shape", "layout", "device", "requires_grad", "is_leaf", "is_quantized", "is_nested", "__dict__")
    for fact in facts:
        if not (sent.is_nested and fact in ("shape", "__dict__")) and getattr(sent, fact) != getattr(back, fact):
            return f"{fact} {getattr(sent, fact)} became {getattr(back, fact)}"
    if (sent.is_conj(), sent.is_neg()) != (back.is_conj(), back.is_neg()):
        return "another view of complex numbers"
    if sent.device.type == "meta":
        return "" if sent.stride() == back.stride() else "strides"
    if sent.is_nested:
        return differs(list(sent.detach().unbind()), list(back.detach().unbind()))
    if sent.layout is torch.sparse_coo:
        if sent.is_coalesced() != back.is_coalesced():
            return "coalesced became " + str(back.is_coalesced())
        return differs([sent.detach()._indices(), sent.detach()._values()], [back.detach()._indices(), back.detach()._values()])
    if sent.layout is not torch.strided:
        return "" if torch.equal(sent.to_dense(), back.to_dense()) else "other elements"
    if sent.is_quantized:
        return "" if torch.equal(sent.int_repr(), back.int_repr()) and torch.equal(sent, back) else "other elements"
    if dense(sent.shape, sent.stride(), 1) and sent.stride() != back.stride():
        return f"strides {sent.stride()} became {back.stride()}"
    return "" if _bytes(sent) == _bytes(back) else "other bytes"


def _bytes(tensor):
    plain = tensor.detach().as_subclass(torch.Tensor).resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    return bytes(plain.reshape(-1).view(torch.uint8).numpy()) if plain.numel() else b""
