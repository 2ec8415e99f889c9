"""Codec: what comes out of a cell is what went in, and views live as long as anybody holds them."""

from __future__ import annotations

import dataclasses
import functools
import gc
import os
import struct
import sys
import threading
import time
import weakref
import zlib
from collections import namedtuple

import numpy as np
import pyarrow as pa
import pytest
import torch
from hostile import Broken, Endless, Lying, Refusing, Slots, Temporary
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from payloads import PAYLOADS, TORCH_DTYPES, dense, differs, tensor_of

import qflow as qf
from qflow.runtime.board import EdgeShape
from qflow.runtime.codec import COUNTS, LARGE, MAGIC, Head, decode, encode, path_of, sendable
from qflow.runtime.memory import Cells, anonymous, bytes_needed, mapped

Pair = namedtuple("Pair", "a b")


@dataclasses.dataclass
class Event:
    energy: float
    hits: np.ndarray


def four_cells():
    shape = EdgeShape(producers=1, takers=0, window=1, base=(4,), extra=0, small=0)
    size = bytes_needed(shape, 1 << 20)
    fd = anonymous("test", size)
    made = Cells(shape, 1 << 20, mapped(fd, size))
    os.close(fd)
    return made


def there_and_back(value, *, read_only=False, views=False):
    cells = four_cells()
    encode(value, (1, 2)).fill(cells.region(1))
    assert path_of(cells, 1) == (1, 2)
    return decode(cells, 1, read_only=read_only, views=views)[0]


@given(
    npst.arrays(npst.scalar_dtypes() | npst.nested_dtypes(), npst.array_shapes(min_dims=0, min_side=0, max_side=5)), st.booleans()
)
def test_an_array_comes_back_as_it_was(array, read_only):
    back = there_and_back(array, read_only=read_only)
    assert type(back) is np.ndarray
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()
    assert back.flags.writeable is not read_only


@pytest.mark.parametrize("cut", [np.s_[::2], np.s_[::-1], np.s_[:, 1:3], np.s_[...], np.s_[0]])
def test_a_view_ships_its_own_bytes(cut):
    base = np.arange(200_000).reshape(1000, 200)
    view = base[:10][cut]
    assert encode(view).nbytes < 10 * 200 * 8 + 1000
    np.testing.assert_array_equal(there_and_back(view), view)


def test_the_order_of_axes_is_kept_when_gaps_are_left_out():
    assert there_and_back(np.asfortranarray(np.ones((3, 4)))).flags.f_contiguous
    assert there_and_back(np.asfortranarray(np.ones((9, 4)))[2:5]).flags.f_contiguous
    image = torch.rand(2, 3, 8, 8).to(memory_format=torch.channels_last)
    assert there_and_back(image[:, :, ::2]).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64, torch.complex64, torch.float16])
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3, 4)])
@pytest.mark.parametrize("read_only", [True, False])
def test_a_tensor_comes_back_as_it_was(dtype, shape, read_only):
    tensor = torch.ones(shape).to(dtype)
    back = there_and_back(tensor, read_only=read_only)
    assert type(back) is torch.Tensor
    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(back, tensor)


def test_a_tensor_view_ships_its_own_bytes_and_keeps_requires_grad():
    whole = torch.arange(1_000_000.0)
    assert encode(whole[:3]).nbytes < 1000
    leaf = torch.ones(3, requires_grad=True)
    assert there_and_back(leaf).requires_grad
    with pytest.raises(qf.TransportError, match="detach"):
        encode(leaf * 2)
    assert torch.equal(there_and_back(torch.arange(6).reshape(2, 3).t()), torch.arange(6).reshape(2, 3).t())


def test_containers_come_back_with_their_aliases():
    array = np.arange(5)
    value = {"a": [array, array], "p": Pair(1, (2, None)), "e": Event(1.5, array), "s": {1, 2}, "t": torch.ones(2)}
    back = there_and_back(value)
    assert back["a"][0] is back["a"][1] is back["e"].hits
    assert (back["p"], back["s"], back["e"].energy) == (value["p"], value["s"], 1.5)


