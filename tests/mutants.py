"""Mutants: the coordination with one place changed. Each must be noticed by whoever runs that place.

`test_turn` plays `turn`, what it uses, and the consumer's cursors as plain values, `test_simulated` runs flows in one thread,
`test_mutants` runs them in real processes.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import qflow

# None imports one behind it.
MODULES = ["side", "taker", "allocator", "putter", "numbered", "turn", "streaming", "consumer", "ledger", "desk", "stream_desk"]


class Mutant(NamedTuple):
    """A module of the runtime, a text that stands once in it, what stands there instead, and who can't notice it, and why."""

    module: str
    old: str
    new: str
    blind: dict[str, str] = {}


ENTRY = "        edge.grown[slot], edge.mark[slot] = grown, mark\n"
WRITTEN = '        if self.board.watched:\n            yield "written"\n'
COMMIT = "        yield from _commit(board, me, Slot(place, offset, half, end, done, given))\n"
RELEASE = """        for claim in pushed:
            kept = yield ("release", claim)
            if not claim.kind & PACKED:
                yield from taker.free(claim.cell, claim.place, kept)
            if board.watched:
                yield "released"
        for each, after in over:
            yield from taker.forget(each, after)
"""

RARE = {"simulated": "its runs are too few to come to that; worlds do"}

LUCK = {"processes": "they come there by luck; worlds play that very order"}

BYTES = {"simulated": "its runs have no bound in bytes", "processes": "the same"}

