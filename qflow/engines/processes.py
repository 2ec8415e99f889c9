"""Processes: a flow as worker processes and bounded channels; the default engine.

    source -> feeder thread -> channel -> workers -> channel -> ... -> consumer's thread
              (this process)              (crew)                       (this process)

`start` pickles the steps, takes the flow's warm crew or makes one, and lets the feeder begin; `next`
takes from the last channel. When a run ends its crew goes back to the flow, for the next run.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import contextvars
import io
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any, final

import cloudpickle

from qflow.errors import GraphError, InternalError, TransportError, describe
from qflow.graph.flow import Each, Flow
from qflow.graph.function import Function
from qflow.graph.plan import Group, Plan
from qflow.graph.run import Engine, Run, StepStats
from qflow.graph.source import use
from qflow.runtime.board import DATA, ERROR, VIEWS
from qflow.runtime.codec import captured, decode, encode, sendable
from qflow.runtime.crew import Crew, key_of
from qflow.runtime.failure import NO_ITEM, failure_of
from qflow.runtime.turn import Cancelled, Cursor, Loose, Parcel, feed
from qflow.runtime.worker import run_each


@final
class Processes(Engine):
    """Worker processes from a preloaded fork server of our own; no ``if __name__ == "__main__"`` is needed."""

    def start(self, flow: Flow[Any, Any], plan: Plan, source: Iterable[Any], length: int | None, ordered: bool) -> Run[Any]:
        payloads = [pickled(group) for group in plan.groups]
        values = use(source)
        warm = warm_of(flow)
        session = Session(warm.take(plan, ordered), warm, plan, ordered)
        try:
            session.start(payloads, values)
            return ProcessRun(session, length, flow)
        except BaseException:
            session.close()
            raise

    def release(self, flow: Flow[Any, Any]) -> None:
        warm = _warm.pop(id(flow), None)
        if warm is not None:
            warm.close()


# ---- warm crews


class Warm:
    """The crews of one flow: at most one that rests, and the sessions that run."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._resting: Crew | None = None
        self._stopping = 0
        self._closed = False
        self.sessions: weakref.WeakSet[Session] = weakref.WeakSet()

    def take(self, plan: Plan, ordered: bool) -> Crew:
        """A crew at rest that fits the plan, else a new one."""
        key = key_of(plan, ordered), _modules(plan)
        with self._changed:
            self._changed.wait_for(lambda: not self._stopping, 2)
            crew, self._resting = self._resting, None
        if crew is not None and (crew.key, crew.modules) == key and _alive(crew):
            return crew
        try:
            made = Crew(plan, ordered, installed(plan))  # before the old one goes, so that the nursery stays
        finally:
            if crew is not None:
                crew.close()
        made.modules = key[1]
        return made

    def give(self, crew: Crew, *, usable: bool) -> None:
        """Take a crew back after a run."""
        with self._changed:
            keep = usable and not self._closed and self._resting is None
            if keep:
                self._resting = crew
        if not keep:
            crew.close(linger=threading.get_ident() != threading.main_thread().ident and not self._closed)

    def stopping(self, by: int) -> None:
        """Count the runs that are being stopped; the next one waits for their crew."""
        with self._changed:
            self._stopping += by
            self._changed.notify_all()

    def close(self, *, linger: bool = False) -> None:
        """End the runs and the workers."""
        with self._changed:
            self._closed = True
            crew, self._resting = self._resting, None
        for session in list(self.sessions):
            session.close()
        if crew is not None:
            crew.close(linger=linger)


_warm: dict[int, Warm] = {}


def warm_of(flow: Flow[Any, Any]) -> Warm:
    """The warm crews of this very flow, not of an equal one."""
    found = _warm.get(id(flow))
    if found is None:
        found = _warm[id(flow)] = Warm()
        weakref.finalize(flow, _collected, id(flow), os.getpid()).atexit = False
    return found