@pytest.mark.parametrize(
    "value",
    [
        None,
        NotImplemented,
        ...,
        qf.SKIP,
        Exception,
        (0, None),
        [],
        "",
        b"",
        2**100,
        np.float32(1),
        np.ma.masked_array([1, 2], [0, 1]),
    ],
)
def test_odd_values_come_back(value):
    back = there_and_back(value)
    assert type(back) is type(value)
    assert back is value or np.all(back == value)


def test_a_view_gives_its_cell_back_when_the_last_array_on_it_is_gone():
    cells = four_cells()
    encode({"a": np.zeros(LARGE), "b": np.ones(LARGE)[:3]}).fill(cells.region(2))
    value, _, viewing = decode(cells, 2, read_only=False, views=True)
    part = value["a"][10:20].reshape(2, 5)
    del value
    gc.collect()
    assert viewing
    assert not cells.returned
    del part
    assert list(cells.returned) == [2]


def test_a_tensor_on_a_view_holds_its_cell():
    cells = four_cells()
    encode(torch.zeros(LARGE)).fill(cells.region(3))
    value, _, viewing = decode(cells, 3, read_only=False, views=True)
    part = value[5:]
    del value
    assert viewing
    assert not cells.returned
    del part
    assert list(cells.returned) == [3]


def test_a_small_array_is_a_copy():
    cells = four_cells()
    encode(np.zeros(8)).fill(cells.region(0))
    value, _, viewing = decode(cells, 0, read_only=False, views=True)
    cells.region(0)[:] = b"\xff" * (1 << 20)
    assert not viewing
    assert not value.any()


def test_an_item_larger_than_a_cell_is_refused_with_its_size():
    cells = four_cells()
    with pytest.raises(qf.TransportError, match="larger than a cell"):
        encode(np.zeros(1 << 20), most=cells.stride)


def test_what_cannot_be_sent_is_named_by_its_place():
    with pytest.raises(qf.TransportError, match=r"item\['fn'\]\[1\]\.lock") as caught:
        holder = Event(1, np.zeros(1))
        holder.lock = (i for i in [])
        encode({"ok": 1, "fn": [0, holder]})
    assert "generator" in str(caught.value)


# ---- all payloads, in one process


@pytest.mark.filterwarnings("ignore")
def test_every_payload_comes_back_as_it_was():
    wrong = {}
    for name in PAYLOADS.keys() - {"cycle", "500 deep"}:
        value = PAYLOADS[name]()
        for views in (False, True):
            # In a worker arrays are read-only; what was sent so is told apart from that when it leaves the worker.
            worker = there_and_back(value, read_only=True, views=views)
            wrong[name, views] = [
                differs(value, there_and_back(value, views=views)),
                differs(value, worker, flags=False),
                differs(value, there_and_back(worker, views=views)),
            ]
    assert not {name: how for name, how in wrong.items() if any(how)}


DTYPES = npst.scalar_dtypes() | npst.nested_dtypes() | st.sampled_from([np.dtype(np.longdouble), np.dtype(np.clongdouble)])
BASES = npst.arrays(DTYPES, npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))


@st.composite
def views_of(draw, base):
    """A view on an array, by any way that numpy has."""
    for _ in range(draw(st.integers(0, 3))):
        match draw(st.sampled_from(["cut", "turn", "flip", "spread", "lock"])):
            case "cut":
                base = base[draw(npst.basic_indices(base.shape, allow_newaxis=True))] if base.ndim else base
            case "turn":
                base = base.transpose(draw(st.permutations(range(base.ndim))))
            case "flip" if base.ndim:
                base = base[..., ::-1]
            case "spread":
                base = np.broadcast_to(base, (3, *base.shape))
            case "lock":
                base = base.view()
                base.flags.writeable = False
        if not isinstance(base, np.ndarray):
            return np.asarray(base)
    return base


