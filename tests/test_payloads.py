"""Payloads: everything arrives as it was sent, through real processes too, or an error says what and where."""

from __future__ import annotations

import importlib
import io
import sys
from functools import partial

import numpy as np
import pytest
import torch
from hostile import Broken, Refusing, build
from payloads import PAYLOADS, differs

import qflow as qf


@pytest.fixture(scope="module")
def two_steps():
    pipe = qf.process(build) | qf.process(n=2)(build)
    with pipe:
        list(pipe([0]))
        yield pipe


def test_every_payload_crosses_three_processes_in_one_run(two_steps):
    sent = {name: make() for name, make in PAYLOADS.items()}
    back = dict(zip(sent, two_steps(sent.values()), strict=True))
    cycle, deep = back.pop("cycle"), back.pop("500 deep")
    assert not {name: how for name in back if (how := differs(sent[name], back[name]))}
    assert cycle[1]["me"] is cycle
    for _ in range(250):
        (deep,) = deep["in"]
    assert deep == "core"


def test_what_is_shared_inside_an_item_is_shared_when_it_arrives(two_steps):
    base, model = np.arange(100_000.0), torch.nn.Linear(50, 50, bias=False)
    tied = torch.nn.Sequential(model, torch.nn.Linear(50, 50, bias=False))
    tied[1].weight = model.weight
    sent = {
        "part": base[10:20],
        "all": base,
        "again": base,
        "turned": base.reshape(2, -1).T,
        "state": tied.state_dict(),
        "model": tied,
    }
    (back,) = two_steps([sent])
    assert back["again"] is back["all"]
    assert back["model"][0].weight is back["model"][1].weight
    back["all"][10] = back["turned"][11, 0] = -1
    np.testing.assert_array_equal(back["part"][:3], [-1, -1, 12])
    file = io.BytesIO()
    torch.save(back["state"], file)
    assert file.tell() < 1.5 * 50 * 50 * 4  # torch too sees that both weights are one
    back["state"]["0.weight"].fill_(7)
    assert back["state"]["1.weight"].eq(7).all()
    assert back["model"][0].weight.eq(7).all()


@pytest.mark.parametrize("size", [100, 20_000])
def test_a_consumers_write_shows_in_no_other_item(two_steps, size):
    array, tensor = np.zeros(size), torch.zeros(size)
    source = [{"a": array, "t": tensor}] * 30  # the same object, thirty times
    for item in two_steps(source):
        assert not item["a"].any()
        assert not item["t"].any()
        item["a"] += 1
        item["t"] += 1
    assert not array.any()
    assert not tensor.any()


def test_a_consumers_write_does_not_show_in_an_item_that_shared_its_memory():
    pipe = qf.map(lambda x: [x, x, x[5:]]) | qf.unpack() | qf.process(build)
    for item in pipe([np.zeros(size) for size in (100, 20_000)]):
        assert not item.any()
        item += 1


@pytest.mark.parametrize("size", [100, 20_000])
def test_what_the_consumer_keeps_never_changes(two_steps, size):
    kept = list(two_steps({"a": np.full(size, n), "t": torch.full((size,), n), "r": [np.full(size, n)[::3]]} for n in range(60)))
    for n, item in enumerate(kept):
        assert (item["a"] == n).all()
        assert item["t"].eq(n).all()
        assert (item["r"][0] == n).all()


def delivered(flow, source):
    """The values that came, and the error that ended them."""
    values = []
    try:
        for value in flow(source):
            values.append(value)
    except qf.TransportError as error:
        return values, error
    return values, None


@pytest.mark.parametrize("how", [ValueError, SystemExit, KeyboardInterrupt, StopIteration, GeneratorExit, MemoryError])
def test_whatever_pickling_raises_is_an_error_of_that_item(two_steps, how):
    values, error = delivered(two_steps, [0, partial(Refusing, how), 2])
    assert values == [0]
    assert f"({how.__name__}: on leaving)" in str(error)
    assert error.step == "build"
    values, error = delivered(two_steps, [0, {"bad": [Refusing(how)]}, 2])
    assert values == [0]
    assert f"({how.__name__}: on leaving)" in str(error)
    assert "item['bad'][0] is <hostile.Refusing" in str(error)
    assert list(two_steps([5])) == [5]


@pytest.mark.parametrize("how", [ValueError, SystemExit, KeyboardInterrupt, StopIteration, GeneratorExit, MemoryError])
def test_whatever_rebuilding_raises_in_a_worker_is_an_error_of_that_item(two_steps, how):
    values, error = delivered(two_steps, [0, {"big": np.zeros(100_000), "bad": Broken(how)}, 2])
    assert values == [0]
    assert "An item can't be rebuilt in this process: it holds hostile.broken" in str(error)
    assert f"{how.__name__}: on arrival" in str(error)
    assert list(two_steps([5])) == [5]


@pytest.mark.parametrize("how", [ValueError, SystemExit, StopIteration])
def test_whatever_rebuilding_raises_in_the_consumer_is_an_error_of_that_item(two_steps, how):
    values, error = delivered(two_steps, [0, partial(partial, Broken, how), 2])
    assert values == [0]
    assert "An item can't be rebuilt in this process: it holds hostile.broken" in str(error)
    assert list(two_steps([5])) == [5]


def test_what_the_consumer_cannot_import_says_so(two_steps, tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("class Thing:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    only_here = importlib.import_module("only_here")
    sent = [0, [only_here.Thing()]]
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(tmp_path)])
    values, error = delivered(two_steps, sent)
    assert values == [0]
    assert "only_here.Thing" in str(error)
    assert "can't import it" in str(error)
    del sys.modules["only_here"]
