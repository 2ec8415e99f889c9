"""Take in turn: how values are taken, worked on and handed on, in order, by any number of workers.

Order is decided when a value is *taken*. A step has one cursor: "what comes next begins at this position
of the input edge, and is item q of the output edge". The worker that holds it claims the values it will
work on, hands the cursor to the next idle worker at once, and publishes its results to output lane q, its
own until the item is finished. The next step reads the lanes in order, so a slow item holds nobody's turn
and nothing is stashed.

    cursor   1. take it (a blocking read straight into the own ``hand``, one system call)
    window   2. wait until output lane q may be reused, and until the input has something
    claim    3. copy small values out of their cell; write ``job``; the store of its number is the claim; hand the cursor on
    run      4. run the step; for each result: grow the last entry, or find a free cell of the own, fill it, publish
    commit      an entry, then ``head``, or ``grown``: one store is the commit, and says how far the worker is
    release  5. free the input's cell, unless somebody keeps a view; ``job`` says finished

Small values share cells, and a worker takes as many of them at once as it will do in a moment (`pace`). A result can be
taken as soon as it is written, so nobody ever waits for a message to be full.

What acts or waits, here and at both ends of an edge (`side`, `taker`, `putter`), is a generator over the words of a `Board`:
pure but for those words. It yields what is to be done outside, and is resumed with its outcome:

    ("wait",)                block until somebody rings the own bell
    ("ring", who)            ring a participant's bell
    ("cursor",)              read the step's cursor into the own hand, blocking
    ("pass", q + 1, place, offset)   write the cursor
    ("passed?",)             whether a cursor lies in the pipe (a replacement asks)
    ("share", n)             of n small values that lie there -> how many to claim
    ("copy", claim)          copy the claimed small values out of their cell, to memory that outlives the worker
    ("putter", putter)       what puts the results, before the first of them
    ("dash", claim, k)       let `dash` do as many values as it can, from k on -> the first that it could not
    ("begin", claim, k, skip)   load value k of the claim, of which ``skip`` results are published, and start the step on it
                             -> the parcel of its only result; or one without values, if `dash` could go on in a cell
                             that is begun with it; or None: ask for its results
    ("result",)              -> the next parcel of the value at work, or None after the last
    ("spill", claim, k, given)   put results of value k that are there already into the open table -> how many are given
    ("fewer", now, before)   -> the parcel of an error: a predecessor had more results of this value
    ("other",)               -> the same: a predecessor had other results of this value
    ("fill", cell, parcel)   copy the parcel into the cell
    ("add", cell, parcel)    copy the parcel behind those in the cell -> whether it has room, and is of a kind with them
    ("punch", cell, keep)    give the pages of an own free cell back but for those of its first bytes
    ("give back", cell, keep)   the same of an input cell, which is about to be freed
    ("release", claim)       the claim is finished -> whether a view on its cell is kept
    "name"                   nothing: a point between two stores, where tests kill; only if the board is ``watched``

A participant that starts on words left by a dead predecessor goes on where that one was (`work`
looks at hand and job first), which is the whole of recovery. Source: the prototype and its proofs
of liveness are in the project's protocol notes; a test explores every interleaving and every death.
"""

from __future__ import annotations

from qflow.runtime.board import COUNT, DONE, END, ENDED, ERROR, GIVEN, KINDS, LOW, PACKED, POISON, SHIFT, Board, Edge, Words
from qflow.runtime.numbered import Numbered
from qflow.runtime.putter import Putter
from qflow.runtime.side import Acting, Cancelled, Claim, ring_everybody
from qflow.runtime.taker import Taker


def work(board: Board, edge: int, me: int) -> Acting:
    """A worker of a step that works value by value: takes from ``edge``, puts into ``edge + 1``, until the end of its input.

    Raises Cancelled when the run is stopped. Starts where a predecessor on these words has stopped.
    """
    taker = Taker(board, board.edges[edge], me)
    out = board.edges[edge + 1]
    putter = Putter(board, out, me - out.first)
    yield ("putter", putter)
    hand, job = board.hand[me], board.job[me]
    alone = out.shape.producers == 1
    inherited = bool(hand[0])  # from a predecessor that died; its neighbours may wait for a ring it owed
    if inherited:
        yield from ring_everybody(board)
        yield from taker.inherit()
        yield from putter.inherit()
    while True:
        if hand[0] == job[0] == job[7]:
            if alone:
                hand[1], hand[2] = job[4], offset_word(job[4], job[5])
                hand[0] = job[0] + 1
            else:
                yield ("cursor",)
            inherited = False
        if hand[0] == POISON or board.cancelled[0]:
            raise Cancelled
        if job[0] != hand[0]:  # the cursor is in hand and nothing is claimed with it
            if inherited:
                yield from _tidy(taker, hand[1])
            if not (yield from _claim(taker, putter, hand, job)):
                yield from putter.end(hand[0] - 1)
                if not alone:
                    yield ("pass", *hand)
                return
            inherited = False
        claim = claim_of(job)
        if inherited and not alone and (yield from _handed_on(board, out, hand[0])):
            yield from taker.forget(claim.place, job[4], holding=False)
        else:
            yield from taker.forget(claim.place, job[4])
            if not alone:
                yield ("pass", claim.number + 2, job[4], offset_word(job[4], job[5]))
                if board.watched:
                    yield "passed"
        finished, done, given = (yield from _left(putter, claim, job, board.counts[me])) if inherited else (False, 0, 0)
        inherited = False
        if not finished:
            yield from _run(claim, putter, done, given, job)
        kept = yield ("release", claim)
        if not claim.kind & PACKED:
            yield from taker.free(claim.cell, claim.place, kept)
        if board.watched:
            yield "released"
        job[7] = claim.number + 1