@st.composite
def items(draw):
    """A container of arrays, of which some are one object and some share memory."""
    bases = draw(st.lists(BASES, min_size=1, max_size=3))
    arrays = [draw(views_of(draw(st.sampled_from(bases)))) for _ in range(draw(st.integers(1, 5)))]
    leaf = st.sampled_from([*arrays, *bases, None, 1, "x"])
    return draw(
        st.recursive(leaf, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=3))
    )


def arrays_in(value):
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from arrays_in(part)


def own_bytes(array):
    """The fewest bytes that hold an array's elements as they lie, or packed."""
    span = array.itemsize + sum((n - 1) * abs(step) for n, step in zip(array.shape, array.strides, strict=True))
    return min(span, array.nbytes) if array.size else 0


def is_dense(array):
    return dense(array.shape, array.strides, array.itemsize)


@given(items(), st.booleans(), st.booleans())
def test_an_item_comes_back_as_it_was_with_its_aliases_and_in_its_own_bytes(value, read_only, views):
    cells, cell = four_cells(), 1
    encoded = encode(value, (3,), cells.stride)
    sent = list(arrays_in(value))
    distinct = {id(array): array for array in sent}.values()
    pickled = sum(map(len, encoded.pickled))
    assert encoded.nbytes <= pickled + len(encoded.head) + sum(own_bytes(array) + 63 for array in distinct) + 63

    for number in range(4):
        cells.region(number)[:] = b"\xdb" * cells.stride
    encoded.fill(cells.region(cell))
    assert not cells.region(0).tobytes().strip(b"\xdb")
    assert not cells.region(2).tobytes().strip(b"\xdb")
    assert not cells.region(cell)[encoded.nbytes :].tobytes().strip(b"\xdb")

    back, _, _ = decode(cells, cell, read_only=read_only, views=views)
    assert not differs(value, back, flags=not read_only)
    arrived = list(arrays_in(back))
    for i, one in enumerate(sent):
        for j, other in enumerate(sent[:i]):
            assert (arrived[i] is arrived[j]) == (one is other)
            if is_dense(one) and is_dense(other) and one.itemsize and other.itemsize:
                assert np.may_share_memory(arrived[i], arrived[j]) == np.may_share_memory(one, other)
            assert not np.shares_memory(arrived[i], other)


@st.composite
def tensors(draw):
    """A tensor of any dtype, seen in any way."""
    dtype = draw(st.sampled_from(TORCH_DTYPES))
    tensor = tensor_of(dtype, tuple(draw(st.lists(st.integers(0, 4), max_size=4))))
    for _ in range(draw(st.integers(0, 3))):
        axis = draw(st.integers(0, max(0, tensor.dim() - 1)))
        match draw(st.sampled_from(["cut", "turn", "spread", "conjugate"])):
            case "cut" if tensor.dim():
                tensor = tensor.narrow(axis, 0, tensor.shape[axis])[:: draw(st.integers(1, 3))]
            case "turn" if tensor.dim():
                tensor = tensor.transpose(axis, 0)
            case "spread":
                tensor = tensor.expand(3, *tensor.shape)
            case "conjugate" if tensor.is_complex():
                tensor = tensor.conj()
    return tensor


@given(st.lists(tensors(), min_size=1, max_size=3), st.booleans(), st.booleans())
def test_tensors_come_back_as_they_were_with_their_aliases(sent, read_only, views):
    sent = [*sent, sent[0], sent[0].detach()]
    back = there_and_back(sent, read_only=read_only, views=views)
    assert not differs(sent, back)
    assert back[-2] is back[0]
    assert back[-1] is not back[0]
    if dense(sent[0].shape, sent[0].stride(), 1):
        assert back[-1].data_ptr() == back[0].data_ptr()
        assert back[-1].untyped_storage().data_ptr() == back[0].untyped_storage().data_ptr()


def test_what_overlaps_travels_once_in_whatever_order_it_comes():
    base = np.arange(100_000.0)
    for value in ([base, base[10:20], base[::-1], base[::3]], [base[::3], base[10:20], base[::-1], base]):
        assert encode(value).nbytes < base.nbytes + 2000
    overlapping = [base[:1000], base[500:1500]]
    assert encode(overlapping).nbytes < 1500 * 8 + 1000
    first, second = there_and_back(overlapping)
    first[500] = -1
    assert second[0] == -1
    tensor, array = there_and_back([torch.from_numpy(base), base])
    tensor[5] = -1
    assert array[5] == -1


