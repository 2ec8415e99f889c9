"""Dash: the quick way of a step that makes one row of one value: what `turn` does with it, in one loop.

    for each value   call the function; check and store the row; one store commits it, and says how far the worker is

That word, ``grown`` of the growing entry, counts the rows and the values that are done, so that a replacement knows from it
what a dead worker was at (`Board.state`); nothing else is written for a value. Counts are brought up to date after the
loop, or from that word.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from qflow.runtime.board import CALLS, COUNT, DONE, OFFSET, Phase, Words
from qflow.runtime.putter import Putter
from qflow.runtime.side import ANY, Claim
from qflow.runtime.template import LEAST, MORE

Function = Callable[[Any], Any]
STEP = 1 << DONE | 1  # what one more result does to a word of ``grown``


class Dash:
    """One loop, or several, of one claim.

    Args:
        putter: with an entry of the claim's item that may grow, a `table`.
        at: the worker's word of what it is at.
        ring: rings a participant's bell.
        forked: not empty in a copy of this process that the function has made, which must not store anything.
    """

    def __init__(self, putter: Putter, at: Words, ring: Callable[[int], object], forked: list[bool]) -> None:
        self.putter, self.at, self.ring, self.forked = putter, at, ring, forked
        self.outcome: Any = None  # of the call for the value that it could not do

    def run(self, function: Function, table: Any, claim: Claim, k: int, values: Sequence[Any], nbytes: int) -> int:
        """Call the function for values from the ``k``-th of a claim on -> the first value that is not done.

        A result that has no place in the ``table`` stops it, or an exception: see ``outcome``. ``nbytes`` of a row.
        One store commits a result, and that its value is done.
        """
        putter, slot = self.putter, self.putter.last(claim.number)
        assert slot is not None
        grown, size = putter.edge.grown, len(values)
        grown[slot] = now = grown[slot] & COUNT | k << DONE
        rows, commits = range(table.rows, table.rows + size), range(now + STEP, now + STEP * (size + 1), STEP)
        self.outcome = None
        if not putter.edge.quick[0]:
            putter.edge.quick[0] = 1
            putter.fence()
        self.at[0] = claim.offset << OFFSET | 2 << CALLS | Phase.DASH  # call 1 is to load it
        loop = self._rows if table.template.number is None else self._numbers
        loop(function, table, zip(rows, commits, values, strict=True), grown, slot, claim.number)
        if self.forked:
            os._exit(0)
        self.at[0] = Phase.IDLE
        done = (grown[slot] >> DONE & COUNT) - k
        if done:
            table.rows += done
            putter.hold(putter.growing_cell, done * nbytes, done)
        return k + done

    def _rows(self, function: Function, table: Any, each: Iterator[Any], grown: Words, slot: int, number: int) -> None:
        """Of any structure."""
        forked, fenced, waits, store = self.forked, self.putter.fenced, self.putter.edge.taker_wait, table.store
        try:
            for row, commit, value in each:
                result = function(value)
                if forked or not store(row, result):
                    self.outcome = result, None
                    return
                grown[slot] = commit
                if fenced or waits[0]:
                    self._wake(number)
        except BaseException as error:
            self.outcome = None, error

    def _numbers(self, function: Function, table: Any, each: Iterator[Any], grown: Words, slot: int, number: int) -> None:
        """The same, for plain numbers of one kind."""
        forked, fenced, waits = self.forked, self.putter.fenced, self.putter.edge.taker_wait
        column, kind, result = table.columns[0], table.template.number, None
        try:
            for row, commit, value in each:
                result = function(value)
                if type(result) is not kind or forked:
                    self.outcome = result, None
                    return
                column[row] = result
                grown[slot] = commit
                if fenced or waits[0]:
                    self._wake(number)
        except BaseException as error:
            too_large = type(result) is int and not LEAST <= result < MORE
            self.outcome = (result, None) if too_large else (None, error)

    def _wake(self, number: int) -> None:
        """Ring the taker, if it waits for what has just been stored and was not yet rung."""
        if self.putter.fenced:
            self.putter.fence()
        edge = self.putter.edge
        if (wait := edge.taker_wait[0]) and wait >> 20 in (number, ANY) and edge.taker_waits[0] != self.putter.rung:
            for _, who in self.putter.wake(number):
                self.ring(who)
