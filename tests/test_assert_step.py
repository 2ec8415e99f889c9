"""A step that breaks one of the promises of `assert_step` is told so, and one that keeps them passes."""

from __future__ import annotations

import itertools
import os
import re
import threading
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import plain_steps as steps
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import qflow as qf
from qflow.testing import assert_step
from qflow.testing.comparing import difference
from qflow.testing.sent import Sent

# ---- what differs


@dataclass
class Event:
    energy: float
    hits: object = None


class Plain:
    def __init__(self, **attributes):
        vars(self).update(attributes)


class Stateful:
    """Its state is a tuple."""

    def __init__(self, *state):
        self.state = state

    def __getstate__(self):
        return self.state

    def __setstate__(self, state):
        self.state = state


class Slotted:
    __slots__ = ("x",)

    def __init__(self, x):
        self.x = x


NAN = float("nan")
cycle: list = []
cycle.append(cycle)
EQUAL = [
    1, "a", b"a", None, True, 1.5, NAN, 1j, qf.SKIP, abs, Event, np.float32(NAN), np.datetime64("nat"), Decimal("1.5"), Path("x"),
    re.compile("a"), (1, [2, {"a": NAN}]), {1, 2}, frozenset(), np.zeros((2, 0)), np.array(["a", None]), np.array([NAN, 1]),
    np.array([(1, 2.5)], [("a", "i4"), ("b", "f8")]), torch.tensor([NAN, 1]), torch.zeros(2, 3).requires_grad_(),
    torch.eye(2).to_sparse(), torch.tensor([1, 2], dtype=torch.bfloat16), pd.DataFrame({"x": [1.0, NAN]}), Event(NAN, np.ones(2)),
    Plain(x=1, y=np.ones(2)), Slotted([1]), cycle, ValueError("x"), range(3), slice(1), object(), complex(NAN, 1),
    np.ma.masked_array([1, 2], [0, 1]), Stateful(1, [2]), torch.nn.Linear(2, 1), np.random.default_rng(1),
]  # fmt: skip


@pytest.mark.parametrize("value", EQUAL, ids=repr)
def test_a_value_equals_what_comes_of_it_elsewhere(value):
    copy = Sent(value, "A value", "value").fresh()
    assert difference(value, copy) is None
    assert difference(copy, value) is None


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (1, 2, "x was 1, then 2"),
        (1, 1.0, "x was 1 of type int, then 1.0 of type float"),
        (True, 1, "x was True of type bool, then 1 of type int"),
        ([1, [2]], [1, [3]], "x[1][0] was 2, then 3"),
        ((1,), (1, 2), "x[1] was absent, then 2"),
        ({"a": 1}, {"b": 1}, "x['a'] was 1, then absent"),
        ({1}, {2}, "x was {1}, then {2}"),
        (np.zeros(2), np.zeros(3), "x.shape was (2,), then (3,)"),
        (np.zeros(2), np.zeros(2, "f4"), "x.dtype was float64, then float32"),
        (np.zeros((2, 2)), np.eye(2), "x[0, 0] was 0.0, then 1.0"),
        (np.float32(1), np.float32(2), "x was 1.0, then 2.0"),
        (np.array([1, [2]], object), np.array([1, [3]], object), "x[1][0] was 2, then 3"),
        (np.array([(1, 2.5)], "i4,f8"), np.array([(1, 3.5)], "i4,f8"), "x['f1'][0] was 2.5, then 3.5"),
        (torch.zeros(2), torch.ones(2), "x[0] was 0.0, then 1.0"),
        (torch.zeros(2), torch.zeros(2).double(), "x.dtype was torch.float32, then torch.float64"),
        (torch.zeros(2), torch.zeros(2).requires_grad_(), "x.requires_grad was False, then True"),
        (torch.tensor(1), torch.tensor(2), "x was 1, then 2"),
        (torch.eye(2).to_sparse(), 2 * torch.eye(2).to_sparse(), "x[0, 0] was 1.0, then 2.0"),
        (Event(1.0, np.zeros(2)), Event(1.0, np.ones(2)), "x.hits[0] was 0.0, then 1.0"),
        (Plain(x=1), Plain(x=2), "x.x was 1, then 2"),
        (Plain(x=1), Plain(), "x.x was 1, then absent"),
        (Slotted(1), Slotted(2), "x.x was 1, then 2"),
        (Stateful(1, 2), Stateful(3, 2), "x.__getstate__()[0] was 1, then 3"),
        (np.ma.masked_array([1, 2], [0, 1]), np.ma.masked_array([1, 2], [0, 0]), None),
        (pd.DataFrame({"x": [1]}), pd.DataFrame({"x": [2]}), None),
        (Decimal(1), Decimal(2), None),
        (ValueError("a"), ValueError("b"), None),
        (lambda: 1, lambda: 1, None),
        (cycle, [[]], None),
    ],
)
def test_the_first_difference_is_told_by_its_place(first, second, expected):
    found = difference(first, second)
    assert found is not None
    assert expected is None or found.told("x") == expected


