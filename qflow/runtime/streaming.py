"""Streaming: the worker of a stream, which writes down what it keeps.

A stream takes the entries of its edge one after another and numbers its results anew. What it has taken
and not yet given out would die with its worker, so it lies in a log, in memory that outlives the worker:

    take      the entry at ``place``; its cell stays taken
    push      results become items ``item``, ``item + 1`` ... of the output edge
    save      the log: what was taken is added, or, once results came, what is still kept is written anew
    commit    a slot of words: place, item, half and end of the log; one store makes it the valid one
    release   the cells of the entries before ``place``

Small entries that lie there already are saved and committed together, at most `BULK` of them.

A replacement frees the cells of entries before the place of the valid slot, builds the stream from its log
and goes on at its place: later entries are pushed again, and those of their results that lie in their
lanes already are not put again.

``job``: 0 the version, whose lowest bit tells the valid slot; then the two slots.
Effects beside those of `turn`:

    ("restore", half, end)   build the stream, from a log -> whether it needs no more
    ("done?",)               -> whether it needs no more
    ("finish",)              the input has ended; the last results
    ("save", half, end)      -> half and end of the log after the entries pushed since the last save
"""

from __future__ import annotations

from typing import NamedTuple

from qflow.runtime.board import END, KEPT, SHIFT, Board, Words
from qflow.runtime.turn import Acting, Claim, Parcel, Putter, Taker, claim_of, ring_everybody

BULK = 16  # of the 64 small entries that may wait


class Slot(NamedTuple):
    """Where a stream is: next entry, next result, its log, whether it needs no more."""

    place: int = 0
    item: int = 0
    half: int = 0
    end: int = 0
    done: int = 0


WORDS = len(Slot._fields)


def valid_slot(job: Words) -> Slot:
    """The slot that counts."""
    at = 1 + WORDS * (job[0] & 1)
    return Slot(*job[at : at + WORDS])


def ended_early(board: Board, edge: int) -> bool:
    """Whether the stream that takes from an edge needed no more of it."""
    return bool(valid_slot(board.job[board.edges[edge + 1].first]).done)


def _commit(board: Board, me: int, slot: Slot) -> Acting:
    job = board.job[me]
    version = job[0] + 1
    at = 1 + WORDS * (version & 1)
    for number, word in enumerate(slot):
        job[at + number] = word
    if board.watched:
        yield "slotted"
    job[0] = version
    if board.watched:
        yield "saved"


def stream(board: Board, edge: int, me: int) -> Acting:
    """The worker of a stream: takes from ``edge``, puts into ``edge + 1``. Starts where a predecessor has stopped.

    Raises Cancelled when the run is stopped.
    """
    taker, putter, job = Taker(board, board.edges[edge], me), Putter(board, board.edges[edge + 1], 0), board.job[me]
    cells_each, first_small = taker.edge.cells_each, taker.edge.shape.large
    slot = valid_slot(job)
    if job[0]:
        yield from ring_everybody(board)
        yield from _inherit(taker, slot.place)
        yield from taker.seen(slot.place >> SHIFT)
    else:
        yield from _commit(board, me, slot)
    if putter.edge.total[0]:  # a predecessor has said the end
        return
    place, item, half, end, _ = slot
    pushed: list[Claim] = []  # and not yet committed

    def commit() -> Acting:
        nonlocal half, end
        half, end = yield ("save", half, end)
        yield from _commit(board, me, Slot(place, item, half, end, done))
        for claim in pushed:
            kept = yield ("release", claim)
            yield from taker.free(claim.cell, claim.place, kept)
            if board.watched:
                yield "released"
        pushed.clear()
        yield from taker.seen(place >> SHIFT)

    def skip(after: int) -> Acting:
        nonlocal place
        place = after
        return commit()

    done = yield ("restore", half, end)
    while not done:
        if pushed and (len(pushed) == BULK or not taker.there(place)):
            yield from commit()
        found = yield from taker.next_entry(place, skip)
        if found is None:
            break
        entry, at, place = found
        claim = claim_of(item, at, entry)
        viewing = yield ("begin", claim)
        item = yield from _give(putter, item)
        pushed.append(claim)
        done = yield ("done?",)
        if done or viewing or claim.cell % cells_each < first_small:
            yield from commit()
    yield ("finish",)
    item = yield from _give(putter, item)
    if putter.published(item)[0]:
        item = yield from _complain(putter, item)
    yield from putter.end(item)


def _inherit(taker: Taker, place: int) -> Acting:
    """Free the cells that a predecessor kept views on, and those of the entries before a place."""
    for cell, word in enumerate(taker.edge.cell):
        if word == KEPT | taker.me or 0 < word <= place:
            yield from taker.change(cell, word, 0)


def _give(putter: Putter, item: int) -> Acting:
    """Put the results that come now, from item number ``item`` on, but for those that lie there -> the number after them."""
    while True:
        yield from putter.lane_free(item)
        parcel = yield ("result",)
        if parcel is None:
            return item
        if not putter.published(item)[0]:
            yield from putter.put(item, Parcel(parcel.kind | END, parcel.nbytes, parcel.content))
        item += 1


def _complain(putter: Putter, item: int) -> Acting:
    """A predecessor has given more results than came now; an error is the last -> the number after it."""
    last = item
    while putter.published(last)[0]:
        last += 1
    parcel = yield ("fewer", item, last)
    yield from putter.lane_free(last)
    yield from putter.put(last, parcel)
    return last + 1