MUTANTS = {
    "a dead worker's unpublished cells stay taken": Mutant("allocator", "edge.cell[cell] = tag = 0", "tag = 0", LUCK),
    "a replacement repeats what was delivered": Mutant(
        "turn", "        elif given < skip and not parcel.kind & END:", "        elif False:"
    ),
    "a verdict counts as given": Mutant(
        "turn",
        "elif given < skip and not parcel.kind & END:",
        "elif given < skip:",
        {"world": "nobody judges its deaths"},
    ),
    "fewer results at the second try are no error": Mutant(
        "turn",
        '            parcel = yield ("fewer", given, skip)',
        "            pass",
        {"world": "its steps give the same at every try"},
    ),
    "views of the dead are kept for ever": Mutant("turn", "        yield from taker.inherit()\n", ""),
    "views of others are freed": Mutant("allocator", "if 0 < tag < KEPT and edge.head", "if tag and edge.head"),
    "the cursor is not handed on": Mutant(
        "turn", 'yield ("pass", claim.number + 2, job[4], offset_word(job[4], job[5]))', "pass"
    ),
    "a replacement hands the cursor on again": Mutant("turn", "if inherited and not alone and (yield", "if False and (yield"),
    "a replacement never hands the cursor on": Mutant(
        "turn", "if inherited and not alone and (yield from _handed_on(board, out, hand[0])):", "if inherited and not alone:"
    ),
    "the claim comes after the cursor": Mutant("turn", "    job[0] = hand[0]\n", "    pass\n"),
    "lanes are reused too early": Mutant("putter", "item >= edge.taken[0] + edge.window", "False"),
    "the taker is not woken": Mutant("putter", "if waits and waits >> 20 in (item, ANY) and self.rung != count:", "if 0:"),
    "the producer is not woken": Mutant("taker", 'yield ("ring", edge.first + producer)', "pass"),
    "the window's waiter is not woken": Mutant(
        "taker",
        '            if waits and item >= waits >> 20:\n                yield ("ring", (waits & 0xFFFFF) - 1)',
        "            if 0:\n                yield",
    ),
    "nobody hears of the end": Mutant("putter", "        yield from ring_everybody(self.board)\n", ""),
    "a dead worker's rings are lost": Mutant(
        "turn", "        yield from ring_everybody(board)\n        yield from taker", "        yield from taker"
    ),
    "the one whose turn it is is not woken": Mutant("taker", "if TURN <= wait <= self.edge.taken[0] + TURN:", "if 0:", BYTES),
    "a large value passes out of turn": Mutant(
        "allocator", "return not self._held and self._has_turn(item)", "return not self._held", BYTES
    ),
    "a large value leaves its pages": Mutant("taker", "if large and not new and edge.shape.producers > 1:", "if 0:", BYTES),
    "pages are noted after they are there": Mutant(
        "allocator", "            self._note(cell, size)\n", "            self._all_pages += size - before\n", BYTES
    ),
    "free cells keep their pages": Mutant(
        "allocator", "            if self._all_pages <= self._most_pages:", "            if 1:", BYTES
    ),
    "sleep without a second look": Mutant("side", "            if found := ready():\n                break\n", ""),
    "a lane is written over": Mutant("putter", "if place & LOW >= edge.depth:", "if 0:"),
    "a finished item is run again": Mutant("turn", "        if not finished:", "        if True:", RARE),
    "the commit comes before the entry": Mutant(
        "putter",
        ENTRY + WRITTEN + "        edge.head[lane] = place + 1\n",
        "        edge.head[lane] = place + 1\n" + WRITTEN + ENTRY,
    ),
    "the cells of entries before the place stay taken": Mutant("streaming", " or 0 < word <= place:", ":"),
    "cells of later entries are freed": Mutant("streaming", "0 < word <= place:", "0 < word:"),
    "lanes below the place stay taken": Mutant(
        "streaming", "        yield from taker.seen(slot.place >> SHIFT)\n    else", "    else"
    ),
    "a dead stream's rings are lost": Mutant("streaming", "        yield from ring_everybody(board)\n", ""),
    "results are given again": Mutant(
        "streaming",
        "            if given > before:\n",
        "            if 1:\n",
    ),
    "fewer results of a stream are no error": Mutant(
        "streaming", "    if given < before:\n        parcel", "    if 0:\n        parcel"
    ),
    "the slot counts before it is written": Mutant(
        "streaming",
        '        job[at + number] = word\n    if board.watched:\n        yield "slotted"\n    job[0] = version',
        '        job[0] = version\n        yield "slotted"\n        job[at + number] = word',
    ),
    "entries are released before the commit": Mutant("streaming", COMMIT + RELEASE, RELEASE + COMMIT),
    "skipped lanes are not noted": Mutant(
        "streaming",
        "        place, offset = after, 0\n        return commit()",
        "        place, offset = after, 0\n        return iter(())",
    ),
    "the consumer says not what it has taken": Mutant(
        "consumer", "        yield from self.taker.forget(claim.place, self._position[0])\n", ""
    ),
    "without order, a finished item comes again": Mutant(
        "consumer", "        del self._open[item]\n", "        self._open[item] = item << SHIFT, 0\n"
    ),
    "without order, the last to claim are not looked at": Mutant("consumer", "claimed = max(job[0]", "claimed = min(job[0]"),
    "without order, lanes are free too early": Mutant(
        "consumer", "self.taker.seen(next(iter(self._open), self._next))", "self.taker.seen(item + 1)"
    ),
    "cells under the user's views are freed": Mutant(
        "consumer",
        "        yield from self._free(claim, viewing)\n        self._row",
        "        yield from self._free(claim)\n        self._row",
    ),
    "the user may keep all cells": Mutant("consumer", "in held) < VIEWS", "in held) < 10**9"),
    "what the user kept is free in the next run": Mutant(
        "consumer",
        "            board.edges[-1].cell[cell] = KEPT | board.shape.participants - 1",
        "            pass",
        {"simulated": "each of its runs has memory of its own"},
    ),
    "what was taken is not written down": Mutant(
        "stream_desk",
        "                end = self._log.append(end, contents([*entered, Places(row.places)] if tells else entered))",
        "                pass",
    ),
    "what is kept is not written down": Mutant(
        "stream_desk", "for kept in row.states:", "for kept in [kept._replace(state=None) for kept in row.states]:"
    ),
    "a stream begins anew": Mutant(
        "stream_desk", "        self._row.enter(entered, places)\n", "        self._row.enter([], places)\n"
    ),
    "cells under a step's views are freed": Mutant(
        "desk", "            else:\n                self._kept.add(cell)", "            else:\n                pass"
    ),
    "a step may keep all cells": Mutant("desk", "for kept in self._kept) < VIEWS", "for kept in self._kept) < 10**9"),
    "what a step gives back stays taken": Mutant("desk", "                self.unkept(cell)", "                pass"),
    "suspects are repeated together": Mutant(
        "desk",
        "        if self.orders.suspects:\n",
        "        if 0:\n",
        {"simulated": "each of its acts is over before the next, so that two threads are never amid user code"},
    ),
    "a poisonous item is repeated for ever": Mutant("ledger", "if len(fatal) == 1:", "if False:"),
    "nobody is charged": Mutant("ledger", "            self._deaths[group, call] += 1\n", "            pass\n"),
    "a step that goes on is given up": Mutant("ledger", "            self._storms[group] = 0\n", "            pass\n"),
    "another's wait counts as rung": Mutant(
        "putter",
        """        count = self.edge.taker_waits[0]
        if self.board.watched:
            yield "waking"
        waits = wait[0]  # after the count: else another one's wait could count as rung
""",
        """        waits = wait[0]
        if self.board.watched:
            yield "waking"
        count = self.edge.taker_waits[0]
""",
        RARE | LUCK,
    ),
    "an offset counts in any entry": Mutant(
        "turn", "return word >> 32 if word & 0xFFFFFFFF == place & 0xFFFFFFFF else 0", "return word >> 32", LUCK
    ),
    "the end of what is closed is not seen": Mutant("taker", "if head == place and place & LOW and self", "if 0 and self"),
    "who waits for room lets its entry grow": Mutant(
        "putter", "        yield from self.close(item)\n        cell", "        cell", RARE
    ),
    "a dead worker's packed cell stays taken": Mutant(
        "turn", "                yield from _tidy(taker, hand[1])\n", "                pass\n", RARE | LUCK
    ),
    "packed cells are freed before they are wholly taken": Mutant(
        "taker", "if place != after and self.edge.head", "if self.edge.head"
    ),
    "other results at the second try are no error": Mutant(
        "turn",
        "                if not putter.differs(number, given, parcel):",
        "                if True:",
        {"world": "its steps give the same at every try"},
    ),
}


def path_of(module: str) -> Path:
    """Where a module lies."""
    return Path(qflow.__file__).parent / "runtime" / f"{module}.py"


def text(module: str, name: str | None) -> str:
    """The source of a module under a mutant, or under none."""
    source = path_of(module).read_text()
    if name is None or MUTANTS[name].module != module:
        return source
    _, old, new, _ = MUTANTS[name]
    assert source.count(old) == 1, (name, source.count(old))
    return source.replace(old, new)


def runtime(name: str | None) -> dict[str, types.ModuleType]:
    """All of the coordination made anew, under a mutant or under none."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        for module in MODULES:
            made[module] = types.ModuleType(f"qflow.runtime.{module}")
            patch.setitem(sys.modules, made[module].__name__, made[module])
            exec(compile(text(module, name), f"{module}, where {name}", "exec"), vars(made[module]))
    return made


@contextlib.contextmanager
def patience(seconds: float = 5) -> Iterator[None]:
    """TimeoutError, again and again, if what follows takes longer: a mutant may turn round in a circle."""

    def interrupt(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def seen_by(who: str) -> list[str]:
    """The mutants that somebody must notice."""
    return [name for name, mutant in MUTANTS.items() if who not in mutant.blind]