def _collected(key: int, pid: int) -> None:
    """A flow was garbage-collected; a thread of its own ends the workers, for this may be any thread at any point."""
    warm = _warm.pop(key, None) if pid == os.getpid() else None
    if warm is not None:
        with contextlib.suppress(RuntimeError):
            _thread.start_new_thread(warm.close, (), {"linger": True})


@atexit.register
def _at_exit() -> None:
    while _warm:
        _warm.popitem()[1].close()


def _forget() -> None:
    """In a forked copy of this process: nothing here is ours."""
    for warm in _warm.values():
        for crew in [warm._resting, *(session.crew for session in warm.sessions)]:
            if crew is not None:
                crew.forget()
    _warm.clear()


os.register_at_fork(after_in_child=_forget)


def _alive(crew: Crew) -> bool:
    try:
        crew.wait(0)
    except Exception:
        return False
    return not crew.broken


# ---- steps on their way to the workers


def pickled(group: Group) -> bytes:
    """A group as bytes: by name what a worker can import, by value what lives in a script or notebook."""
    file = io.BytesIO()
    try:
        cloudpickle.Pickler(file, 5).dump(group)
    except Exception as error:
        raise _unpicklable(group, error) from error
    return file.getvalue()


def _unpicklable(group: Group, error: Exception) -> GraphError:
    """Which step, and which object it carries."""
    for operator in group.operators:
        function = getattr(operator, "function", None)
        if not isinstance(function, Function) or sendable(operator):
            continue
        carried = [*captured(function.call), *function.bound, *enumerate((function.init or ((), ()))[0])]
        for name, value in carried:
            if not sendable(value):
                return GraphError(
                    f"Step {operator.name!r} can't be sent to a worker: it captures `{name}`, {describe(value)} "
                    f"({type(error).__name__}: {error}). "
                    "Open or make it inside the function, or in the constructor of a class whose instances are the step."
                )
        return GraphError(f"Step {operator.name!r} can't be sent to a worker ({type(error).__name__}: {error}).")
    return GraphError(f"Step {group.name!r} can't be sent to a worker ({type(error).__name__}: {error}).")


def _modules(plan: Plan) -> tuple[tuple[str, int], ...]:
    """The files that imported steps come from, with their times: when one is changed, new workers read it anew."""
    files = set()
    for call in _calls(plan):
        module = sys.modules.get(getattr(call, "__module__", None) or "")
        name = getattr(module, "__file__", None)
        if name and getattr(module, "__name__", "") != "__main__":
            with contextlib.suppress(OSError):
                files.add((name, os.stat(name).st_mtime_ns))
    return tuple(sorted(files))


def _calls(plan: Plan) -> Iterator[Any]:
    """The user's functions and classes in a plan."""
    for group in plan.groups:
        for operator in group.operators:
            function = getattr(operator, "function", None)
            if isinstance(function, Function):
                yield function.call


def installed(plan: Plan) -> list[str]:
    """Installed packages that the steps name, so that the nursery loads them once for all workers.

    Not the user's own modules, which may change, and not MPI, which only ranks must load.
    """
    found = set()
    for value in (value for call in _calls(plan) for value in _named(call)):
        name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        module = sys.modules.get(name) if isinstance(name, str) else None
        if "-packages" in (getattr(module, "__file__", None) or "") and not str(name).startswith(("mpi4py", "qflow")):
            found.add(str(name))
    return sorted(found)


def _named(call: Any) -> Iterator[Any]:
    """What a function needs: itself, what it carries, and all that its module has when a worker imports it."""
    yield from (call, type(getattr(call, "__self__", None)))
    yield from (value for _, value in captured(call))
    module = getattr(call, "__module__", None)
    if module in sys.modules and module != "__main__":
        yield from list(vars(sys.modules[module]).values())


# ---- a run


