"""Take in turn: how items are taken, worked on and handed on, in order, by any number of workers.

Order is decided when an item is *taken*. A step has one cursor: "the next item is entry t of input
lane i, and gets number q". The worker that holds it takes that entry, hands the cursor to the next
idle worker at once, and publishes its results to output lane q, its own until the item is finished.
The next step reads the lanes in order, so a slow item holds nobody's turn and nothing is stashed.

    cursor   1. take it (a blocking read straight into the own ``hand``, one system call)
    window   2. wait until output lane q may be reused, and until the input entry is there
    claim    3. write ``job``; the store of its number is the claim; hand the cursor on
    run      4. run the step; for each result: find a free cell of the own, fill it, publish
    commit      an entry, then ``head``: one store is the commit; the last entry carries END
    release  5. free the input's cell, unless somebody keeps a view; ``job`` says finished

The functions here are generators over the words of a `Board`: pure but for those words. They yield
what is to be done outside, and are resumed with its outcome:

    ("wait",)                block until somebody rings the own bell
    ("ring", who)            ring a participant's bell
    ("cursor",)              read the step's cursor into the own hand, blocking
    ("pass", q + 1, place)   write the cursor
    ("passed?",)             whether a cursor lies in the pipe (a replacement asks)
    ("begin", claim)         load the input and start the step on it -> whether it has views on its cell
    ("result",)              -> the next parcel of the item at work, or None after the last
    ("fewer", now, before)   -> the parcel of an error: a predecessor had more results of this item
    ("other",)               -> the same: a predecessor had other results of this item
    ("fill", cell, parcel)   copy the parcel into the cell
    ("release", claim)       the item is finished -> whether a view on its cell is kept
    "name"                   nothing: a point between two stores, where tests kill; only if the board is ``watched``

A participant that starts on words left by a dead predecessor goes on where that one was (`work`
looks at hand and job first), which is the whole of recovery. Source: the prototype and its proofs
of liveness are in the project's protocol notes; a test explores every interleaving and every death.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from itertools import islice
from typing import Any, NamedTuple

from qflow.graph.plan import SMALL
from qflow.runtime.board import CELL, CELL_BITS, DATA, END, ERROR, KEPT, LOW, POISON, SHIFT, Board, Edge, Words

Acting = Generator[Any, Any, Any]
SWEPT = 256  # cells looked at in one sweep
ANY = (1 << 44) - 1  # in place of an item: any entry will do


class Cancelled(BaseException):
    """The run is being stopped; the participant goes to rest."""


class Parcel(NamedTuple):
    """A result ready to be copied into a cell: kind (DATA or ERROR; with END when known to be the last), bytes, content.

    ``mark`` tells it from another one that came in its place, at most `board.MARK`; 0: nobody asks.
    """

    kind: int
    nbytes: int
    content: Any = None
    mark: int = 0


class Claim(NamedTuple):
    """An item in a worker's hands: its number in the step, the entry's place in the input edge, its kind and cell."""

    number: int
    place: int
    kind: int
    cell: int


class Side:
    """One who puts into an edge or takes from it, and may have to wait for the other side."""

    def __init__(self, board: Board, edge: Edge, me: int) -> None:
        self.board, self.edge, self.me = board, edge, me
        lock = threading.Lock()  # nobody else's: a lock that another thread has is no fence
        self._acquire, self._release = lock.acquire, lock.release

    def fence(self) -> None:
        """Let the store before be seen before the load after; to take and release a lock is a full barrier on x86."""
        self._acquire()
        self._release()

    def until(self, ready: Callable[[], Any], word: Words, at: int, mark: int) -> Acting:
        """Wait until ``ready()``: leave a mark, look once more, sleep. Whoever makes it ready sees the mark and rings."""
        while not ready():
            if self.board.watched:
                yield "not ready"
            word[at] = mark
            self.fence()
            if self.board.cancelled[0]:
                raise Cancelled
            if ready():
                break
            yield ("wait",)
        if word[at]:
            word[at] = 0


def claim_of(number: int, place: int, entry: int) -> Claim:
    """The claim on an entry."""
    return Claim(number, place, entry & 7, entry >> 3 & CELL)


class Taker(Side):
    """Takes the entries of an edge, one after another, in order."""

    def there(self, place: int) -> bool:
        """Whether the entry at a place has been published."""
        item = place >> SHIFT
        head = self.edge.head[item % self.edge.window]
        return head > place and head >> SHIFT == item

    def look(self, place: int) -> Acting:
        """Wait for the entry at a place; None when the edge ends before it."""
        edge, item = self.edge, place >> SHIFT
        if not self.there(place):

            def ready() -> bool:
                return self.there(place) or (edge.total[0] != 0 and item >= edge.total[0] - 1)

            yield from self.until(ready, edge.taker_wait, 0, item << 20 | self.me + 1)
            if not self.there(place):
                return None
        return edge.entry[item % edge.window * edge.depth + (place & LOW) % edge.depth]

    def seen(self, item: int) -> Acting:
        """Lanes below ``item`` are wholly taken and may be reused."""
        edge = self.edge
        if item > edge.taken[0]:
            edge.taken[0] = item
            self.fence()
            waits = edge.lane_wait[0]
            if waits and item >= waits >> 20:
                yield ("ring", (waits & 0xFFFFF) - 1)

    def next_entry(self, place: int, save: Callable[[int], Acting]) -> Acting:
        """The next entry that holds something, from ``place`` on -> (entry, its place, the place after), or None at the end.

        ``save`` notes the place before the lane below it may be reused.
        """
        while True:
            entry = yield from self.look(place)
            if entry is None:
                return None
            after = (place >> SHIFT) + 1 << SHIFT if entry & END else place + 1
            if entry & (DATA | ERROR):
                return entry, place, after
            place = after
            yield from save(place)
            yield from self.seen(place >> SHIFT)

    def free(self, cell: int, place: int, kept: bool = False) -> Acting:
        """The cell is no longer needed, if it still holds the entry of that place; or a view on it is kept."""
        return self.change(cell, place + 1, KEPT | self.me if kept else 0)

    def holds(self, claim: Claim) -> bool:
        """Whether the cell still holds the claimed entry; a predecessor may have freed it."""
        return self.edge.cell[claim.cell] == claim.place + 1

    def unkeep(self, cell: int) -> Acting:
        """The last view on a kept cell is gone."""
        return self.change(cell, KEPT | self.me, 0)

    def inherit(self) -> Acting:
        """Free the cells that a predecessor kept views on; they went with it."""
        for cell in range(self.edge.shape.all_cells):
            yield from self.unkeep(cell)

    def change(self, cell: int, old: int, new: int) -> Acting:
        """Change a cell's word, if it is still the old one; its producer may wait for that."""
        edge = self.edge
        if edge.cell[cell] == old:
            edge.cell[cell] = new
            self.fence()
            producer = cell // edge.cells_each
            if edge.cell_wait[producer]:
                yield ("ring", edge.first + producer)


