"""Consumer: the last edge of a run as its user sees it: results in order, or as they come, and the views on their cells."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import repeat, starmap
from typing import Any

from qflow.errors import TransportError, annotate
from qflow.graph.path import Path, index_of
from qflow.graph.run import ItemFailure, Told
from qflow.runtime.board import ERROR, KEPT, KINDS, PACKED, SHIFT, VIEWS, Board
from qflow.runtime.codec import decode, path_of, poison
from qflow.runtime.pace import Nap
from qflow.runtime.packed import read
from qflow.runtime.side import ANY, Acting, Cancelled, Claim
from qflow.runtime.table import Reader as Table
from qflow.runtime.taker import NOTHING, Taker

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
        naps: sleep a little before waiting, where results come quickly (`pace`).
    Attributes:
        failed: how many items failed, of each group and step.
        ready: results that need only be given out.
        returned: cells whose last view is gone.
    """

    def __init__(
        self, board: Board, names: Sequence[str], leases: Leases, *, ordered: bool, poison: bool, naps: bool = False
    ) -> None:
        self._names, self._leases, self._poison = names, leases, poison
        self._cursor = (Cursor if ordered else Loose)(board, len(board.edges) - 1, board.shape.participants - 1)
        self._taker = self._cursor.taker
        self.ready: deque[Any] = deque()  # values that are taken, for the user
        self._mixed: deque[Any] = deque()  # the same, when some of them are broken
        self._broken: dict[int, Told] = {}  # how many of them follow one that can't be built in this process
        self._before: tuple[Path, int] | None = None  # the last result, until one of those that were taken after it is given out
        self._dropped: deque[Any] = deque()  # values that were taken and nobody gets
        self.failed: Counter[tuple[int, str]] = Counter()
        self._naps = Nap() if naps else None
        self._row_bytes = 0  # of the results that were taken last, of a table
        # Of those that were taken last: what gives their paths, how many they are, and how many results there were with them.
        self._taken: tuple[Callable[[int], Path], int, int] = _always(()), 1, 0
        self.returned: deque[int] = leases.cells.returned

    @property
    def last(self) -> tuple[Path, int]:
        """The index path of the last result that was given out, and how many there were."""
        if self._before is not None:
            return self._before
        paths, count, results = self._taken
        left = len(self.ready) + len(self._mixed) + len(self._dropped)
        return paths(count - left - 1), results - left

    def drop(self) -> None:
        """Let nobody get what was taken and not given out, also while another thread gives it out."""
        with suppress(IndexError):  # where that one is ahead
            self._dropped.extend(starmap(self.ready.pop, repeat((), len(self.ready))))  # neither interrupts nor threads divide it

    def take(self) -> Acting:
        """The next result, or `OVER` at the end; `Told` in place of one that failed."""
        while not self.ready and not self._mixed:
            if self._dropped:
                raise Cancelled
            if self._row_bytes and self._naps is not None and self._cursor.nothing():
                pause = self._naps.seconds(time.monotonic_ns(), self._taken[2], self._unheard)
                if pause:
                    time.sleep(pause)
            claim = yield from self._cursor.take()
            if claim is None:
                return OVER
            if not claim.kind & PACKED:
                return (yield from self._single(claim))
            yield from self._several(claim)
        if not self._mixed:
            try:
                value = self.ready.popleft()
            except IndexError:  # dropped by another thread
                raise Cancelled from None
            self._before = None
            return value
        told = self._broken.pop(len(self._mixed), None)
        if told is not None:
            self._before = self._before or self.last
            paths, count, results = self._taken
            self._taken = paths, count, results - 1
            self._mixed.popleft()
            raise told
        value = self._mixed.popleft()
        self._before = None
        return value

    def _unheard(self) -> int:
        return self._taker.edge.shape.unheard(self._row_bytes)

    def _several(self, claim: Claim) -> Acting:
        """Take small values out of their cell."""
        reader = read(self._leases.cells.region(claim.cell), claim.offset, claim.values)
        values: list[Any]
        values, paths = (reader.values(read_only=False), []) if isinstance(reader, Table) else ([], [])
        self._row_bytes = reader.template.row if isinstance(reader, Table) else 0
        broken = {}
        for k in range(len(values), claim.values):
            try:
                value, path = reader.load(k, read_only=False)
            except (Exception, SystemExit, GeneratorExit) as error:  # but not Ctrl-C
                value, path = None, reader.path(k)
                broken[claim.values - k] = Told(self._not_loaded(path, error), path)
            values.append(value)
            paths.append(path)
        self._before = self.last
        kept = reader.paths_kept() if isinstance(reader, Table) else paths.__getitem__
        self._taken = kept, claim.values, self._taken[2] + claim.values
        (self._mixed if broken else self.ready).extend(values)
        self._broken = broken
        yield from self._cursor.done(claim)

    def _single(self, claim: Claim) -> Acting:
        """A value that has a cell of its own, or an error."""
        if claim.kind & ERROR:
            failure, path, _ = decode(self._leases.cells, claim.cell, read_only=False, views=False)
            yield from self._free(claim)
            self.failed[failure.group, failure.step] += 1
            raise Told(failure.told(), path)
        if self.returned:
            yield from self.unkeep()
        held, each = self._leases.held, self._taker.edge.cells_each
        views = len(held) < VIEWS or sum(cell // each == claim.cell // each for cell in held) < VIEWS
        try:
            value, path, viewing = decode(self._leases.cells, claim.cell, read_only=False, views=views)
        except (Exception, SystemExit, GeneratorExit) as error:  # but not Ctrl-C
            path = path_of(self._leases.cells, claim.cell)
            told = Told(self._not_loaded(path, error), path)
            yield from self._free(claim)
            raise told from None
        if viewing:
            self._leases.held.add(claim.cell)
        yield from self._free(claim, viewing)
        self._row_bytes = 0
        self._taken = _always(path), 1, self._taken[2] + 1
        self._before = None
        return value

    def _not_loaded(self, path: tuple[int, ...], error: BaseException) -> ItemFailure:
        """For a result that can't be built in this process; the step that made it is to blame."""
        group = len(self._names) - 1
        step = self._names[group] if self._names else "source"
        self.failed[group, step] += 1
        if not isinstance(error, TransportError):
            told = TransportError(f"A result can't be built in this process ({type(error).__name__}: {error}).")
            told.__cause__ = error
            error = told
        return ItemFailure(annotate(error, step, index_of(path), None), step, index_of(path), None)

    def _free(self, claim: Claim, viewing: bool = False) -> Acting:
        """The entry's cell is no longer needed, or kept by views."""
        if self._poison and not viewing:
            poison(self._leases.cells, claim.cell)
        return self._cursor.done(claim, viewing)

    def unkeep(self) -> Acting:
        """Give back the cells whose last view is gone."""
        for cell in self._leases.collect():
            if self._poison:
                poison(self._leases.cells, cell)
            yield from self._taker.unkeep(cell)


def _always(path: Path) -> Callable[[int], Path]:
    return lambda k: path


class Cursor:
    """The consumer's own position in an edge."""

    def __init__(self, board: Board, edge: int, me: int) -> None:
        self.taker = Taker(board, board.edges[edge], me)
        self._position = 0, 0

    def nothing(self) -> bool:
        """Whether nothing lies there now."""
        return self.taker.found(*self._position) == NOTHING

    def take(self) -> Acting:
        """The next values -> a Claim whose number is their item's, or None at the end."""
        claim: Claim | None = yield from self.taker.next_values(*self._position, self._save)
        if claim is not None and claim.values > self.taker.edge.shape.most:
            return claim._replace(values=self.taker.edge.shape.most)
        return claim

    def done(self, claim: Claim, kept: bool = False) -> Acting:
        """They are taken; or views on their cell are kept."""
        self._position = self.taker.after(claim.place, claim.offset + claim.values)
        if not claim.kind & PACKED:
            yield from self.taker.free(claim.cell, claim.place, kept)
        yield from self.taker.forget(claim.place, self._position[0])

    def _save(self, place: int) -> Acting:
        self._position = place, 0
        if self.taker.board.watched:
            yield "skipped"


class Loose:
    """A single taker that takes whatever is there, in no order.

    It looks at the items that a producer has claimed and that are not over: one of each producer, and those that wait.
    """

    def __init__(self, board: Board, edge: int, me: int) -> None:
        self.taker = Taker(board, board.edges[edge], me)
        self.board, self.edge, self.me = board, board.edges[edge], me
        producers = range(self.edge.first, self.edge.first + self.edge.shape.producers)
        self._jobs = [board.job[each] for each in producers] if len(producers) > 1 else []
        self._open: dict[int, tuple[int, int]] = {}  # position in each of these items, which stand in their order
        self._next = 0  # the item after them

    def _find(self) -> tuple[int, int, int] | None:
        """A position at which something is found: place, offset, and what."""
        # A single producer has one item at a time. Of several, who puts into an item has written down before that it is its.
        claimed = max(job[0] for job in self._jobs) if self._jobs else self.edge.taken[0] + 1
        while self._next < claimed:
            self._open[self._next] = self._next << SHIFT, 0
            self._next += 1
        for place, offset in self._open.values():
            found = self.taker.found(place, offset)
            if found != NOTHING:
                return place, offset, found
        return None

    def nothing(self) -> bool:
        """Whether nothing lies there now."""
        return self._find() is None

    def _over(self) -> bool:
        total = self.edge.total[0]
        return total != 0 and self.edge.taken[0] >= total - 1

    def take(self) -> Acting:
        """Any next values -> a Claim, or None at the end."""
        edge = self.edge
        while True:
            position = self._find()
            if position is None:
                if self._over():
                    return None
                mark = ANY << 20 | self.me + 1
                yield from self.taker.until(lambda: self._find() or self._over(), edge.taker_wait, 0, mark, edge.taker_waits)
                continue
            place, offset, found = position
            if found > 0:
                entry = edge.entry[self.taker.slot(place)]
                return Claim(place >> SHIFT, place, offset, min(found, edge.shape.most), entry & (1 << KINDS) - 1, entry >> KINDS)
            yield from self._advance(place, self.taker.after(place, offset))

    def done(self, claim: Claim, kept: bool = False) -> Acting:
        """They are taken; or views on their cell are kept."""
        after = self.taker.after(claim.place, claim.offset + claim.values)
        if not claim.kind & PACKED:
            yield from self.taker.free(claim.cell, claim.place, kept)
        yield from self._advance(claim.place, after)

    def _advance(self, place: int, after: tuple[int, int]) -> Acting:
        """What lies before a position is taken."""
        item = place >> SHIFT
        yield from self.taker.forget(place, after[0], holding=False)
        if after[0] >> SHIFT == item:
            self._open[item] = after
            return
        del self._open[item]
        yield from self.taker.seen(next(iter(self._open), self._next))
