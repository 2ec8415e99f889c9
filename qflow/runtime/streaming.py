"""Streaming: the worker of a stream, which writes down what it keeps.

A stream takes the values of its edge one after another and numbers its results anew. What it has taken
and not yet given out would die with its worker, so it lies in a log, in memory that outlives the worker:

    take      the values at a position; their cell stays taken
    push      results are put (`Numbered`), which count themselves
    save      the log: what was taken is added, or what is still kept is written anew (`stream_desk`)
    commit    a slot of words: the position, half and end of the log, results given; one store makes it the valid one
    release   the cells of the entries before the position

Small values that lie there already are saved and committed together, at least `BULK` of them. What is added is copied as
it lies in its table. What was taken long ago and given out since stays in the log until it is written anew: who
builds the stream again lets it take all of that once more, and drops the results, all of which were given out. User code
is not called for it: where some stands between two streams, or a stream takes values apart whose parts
others may have changed since, what is kept is written anew each time that a result comes.

A replacement frees the cells of entries before the position of the valid slot, builds the stream from its log
and goes on at its position: later values are pushed again, and those of their results that were put already
are not put again.

``job``: 0 the version, whose lowest bit tells the valid slot; then the two slots.
Effects beside those of `turn`:

    ("restore", half, end)   build the stream, from a log -> whether it needs no more
    ("take", claim, k)       let the stream take values from the k-th on, none of which brings a result -> how many
    ("nap",)                 all that lies there is taken: sleep a little if that brings no result later
    ("viewing?",)            -> whether the value that was begun last has views on its cell
    ("done?",)               -> whether it needs no more
    ("finish",)              the input has ended; the last results
    ("save", half, end)      -> half and end of the log after the entries pushed since the last save
"""

from __future__ import annotations

from typing import NamedTuple

from qflow.runtime.board import KEPT, PACKED, SHIFT, Board, Words
from qflow.runtime.numbered import Numbered
from qflow.runtime.putter import Putter
from qflow.runtime.side import Acting, Cancelled, Claim, ring_everybody
from qflow.runtime.taker import NOTHING, Taker

BULK = 16  # of the 64 small entries that may wait


class Slot(NamedTuple):
    """Where a stream is: the position of the next value, its log, whether it needs no more, and how many results it gave."""

    place: int = 0
    offset: int = 0
    half: int = 0
    end: int = 0
    done: int = 0
    given: int = 0


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
    taker, job = Taker(board, board.edges[edge], me), board.job[me]
    numbered = Numbered(Putter(board, board.edges[edge + 1], 0))
    yield ("putter", numbered.putter)
    cells_each, first_small = taker.edge.cells_each, taker.edge.shape.large
    slot = valid_slot(job)
    if job[0]:
        yield from ring_everybody(board)
        yield from _inherit(taker, slot.place)
        yield from taker.seen(slot.place >> SHIFT)
    else:
        yield from _commit(board, me, slot)
    if numbered.putter.edge.total[0]:  # a predecessor has said the end
        return
    place, offset, half, end, _, given = slot
    before = numbered.given  # results that predecessors have put
    pushed: list[Claim] = []  # and not yet committed
    over: list[tuple[int, int]] = []  # entries of those that are wholly taken, and what comes after each

    def commit() -> Acting:
        nonlocal half, end
        half, end = yield ("save", half, end)
        yield from _commit(board, me, Slot(place, offset, half, end, done, given))
        for claim in pushed:
            kept = yield ("release", claim)
            if not claim.kind & PACKED:
                yield from taker.free(claim.cell, claim.place, kept)
            if board.watched:
                yield "released"
        for each, after in over:
            yield from taker.forget(each, after)
        pushed.clear()
        over.clear()

    def skip(after: int) -> Acting:
        nonlocal place, offset
        place, offset = after, 0
        return commit()

    def give() -> Acting:
        """Put the results that come now, but for those that were put before."""
        nonlocal given
        while True:
            if given >= before:
                yield from numbered.ready()
            parcel = yield ("result",)
            if parcel is None:
                return
            given += 1
            if given > before:
                yield from numbered.give(parcel)

    done = yield ("restore", half, end)
    if done:
        yield from commit()
    while not done:
        if pushed and (sum(claim.values for claim in pushed) >= BULK or taker.found(place, offset) == NOTHING):
            yield from commit()
        if not board.watched and taker.found(place, offset) == NOTHING:
            yield ("nap",)
        claim = yield from taker.next_values(place, offset, skip)
        if claim is None:
            break
        if claim.kind & PACKED:
            claim = claim._replace(values=(yield ("share", claim.values)))
        viewing, number = False, 0
        while number < claim.values and not done:
            if board.cancelled[0]:
                raise Cancelled
            if not board.watched and (taken := (yield ("take", claim, number))):
                number += taken
            else:
                yield ("begin", claim, number, 0)
                viewing = yield ("viewing?",)
                yield from give()
                number += 1
                done = yield ("done?",)
            offset = claim.offset + number
        pushed.append(claim._replace(values=offset - claim.offset))
        place, offset = taker.after(claim.place, offset)
        if place != claim.place:
            over.append((claim.place, place))
        if done or viewing or (not claim.kind & PACKED and claim.cell % cells_each < first_small):
            yield from commit()
    yield ("finish",)
    yield from give()
    if given < before:
        parcel = yield ("fewer", given, before)
        yield from numbered.ready()
        yield from numbered.give(parcel)
    yield from numbered.end()


def _inherit(taker: Taker, place: int) -> Acting:
    """Free the cells that a predecessor kept views on, and those of the entries before a place."""
    for cell, word in enumerate(taker.edge.cell):
        if word == KEPT | taker.me or 0 < word <= place:
            yield from taker.change(cell, word, 0)