class Putter(Side):
    """Puts results into an edge: the cells of one producer, and the lanes of its items."""

    def __init__(self, board: Board, edge: Edge, producer: int) -> None:
        super().__init__(board, edge, edge.first + producer)
        self.producer = producer
        self.base, self.first_cell = edge.shape.base[producer], producer * edge.cells_each
        self.first_small = self.first_cell + edge.shape.large
        self._free = list(range(self.first_small - 1, self.first_cell - 1, -1))
        self._free_small = list(range(self.first_cell + edge.cells_each - 1, self.first_small - 1, -1))
        self._held: dict[int, int] = {}  # cell -> bytes, of published cells not known to be free, oldest first
        self._held_bytes = 0
        self._kept: set[int] = set()  # published cells on which a taker keeps views
        self._inherit()

    def _inherit(self) -> None:
        """Free the cells that a predecessor chose but did not publish; the published and the kept ones are not free."""
        edge = self.edge
        for cell in range(self.first_cell, self.first_cell + edge.cells_each):
            tag = edge.cell[cell]
            if 0 < tag < KEPT and edge.head[(tag - 1 >> SHIFT) % edge.window] < tag:
                edge.cell[cell] = tag = 0
            if tag:
                (self._free if cell < self.first_small else self._free_small).remove(cell)
            if tag >= KEPT:
                self._kept.add(cell)
            elif tag:
                self._held[cell] = 0

    def _room(self, nbytes: int) -> list[int] | None:
        """The free cells from which a result of so many bytes may take one now."""
        waiting, shape = len(self._held), self.edge.shape
        fits = self._held_bytes + nbytes <= shape.small and waiting < self.base + shape.extra
        if nbytes <= SMALL and self._free_small and (fits or waiting < self.base):
            return self._free_small
        return self._free if self._free and waiting < self.base else None

    def _sweep(self, *, wholly: bool) -> None:
        """Find the cells that the takers have freed, among the oldest; ``wholly``: also behind one that is in use."""
        words = self.edge.cell
        freed = []
        for cell in islice(self._held, SWEPT):
            if not 0 < words[cell] < KEPT:
                freed.append(cell)
            elif not wholly:
                break
        for cell in freed:
            self._held_bytes -= self._held.pop(cell)
        self._kept.update(freed)
        for cell in [cell for cell in self._kept if words[cell] == 0]:
            self._kept.discard(cell)
            (self._free if cell < self.first_small else self._free_small).append(cell)

    def reserve(self, nbytes: int) -> Acting:
        """Wait for a free cell of the own -> its number. Recently freed cells come first: their memory is warm."""
        if len(self._held) >= self.base:
            self._sweep(wholly=False)
        if self._room(nbytes) is None:

            def ready() -> bool:
                self._sweep(wholly=True)
                return self._room(nbytes) is not None

            yield from self.until(ready, self.edge.cell_wait, self.producer, 1)
        return (self._room(nbytes) or self._free).pop()

    def lane_free(self, item: int) -> Acting:
        """Wait until the lane of an item may be reused."""
        edge = self.edge
        if item >= edge.taken[0] + edge.window:
            enough = item - edge.window + 1 + edge.shape.slack
            yield from self.until(lambda: edge.taken[0] >= enough, edge.lane_wait, 0, enough << 20 | self.me + 1)

    def publish(self, item: int, kind: int, cell: int, nbytes: int, mark: int = 0) -> Acting:
        """Add an entry to the item's lane; ``cell`` counts only for DATA and ERROR. The store of ``head`` commits it."""
        edge, lane = self.edge, item % self.edge.window
        place = edge.head[lane]
        if place >> SHIFT != item or not place & LOW:
            place = item << SHIFT
        if place & LOW >= edge.depth:  # the entry that lies there now must have been taken: its cell no longer bears its tag
            old, mine = place - edge.depth + 1, range(self.first_cell, self.first_cell + edge.cells_each)
            yield from self.until(lambda: all(edge.cell[each] != old for each in mine), edge.cell_wait, self.producer, 1)
        if kind & (DATA | ERROR):
            edge.cell[cell] = place + 1
            self._held[cell] = nbytes
            self._held_bytes += nbytes
            if self.board.watched:
                yield "tagged"
        edge.entry[lane * edge.depth + (place & LOW) % edge.depth] = mark << CELL_BITS + 3 | cell << 3 | kind
        if self.board.watched:
            yield "written"
        edge.head[lane] = place + 1
        self.fence()
        if self.board.watched:
            yield "committed"
        waits = edge.taker_wait[0]
        if waits and waits >> 20 in (item, ANY):
            yield ("ring", (waits & 0xFFFFF) - 1)

    def put(self, item: int, parcel: Parcel) -> Acting:
        """Reserve, fill, publish."""
        cell = yield from self.reserve(parcel.nbytes)
        yield ("fill", cell, parcel)
        if self.board.watched:
            yield "filled"
        yield from self.publish(item, parcel.kind, cell, parcel.nbytes, parcel.mark)

    def published(self, item: int) -> tuple[bool, int]:
        """What a predecessor has published for an item: whether it finished, and how many results."""
        edge, lane = self.edge, item % self.edge.window
        head = edge.head[lane]
        if head >> SHIFT > item:
            return True, 0
        count = head & LOW
        if head >> SHIFT < item or not count:
            return False, 0
        return bool(edge.entry[lane * edge.depth + (count - 1) % edge.depth] & END), count

    def differs(self, item: int, number: int, mark: int) -> bool:
        """Whether a result of an item is known not to be what a predecessor has published in its place."""
        edge, lane = self.edge, item % self.edge.window
        if not mark or (edge.head[lane] & LOW) - number > edge.depth:  # written over since
            return False
        return edge.entry[lane * edge.depth + number % edge.depth] >> CELL_BITS + 3 not in (0, mark)

    def end(self, items: int) -> Acting:
        """Say how many items the edge has, and wake everybody who may wait for that."""
        self.edge.total[0] = items + 1
        self.fence()
        if self.board.watched:
            yield "ended"
        yield from ring_everybody(self.board)


