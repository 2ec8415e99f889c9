"""Codec: what comes out of a cell is what went in, and views live as long as anybody holds them."""

from __future__ import annotations

import dataclasses
import gc
import os
from collections import namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import qflow as qf
from qflow.runtime.board import EdgeShape
from qflow.runtime.codec import LARGE, decode, encode, path_of
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


def test_fortran_order_is_kept():
    assert there_and_back(np.asfortranarray(np.ones((3, 4)))).flags.f_contiguous


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
