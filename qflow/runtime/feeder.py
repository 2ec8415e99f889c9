"""Feeder: the thread that reads a run's source and fills its first channel."""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Callable, Generator, Iterator
from functools import partial
from itertools import chain, islice
from typing import Any

from qflow.errors import TransportError, describe
from qflow.graph.attempt import FAILED, Failed, Watch
from qflow.graph.context import PLAIN, Context
from qflow.graph.path import Path
from qflow.graph.plan import Plan
from qflow.graph.reading import Reading
from qflow.graph.resume import FRESH, Resumption
from qflow.graph.row import Row
from qflow.runtime.board import DATA, END
from qflow.runtime.crew import Crew
from qflow.runtime.failure import bytes_of, failure_of, parcel_of
from qflow.runtime.needs import start_thread
from qflow.runtime.packed import Filling, Numbers, Packer, packs
from qflow.runtime.side import Acting, Cancelled, Parcel
from qflow.runtime.store import Hold, travelling
from qflow.runtime.turn import feed

CHUNK = 512  # numbers that are read at once
NUMBER = 16  # bytes of a number and its index path in a cell
_NONE: list[Any] = []
# Iterators whose `next` is no user code.
THERE = type(iter(range(0))), type(iter(range(1 << 70))), type(iter(_NONE)), type(iter(tuple(_NONE)))


class Feeder:
    """Pulls the source's `parcels` no faster than the bounds allow; ``hold`` for what items refer to.

    ``items`` makes them, and is told how to know that no more are wanted.
    """

    def __init__(self, crew: Crew, items: Callable[[Callable[[], bool]], Iterator[Parcel]], hold: Hold) -> None:
        self._crew, self._over = crew, False
        self._touching = threading.Lock()  # held while the crew is touched, but for the wait for its bell
        self._waiting = False
        self._hold = hold
        self._done = threading.Event()  # not `join`, which would give a thread of `_thread` a name that stays
        crew.channels.first.forget()
        self._filling = Filling(crew.channels.first)
        self._items = items(lambda: self._over)

    def start(self) -> None:
        """Begin to pull."""
        context, items, self._items = contextvars.copy_context(), self._items, iter(())
        start_thread("qflow-feeder", partial(context.run, self._run, items))

    def wait(self) -> None:
        """Wait until the source is used up and all of it handed on."""
        self._done.wait()

    def stop(self) -> None:
        """Returns when the crew will not be touched any more; the user's source may go on for a while."""
        with self._touching:
            self._over = True
        while self._waiting and not self._done.wait(0.02):
            self._crew.channels.ring(0)
        vars(self).pop("_filling", None)  # it holds the memory of the channels

    def _run(self, items: Iterator[Parcel]) -> None:
        actions = feed(self._crew.channels.board)
        travelling.hold = self._hold
        parcel: Parcel | None = None
        try:
            while True:
                with self._touching:
                    if self._over:
                        return
                    self._waiting = self._act(actions, parcel)
                    parcel = None  # it may be large
                if self._waiting:
                    os.eventfd_read(self._crew.channels.bells[0])
                    self._waiting = False
                else:
                    parcel = next(items, None)
        except (StopIteration, Cancelled):
            pass
        except BaseException as error:
            if not self._over:
                self._crew.fail(error)
        finally:
            self._done.set()
            vars(self).pop("_filling", None)

    def _act(self, actions: Acting, outcome: Any) -> bool:
        """Act until the next item is needed, or the bell -> whether it is the bell."""
        channels = self._crew.channels
        action, outcome = actions.send(outcome), None
        while True:
            if type(action) is tuple:
                word = action[0]
                if word == "wait":
                    return True
                if word == "result":
                    return False
                if word == "ring":
                    channels.ring(action[1])
                elif word == "punch":
                    channels.first.punch(*action[1:])
                else:
                    outcome = (self._filling.fill if word == "fill" else self._filling.add)(*action[1:])
            action = None
            action, outcome = actions.send(outcome), None


def feed_row(plan: Plan, context: Context = PLAIN, resumed: Resumption = FRESH) -> Row:
    """What a run does where its source is read."""
    return Row(plan.feed, Watch(context=plan.context(context)), None, plan.feed_labels, resumed.feed)


def is_quick(plan: Plan) -> bool:
    """Whether numbers that are there already may come together."""
    return not plan.feed and plan.bounds[0] is None and plan.times == 1 and plan.shard is None


def parcels(
    readings: Iterator[Reading], row: Row, most: int, over: Callable[[], bool] = bool, *, collect: bool, many: bool = False
) -> Iterator[Parcel]:
    """The source's items through the feed, encoded in at most so many bytes; each ends its item of the edge.

    A failure of the source itself is the last; ``over``: whether no more are wanted, which is asked where none may come for ever;
    ``collect``: failures bring the value that failed; ``many``: as `is_quick` says.
    """
    packer, bare = Packer(), row.empty

    def parcel(path: Path, result: Any, known: int) -> Parcel:
        return _failed(result, path, collect) if known & FAILED else _parcel(packer, result, path, most, collect)

    for reading in readings:
        if row.done or over():
            break
        values, number = reading.items, reading.number
        if many and type(values) in THERE:
            values, number = yield from _numbers(values, number)
        while bare or not (row.over(reading.head) or over()):
            path = (*reading.head, number)
            try:
                value = next(values)
            except StopIteration:
                break
            except BaseException as error:  # whatever it is, the consumer must hear of it
                failure = failure_of(Failed(error, "source", None, None), path, None)
                yield parcel_of(failure._replace(fatal=True), path)
                return
            if bare:
                yield _parcel(packer, value, path, most, collect)
            else:
                for each in row.add(value, path):
                    yield parcel(*each)
                    del each
            number += reading.step
            del value  # not kept alive while the next one is waited for
    for each in row.finish():
        yield parcel(*each)


def _numbers(values: Iterator[Any], number: int) -> Generator[Parcel, None, tuple[Iterator[Any], int]]:
    """The plain numbers with which a source begins -> the rest of it, and its first item's number."""
    size = 1
    while chunk := list(islice(values, size)):
        numbers = Numbers.of(chunk, number)
        if numbers is None:
            return chain(chunk, values), number
        yield Parcel(DATA | END, NUMBER * len(chunk), numbers, packs=True, values=len(chunk))
        number += len(chunk)
        size = CHUNK
    return values, number


def _parcel(packer: Packer, value: Any, path: Path, most: int, collect: bool) -> Parcel:
    """A value, encoded, or what is wrong with it."""
    try:
        encoded = packer.pack(value, path, most)
        return Parcel(DATA | END, encoded.nbytes, encoded, packs=packs(encoded))
    except BaseException as error:
        if isinstance(error, TransportError):
            error = TransportError(str(error).replace("An item can't", "An item of the source can't"))
        return _failed(Failed(error, "source", describe(value), value), path, collect)


def _failed(failed: Failed, path: Path, collect: bool) -> Parcel:
    failure = failure_of(failed, path, None)
    return parcel_of(failure._replace(value=bytes_of(failed.value)) if collect else failure, path)
