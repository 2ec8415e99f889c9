"""Stream desk: a worker of a stream, which writes down what it keeps, so that another one can go on."""

from __future__ import annotations

import contextlib
import time
from itertools import chain, islice
from typing import Any, NamedTuple

from qflow.graph.attempt import NO_ITEM
from qflow.graph.row import Kept, Place, Row
from qflow.runtime.board import PACKED, Board
from qflow.runtime.desk import Desk
from qflow.runtime.ledger import Verdict
from qflow.runtime.log import Log
from qflow.runtime.pace import Nap
from qflow.runtime.packed import contents
from qflow.runtime.side import Claim, Parcel
from qflow.runtime.table import Reader as Table

UNWRITTEN = 3  # in place of a half of the log, 1 or 2: what the stream keeps can't be sent, so nobody can go on from it
# Bytes of records from which on the state is written anew, when it was less than a quarter of them: when no result has come
# since the last time, which means that most of them are the state; and when some have.
GROWS, SNAPSHOT = 1 << 26, 1 << 22


class Places(NamedTuple):
    """Among the values that the stream has taken: where it was then."""

    there: list[Place]


class StreamDesk(Desk):
    """A desk that plays the effects of `streaming`, too."""

    streams = True

    def __init__(self, board: Board, names: tuple[str, ...], number: int, me: int, inputs: Any, outputs: Any, log: Log) -> None:
        super().__init__(board, names, number, me, inputs, outputs)
        self._log = log
        self._given = self._snapshot = 0  # results since the last save, and bytes of the last snapshot
        self._since = False  # results have come since then
        self._naps = Nap()
        self._row_bytes = 0  # of the values taken last from a table; before the first it is not known how many may wait
        self.effects |= {
            "restore": self._restore,
            "finish": self._finish,
            "save": self._save,
            "take": self._take_many,
            "nap": self._nap,
            "viewing?": lambda: self._viewing is not None,
            "done?": lambda: self._row is not None and self._row.done,
        }

    def _share(self, available: int) -> int:
        """All of them: nobody else could take them meanwhile."""
        return 1 if self._alone else available

    def _lies(self, claim: Claim) -> memoryview:
        """In their cell, until what the stream has made of them is committed."""
        region: memoryview = self.inputs.region(claim.cell)
        return region

    def _row_at_start(self) -> Row | None:
        return None  # it is made when it is restored

    def _result(self) -> Parcel | None:
        parcel = super()._result()
        self._given += parcel is not None
        return parcel

    def _restore(self, half: int, end: int) -> bool:
        """Build the stream, from what a predecessor has written down if there was one -> whether it needs no more."""
        states, entered, places = None, [], None
        if half == UNWRITTEN:
            lost = "died, and what its stream kept was lost with it, because it can't be sent to another process"
            self.orders = self.orders._replace(fatal=Verdict("died", f"A worker of step {self.name!r} {lost}."))
        if self.orders.fatal is not None or self.group is None:
            return False
        if half or end:
            states = self._states(half) if half else None
            for each in self._log.records(end):
                if type(each) is Places:
                    places = each.there
                else:
                    entered.append(each)
        self._row = self._row_of(self.group, states)
        self._row.enter(entered, places)
        return self._row.done

    def _take_many(self, claim: Claim, k: int) -> int:
        """Let the stream take values of a table from the ``k``-th on, none of which brings a result -> how many."""
        if self._row is None or self._careful or not claim.kind & PACKED:
            return 0
        if self._claim is not claim:
            self._read(claim)
        if self._values is None:
            return 0
        assert isinstance(self._reader, Table)
        if self.context.repeats and self._reader.path(k)[0] != self._reader.path(claim.values - 1)[0]:
            return 0  # of two repetitions of the source
        taken = self._row.take(self._values[k:])
        if taken:
            assert self._row.entered is not None
            self.counts[1] += taken
            self._row_bytes = self._reader.template.row
            if self.context.repeats:
                self._row.came(self._reader.path(k + taken - 1))
            part = self._reader.part(k, taken)
            self._row.entered += self._values[k : k + taken] if part is None else [part]
        return taken

    def _nap(self) -> None:
        """Nothing more is there: if several values are missing for a result, sleep until half of them should have come."""
        row, nbytes, shape = self._row, self._row_bytes, self.board.edges[self.number].shape
        if row is not None:
            pause = self._naps.seconds(self.now(), self.counts[1], lambda: min(row.missing // 2, shape.unheard(nbytes)))
            if pause:
                time.sleep(pause)

    def _finish(self) -> None:
        self._outgoing.begin()
        self._calls = self._at_value = self.at[1] = 0
        self._value = NO_ITEM
        self._results = None if self._row is None else self._row.finish()

    def _save(self, half: int, end: int) -> tuple[int, int]:
        """Write down what is kept after the entries pushed since the last save -> half and end of the log."""
        row = self._row
        if row is None:
            return half, end
        entered, row.entered = row.entered or [], []
        given, deep = self._given, row.deep
        self._since, self._given, row.deep = self._since or given > 0, 0, False
        if half != UNWRITTEN and not deep and (not given or row.whole):
            with contextlib.suppress(Exception):  # it can't be sent, but what is kept of it may
                tells = given or self.context.repeats
                end = self._log.append(end, contents([*entered, Places(row.places)] if tells else entered))
                if end <= max(SNAPSHOT if self._since else GROWS, 4 * self._snapshot):
                    return half, end
        self._since = False
        try:
            return self._write_states(half, row), 0
        except Exception:
            return UNWRITTEN, 0

    def _write_states(self, half: int, row: Row) -> int:
        """Write the state of the stream into the half that does not count -> which."""
        other = 2 if half == 1 else 1
        states, lists = [], []
        for kept in row.states:
            listed = type(kept.state) is list
            lists.append(kept.state if listed else [])
            states.append((tuple(kept._replace(state=None) if listed else kept), len(lists[-1]), listed))
        values = chain([states], *lists)
        self._snapshot = self._log.write_snapshot(other - 1, contents([*values]))
        return other

    def _states(self, half: int) -> list[Kept]:
        """What `_write_states` has written."""
        written = self._log.snapshot(half - 1)
        states = [(Kept(*kept), length, listed) for kept, length, listed in next(written)]
        return [kept._replace(state=[*islice(written, length)]) if listed else kept for kept, length, listed in states]