def _left(putter: Putter, claim: Claim, job: Words, counts: Words) -> Acting:
    """What a predecessor has left of a claim -> whether nothing, or how many values are done, and results of the next one."""
    finished, done, given = putter.published(claim.number)
    if job[10] == claim.number + 1:  # it went the quick way, and died before it could count
        before = claim.values if finished else done
        counts[1], counts[2] = max(counts[1], job[9] + before), max(counts[2], job[11] + before)
        job[10] = 0
    if not finished:
        yield from putter.close(claim.number)
        if job[8] >> DONE == claim.number + 1 and job[8] & COUNT > done:
            done, given = job[8] & COUNT, 0
    return finished, done, given


def offset_word(place: int, offset: int) -> int:
    """An offset as it is noted beside its entry's place; beside another one it means nothing, for both can't change at once."""
    return offset << 32 | place & 0xFFFFFFFF


def offset_of(place: int, word: int) -> int:
    """The offset that a word notes for an entry."""
    return word >> 32 if word & 0xFFFFFFFF == place & 0xFFFFFFFF else 0


def claim_of(job: Words) -> Claim:
    """The claim that stands in a worker's words."""
    return Claim(job[0] - 1, job[1], job[2], job[3], job[6] & (1 << KINDS) - 1, job[6] >> KINDS)


def _tidy(taker: Taker, place: int) -> Acting:
    """Forget the entry before a place, which a predecessor may have died before it could."""
    edge, item = taker.edge, place >> SHIFT
    before = place - 1 if place & LOW else edge.head[(item - 1) % edge.window] - 1 if item else -1
    if before >= 0 and before >> SHIFT in (item, item - 1):
        yield from taker.forget(before, place)


def _claim(taker: Taker, putter: Putter, hand: Words, job: Words) -> Acting:
    """Claim values that the cursor in hand stands for -> whether there are any."""
    watched = taker.board.watched

    def save(place: int) -> Acting:
        hand[1] = place
        if watched:
            yield "half skipped"
        hand[2] = offset_word(place, 0)
        if watched:
            yield "skipped"

    if watched:
        yield "holding"
    yield from taker.seen(hand[1] >> SHIFT)
    yield from putter.lane_free(hand[0] - 1)
    found = yield from taker.next_values(hand[1], offset_of(hand[1], hand[2]), save)
    if found is None:
        return False
    count = 1
    if found.kind & PACKED:
        count = yield ("share", found.values)
        yield ("copy", found._replace(values=count))
    job[1], job[2], job[3], job[6] = found.place, found.offset, count, found.cell << KINDS | found.kind
    job[4], job[5] = taker.after(found.place, found.offset + count)
    if watched:
        yield "jotted"
    job[0] = hand[0]
    if watched:
        yield "claimed"
    return True


def _handed_on(board: Board, out: Edge, held: int) -> Acting:
    """Whether a predecessor has handed the cursor on that it held: it lies in the pipe, or somebody has had it since."""
    others = (board.hand[who][0] for who in range(out.first, out.first + out.shape.producers))
    return (yield ("passed?",)) or any(other > held and other != POISON for other in others)


def _run(claim: Claim, putter: Putter, done: int, skip: int, job: Words) -> Acting:
    """Run the step on the claimed values and publish its results.

    A predecessor has published all of the first ``done`` values, and ``skip`` of the next one. When of that fewer
    come, or others, what ends the value is an error instead: the results would be a mix.
    """
    number, ended, k = claim.number, False, done
    while k < claim.values:
        if putter.board.cancelled[0]:
            raise Cancelled
        if not skip and putter.growing == number and not putter.board.watched:
            k = yield ("dash", claim, k)
            if k == claim.values:
                break
        parcel = yield ("begin", claim, k, skip)
        if parcel is not None and not parcel.values:
            yield from putter.put(number, parcel, k << DONE)
            continue
        given, last = 0, False
        while not last:
            if given > skip and putter.growing == number and not putter.board.watched:
                given = yield ("spill", claim, k, given)
            if parcel is None:
                parcel = yield ("result",)
            if given < skip and (parcel is None or parcel.kind & (END | ERROR) == END):
                parcel = yield ("fewer", given, skip)
            elif given < skip and not parcel.kind & END:
                given += 1
                if not putter.differs(number, given, parcel):
                    parcel = None
                    continue
                parcel = yield ("other",)
            if parcel is None:
                job[8] = number + 1 << DONE | k + 1
                if putter.board.watched:
                    yield "done"
                break
            given += 1
            last = bool(parcel.kind & END)
            ended = last and k + 1 == claim.values
            progress = k + 1 << DONE if last else k << DONE | given << GIVEN
            mark = parcel.mark << GIVEN | given
            yield from putter.put(number, parcel, progress, ENDED if ended else 0, mark)
            parcel = None  # its memory is not needed any more
        skip = 0
        k += 1
    if not ended:
        yield from putter.finish(number)


def feed(board: Board, me: int = 0) -> Acting:
    """The feeder: every parcel it is given, all of them with END, becomes the next value of the first edge."""
    numbered = Numbered(Putter(board, board.edges[0], me))
    while True:
        yield from numbered.ready()
        parcel = yield ("result",)
        if parcel is None:
            return (yield from numbered.end())
        yield from numbered.give(parcel)
        del parcel  # it may be large, and the next one may be long in coming