class Session:
    """One run of a crew: the feeder thread, and the consumer's side of the last channel."""

    def __init__(self, crew: Crew, warm: Warm, plan: Plan, ordered: bool) -> None:
        self.crew, self.warm, self.plan = crew, warm, plan
        self.over = False
        self._pid = os.getpid()
        self._closing = threading.Lock()
        self._feeding = threading.Lock()  # held by the feeder while it touches the crew
        self._fed = threading.Event()  # not `join`, which would give the threads of `abandon` a name that stays
        self._pulling = False  # the feeder is in the user's source, and may stay there
        self._consuming = threading.RLock()  # held by the consumer while it touches the crew
        self._cursor = (Cursor if ordered else Loose)(crew.board, len(crew.board.edges) - 1, crew.consumer)
        self.began = time.perf_counter()
        self._stats: list[StepStats] | None = None

    def start(self, payloads: list[bytes], values: Iterator[Any]) -> None:
        """Let the workers begin, and the feeder fill."""
        self.warm.sessions.add(self)
        self.crew.start(payloads)
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(self._feed, values), name="qflow-feeder", daemon=True).start()

    # ---- feeder

    def _feed(self, values: Iterator[Any]) -> None:
        parcels = self._parcels(values)
        values = iter(())
        crew = self.crew
        actions = feed(crew.board)
        outcome = None
        try:
            while True:
                with self._feeding:
                    if self.over:
                        return
                    action = actions.send(outcome)
                    outcome = None
                    if type(action) is tuple:
                        match action:
                            case ("ring", who):
                                crew.ring(who)
                            case ("fill", cell, parcel):
                                parcel.content.fill(crew.first_cells.region(cell))
                                del action, parcel  # they may be large
                                action = None
                if action == ("wait",):
                    os.eventfd_read(crew.bells[0])
                elif action == ("result",):
                    self._pulling = True
                    outcome = next(parcels, None)
                    self._pulling = False
        except (StopIteration, Cancelled):
            pass
        except BaseException as error:
            if not self.over:
                crew.fail(error)
        finally:
            self._fed.set()

    def _parcels(self, values: Iterator[Any]) -> Iterator[Parcel]:
        """The source's items through the feed's operators, encoded; a failure is the last."""
        number, item, handing = 0, NO_ITEM, False
        operators: tuple[Each[Any, Any], ...] = self.plan.feed  # type: ignore[assignment]
        try:
            for value in values:
                item = value
                for path, result, _ in run_each(operators, value, (number,)):
                    encoded = encode(result, path, self.crew.first_cells.stride)
                    handing = True
                    yield Parcel(DATA, encoded.nbytes, encoded)
                    handing = False
                    del result, encoded
                number += 1
                del value
                item = NO_ITEM
        except BaseException as error:  # whatever it is, the consumer must hear of it
            if handing:  # not the source's: the run is over, and this generator is closed
                raise
            if isinstance(error, TransportError):
                error = TransportError(str(error).replace("An item can't", "An item of the source can't"))
            failure = failure_of(error, "source", (number,), item, None)
            encoded = encode(failure)
            yield Parcel(ERROR, encoded.nbytes, encoded)

    # ---- consumer

    def take(self) -> Any:
        """The next result, or StopIteration; raises what a step has raised."""
        with self._consuming:
            if self.over:
                raise GraphError("The run was closed while it was iterated.")
            return self._take()

    def _take(self) -> Any:
        claim = self._drive(self._cursor.take())
        if claim is None:
            self._finish()
            raise StopIteration
        cells, taker = self.crew.last_cells, self._cursor.taker
        if claim.kind & ERROR:
            failure, _, _ = decode(cells, claim.cell, read_only=False, views=False)
            self.crew.flush()
            raise failure.error()
        self._unkeep()
        each = taker.edge.cells_each
        views = sum(cell // each == claim.cell // each for cell in self.crew.leased) < VIEWS
        value, _, viewing = decode(cells, claim.cell, read_only=False, views=views)
        if viewing:
            self.crew.leased.add(claim.cell)
        self._drive(taker.free(claim.cell, claim.place, viewing))
        return value

    def _unkeep(self) -> None:
        """Give back the cells whose last view is gone."""
        for cell in self.crew.collect():
            self._drive(self._cursor.taker.unkeep(cell))

    def _drive(self, actions: Any) -> Any:
        outcome = None
        try:
            while True:
                action = actions.send(outcome)
                if type(action) is tuple:
                    if action[0] == "ring":
                        self.crew.ring(action[1])
                    else:
                        self._wait()
        except StopIteration as stop:
            return stop.value
        except Cancelled:
            raise GraphError("The run was closed while it was iterated.") from None

    def _wait(self) -> None:
        self._unkeep()
        self.crew.wait(None)

    def _finish(self) -> None:
        """The end was reached: everybody comes to rest, and the books must balance."""
        edges = self.crew.board.edges
        stopped = max((number for number, group in enumerate(self.plan.groups) if group.stream), default=-1)
        if all(edge.total[0] and edge.taken[0] == edge.total[0] - 1 for edge in edges[: stopped + 1]):
            self._fed.wait()
            usable = self.crew.rest(2)
        else:  # a stream has ended before its input, as `islice` does
            self._abort()
            usable = self.crew.stop()
        self._balance(stopped + 1)
        self._leave(usable)

    def _balance(self, first: int) -> None:
        """Every edge from ``first`` on: as many items taken as were put."""
        for number, edge in list(enumerate(self.crew.board.edges))[first:]:
            if edge.total[0] - 1 != edge.taken[0]:
                names = ["source", *self.crew.names, "consumer"]
                between = f"{names[number]} and {names[number + 1]}: {edge.total[0] - 1} sent, {edge.taken[0]} received"
                raise InternalError(f"Accounts do not balance between {between}.")

    def _abort(self) -> None:
        """Cancel, and wait until neither consumer nor feeder touches the crew; the user's source may go on."""
        self.over = True
        self.crew.cancel()
        for _ in range(50):  # a second at most: an interrupted start may have no feeder
            if self._pulling or self._fed.wait(0.02):
                break
            self.crew.ring(0)
        with self._feeding:
            pass

    def _leave(self, usable: bool) -> None:
        self._stats = self.stats()
        self.over = True
        del self._cursor
        self.warm.sessions.discard(self)
        self.warm.give(self.crew, usable=usable)

    def close(self) -> None:
        """Stop early, and give the crew back."""
        if not self.over and self._pid == os.getpid():
            self.warm.stopping(1)
            self._close()

    def abandon(self) -> None:
        """Close from a thread of its own, because this may be any thread at any point."""
        if not self.over and self._pid == os.getpid():
            self.warm.stopping(1)
            try:
                _thread.start_new_thread(self._close, ())
            except RuntimeError:  # the interpreter ends, and the workers with it
                self.warm.stopping(-1)

    def _close(self) -> None:
        try:
            with self._closing:
                if not self.over:
                    usable = False
                    try:
                        self._abort()
                        with self._consuming:
                            usable = self.crew.stop()
                    finally:  # a second Ctrl-C ends the workers at once
                        self._leave(usable)
        finally:
            self.warm.stopping(-1)

    def stats(self) -> list[StepStats]:
        """Counts of every group so far."""
        if self._stats is not None:
            return self._stats
        board, shape = self.crew.board, self.crew.shape
        seconds = max(1e-9, time.perf_counter() - self.began)
        found = []
        for number, group in enumerate(self.plan.groups):
            first = shape.first[number + 1]
            busy, items, results = (sum(board.counts[who][k] for who in range(first, first + group.n)) for k in range(3))
            found.append(StepStats(group.name, group.n, items, results, busy / 1e9, busy / 1e9 / seconds / group.n))
        return found


@final
class ProcessRun(Run[Any]):
    """The consumer's handle of a session; dropping it stops the run."""

    def __init__(self, session: Session, length: int | None, flow: Flow[Any, Any]) -> None:
        super().__init__(length)
        self._session = session
        self._flow = flow  # a flow that nobody else holds keeps its workers as long as its run

    def _next(self) -> Any:
        return self._session.take()

    def close(self) -> None:
        self._over = True
        self._session.close()

    def stats(self) -> list[StepStats]:
        return self._session.stats()

    def __del__(self) -> None:
        session = self.__dict__.get("_session")
        if session is not None:
            session.abandon()


engine = Processes()
