"""Simulated: a flow in one thread, through the coordination of the process engine, in an order that a seed chooses.

Every interleaving of workers and every death between two of their acts can be had again from its number,
so that a defect of order or recovery is a seed that anyone can replay, under a debugger if need be.
"""

from __future__ import annotations

import pickle
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any, final

import numpy as np

from qflow.graph.context import borrowed
from qflow.graph.engine import Engine
from qflow.graph.flow import Flow
from qflow.graph.options import RunOptions
from qflow.graph.path import Path
from qflow.graph.plan import SMALL, Plan
from qflow.graph.reading import readings
from qflow.graph.resume import resumption
from qflow.graph.run import Run, StepStats
from qflow.graph.sizes import count
from qflow.runtime import books
from qflow.runtime.board import Board, shape_of, words_needed
from qflow.runtime.consumer import OVER, Consumer, Leases
from qflow.runtime.desk import Desk
from qflow.runtime.feeder import feed_row, parcels
from qflow.runtime.ledger import Ledger, Orders
from qflow.runtime.log import REGIONS, Log
from qflow.runtime.memory import Lease, Memory
from qflow.runtime.packed import Filling
from qflow.runtime.shipping import carried, pickled
from qflow.runtime.side import Acting
from qflow.runtime.simulation import Actor, Effects, Simulation
from qflow.runtime.store import Hold, holding
from qflow.runtime.stream_desk import StreamDesk
from qflow.runtime.streaming import stream
from qflow.runtime.turn import feed, work
from qflow.runtime.whereabouts import Death, here

LOG = 1 << 26  # bytes of addresses for each region of a stream's log


@final
class Simulated(Engine):
    """Workers as actors of one thread; the same results, errors and statistics as with processes.

    >>> import qflow as qf
    >>> from qflow.engines.simulated import Simulated
    >>> list(qf.run(qf.process(n=3)(abs), [-1, -2, -3], engine=Simulated(seed=7)))
    [1, 2, 3]

    Args:
        seed: chooses the interleaving and the deaths.
        deaths: how many workers die, each between two of its acts.
        attempts: as in `Processes`.
    """

    def __init__(self, seed: int = 0, *, deaths: int = 3, attempts: int = 2) -> None:
        self.seed, self.deaths = seed, deaths
        self.attempts = count(attempts, "attempts", "qf.engines.Simulated(attempts=2)")

    def start(self, flow: Flow[Any, Any], plan: Plan, source: Iterable[Any], length: int | None, options: RunOptions) -> Run[Any]:
        return SimulatedRun(self, plan, source, length, options)


@final
class PlainCells:
    """Cells in plain memory, as `memory.Cells` are in shared memory; several may share one content."""

    stride = sys.maxsize

    def __init__(self, content: dict[int, bytearray]) -> None:
        self._content = content
        self.returned: deque[int] = deque()

    def region(self, cell: int, size: int = 0) -> memoryview:
        """The bytes of a cell; new ones when they are to be written."""
        if size:
            self._content[cell] = bytearray(size)
        return memoryview(self._content[cell])

    def inbox(self, taker: int) -> memoryview:
        """Where a taker keeps the small values that it works on."""
        return memoryview(self._content.setdefault(-1 - taker, bytearray(SMALL)))

    def forget(self) -> None:
        """Nobody gives anything back between runs."""

    def punch(self, cell: int, keep: int = 0) -> None:
        """What lies in a cell behind its first bytes is gone."""
        content = self._content.get(cell, bytearray())
        content[keep:] = bytes(len(content[keep:]))

    def lease(self, cell: int, start: int, end: int) -> Lease:
        """A view on bytes of a cell, which notes the cell in ``returned`` when it is gone."""
        lease = Lease((end - start,), np.uint8, self._content[cell], start)
        lease.note(self.returned, cell)
        return lease


