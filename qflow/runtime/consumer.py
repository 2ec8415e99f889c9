"""Consumer: the last edge of a run as its user sees it: results in order, or as they come, and the views on their cells."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

from qflow.errors import TransportError, annotate
from qflow.graph.run import ItemFailure, Told
from qflow.runtime.board import DATA, END, ERROR, KEPT, LOW, SHIFT, VIEWS, Board
from qflow.runtime.codec import decode, path_of, poison
from qflow.runtime.turn import ANY, Acting, Cancelled, Claim, Taker, claim_of

OVER: Any = object()  # in place of a result


class Leases:
    """The cells of the last edge on which the user keeps views, from run to run.

    Attributes:
        cells: `memory.Cells` or their like.
        held: numbers of those with views.
    """

    def __init__(self, cells: Any) -> None:
        self.cells = cells
        self.held: set[int] = set()
        self._pinned: set[int] = set()

    def collect(self) -> list[int]:
        """Cells whose last view is gone since the last look."""
        returned: deque[int] = self.cells.returned
        found = []
        while returned:
            cell = returned.popleft()
            if cell not in self._pinned:
                found.append(cell)
        self.held.difference_update(found)
        return found

    def pin(self) -> None:
        """This process is about to be forked: what the copy sees of the cells must never change."""
        self._pinned |= self.held

    def restore(self, board: Board) -> None:
        """Write the kept cells on the board of a new run."""
        self.collect()
        for cell in self.held:
            board.edges[-1].cell[cell] = KEPT | board.shape.participants - 1


class Consumer:
    """Takes the results of one run; `take` and `unkeep` are acted as those of `turn` are.

    Args:
        names: of the groups.
        ordered: in order, or as they come.
        poison: overwrite cells that are free.
    Attributes:
        failed: how many items failed, of each group.
    """

    def __init__(self, board: Board, names: Sequence[str], leases: Leases, *, ordered: bool, poison: bool) -> None:
        self._names, self._leases, self._poison = names, leases, poison
        self._cursor = (Cursor if ordered else Loose)(board, len(board.edges) - 1, board.shape.participants - 1)
        self._taker = self._cursor.taker
        self.failed: Counter[int] = Counter()

    def take(self) -> Acting:
        """The next result, or `OVER` at the end; `Told` in place of one that failed."""
        claim = yield from self._cursor.take()
        if claim is None:
            return OVER
        if claim.kind & ERROR:
            failure = decode(self._leases.cells, claim.cell, read_only=False, views=False)[0]
            yield from self._free(claim)
            self.failed[failure.group] += 1
            raise Told(failure.told())
        if self._leases.cells.returned:
            yield from self.unkeep()
        each = self._taker.edge.cells_each
        views = sum(cell // each == claim.cell // each for cell in self._leases.held) < VIEWS
        try:
            value, _, viewing = decode(self._leases.cells, claim.cell, read_only=False, views=views)
        except (Exception, SystemExit, GeneratorExit) as error:  # but not Ctrl-C
            told = self._not_loaded(claim, error)
            yield from self._free(claim)
            raise told from None
        if viewing:
            self._leases.held.add(claim.cell)
        yield from self._free(claim, viewing)
        return value

    def _not_loaded(self, claim: Claim, error: BaseException) -> Told:
        """For a result that can't be built in this process; the step that made it is to blame."""
        path = path_of(self._leases.cells, claim.cell)
        group = len(self._names) - 1
        self.failed[group] += 1
        step = self._names[group] if self._names else "source"
        if not isinstance(error, TransportError):
            told = TransportError(f"A result can't be built in this process ({type(error).__name__}: {error}).")
            told.__cause__ = error
            error = told
        return Told(ItemFailure(annotate(error, step, path, None), step, path, None))

    def _free(self, claim: Claim, viewing: bool = False) -> Acting:
        """The entry's cell is no longer needed, or kept by views."""
        if self._poison and not viewing:
            poison(self._leases.cells, claim.cell)
        return self._taker.free(claim.cell, claim.place, viewing)

    def unkeep(self) -> Acting:
        """Give back the cells whose last view is gone."""
        for cell in self._leases.collect():
            if self._poison:
                poison(self._leases.cells, cell)
            yield from self._taker.unkeep(cell)


class Cursor:
    """The consumer's own place in an edge."""

    def __init__(self, board: Board, edge: int, me: int) -> None:
        self.taker = Taker(board, board.edges[edge], me)
        self.place = 0

    def take(self) -> Acting:
        """The next entry -> a Claim whose number is its item's, or None at the end."""
        found = yield from self.taker.next_entry(self.place, self._save)
        if found is None:
            return None
        entry, place, self.place = found
        if entry & END:
            yield from self.taker.seen(self.place >> SHIFT)
        return claim_of(place >> SHIFT, place, entry)

    def _save(self, place: int) -> Acting:
        self.place = place
        if self.taker.board.watched:
            yield "skipped"


class Loose:
    """A single taker that takes whatever is there, in no order, within the window of the edge."""

    def __init__(self, board: Board, edge: int, me: int) -> None:
        self.taker = Taker(board, board.edges[edge], me)
        self.board, self.edge, self.me = board, board.edges[edge], me
        self._places: dict[int, int] = {}  # item -> the place of its next entry; items below `taken` are done
        self._done: set[int] = set()

    def _find(self) -> tuple[int, int] | None:
        """An entry that is there: (entry, place)."""
        edge, low = self.edge, self.edge.taken[0]
        for item in range(low, low + edge.window):
            place = self._places.get(item, item << SHIFT)
            head = edge.head[item % edge.window]
            if item not in self._done and head >> SHIFT == item and head > place:
                return edge.entry[item % edge.window * edge.depth + (place & LOW) % edge.depth], place
        return None

    def _over(self) -> bool:
        total = self.edge.total[0]
        return total != 0 and self.edge.taken[0] >= total - 1

    def take(self) -> Acting:
        """Any next entry -> a Claim, or None at the end."""
        while True:
            found = self._find()
            if found is None:
                if self._over():
                    return None
                self.edge.taker_wait[0] = ANY << 20 | self.me + 1
                self.taker.fence()
                if self.board.cancelled[0]:
                    raise Cancelled
                if self._find() is None and not self._over():
                    yield ("wait",)
                continue
            entry, place = found
            item = place >> SHIFT
            if self.edge.taker_wait[0]:
                self.edge.taker_wait[0] = 0
            self._places[item] = place + 1
            if entry & END:
                yield from self._finish(item)
            if entry & (DATA | ERROR):
                return claim_of(item, place, entry)

    def _finish(self, item: int) -> Acting:
        self._done.add(item)
        self._places.pop(item, None)
        low = self.edge.taken[0]
        while low in self._done:
            self._done.discard(low)
            low += 1
        yield from self.taker.seen(low)
