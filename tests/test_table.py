"""Values that look alike share a table: what is stored is loaded, and what a table would change has none."""

from __future__ import annotations

import itertools
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as of_numpy

import qflow as qf
from qflow.errors import InternalError
from qflow.files import Record
from qflow.graph.markers import CLOSE
from qflow.graph.plan import SMALL
from qflow.runtime import table
from qflow.runtime.log import REGIONS, Log
from qflow.runtime.memory import Memory
from qflow.runtime.packed import PAUSE, Packer, Row, contents
from qflow.runtime.template import LEAST, MORE, ROW, TEXTS, describe, of_key

numbers = st.integers(LEAST, MORE - 1) | st.floats() | st.booleans() | st.none() | st.floats(width=32).map(np.float32)
texts = st.text(max_size=20) | st.binary(max_size=20)
dtypes = st.sampled_from(["f4", "f8", "i2", "u1", "?", "c16", "M8[ns]", "S3", "U2"])
arrays = of_numpy.arrays(dtypes, of_numpy.array_shapes(max_dims=3, min_side=0, max_side=4))
tensors = arrays.filter(lambda array: array.dtype.kind not in "MSU").map(torch.from_numpy)
paths = st.text("ab./é", max_size=20).map(Path)
leaves = numbers | texts | paths | arrays | tensors
structures = st.recursive(
    leaves,
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.lists(inside, max_size=3).map(tuple)
        | st.tuples(inside, inside).map(lambda parts: Record(*parts, {}))
        | st.dictionaries(st.text(max_size=3) | st.integers(0, 3), inside, max_size=3)
    ),
    max_leaves=5,
)


def bits(value):
    """A value as text that tells its types, dtypes, shapes and every bit."""
    match value:
        case np.ndarray():
            return f"array {value.dtype} {value.shape} {value.tobytes()!r}"
        case np.generic():
            return f"{type(value)} {value.tobytes()!r}"
        case torch.Tensor():
            return f"tensor {value.dtype} {value.requires_grad} {bits(value.detach().numpy())}"
        case dict():
            return f"dict {[(type(key), key, bits(each)) for key, each in value.items()]}"
        case list() | tuple():
            return f"{type(value)} {[bits(each) for each in value]}"
        case float():
            return f"float {np.float64(value).tobytes()!r}"
    return f"{type(value)} {value!r}"


def template_of(value):
    spec = describe(value)
    return None if spec is None else of_key(repr(spec).encode())


def region():
    return memoryview(bytearray(b"\xdb" * SMALL))


def like(value, draw):
    """Another value of the same structure."""
    match value:
        case np.ndarray():
            return draw(of_numpy.arrays(value.dtype, value.shape))
        case torch.Tensor():
            return torch.from_numpy(like(value.numpy(), draw))
        case dict():
            return {key: like(each, draw) for key, each in value.items()}
        case Record():
            return Record(*(like(each, draw) for each in value))
        case Path():
            return draw(paths)
        case list() | tuple():
            return type(value)(like(each, draw) for each in value)
        case str():
            return draw(st.text(max_size=20))
    return value


@given(structures, st.data())
def test_rows_are_loaded_as_they_were_stored(first, data):
    template = template_of(first)
    if template is None:
        return
    values = [first, *(like(first, data.draw) for _ in range(data.draw(st.integers(0, 4))))]
    paths = [(number, 2 * number) for number in range(len(values))]
    cell = region()
    writer = table.Writer(cell, template, 2, table.rows_for(template, 2, 64))
    for value, path in zip(values, paths, strict=True):
        assert template.check(value)
        assert writer.add(value, path)
    start = data.draw(st.integers(0, len(values) - 1))
    count = data.draw(st.integers(1, len(values) - start))
    copy = region()
    table.Reader(cell, start, count).copy(copy)
    for reader in (table.Reader(cell, start, count), table.Reader(copy, start, count)):
        found = reader.values(read_only=False)
        assert [bits(each) for each in found] == [bits(each) for each in values[start : start + count]]
        assert [reader.path(k) for k in range(count)] == paths[start : start + count]
        assert bits(reader.load(count - 1, read_only=False)[0]) == bits(values[start + count - 1])


@given(structures, structures)
def test_a_value_is_checked_for_its_own_structure_only(one, other):
    template = template_of(one)
    if template is not None:
        assert template.check(one)
        assert not template.check(other) or bits_of_kind(one) == bits_of_kind(other)


def bits_of_kind(value):
    """The structure of a value, as text."""
    match value:
        case np.ndarray():
            return f"array {value.dtype} {value.shape}"
        case torch.Tensor():
            return f"tensor {value.dtype} {value.shape}"
        case dict():
            return f"dict {[(type(key), key, bits_of_kind(each)) for key, each in value.items()]}"
        case list() | tuple():
            return f"{type(value)} {[bits_of_kind(each) for each in value]}"
        case str() | bytes():
            return "odd"
    return f"{type(value)}"


shared = np.zeros(6)
base = np.arange(12.0)


class Sub(np.ndarray):
    pass


