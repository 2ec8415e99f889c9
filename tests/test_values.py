"""Values: whatever an item is or holds is an ordinary value, but for the one whose meaning is written down (U15)."""

from __future__ import annotations

import pytest
from toolz import partition_all

import qflow as qf
from qflow.engines.simulated import Simulated
from qflow.graph import attempt, run
from qflow.graph.markers import CLOSE
from qflow.runtime import consumer

EVERYWHERE = {"serial": "serial", "processes": "processes", "simulated": Simulated(5, deaths=0)}


@pytest.fixture(params=EVERYWHERE)
def anywhere(request):
    return EVERYWHERE[request.param]


def failure():
    return qf.ItemFailure(ValueError("of another run"), "there", (1,), "'it'")


ORDINARY = [
    lambda: None,
    lambda: NotImplemented,
    lambda: ...,
    lambda: False,
    lambda: (0, None),
    lambda: (),
    lambda: Exception("a value"),
    lambda: StopIteration(4),
    lambda: KeyboardInterrupt("a value"),
    lambda: qf.WorkerDied("a value"),
    failure,
    lambda: StopIteration,
    lambda: type(qf.SKIP),
    lambda: attempt.NO_ITEM,  # this and the next are of the inside of qflow
    lambda: consumer.OVER,
]
TAKEN = {  # of the inside, too, where they have a meaning
    "CLOSE": lambda: CLOSE,
    "Told": lambda: run.Told(failure()),
    "Failed": lambda: attempt.Failed(ValueError("mine"), "there", "'it'", 7),
}


def same(x):
    return x


def pairs(values):
    return [*map(list, partition_all(2, values))]


class Made:
    """A step that makes values by their number."""

    def __init__(self, makers):
        self.makers = makers

    def __call__(self, k):
        return self.makers[k]()

    def all(self, _=None):
        yield from map(self, range(len(self.makers)))


def ways(makers):
    """Where values may stand: a flow and its source, and what comes of them."""
    make = Made(makers).__call__
    numbers, values = range(len(makers)), [*Made(makers).all()]
    return {
        "from the source": (qf.process(same), values, values),
        "through a map": (qf.map(same) | qf.queue(2) | qf.process(n=2)(same), values, values),
        "from step to step": (qf.process(make) | qf.process(n=2)(same), numbers, values),
        "from the last step": (qf.process(n=2)(make), numbers, values),
        "from a thread": (qf.thread(n=2)(make), numbers, values),
        "from an iterator": (qf.process(Made(makers).all), [0], values),
        "as an element": (qf.pool(n=2)(same), pairs(values), pairs(values)),
        "as an element's result": (qf.pool(n=2)(make), pairs(numbers), pairs(values)),
        "packed": (qf.process(same) | qf.pack(2), values, pairs(values)),
        "unpacked": (qf.unpack() | qf.process(same), pairs(values), values),
        "inside": (qf.process(lambda k: [make(k), {"k": make(k)}]) | qf.process(same), numbers, [[x, {"k": x}] for x in values]),
    }


WAYS = [*ways([])]


def words(value):
    """A value in words, without the addresses of those that have nothing else."""
    if type(value) in (list, dict):
        return [*map(words, value.values() if type(value) is dict else value)]
    return "an object" if type(value) is object else repr(value)


def check(flow, source, expected, engine):
    with qf.Flow(flow) as pipe, pipe(source, engine=engine, on_error="skip") as run:
        given = [*run]
    assert words(given) == words(expected)
    assert run.failures == []


@pytest.mark.parametrize("way", WAYS)
def test_U15_a_value_is_a_value_wherever_it_stands(way, anywhere):
    check(*ways(ORDINARY)[way], anywhere)


@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.parametrize("way", WAYS)
def test_U15_so_are_those_that_qflow_uses_itself(name, way, anywhere):
    check(*ways([int, TAKEN[name], str])[way], anywhere)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "inside"])
def test_U15_skip_drops_the_item_of_the_function_that_returns_it_and_no_other(way, anywhere):
    flow, source, expected = ways([int, lambda: qf.SKIP, str])[way]
    left = [0, ""]
    if type(expected[0]) is list:  # what is dropped before `pack` does not count for it
        left = [left] if way == "packed" else [[0], [""]]
    check(flow, source, left, anywhere)


def test_U15_skip_inside_an_item_is_a_value_and_the_very_same_object(anywhere):
    flow = qf.process(lambda x: [x, {"k": qf.SKIP}]) | qf.process(lambda x: [*x, x[0] is x[1]["k"] is qf.SKIP])
    ((first, inside, seen),) = qf.run(flow, [qf.SKIP], engine=anywhere)
    assert first is inside["k"] is qf.SKIP
    assert seen


def test_U15_skip_that_no_function_has_returned_is_a_value(anywhere):
    """It means something as the result of a function; what the source gives is none."""
    check(qf.pack(2), [0, qf.SKIP, 2], [[0, qf.SKIP], [2]], anywhere)
    check(qf.unpack(), [[0, qf.SKIP], [2]], [0, qf.SKIP, 2], anywhere)