# ---- steps that break a promise


def shifts_its_item(x):
    x += 1
    return x.sum()


def appends_to_its_item(x):
    x.append(1)
    return len(x)


def sorts_in_a_dict(x):
    x["values"].sort()
    return x["values"][0]


def fills_a_tensor(x):
    return x.fill_(0).sum()


def noise(x):
    return x + np.random.default_rng().normal()


counted = itertools.count()


def counts_for_all(x):
    return next(counted), x


def makes_counter():
    count = 0

    def counts_in_a_closure(x):
        nonlocal count
        count += 1
        return x, count

    return counts_in_a_closure


class Counter:
    def __init__(self):
        self.seen = 0

    def __call__(self, x):
        self.seen += 1
        return x, self.seen


class RunningMean:
    """Remembers what was before, but gives the same for the same item called twice."""

    def __init__(self):
        self.most = 0

    def __call__(self, x):
        self.most = max(self.most, x)
        return x / (self.most or 1)


class Toggle:
    def __init__(self):
        self.on = False

    def __call__(self, x):
        self.on = not self.on
        return self.on


class Moody:
    """Another one each time it is built."""

    def __init__(self):
        self.shift = next(counted)

    def __call__(self, x):
        return x + self.shift


class Buffer:
    def __init__(self):
        self.buffer = np.zeros(3)

    def __call__(self, x):
        self.buffer[:] = x
        return self.buffer


def one_list_again_and_again(x):
    found = []
    for n in range(3):
        found.append(n)
        yield found


def fewer_at_the_second_try(x):
    yield x
    if qf.worker() is None or qf.worker().attempt == 1:
        yield x


def knows_its_worker(x):
    return x, qf.worker() is not None and qf.worker().index


class NeverTwice:
    """It can be sent, and comes back as something else."""

    def __init__(self, x):
        self.x = x

    def __reduce__(self):
        return NeverTwice, (self.x + 1,)


class NotBuilt:
    def __reduce__(self):
        return int, ("no number",)


def only_here():
    """A step that knows an object of the process in which it was made."""
    home = object()
    number = id(home)
    return lambda x: x if id(home) == number else -x