def test_a_tensor_may_begin_anywhere_in_what_it_shares():
    raw = np.arange(64, dtype=np.uint8)
    value = [raw, torch.from_numpy(raw[1:33].view(np.float32))]
    back = there_and_back(value)
    assert not differs(value, back)
    back[0][1:5] = 0
    assert back[1][0] == 0


def test_buffers_of_other_classes_lie_beside_shared_ones():
    base, table = np.arange(10_000.0), pa.table({"a": np.arange(50_000)})
    value = [base, table, base[5:]]
    encoded = encode(value)
    assert sum(map(len, encoded.pickled)) < 2000
    for views in (False, True):
        assert not differs(value, there_and_back(value, views=views))
        assert not differs([table], there_and_back([table], views=views, read_only=True))


def test_a_broadcast_ships_what_it_is_made_of():
    assert encode(np.broadcast_to(np.float32(1), (100_000,))).nbytes < 1000
    assert encode(torch.ones(1).expand(100_000)).nbytes < 1000


def test_a_subclass_or_sparse_view_ships_its_own_bytes_too():
    whole = torch.arange(1_000_000.0)
    assert encode(whole[:3].as_subclass(type("Sub", (torch.Tensor,), {}))).nbytes < 2000
    assert encode(torch.nn.Parameter(whole[:3])).nbytes < 2000
    assert encode(np.ma.masked_array(np.arange(1_000_000.0))[:3]).nbytes < 2000


def test_large_bytes_are_not_copied_before_they_lie_in_their_cell():
    value = {"a": b"x" * 10_000_000}
    assert any(piece is value["a"] for piece in encode(value).pickled)
    assert any(piece is value["a"] for piece in encode(value["a"]).pickled)


def test_sending_a_tensor_leaves_it_as_it_was():
    tensor = torch.ones(3)
    encode(tensor)
    tensor.resize_(100)  # a numpy array on it would forbid that


def test_a_sparse_tensor_that_has_come_is_held_by_nobody():
    for layout in ("to_sparse", "to_sparse_csr", "to_sparse_csc"):
        back = there_and_back(getattr(torch.eye(3), layout)())
        gone = weakref.ref(back)
        del back
        assert gone() is None


def test_an_encoded_item_goes_when_it_is_let_go():
    gc.disable()
    try:
        array = np.ones(10)
        gone = weakref.ref(array)
        encoded = encode([array])
        del array
        assert gone() is not None
        del encoded
        assert gone() is None
    finally:
        gc.enable()


def test_a_worker_cannot_make_its_input_writable():
    for size in (10, LARGE):
        assert not there_and_back(np.ones(size), read_only=True, views=True).flags.writeable
    back = there_and_back(np.ones(10), read_only=True)
    with pytest.raises(ValueError, match="WRITEABLE"):
        back.flags.writeable = True


def test_a_workers_tensor_is_its_own():
    cells = four_cells()
    encode(torch.zeros(LARGE)).fill(cells.region(0))
    tensor, _, viewing = decode(cells, 0, read_only=True, views=True)
    tensor += 1
    assert not viewing
    assert not decode(cells, 0, read_only=True, views=True)[0].any()


# ---- what can't be sent, and what can't be rebuilt


def reason(value):
    with pytest.raises(qf.TransportError) as caught:
        encode(value)
    return str(caught.value)


def cyclic_with(value):
    made = {"list": [value]}
    made["list"].append(made)
    return made


def capturing(value):
    return lambda: value


def slots_with(value):
    made = Slots(1)
    made.b = value
    return made


