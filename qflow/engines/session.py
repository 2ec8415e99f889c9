"""Session: one run of a crew, and the consumer's handle of it."""

from __future__ import annotations

import _thread
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, final

from qflow.engines.warm import Warm, warm_of
from qflow.errors import GraphError
from qflow.graph.flow import Flow
from qflow.graph.options import RunOptions
from qflow.graph.path import Path
from qflow.graph.plan import Plan
from qflow.graph.reading import Reading, readings
from qflow.graph.resume import Resumption, resumption
from qflow.graph.run import NotYet, Run, StepStats, Told
from qflow.runtime import books
from qflow.runtime.consumer import OVER, Consumer
from qflow.runtime.crew import Crew
from qflow.runtime.feeder import Feeder, feed_row, is_quick, parcels
from qflow.runtime.heavy import warn_of_copies
from qflow.runtime.ledger import Orders
from qflow.runtime.shipping import carried, check_handles, pickled
from qflow.runtime.side import Acting, Cancelled
from qflow.runtime.store import Hold, holding

FEW = 4  # stores beyond those of the steps that the items of a run refer to at once; others when they come again
CLOSED = "The run was closed while it was iterated."


def begin(
    flow: Flow[Any, Any],
    plan: Plan,
    source: Iterable[Any],
    length: int | None,
    options: RunOptions,
    *,
    start: str,
    attempts: int,
) -> Run[Any]:
    """Ship the steps to the flow's workers, and let them and the feeder begin; the last four as `Processes` has them."""
    held = Hold(room=sys.maxsize)
    with holding(held):
        payloads = [pickled(group) for group in plan.groups]
        context = carried(plan.context(options.context))
    if start == "fork":
        check_handles(plan)
    resumed = resumption(plan, options)
    read = readings(source, plan, options.context, resumed)
    warm = warm_of(flow)
    session = Session(warm.take(plan, options.ordered, start), warm, plan, options, context)
    try:
        session.start(payloads, held, read, attempts, resumed)
        return ProcessRun(session, length, options, flow)
    except BaseException:
        session.close()
        raise