def ring_everybody(board: Board) -> Acting:
    """Let all look again, whatever they wait for."""
    for who in range(board.shape.participants):
        yield ("ring", who)


def work(board: Board, edge: int, me: int) -> Acting:
    """A worker of a step that works item by item: takes from ``edge``, puts into ``edge + 1``, until the end of its input.

    Raises Cancelled when the run is stopped. Starts where a predecessor on these words has stopped.
    """
    taker = Taker(board, board.edges[edge], me)
    out = board.edges[edge + 1]
    putter = Putter(board, out, me - out.first)
    hand, job = board.hand[me], board.job[me]
    alone = out.shape.producers == 1
    inherited = bool(hand[0])  # from a predecessor that died; its neighbours may wait for a ring it owed
    if inherited:
        yield from ring_everybody(board)
        yield from taker.inherit()
    while True:
        if hand[0] == job[0] == job[4]:
            if alone:
                hand[1] = job[2]
                hand[0] = job[0] + 1
            else:
                yield ("cursor",)
            inherited = False
        if hand[0] == POISON or board.cancelled[0]:
            raise Cancelled
        if job[0] != hand[0]:  # the cursor is in hand and nothing is claimed with it
            if not (yield from _claim(taker, putter, hand, job)):
                yield from putter.end(hand[0] - 1)
                if not alone:
                    yield ("pass", hand[0], hand[1])
                return
            inherited = False
        claim = claim_of(job[0] - 1, job[1], job[3])
        yield from taker.seen(job[2] >> SHIFT)
        if not alone and not (inherited and (yield from _handed_on(board, out, hand[0]))):
            yield ("pass", claim.number + 2, job[2])
            if board.watched:
                yield "passed"
        inherited = False
        finished, skip = putter.published(claim.number)
        if not finished:
            yield from _run(claim, putter, skip)
        kept = yield ("release", claim)
        yield from taker.free(claim.cell, claim.place, kept)
        if board.watched:
            yield "released"
        job[4] = claim.number + 1