@pytest.mark.parametrize(
    ("wrap", "place"),
    [
        (lambda lock: lock, "item is <unlocked"),
        (lambda lock: {"a": [0, lock]}, "item['a'][1] is <unlocked"),
        (lambda lock: Event(1.0, {"x": lock}), "item.hits['x'] is <unlocked"),
        (lambda lock: Pair(1, lock), "item.b is <unlocked"),
        (lambda lock: [slots_with(lock)], "item[0].b is <unlocked"),
        (lambda lock: {lock}, "is <unlocked"),
        (lambda lock: {"a": {lock: 1}}, "item['a'] key <unlocked"),
        (cyclic_with, "item['list'][0] is <unlocked"),
        (lambda lock: {"f": capturing(lock)}, "item['f'].value is <unlocked"),
        (lambda lock: np.array([1, lock], object), "item[1] is <unlocked"),
        (lambda lock: [*range(1_000_000), lock], "item[1000000] is <unlocked"),
        (lambda lock: functools.reduce(lambda inner, _: [inner], range(50), lock), "[0]" * 50 + " is <unlocked"),
        (lambda lock: [Event(1.0, None), Temporary()], "item[1] is <hostile.Temporary"),
    ],
)
def test_what_cannot_be_sent_is_named_by_its_place_wherever_it_lies(wrap, place):
    assert place in reason(wrap(threading.Lock()))
    assert "which holds <unlocked" in reason([Temporary()])


@pytest.mark.parametrize("how", [SystemExit, GeneratorExit, StopIteration, MemoryError, ValueError])
def test_whatever_pickling_or_rebuilding_raises_is_a_transport_error(how):
    assert "item['a'] is <hostile.Refusing object" in reason({"a": Refusing(how)})
    assert not sendable(Refusing(how))
    cells = four_cells()
    encode([np.zeros(LARGE), Broken(how)]).fill(cells.region(0))
    with pytest.raises(qf.TransportError, match=f"hostile.broken.*{how.__name__}: on arrival"):
        decode(cells, 0, read_only=False, views=True)
    gc.collect()
    assert not cells.returned  # the cell goes back by the way of a failure, and only once