class Session:
    """One run of a crew: its feeder, and the consumer's side of the last channel."""

    def __init__(self, crew: Crew, warm: Warm, plan: Plan, options: RunOptions, context: bytes) -> None:
        self.crew, self.warm, self.plan, self.options = crew, warm, plan, options
        self.over = ""  # why it can't be iterated any more
        self.left = False  # the crew is given back
        self._pid = os.getpid()
        self._closing = threading.Lock()
        self._leaving = threading.RLock()  # held while it is decided who touches the crew
        self._gone = False  # the crew is touched by nobody but who gives it back
        self._consuming = threading.RLock()  # held by the consumer while it touches the crew
        self._feeder: Feeder | None = None
        poison = bool(os.environ.get("QFLOW_DEBUG_POISON"))
        self._orders = Orders(collect=options.collects, poison=poison, context=context)
        channels = crew.channels
        self._consumer = Consumer(
            channels.board, channels.names, channels.leases, ordered=options.ordered, poison=poison, naps=True
        )
        self.ready = self._consumer.ready
        self.began = time.perf_counter()
        self._stats: list[StepStats] | None = None
        self._hold = Hold()  # of what is shared
        self._ended: tuple[Path, int] | None = None  # what was given out last, when it is over
        self._taking: Acting | None = None  # what is not yet taken at the end of its time

    def start(self, payloads: list[bytes], held: Hold, read: Iterator[Reading], attempts: int, resumed: Resumption) -> None:
        """Let the workers begin, and the feeder fill."""
        self.warm.sessions.add(self)
        for group, new, old in zip(self.plan.groups, payloads, self.crew.shipped, strict=True):
            if new != old:
                warn_of_copies(group, new)
        orders = self._orders._replace(starts={number: starts for number, starts in enumerate(resumed.groups) if starts})
        self.crew.start(self.plan, payloads, held, orders, attempts)
        self._hold = Hold(held.held, room=len(held.held) + FEW)
        row, most = feed_row(self.plan, self.options.context, resumed), self.crew.channels.first.stride
        items = partial(parcels, read, row, most, collect=self._orders.collect, many=is_quick(self.plan))
        self._feeder = Feeder(self.crew, items, self._hold)
        self._feeder.start()
        self.crew.watch()

    # ---- consumer

    def take(self, deadline: float | None) -> Any:
        """The next result, or failure, or StopIteration; `NotYet` after the deadline."""
        if self.over:
            raise GraphError(self.over)
        with self._consuming:
            if self.over:
                raise GraphError(self.over)
            return self._take(deadline)

    def _take(self, deadline: float | None) -> Any:
        taking, self._taking = self._taking or self._consumer.take(), None
        try:
            result = self._drive(taking, deadline)
        except Told as told:
            if self.options.on_error == "raise" or told.failure.fatal:
                self.crew.channels.flush()  # what the worker has printed comes before what it has raised
            raise
        if result is OVER:
            self._finish()
            raise StopIteration
        return result

    def _drive(self, actions: Acting, deadline: float | None = None) -> Any:
        outcome = None
        try:
            while True:
                action = actions.send(outcome)
                if type(action) is not tuple:
                    continue
                if action[0] == "wait":
                    if self._consumer.returned:
                        self._drive(self._consumer.unkeep())
                    self._wait(actions, deadline)
                elif action[0] == "ring":
                    self.crew.channels.ring(action[1])
                else:
                    self.crew.channels.leases.cells.punch(*action[1:])
        except StopIteration as stop:
            return stop.value
        except Cancelled:
            raise GraphError(CLOSED) from None
        except NotYet:
            raise
        except BaseException:  # the traceback of an interrupt may be kept for long, and should not hold the channels
            actions.close()
            raise

    def _wait(self, taking: Acting, deadline: float | None) -> None:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            self._taking = taking
            raise NotYet
        try:
            self.crew.wait(left)
        except OSError:
            if not self.over:
                raise
        if self.over:  # by a signal handler of the user
            raise Cancelled

    # ---- endings

    def _finish(self) -> None:
        """The end was reached: everybody comes to rest, and the books must balance."""
        board = self.crew.channels.board
        first = books.first_whole(board, self.plan.groups)
        if not first:
            if self._feeder is not None:
                self._feeder.wait()
            usable = self.crew.rest(2)
        else:  # a stream has ended before its input, as `islice` does
            self._abort()
            usable = self.crew.settle()
        books.balance(board, self.crew.names, first)
        self._leave(usable)

    def _abort(self) -> None:
        """Cancel, and wait until neither consumer nor feeder touches the crew; the user's source may go on."""
        with self._leaving:
            self.over = self.over or CLOSED
            if not self._gone:
                self._consumer.drop()
                self.crew.channels.cancel()
        if self._feeder is not None:
            self._feeder.stop()

    def _leave(self, usable: bool, *, linger: bool = False) -> None:
        """Give the crew back; interrupted, it goes on where it was when called again."""
        with self._leaving:
            if self.left:
                return
            self.over, self._gone = self.over or CLOSED, True
            self._stats = self.stats()
            self.crew.end_run()
            if usable and not self.crew.broken:
                self.crew.trim()
            self.warm.give(self, usable=usable and not self.crew.broken, linger=linger)
            self.warm.sessions.discard(self)
            self._taking = None
            self._ended = self._consumer.last
            vars(self).pop("_consumer", None)  # it holds the memory of the channels
            self._hold.held.clear()

    def close(self) -> None:
        """Stop early, and give the crew back."""
        if not self.left and self._pid == os.getpid():
            self.warm.stopping(1)
            self._close()

    def abandon(self) -> None:
        """Close from a thread of its own, because this may be any thread at any point."""
        if not self.left and self._pid == os.getpid():
            self.warm.stopping(1)
            try:
                _thread.start_new_thread(self._close, (), {"linger": True})
            except RuntimeError:  # the interpreter ends, and the workers with it
                self.warm.stopping(-1)

    def _close(self, *, linger: bool = False) -> None:
        try:
            with self._closing:
                usable = False
                try:
                    if not self._gone:
                        self._abort()
                        with self._consuming:
                            usable = self._gone or self.crew.settle()
                finally:  # a second Ctrl-C ends the workers at once
                    self._leave(usable, linger=linger)
        finally:
            self.warm.stopping(-1)

    def last(self) -> tuple[Path, int]:
        """The path of what was given out last, and how many results there were."""
        return self._consumer.last if self._ended is None else self._ended

    def stats(self) -> list[StepStats]:
        """Counts of every group so far."""
        if self._stats is not None:
            return self._stats
        supervisor, none = self.crew.supervisor, Counter[int]()
        died, recycled = (none, none) if supervisor is None else (supervisor.died, supervisor.recycled)
        seconds = time.perf_counter() - self.began
        return books.statistics(self.crew.channels.board, self.plan.groups, seconds, self._consumer.failed, died, recycled)


@final
class ProcessRun(Run[Any]):
    """The consumer's handle of a session; dropping it stops the run."""

    ahead = True

    def __init__(self, session: Session, length: int | None, options: RunOptions, flow: Flow[Any, Any]) -> None:
        super().__init__(length, options, session.plan)
        self._session = session
        self._ready = session.ready
        self._flow = flow  # a flow that nobody else holds keeps its workers as long as its run

    @property
    def cells(self) -> Any:
        return self._session.crew.channels.leases.cells

    def _next(self) -> Any:
        return self._session.take(self._deadline)

    def _last(self) -> tuple[Path, int]:
        return self._session.last()

    def _close(self) -> None:
        self._session.close()

    def _closed(self) -> bool:
        return bool(self._session.over)

    def stats(self) -> list[StepStats]:
        return self._session.stats()

    def __del__(self) -> None:
        session = self.__dict__.get("_session")
        if session is not None:
            session.abandon()
