"""Warm: the crews that a flow keeps between its runs.

They belong to the very flow object, and go with its `close`, its garbage collection, or the interpreter.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from qflow.graph.flow import Flow
from qflow.graph.plan import Plan
from qflow.runtime.crew import Crew, key_of
from qflow.runtime.shipping import installed, source_files

if TYPE_CHECKING:
    from qflow.engines.session import Session


class Warm:
    """The crews of one flow: at most one that rests, and the sessions that run."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._resting: Crew | None = None
        self._stopping = 0
        self._closed = False
        self.sessions: weakref.WeakSet[Session] = weakref.WeakSet()

    def take(self, plan: Plan, ordered: bool, start: str) -> Crew:
        """A crew at rest that fits the plan, else a new one."""
        key = key_of(plan, ordered), source_files(plan), start
        with self._changed:
            for _ in range(20):  # not once 2 seconds, which may pass while this process stands still
                if self._changed.wait_for(lambda: not self._stopping, 0.1):
                    break
            crew, self._resting = self._resting, None
        if crew is not None and (crew.key, crew.modules, crew.start_method) == key and crew.sound:
            return crew
        try:
            made = Crew(plan, ordered, installed(plan), start)  # before the old one goes, so that the nursery stays
        finally:
            if crew is not None:
                crew.close()
        made.modules = key[1]
        return made

    def give(self, session: Session, *, usable: bool, linger: bool = False) -> None:
        """Take a session's crew back after its run; ``linger`` when nobody waits for that."""
        with self._changed:
            keep = usable and not self._closed and self._resting is None
            if keep:
                self._resting, session.left = session.crew, True
        if not keep:
            session.crew.close(linger=linger and not self._closed)
            session.left = True

    def stopping(self, by: int) -> None:
        """Count the runs that are being stopped; the next one waits for their crew."""
        with self._changed:
            self._stopping += by
            self._changed.notify_all()

    def close(self, *, linger: bool = False) -> None:
        """End the runs and the workers; interrupted, it goes on where it was when called again."""
        self._closed = True
        for session in list(self.sessions):
            session.close()
        with self._changed:
            crew, self._resting = self._resting, None
        if crew is not None:
            try:
                crew.close(linger=linger)
            except BaseException:
                self._resting = crew
                raise


_warm: dict[int, Warm] = {}


def warm_of(flow: Flow[Any, Any]) -> Warm:
    """The warm crews of this very flow, not of an equal one."""
    found = _warm.get(id(flow))
    if found is None:
        made = Warm()
        found = _warm.setdefault(id(flow), made)
        if found is made:  # no other thread was faster
            weakref.finalize(flow, _collected, id(flow), os.getpid()).atexit = False
    return found


def release(flow: Flow[Any, Any]) -> None:
    """End the workers of a flow."""
    warm = _warm.get(id(flow))
    if warm is not None:
        warm.close()
        _warm.pop(id(flow), None)


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


def _crews() -> Iterator[Crew]:
    for warm in [*_warm.values()]:
        yield from (crew for crew in [warm._resting, *(session.crew for session in warm.sessions)] if crew is not None)


def _pin() -> None:
    for crew in _crews():
        crew.pin()


def _forget() -> None:
    """In a forked copy of this process: nothing here is ours."""
    for crew in _crews():
        crew.forget()
    for session in [session for warm in _warm.values() for session in warm.sessions]:
        session.ready.clear()
        session.over = "This run belongs to the process that started it; a forked copy can't iterate it. Start one here."
    _warm.clear()


os.register_at_fork(before=_pin, after_in_child=_forget)