def test_ctrl_c_stays_what_it_is():
    with pytest.raises(KeyboardInterrupt):
        encode(Refusing(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        there_and_back(Broken(KeyboardInterrupt))


@pytest.mark.parametrize("reduced", ["no such name", (int, "1"), (1, 2), (int,), 5, ()])
def test_a_lying_reduction_is_a_transport_error(reduced):
    assert "item['x'] is <hostile.Lying" in reason({"x": Lying(reduced)})


def test_a_class_that_travels_by_value_is_named_when_it_cannot_be_rebuilt():
    made = type("Homemade", (), {"__module__": "__main__", "__setstate__": lambda self, state: 1 // 0})()
    made.x = 1
    with pytest.raises(qf.TransportError, match=r"Homemade.*ZeroDivisionError"):
        there_and_back(made)


def test_depth_is_no_crash():
    deep = functools.partial(functools.reduce, lambda value, _: [value])
    limit = sys.getrecursionlimit()
    back = there_and_back(deep(range(500), "core"))
    for _ in range(500):
        (back,) = back
    assert back == "core"
    assert there_and_back(functools.reduce(lambda value, _: Event(1.0, value), range(500), None)).hits.hits.energy == 1.0
    assert "nested too deeply" in reason(deep(range(100_000), "core"))
    assert "nested too deeply" in reason(functools.reduce(lambda value, _: Event(1.0, value), range(100_000), None))
    assert "item[0] is <hostile.Endless" in reason([Endless()])
    assert sys.getrecursionlimit() == limit


def test_the_search_for_a_place_ends_soon():
    sleepy = type("Sleepy", (), {"__reduce__": lambda self: time.sleep(0.2) or (int, ())})
    began = time.monotonic()
    assert "item is" in reason([*(sleepy() for _ in range(3)), [[number] for number in range(300_000)], Temporary()])
    assert time.monotonic() - began < 10  # the pickling itself, twice; it would be minutes, were every part pickled


@pytest.mark.parametrize("device", ["cuda:0", "mps"])
def test_a_tensor_on_a_device_is_refused_with_advice(device):
    tensor = torch.ones(3)
    elsewhere = type("Elsewhere", (torch.Tensor,), {"is_cpu": False, "device": device})
    assert "send `tensor.cpu()`" in reason({"x": tensor.as_subclass(elsewhere)})
    assert f"a tensor on {device}" in reason({"x": tensor.as_subclass(elsewhere)})


def test_part_of_a_graph_of_gradients_is_refused_with_advice_and_its_place():
    assert "item['loss'] is Tensor float32[]" in reason({"loss": torch.ones(3, requires_grad=True).sum()})
    assert "send `tensor.detach()`" in reason({"loss": torch.eye(3).requires_grad_().to_sparse()})


# ---- heads


def forged(words, rest=b""):
    """A head with a right check word."""
    raw = struct.pack(f"={len(words)}Q", *words)
    return (struct.pack("=Q", MAGIC | zlib.crc32(raw)) + raw + rest).ljust(COUNTS.size, b"\0")


@given(st.binary(min_size=48, max_size=4096))
def test_random_bytes_are_no_item(raw):
    with pytest.raises(qf.InternalError):
        Head(memoryview(raw))


@pytest.mark.parametrize("counts", [(1000, 0, 0), (0, 1000, 1000), (0, 1, 1000), (1 << 63, 0, 0)])
def test_no_head_is_longer_than_its_cell(counts):
    with pytest.raises(qf.InternalError):
        Head(memoryview(forged([0, *counts, 0])))


SIZES = st.integers(0, 8) | st.integers(0, 1 << 12) | st.integers(0, (1 << 64) - 1)


@given(
    SIZES, st.integers(0, 3), st.integers(0, 4), st.integers(0, 4), st.integers(0, 5), st.lists(SIZES, min_size=25, max_size=25)
)
def test_no_head_points_outside_of_its_cell(pickled, path, blocks, buffers, loose, rest):
    count = path + blocks + (3 * buffers if buffers != blocks else 0)
    raw = forged([pickled, path, blocks, buffers, loose, *rest[:count]])
    region = memoryview(raw.ljust(4096, b"\0"))
    try:
        head = Head(region)
    except qf.InternalError:
        return
    assert head.pickled.stop <= 4096
    assert all(0 <= start <= end <= 4096 for start, end in head.blocks)
    assert all(0 <= number < buffers for number in head.loose)
    for block, start, length in head.places:
        first, last = head.blocks[block]
        assert first + start + length <= last


@given(st.data())
def test_a_damaged_head_is_found(data):
    cells = four_cells()
    encoded = encode([np.arange(5), np.arange(5)[1:], torch.ones(3)], (1, 2))
    encoded.fill(cells.region(0))
    place = data.draw(st.integers(0, len(encoded.head) - 1))
    cells.region(0)[place] ^= data.draw(st.integers(1, 255))
    for look in (lambda: path_of(cells, 0), lambda: decode(cells, 0, read_only=False, views=True)):
        with pytest.raises(qf.InternalError):
            look()


# ---- sizes


def test_a_thousand_arrays_are_one_item():
    value = [np.full(3, number) for number in range(1000)]
    assert encode(value).nbytes < 1000 * (64 + 8 + 50) + 1000
    assert not differs(value, there_and_back(value))


ZEROS = {"array": lambda n: np.zeros(n, np.uint8), "tensor": lambda n: torch.zeros(n, dtype=torch.uint8), "bytes": bytes}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "size"), [("array", 4 << 30), ("array", 2 << 30), ("tensor", 2 << 30), ("bytes", 2 << 30)])
def test_an_item_larger_than_2_and_4_gib(kind, size):
    shape = EdgeShape(producers=1, takers=0, window=1, base=(1,), extra=0, small=0)
    fd = anonymous("test", 1 << 33)
    cells = Cells(shape, 1 << 33, mapped(fd, 1 << 33))
    os.close(fd)
    encode({"a": ZEROS[kind](size + 5), "b": np.arange(5)}, (1,)).fill(cells.region(0))
    back = decode(cells, 0, read_only=False, views=True)[0]
    assert (len(back["a"]), back["a"][0], back["a"][-1], back["b"][4]) == (size + 5, 0, 0, 4)