FLOATS = np.arange(3.0)
BAD = [
    ("array changed", shifts_its_item, [FLOATS], "'shifts_its_item' changes its item: item[0] was 0.0, then 1.0. .* must stay"),
    ("list changed", appends_to_its_item, [[]], "changes its item: item[0] was absent, then 1."),
    ("dict changed", sorts_in_a_dict, [{"values": [2, 1]}], "changes its item: item['values'][0] was 2, then 1."),
    ("tensor changed", fills_a_tensor, [torch.ones(2)], "changes its item: item[0] was 1.0, then 0.0."),
    ("random", noise, [1.0], "'noise' gives different results for the same item, 1.0: result was .*random numbers"),
    ("random in a pool", qf.pool(noise), [[1.0]], "'noise' gives different results for the same item"),
    ("counter outside", counts_for_all, [7], "different results for the same item, 7: result[0] was"),
    ("counter in a closure", makes_counter(), [7], "different results for the same item, 7: result[1] was 1, then 2"),
    ("counter in an instance", Counter, [7], "'Counter' for an item, 7, depend on the items before it: result[1] was 1, then 2"),
    ("counter of a marked class", qf.process(n=2)(Counter), [7], "'Counter' for an item, 7, depend on the items before it"),
    ("memory of the order", RunningMean, [1, 2], "for an item, 1, depend on the items before it: result was 1.0, then 0.5"),
    ("toggle", Toggle, [1, 2], "depend on the items before it"),
    ("random constructor", Moody, [1], "'Moody' gives different results for the same item, 1"),
    ("buffer", Buffer, [1.0, 2.0], "changes a result that it has given: result[0] was 2.0, then 1.0. .*buffer"),
    ("yields one list", one_list_again_and_again, [1], "changes a result that it has given: result[1] was absent, then 1"),
    ("lambda", lambda x: lambda: x, [1], "A result of step 'lambda' comes to another process as something else: result was"),
    ("file", lambda x: [x, open(os.devnull)], [1], "A result of step 'lambda' can't leave its process. .*item[1] .*open file"),
    ("iterator in a list", lambda x: [iter([x]), (y for y in [x])], [1], "can't leave its process. .*item[1]"),
    ("gradient", lambda x: x * 2, [torch.ones(2, requires_grad=True)], "can't leave its process. .*tensor.detach()"),
    ("not the same there", NeverTwice, [1], "comes to another process as something else: .*[1][0] was 2, then 3"),
    ("not built there", lambda x: NotBuilt(), [1], "can't be rebuilt in this process: rebuilding it raised ValueError"),
    ("second try", fewer_at_the_second_try, [1], "different workers or at different tries: it gave 2 results, then 1"),
    ("worker", knows_its_worker, [1], "different workers or at different tries: .*must not depend on `qf.worker()`"),
    ("captures a lock", (lambda lock: lambda x: lock and x)(threading.Lock()), [1], "Simulated(0) it raises GraphError.*`lock`"),
    ("only here", only_here(), [1], "gives other results with engine=qf.engines.Simulated(0) than in the serial engine"),
    ("bad value", abs, [lambda: 1], "A value comes to another process as something else"),
    ("value not sent", abs, [1, threading.Lock()], "A value can't leave its process"),
    ("in the middle of a flow", qf.map(steps.pair) | qf.pack(2) | counts_for_all | qf.unpack(), [1, 2], "Step 'counts_for_all'"),
]  # fmt: skip