def _claim(taker: Taker, putter: Putter, hand: Words, job: Words) -> Acting:
    """Claim the item that the cursor in hand stands for -> whether there is one."""
    watched = taker.board.watched

    def save(place: int) -> Acting:
        hand[1] = place
        if watched:
            yield "skipped"

    if watched:
        yield "holding"
    yield from taker.seen(hand[1] >> SHIFT)
    yield from putter.lane_free(hand[0] - 1)
    found = yield from taker.next_entry(hand[1], save)
    if found is None:
        return False
    entry, job[1], job[2] = found
    job[3] = entry
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


def _run(claim: Claim, putter: Putter, skip: int) -> Acting:
    """Run the step on a claimed item and publish its results, but for the first ``skip``, which a predecessor has.

    When fewer come than that, or others, what ends the item is an error instead: the results would be a mix.
    """
    yield ("begin", claim)
    given = 0
    while True:
        parcel = yield ("result",)
        if given < skip and (parcel is None or parcel.kind & (END | ERROR) == END):
            parcel = yield ("fewer", given, skip)
        elif given < skip and not parcel.kind & END:
            if not putter.differs(claim.number, given, parcel.mark):
                given += 1
                continue
            parcel = yield ("other",)
        if parcel is None:
            return (yield from putter.publish(claim.number, END, 0, 0))
        yield from putter.put(claim.number, parcel)
        if parcel.kind & END:
            return


def feed(board: Board, me: int = 0) -> Acting:
    """The feeder: every parcel it is given, all of them with END, becomes the next item of the first edge."""
    putter = Putter(board, board.edges[0], me)
    item = 0
    while True:
        yield from putter.lane_free(item)
        parcel = yield ("result",)
        if parcel is None:
            return (yield from putter.end(item))
        yield from putter.put(item, parcel)
        del parcel  # it may be large, and the next one may be long in coming
        item += 1