class Text(str):
    __slots__ = ()


class Named(tuple):
    __slots__ = ()


@pytest.mark.parametrize(
    "value",
    [
        {"a": shared, "b": shared},
        {"a": base[:6], "b": base[3:9]},
        {"a": base, "b": base[:3]},
        [twice := [1], twice],
        (tensor := torch.zeros(4), tensor),
        (tensor, tensor[1:3]),
        (torch.from_numpy(shared), shared),
        base[::2],
        base.reshape(3, 4).T,
        np.zeros(3).view(Sub),
        np.array(3.0),
        np.zeros(3, dtype=">f8"),
        np.zeros(3, dtype=[("a", "f4")]),
        np.zeros(3, dtype=np.dtype("f8", metadata={"unit": "m"})),
        np.array([None]),
        torch.zeros(3, requires_grad=True),
        torch.zeros(3, dtype=torch.bfloat16),
        torch.zeros(3, dtype=torch.complex64).conj(),
        torch.nn.Parameter(torch.zeros(3)),
        torch.zeros(3).to_sparse(),
        Text("a"),
        {Text("a"): 1},
        Named((1, 2)),
        1 << 63,
        "x" * TEXTS,
        {1.5: 2},
        [0] * 65,
        [[[[[1]]]]],
        ["x"] * 9,
        {1, 2},
        1j,
        object(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_table_would_change_has_none(value):
    template = template_of(value)
    assert template is None or not template.check(value)


def test_a_tensor_in_shared_memory_travels_by_reference():
    lent = qf.shared(torch.zeros(1000))
    for own, shared_one in ((torch.ones(1000), lent), ({"a": torch.ones(10)}, {"a": lent[10:20]})):
        template = template_of(own)
        assert template.check(own)
        assert not template.check(shared_one)
        assert describe(shared_one) is None


def test_a_read_only_array_stays_one():
    locked = np.zeros(3)
    template = template_of(np.zeros(3))
    locked.flags.writeable = False
    assert not template.check(locked)
    assert describe(locked) is None


def test_apart_in_one_memory_is_apart():
    halves = {"a": base[:6], "b": base[6:]}
    assert template_of(halves).check(halves)
    parts = (tensor[:2], tensor[2:])
    assert template_of(parts).check(parts)


@pytest.mark.parametrize(
    "other",
    [
        {"a": 1, "b": 2.0, "c": 3},
        {"b": 2.0, "a": 1},
        {"a": 1},
        {"a": True, "b": 2.0},
        {"a": 1, "b": 2},
        {"a": 1 << 63, "b": 0.0},
        [1],
    ],
    ids=repr,
)
def test_other_keys_and_types_are_another_structure(other):
    assert not template_of({"a": 1, "b": 2.0}).check(other)


class Mine(NamedTuple):
    """Not every process may be able to import it."""

    x: int = 0


@pytest.mark.parametrize("value", [Mine(), type("R", (Record,), {})("a"), PurePosixPath("a"), Path("a" * TEXTS)], ids=repr)
def test_other_named_tuples_and_paths_have_no_template(value):
    assert describe(value) is None


class Hostile:
    """It can't be compared."""

    def __eq__(self, other):
        raise TypeError("it can't be compared")

    __hash__ = object.__hash__


def test_keys_of_other_types_are_not_compared():
    for like_this in ({"a": 1}, {"a": 1, 2: 1}):
        assert not template_of(like_this).check(dict.fromkeys([Hostile() for _ in like_this], 1))


def test_a_close_is_a_row():
    cell, template = region(), template_of({"x": np.zeros(3), "name": "a"})
    writer = table.Writer(cell, template, 1, table.rows_for(template, 1, 32))
    values = [{"x": np.ones(3), "name": "b"}, CLOSE, {"x": np.zeros(3), "name": "c"}, CLOSE]
    assert all(writer.add(value, (number,)) for number, value in enumerate(values))
    reader = table.Reader(cell, 0, 4)
    found = reader.values(read_only=True)
    assert [each is CLOSE for each in found] == [False, True, False, True]
    assert (found[2]["name"], reader.path(1)) == ("c", (1,))


def test_a_table_takes_what_fits():
    template = template_of("a")
    writer = table.Writer(region(), template, 1, table.rows_for(template, 1, 32))
    rows = list(itertools.takewhile(lambda k: writer.add("x" * 250, (k,)), itertools.count()))
    assert 700 < len(rows) < SMALL // 250
    assert not table.Writer(region(), template, 1, table.rows_for(template, 1, 32)).add("a", (1, 2))
    array = np.zeros(ROW // 8)
    writer = table.Writer(region(), template_of(array), 1, table.rows_for(template_of(array), 1, 0))
    assert [writer.add(array, (k,)) for k in range(9)] == [True] * writer.rows + [False] * (9 - writer.rows)
    assert writer.rows >= 6


@pytest.mark.parametrize("at", [0, 3, 8, 16, 33])
def test_a_damaged_table_is_an_error(at):
    cell, template = region(), template_of({"x": 1})
    table.Writer(cell, template, 1, table.rows_for(template, 1, 0)).add({"x": 5}, (0,))
    assert table.Reader(cell, 0, 1).values(read_only=True) == [{"x": 5}]  # such a head is known
    cell[at] ^= 1
    with pytest.raises(InternalError, match="overwritten"):
        table.Reader(cell, 0, 1)


def test_damaged_ends_are_an_error():
    cell, template = region(), template_of("a")
    writer = table.Writer(cell, template, 1, table.rows_for(template, 1, 32))
    writer.add("abc", (0,))
    writer._ends[0] = 1 << 40
    with pytest.raises(InternalError, match="points outside"):
        table.Reader(cell, 0, 1).values(read_only=True)


def test_arrays_of_a_worker_are_read_only_and_pass_on_as_writable():
    cell, value = region(), {"x": np.ones(3), "t": torch.ones(2)}
    template = template_of(value)
    table.Writer(cell, template, 1, table.rows_for(template, 1, 0)).add(value, (0,))
    (found,) = table.Reader(cell, 0, 1).values(read_only=True)
    assert not found["x"].flags.writeable
    assert template.check(found)
    found["t"][0] = 5  # its own
    (again,) = table.Reader(cell, 0, 1).values(read_only=False)
    again["x"][0] = 7
    assert table.Reader(cell, 0, 1).values(read_only=False)[0]["x"][0] == 1


# ---- who looks alike


def rows(values, packer):
    return [type(packer.pack(value, (0,))) is Row for value in values]


def test_rows_come_after_a_few_that_look_alike():
    packer = Packer()
    assert rows([{"x": k} for k in range(6)], packer) == [False, False, True, True, True, True]
    assert rows([1, 2], Packer()) == [True, True]


def test_what_varies_is_soon_looked_at_seldom(monkeypatch):
    looks = []
    monkeypatch.setattr("qflow.runtime.packed.describe", lambda value: looks.append(value) or describe(value))
    packer = Packer()
    rows([np.zeros(k % 7 + 1) for k in range(10 * PAUSE)], packer)
    assert len(looks) < 30


def test_after_a_change_rows_come_again():
    packer = Packer()
    assert rows([1.0] * 100, packer)[-1]
    assert rows([{"x": k} for k in range(3 * PAUSE)], packer)[-1]


@given(st.lists(st.tuples(structures, st.integers(1, 6)), max_size=5), st.integers(0, 3))
def test_what_is_written_down_is_read_again(groups, start):
    values = [value for value, count in groups for _ in range(count)]
    log = Log(Memory(-1, REGIONS * (1 << 24)), 1 << 24)
    end = log.append(log.append(0, contents(values[:start])), contents(values[start:]))
    assert [bits(each) for each in log.records(end)] == [bits(each) for each in values]
    log.write_snapshot(1, contents(values))
    assert [bits(each) for each in itertools.islice(log.snapshot(1), len(values))] == [bits(each) for each in values]


# ---- through workers


def sample(k):
    return {
        "x": np.full(2000, k, np.float32),
        "y": k,
        "z": np.arange(k, k + 5),
        "name": f"image{k}",
        "t": torch.full((3, 2), float(k)),
    }


def odd(k):
    """Now and then of another structure."""
    found = sample(k)
    match k % 50:
        case 20:
            found["y"] = None
        case 21:
            found["z"] = found["z"][::2]
        case 22:
            return iter([found, sample(k + 1)])
        case 23:
            return qf.SKIP
        case 24:
            found["w"] = found["x"]
        case 25:
            raise LookupError(k)
        case 26:
            found["x"].flags.writeable = False
    return found


def passes(value):
    return value


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("engine", ["processes", qf.engines.Simulated(1)], ids=["processes", "simulated"])
def test_samples_cross_as_they_do_in_serial(n, engine):
    count = 400 if engine == "processes" else 60

    def run(engine):
        with (qf.process(n=n)(odd) | qf.process(passes))(range(count), engine=engine, on_error="skip") as run:
            return [bits(each) for each in run], [failure.index for failure in run.failures]

    assert run(engine) == run("serial")


def test_lists_of_samples_cross_a_pool():
    with (qf.process(lambda k: [sample(10 * k + each) for each in range(k % 4)]) | qf.pool(n=2)(passes))(range(60)) as run:
        found = [[bits(each) for each in some] for some in run]
    assert found == [[bits(sample(10 * k + each)) for each in range(k % 4)] for k in range(60)]


def test_kept_values_never_change():
    with qf.Flow(qf.process(n=2)(sample))(range(500)) as run:
        kept = list(run)
    assert [bits(each) for each in kept] == [bits(sample(k)) for k in range(500)]
    assert kept[-1]["x"].flags.owndata


@settings(max_examples=10, deadline=None)
@given(st.lists(structures, max_size=30), st.integers(1, 3))
def test_values_of_any_structure_cross_in_order(values, n):
    values = values * 5
    with qf.Flow(qf.process(n=n)(passes))(values) as run:
        assert [bits(each) for each in run] == [bits(each) for each in values]
