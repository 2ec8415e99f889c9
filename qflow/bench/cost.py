"""Cost: the CPU that one message takes of each party, in microseconds.

Feeder, worker and consumer of one step act in turn in this thread, on real cells and words, so that nobody waits,
nothing is woken, and the figure is that of the code alone: all checks, all bookkeeping for recovery, no system call.
The least of several rounds counts.
"""

from __future__ import annotations

import argparse
import os
import pickle
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import qflow as qf
from qflow.graph.context import PLAIN
from qflow.graph.flow import Flow
from qflow.graph.options import NOTHING
from qflow.graph.plan import make_plan
from qflow.graph.reading import readings
from qflow.runtime.board import Board, EdgeShape, shape_of, words_needed
from qflow.runtime.consumer import OVER, Consumer, Leases
from qflow.runtime.desk import Desk
from qflow.runtime.feeder import feed_row, is_quick, parcels
from qflow.runtime.ledger import Orders
from qflow.runtime.memory import Cells, anonymous, bytes_needed, mapped
from qflow.runtime.packed import Filling
from qflow.runtime.shipping import pickled
from qflow.runtime.side import Acting
from qflow.runtime.turn import feed, work

STRIDE = 1 << 24
PARTIES = ("feeder", "worker", "consumer")
ITEMS: dict[str, Callable[[], Sequence[Any]]] = {
    "ints": lambda: range(4000),
    "small tuples": lambda: [(number, 2.0, "abc") for number in range(4000)],
    "arrays of 800 bytes": lambda: [np.zeros(100)] * 2000,
    "arrays of 1 MB": lambda: [np.zeros(1 << 17)] * 200,
}


def identity(item: Any) -> Any:
    """The step."""
    return item


class Cost:
    """The command ``python -m qflow.bench cost``."""

    HELP = "The CPU that one message takes of feeder, worker and consumer, without any wait."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """What the command takes."""
        parser.add_argument("--rounds", type=int, default=9, help="of which the least counts (default: %(default)s)")

    def run(self, arguments: argparse.Namespace) -> int:
        """Measure and print."""
        print(f"{'us per message':22}" + "".join(f"{party:>10}" for party in PARTIES))
        for name, items in ITEMS.items():
            rounds = [measured(items()) for _ in range(arguments.rounds)]
            print(f"{name:22}" + "".join(f"{min(party):10.2f}" for party in zip(*rounds, strict=True)))
        return 0


def measured(items: Sequence[Any]) -> tuple[float, ...]:
    """Microseconds per item of each party, for items that go through one step."""
    plan = make_plan(Flow(qf.process(identity)).operators, NOTHING)
    shape = shape_of(plan)
    board = Board(shape, memoryview(bytearray(8 * words_needed(shape))).cast("Q"))
    cells = [_both_ends(edge) for edge in shape.edges]
    desk = Desk(board, ("identity",), 0, 1, cells[0][1], cells[1][0])
    desk.group = pickle.loads(pickled(plan.groups[0])).opened()
    desk.start(Orders())
    read = readings(items, plan, PLAIN)
    source = parcels(read, feed_row(plan), STRIDE, collect=False, many=is_quick(plan))
    filling = Filling(cells[0][0])
    feeding: dict[str, Any] = {
        "result": lambda: next(source, None),
        "fill": filling.fill,
        "add": filling.add,
        "punch": cells[0][0].punch,
    }
    consumer = Consumer(board, ("identity",), Leases(cells[1][1]), ordered=True, poison=False)
    parties = [_acts(feed(board), feeding), _acts(work(board, 0, 1), desk.effects), _takes(consumer)]
    spent = [0] * len(parties)
    living = dict(enumerate(parties))
    while living:
        for number, party in [*living.items()]:
            began = time.thread_time_ns()
            if next(party, OVER) is OVER:
                del living[number]
            spent[number] += time.thread_time_ns() - began
    return tuple(nanoseconds / 1000 / len(items) for nanoseconds in spent)


def _both_ends(edge: EdgeShape) -> tuple[Cells, Cells]:
    size = bytes_needed(edge, STRIDE)
    fd = anonymous("edge", size)
    memory = mapped(fd, size)
    os.close(fd)
    return Cells(edge, STRIDE, memory), Cells(edge, STRIDE, memory)


def _acts(actions: Acting, effects: dict[str, Any]) -> Acting:
    """Act until there is something to wait for, again and again -> what `actions` returns."""
    outcome = None
    while True:
        try:
            action = actions.send(outcome)
        except StopIteration as stop:
            return stop.value
        outcome = None
        if action[0] == "wait":
            yield None
        elif action[0] != "ring":
            outcome = effects[action[0]](*action[1:])


def _takes(consumer: Consumer) -> Acting:
    """Take result after result."""
    while (yield from _acts(consumer.take(), {})) is not OVER:
        pass