@final
class SimulatedRun(Run[Any]):
    """The actors of one run; ``next`` lets them act until the consumer has a result."""

    def __init__(self, engine: Simulated, plan: Plan, source: Iterable[Any], length: int | None, options: RunOptions) -> None:
        super().__init__(length, options, plan)
        resumed = resumption(plan, options)
        read = readings(source, plan, options.context, resumed)
        self.plan, self._deaths = plan, engine.deaths
        shape = shape_of(plan, ordered=options.ordered)
        self._board = Board(shape, memoryview(bytearray(8 * words_needed(shape))).cast("Q"))
        self._rng = random.Random(engine.seed)
        self._simulation = Simulation(self._board, len(plan.groups), self._rng)
        self._contents: list[dict[int, bytearray]] = [{} for _ in shape.edges]
        self._names = tuple(group.name for group in plan.groups)
        self._held = Hold(room=sys.maxsize)  # of what is shared
        with holding(self._held):
            self._payloads = [pickled(group) for group in plan.groups]
            context = carried(plan.context(options.context))
        self._logs = {n: Log(Memory(-1, REGIONS * LOG), LOG) for n, group in enumerate(plan.groups) if group.stream}
        self._orders = Orders(
            collect=options.collects,
            poison=True,
            context=context,
            starts={number: starts for number, starts in enumerate(resumed.groups) if starts},
        )
        self._ledger = Ledger(engine.attempts)
        self._began = time.perf_counter()
        self._died: Counter[int] = Counter()
        self._me = shape.participants - 1
        self._cells = PlainCells(self._contents[-1])
        leases = Leases(self._cells)
        self._consumer = Consumer(self._board, self._names, leases, ordered=options.ordered, poison=True)
        row = feed_row(plan, options.context, resumed)
        items = parcels(read, row, sys.maxsize, collect=self._orders.collect)
        cells = PlainCells(self._contents[0])
        filling = Filling(cells)
        effects: Effects = {"result": lambda: next(items, None), "fill": filling.fill, "add": filling.add, "punch": cells.punch}
        self._simulation.actors[0] = Actor(feed(self._board), effects)
        for number, group in enumerate(plan.groups):
            for who in range(shape.first[number + 1], shape.first[number + 1] + group.n):
                self._hire(number, who, self._orders)

    # ---- workers

    def _hire(self, number: int, who: int, orders: Orders) -> None:
        """A worker, with a step of its own, as if it were a process."""
        inputs, outputs = PlainCells(self._contents[number]), PlainCells(self._contents[number + 1])
        own = self._board, self._names, number, who, inputs, outputs
        desk = StreamDesk(*own, self._logs[number]) if number in self._logs else Desk(*own)
        desk.now = int  # no time goes by: the same seed is the same run
        desk.caught = (Exception, KeyboardInterrupt, SystemExit, GeneratorExit)
        _here(desk, self._open)(desk, number, orders)
        desk.unkept = lambda cell: self._play(desk, desk.taker.unkeep(cell))
        acting = (stream if desk.streams else work)(self._board, number, who)
        self._simulation.actors[who] = Actor(acting, {word: _here(desk, effect) for word, effect in desk.effects.items()}, number)

    def _play(self, desk: Desk, actions: Acting) -> None:
        """Play what waits for nobody, at one go: it is within an effect of an actor, who must not act meanwhile."""
        for word, what, *more in actions:
            if word == "ring":
                self._simulation.bells[what] += 1
            else:
                desk.inputs.punch(what, *more)

    def _open(self, desk: Desk, number: int, orders: Orders) -> None:
        desk.group = pickle.loads(self._payloads[number]).opened()
        desk.start(orders)

    def _act(self) -> None:
        """Let somebody act, or die."""
        simulation = self._simulation
        if self._deaths and self._rng.random() < 0.02 and any(actor.step is not None for actor in simulation.actors.values()):
            self._deaths -= 1
            return self._die(simulation.victim())
        who = simulation.choose()
        try:
            simulation.act(who)
        except Death:
            self._die(who)

    def _die(self, who: int) -> None:
        """A worker dies, with all threads of its process, and is replaced."""
        number = self._simulation.actors[who].step
        assert number is not None
        group, first = self.plan.groups[number], self._board.edges[number + 1].first
        together = range(first, first + group.n) if group.placement == "thread" else [who]
        decision = self._ledger.judge(self._board, number, together, stream=group.stream)
        self._died[number] += 1
        orders = self._ledger.orders(self._orders, number, group.name, decision, "died", "")
        for each in together:
            if each in self._simulation.actors:
                self._hire(number, each, orders)

    # ---- consumer

    def _next(self) -> Any:
        result = self._drive(self._consumer.take())
        if result is OVER:
            self._finish()
            raise StopIteration
        return result

    def _drive(self, actions: Acting) -> Any:
        """The consumer acts; others act in between as the seed has it."""
        try:
            while True:
                action = next(actions)
                for _ in range(self._rng.choice((0, 0, 1, 5))):
                    if self._simulation.able():
                        self._act()
                if action == ("wait",):
                    while not self._simulation.bells[self._me]:
                        self._act()
                    self._simulation.bells[self._me] = 0
                elif action[0] == "ring":
                    self._simulation.bells[action[1]] += 1
                elif action[0] == "give back":
                    self._cells.punch(*action[1:])
        except StopIteration as stop:
            return stop.value

    def _finish(self) -> None:
        """All come to rest, and the books must balance."""
        first = books.first_whole(self._board, self.plan.groups)
        while self._simulation.actors and not first:
            self._act()
        books.balance(self._board, self._names, first)

    def _last(self) -> tuple[Path, int]:
        return self._consumer.last

    def _close(self) -> None:
        self._simulation.actors.clear()

    def stats(self) -> list[StepStats]:
        seconds = time.perf_counter() - self._began
        return books.statistics(self._board, self.plan.groups, seconds, self._consumer.failed, self._died, {})


def _here(desk: Desk, effect: Any) -> Any:
    """An effect in which `qf.worker()` tells of this desk."""

    def play(*arguments: Any) -> Any:
        before = here.info, here.simulated
        here.info, here.simulated = desk.info, True
        try:
            with borrowed(desk.context):
                return effect(*arguments)
        finally:
            here.info, here.simulated = before

    return play