@pytest.mark.parametrize(("step", "values", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_each_broken_promise_is_seen(step, values, message):
    with pytest.raises(AssertionError) as caught:
        assert_step(step, values)
    pattern = ".*".join(map(re.escape, (message or "").split(".*")))
    assert re.search(pattern, str(caught.value), re.DOTALL), str(caught.value)


# ---- steps that keep them


class Cached:
    """State that changes no result."""

    def __init__(self, factor=2):
        self.factor, self.known = factor, {}

    def __call__(self, x):
        return self.known.setdefault(x, x * self.factor)


def seeded(x):
    return np.random.default_rng([7, x]).normal(size=3)


def halves(x):
    x = x.copy()
    x /= 2
    return {"half": x, "view": x[:1], "shape": x.shape}


def spectrum(x):
    return torch.fft.rfft(x).abs(), x.to(torch.bfloat16)


GOOD = [
    ("number", abs, [-1, 0, 2.5]),
    ("numpy function", np.sqrt, [4.0, np.arange(3.0)]),
    ("numpy", halves, [np.arange(10.0), np.zeros((0, 2))]),
    ("large arrays", lambda x: (x, x[::2]), [np.arange(20_000.0)]),
    ("torch", spectrum, [torch.arange(8.0)]),
    ("seeded by the item", seeded, [1, 2]),
    ("generator", steps.several, [0, 3, 5]),
    ("skip", steps.drop, [0, 1, 2, 3]),
    ("class", Cached, [1, 2, 1]),
    ("class with arguments", qf.process(n=3)(Cached)(5), [1, 2]),
    ("threads", qf.thread(n=3)(Cached), [1, 2]),
    ("pool", qf.pool(n=2)(steps.several), [[1, 2], [], [3]]),
    ("filter", qf.filter(steps.even), [1, 2]),
    ("built-in operator", qf.repack(2), [[1, 2, 3], [4]]),
    ("columns", qf.rebatch(3), [{"x": np.arange(4)}, {"x": np.arange(3)}]),
    ("dataclass", lambda x: Event(x, [np.ones(2)]), [1.0, NAN]),
    ("table", lambda x: pd.DataFrame({"x": [x, NAN]}), [1.0]),
    ("string", str.upper, list("abc")),
    ("with retries", qf.process(retry=2)(abs), [-1]),
    ("flow", qf.process(n=2)(steps.pair) | qf.pool(n=2)(steps.drop) | qf.repack(3) | steps.total | qf.queue(2), range(7)),
    ("a data set", lambda pair: pair[0] + 1, torch.utils.data.TensorDataset(torch.arange(3))),
]  # fmt: skip


@pytest.mark.parametrize(("step", "values"), [case[1:] for case in GOOD], ids=[case[0] for case in GOOD])
def test_a_good_step_passes(step, values):
    assert_step(step, values)


@pytest.mark.parametrize(
    ("step", "values"),
    [
        (halves, arrays.arrays(arrays.floating_dtypes(endianness="="), arrays.array_shapes())),
        (qf.process(n=2)(Cached), st.integers()),
        (qf.pool(n=2)(str) | qf.repack(3), st.lists(st.text(), max_size=5)),
        (lambda x: x, st.recursive(st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))),
    ],
    ids=["arrays", "class", "flow", "nested"],
)
def test_a_good_step_passes_for_all_values_of_a_strategy(step, values):
    assert_step(step, values)


def test_a_broken_promise_is_shrunk_to_the_simplest_values():
    def loses_large_ones(x):
        return x if x < 10 else next(counted)

    with pytest.raises(AssertionError, match="'loses_large_ones' gives different results for the same item, 10") as caught:
        assert_step(loses_large_ones, st.integers())
    assert any("assert_step" in note and "values=[10]" in note for note in caught.value.__notes__)
    with pytest.raises(AssertionError, match="for an item, 0, depend on the items before it"):
        assert_step(Counter, st.integers())
    with pytest.raises(AssertionError, match="depend on the items before it: result was") as caught:
        assert_step(RunningMean, st.integers(0, 100))
    assert any("values=[1, 2]" in note for note in caught.value.__notes__), caught.value.__notes__


@given(st.integers())
def test_it_can_be_used_inside_given(x):
    assert_step(qf.process(Cached), [x], seeds=[1])


def test_no_test_is_taken_for_a_worker_afterwards():
    """Not even while the error is kept."""
    error = None
    try:
        assert_step(lambda x: [x, (lambda: 1) if qf.worker() else 1], [1])
    except AssertionError as caught:
        error = caught
    assert "as something else" in str(error)
    assert qf.worker() is None


def test_an_exception_of_the_step_is_its_own_and_says_where():
    with pytest.raises(ZeroDivisionError) as caught:
        assert_step(qf.map(abs) | (lambda x: 1 / x), [1, 0])
    assert caught.value.__notes__ == ["qflow: in step 'lambda' (0)"]


def test_a_fault_that_hits_workers_only_is_seen_with_its_seed():
    def writes(x):
        if qf.worker() is not None:
            x.flags.writeable = x.flags.writeable
            x += 0
        return x.sum()

    with pytest.raises(AssertionError, match=r"Simulated\(5\) it raises ValueError: .*read-only"):
        assert_step(writes, [FLOATS], seeds=[5])


@pytest.mark.parametrize(
    ("step", "values", "message"),
    [
        (abs, [], "needs at least one value"),
        (abs, 3, "A source is an iterable of items, but got 3"),
        (qf.source([1]) | qf.map(abs), [1], "takes a flow without source"),
        (qf.Flow(), [1], "the empty flow"),
        (3, [1], "joins operators, flows and functions, but got 3"),
    ],
)
def test_what_can_not_be_tested_is_a_graph_error(step, values, message):
    with pytest.raises(qf.GraphError, match=re.escape(message)):
        assert_step(step, values)
