"""Feeder: the thread that reads a run's source and fills its first channel."""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from qflow.errors import TransportError, describe
from qflow.graph.flow import Operator
from qflow.graph.plan import Plan
from qflow.graph.row import Failed, Path, Row
from qflow.runtime.board import DATA, ERROR
from qflow.runtime.codec import encode
from qflow.runtime.crew import Crew
from qflow.runtime.failure import Failure, bytes_of, failure_of
from qflow.runtime.turn import Cancelled, Parcel, feed


class Feeder:
    """Pulls the source no faster than the bounds allow; ``collect`` as in `parcels`."""

    def __init__(self, crew: Crew, plan: Plan, values: Iterator[Any], *, collect: bool) -> None:
        self._crew, self._plan, self._collect = crew, plan, collect
        self._over = False
        self._touching = threading.Lock()  # held while the crew is touched
        self._done = threading.Event()  # not `join`, which would give a thread of `_thread` a name that stays
        self._pulling = False  # in the user's source, where it may stay
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(self._run, values), name="qflow-feeder", daemon=True).start()

    def wait(self) -> None:
        """Wait until the source is used up and all of it handed on."""
        self._done.wait()

    def stop(self) -> None:
        """Returns when the crew is not touched any more; the user's source may go on for a while."""
        self._over = True
        while not self._pulling and not self._done.wait(0.02):
            self._crew.channels.ring(0)
        with self._touching:
            pass

    def _run(self, values: Iterator[Any]) -> None:
        crew, channels = self._crew, self._crew.channels
        items = parcels(values, self._plan.feed, channels.first.stride, collect=self._collect)
        values = iter(())
        actions = feed(channels.board)
        outcome = None
        try:
            while True:
                with self._touching:
                    if self._over:
                        return
                    action = actions.send(outcome)
                    outcome = None
                    if type(action) is tuple:
                        match action:
                            case ("ring", who):
                                channels.ring(who)
                            case ("fill", cell, parcel):
                                parcel.content.fill(channels.first.region(cell, parcel.nbytes))
                                del action, parcel  # they may be large
                                action = None
                if action == ("wait",):
                    os.eventfd_read(channels.bells[0])
                elif action == ("result",):
                    self._pulling = True
                    outcome = next(items, None)
                    self._pulling = False
        except (StopIteration, Cancelled):
            pass
        except BaseException as error:
            if not self._over:
                crew.fail(error)
        finally:
            self._done.set()


def parcels(values: Iterator[Any], feed: Sequence[Operator[Any, Any]], most: int, *, collect: bool) -> Iterator[Parcel]:
    """The source's items through the feed's operators, encoded in at most so many bytes.

    A failure of the source itself is the last; ``collect``: failures bring the value that failed.
    """
    row = Row(feed)
    number = 0
    while True:
        try:
            value = next(values)
        except StopIteration:
            return
        except BaseException as error:  # whatever it is, the consumer must hear of it
            failure = failure_of(Failed(error, "source", None, None), (number,), None)
            yield _failure(failure._replace(fatal=True), (number,))
            return
        for path, result, _ in row.add(value, (number,)):
            yield _parcel(result, path, most, collect)
            del result
        number += 1
        del value  # not kept alive while the next one is waited for


def _parcel(value: Any, path: Path, most: int, collect: bool) -> Parcel:
    """A value, encoded, or what is wrong with it."""
    if type(value) is Failed:
        failed = value
    else:
        try:
            encoded = encode(value, path, most)
            return Parcel(DATA, encoded.nbytes, encoded)
        except BaseException as error:
            if isinstance(error, TransportError):
                error = TransportError(str(error).replace("An item can't", "An item of the source can't"))
            failed = Failed(error, "source", describe(value), value)
    failure = failure_of(failed, path, None)
    return _failure(failure._replace(value=bytes_of(failed.value)) if collect else failure, path)


def _failure(failure: Failure, path: Path) -> Parcel:
    encoded = encode(failure, path)
    return Parcel(ERROR, encoded.nbytes, encoded)
