"""Channels: what the participants of a plan share, as the process that runs the pipe holds it.

Words, cells, streams' logs, bells, cursors, and pipes for what is printed; made once, and reset between runs:
all words to zero but those of cells on which somebody keeps views, cursors drained and written anew.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterable

from qflow.graph.plan import Plan
from qflow.runtime import output
from qflow.runtime.board import KEPT, POISON, Board, Shape, words_needed
from qflow.runtime.consumer import Leases
from qflow.runtime.log import REGIONS
from qflow.runtime.memory import Cells, anonymous, bytes_needed, mapped, stride_for, words_of
from qflow.runtime.worker import CURSOR, Berth

RESTING = 256 << 20  # bytes of pages that are kept between runs: the next one begins in warm memory
ZEROS = bytes(1 << 16)
Kept = tuple[int, int, int]  # edge, cell, and the participant whose step keeps views on it; 0: the one that puts into it


class Channels:
    """The parent's ends.

    Attributes:
        board: the words.
        first: cells of the first edge.
        leases: on cells of the last edge.
        consumer: the last participant.
    """

    def __init__(self, plan: Plan, shape: Shape) -> None:
        self.shape = shape
        self.names = tuple(group.name for group in plan.groups)
        self.consumer = shape.participants - 1
        self._n = [group.n for group in plan.groups]
        self._streams = [number for number, group in enumerate(plan.groups) if group.stream]
        self._fds = contextlib.ExitStack()
        self._forwarders: dict[int, output.Forwarder] = {}  # by the descriptors that they read
        self._drained = False  # there is something to print that lies in no pipe any more
        try:
            self._make()
        except BaseException:
            self._fds.close()
            raise

    def _make(self) -> None:
        shape = self.shape
        large = sum(edge.producers * edge.large for edge in shape.edges)
        self._stride = stride = stride_for(large + REGIONS * len(self._streams))
        self._words_fd = self._own(anonymous("words", 8 * words_needed(shape)))
        self._edges = [self._own(anonymous(f"edge-{e}", bytes_needed(edge, stride))) for e, edge in enumerate(shape.edges)]
        self._logs = {number: self._own(anonymous(f"log-{number}", REGIONS * stride)) for number in self._streams}
        self._words = words_of(self._words_fd, words_needed(shape))
        self.board = Board(shape, self._words)
        self.bells = [self._own(os.eventfd(0, os.EFD_CLOEXEC)) for _ in range(shape.participants)]
        self._cursors = [self._pipe() for _ in self.names]
        self._outputs = [self._output(name) for name in self.names]
        self.first = self._cells(0)
        self.leases = Leases(self._cells(-1) if len(shape.edges) > 1 else self.first)
        self._poll = select.poll()
        for fd in (self.bells[self.consumer], *self._forwarders):
            self._poll.register(fd, select.POLLIN)

    def _own(self, fd: int) -> int:
        self._fds.callback(os.close, fd)
        return fd

    def _pipe(self) -> tuple[int, int]:
        read, write = os.pipe()
        return self._own(read), self._own(write)

    def _output(self, name: str) -> tuple[int, int]:
        """Pipes for what a step's workers print -> their ends, which stay open here for workers to come."""
        (out, out_end), (err, err_end) = self._pipe(), self._pipe()
        self._forwarders |= dict.fromkeys((out, err), output.Forwarder(name, out, err))
        return out_end, err_end

    def _cells(self, edge: int) -> Cells:
        shape = self.shape.edges[edge]
        return Cells(shape, self._stride, mapped(self._edges[edge], bytes_needed(shape, self._stride)))

    def berth(self, processes: tuple[tuple[int, tuple[int, ...]], ...]) -> Berth:
        """What these workers are made with, but for each one's own ends."""
        strides = (self._stride,) * len(self._edges)
        cursors, outputs = tuple(self._cursors), tuple(self._outputs)
        ends = self._words_fd, tuple(self._edges), tuple(self.bells), cursors, outputs, self._logs
        return Berth(self.shape, strides, processes, self.names, *ends, controls={}, faults={})

    # ---- runs

    def reset(self, kept: Iterable[Kept]) -> None:
        """Be ready for a new run; steps have kept views on some cells."""
        words, size = self._words.cast("B"), 8 * self.board.of_run
        for start in range(0, size, len(ZEROS)):
            words[start : min(size, start + len(ZEROS))] = ZEROS[: size - start]
        self.leases.restore(self.board)
        for edge, cell, who in kept:
            if who:
                self.board.edges[edge].cell[cell] = KEPT | who
        for (read, write), n in zip(self._cursors, self._n, strict=True):
            _drain(read)
            if n > 1:
                os.write(write, CURSOR.pack(1, 0, 0))

    def trim(self, kept: Iterable[Kept]) -> None:
        """Between runs, give pages back but for `RESTING` bytes, the largest cells' first, but not under views."""
        edges = self.board.edges
        self.leases.collect()
        viewed = {(len(edges) - 1, cell) for cell in self.leases.held} | {(edge, cell) for edge, cell, _ in kept}
        given = [(e, edge) for e, edge in enumerate(edges) if not edge.shape.locked]
        found = [(pages, e, cell) for e, edge in given for cell, pages in enumerate(edge.pages) if pages]
        left, cells = sum(pages for pages, *_ in found), {len(edges) - 1: self.leases.cells}
        for pages, e, cell in sorted(found, reverse=True):
            if left > RESTING and (e, cell) not in viewed:
                if e not in cells:
                    cells[e] = self._cells(e)
                cells[e].punch(cell)
                edges[e].pages[cell] = 0
                left -= pages

    def ring(self, who: int) -> None:
        """Wake a participant."""
        os.eventfd_write(self.bells[who], 1)

    def unkeep(self, kept: Iterable[Kept]) -> None:
        """Free the cells that a dead worker's step had kept views on since an earlier run."""
        for edge, cell, who in kept:
            edges = self.board.edges[edge]
            if edges.cell[cell] == KEPT | who:
                edges.cell[cell] = 0
                self.ring(edges.first + cell // edges.cells_each)

    def cancel(self) -> None:
        """Let everybody go to rest: one word, a poisoned cursor for those who wait for theirs, a ring for all."""
        self.board.cancelled[0] = 1
        for (_, write), n in zip(self._cursors, self._n, strict=True):
            if n > 1:
                os.write(write, CURSOR.pack(POISON, 0, 0) * n)
        for who in range(self.shape.participants):
            self.ring(who)

    def wait(self, seconds: float | None) -> bool:
        """Sleep until the consumer's bell rings, and print what workers print -> whether they did."""
        printed = False
        for fd, _ in self._poll.poll(None if seconds is None else max(0, seconds * 1000)):
            if fd == self.bells[self.consumer]:
                os.eventfd_read(fd)
            else:
                self._forwarders[fd].forward(fd)
                printed = True
        if self._drained:
            self._drained, printed = False, True
            self.flush()
        return printed

    def drain(self, group: int) -> bool:
        """Make room where a step's workers wait for somebody to print, which the consumer does later -> whether they may have."""
        poll = select.poll()
        for end in self._outputs[group]:
            poll.register(end, select.POLLOUT)
        if len(poll.poll(0)) == len(self._outputs[group]):  # neither pipe is full
            return False
        for read in (fd for fd, forwarder in self._forwarders.items() if forwarder.step == self.names[group]):
            self._forwarders[read].drain()
        self._drained = True
        self.ring(self.consumer)
        return True

    def flush(self) -> None:
        """Print what workers have printed."""
        for forwarder in {*self._forwarders.values()}:
            forwarder.flush()

    def close(self) -> None:
        """Give everything back; interrupted, it goes on where it was when called again. Cells under views stay."""
        if not vars(self):
            return
        while self._forwarders:
            self._forwarders.popitem()[1].close()
        self._fds.close()
        self.leases.collect()
        self.leases.cells.give_back(self.leases.held)
        vars(self).clear()  # the traceback of an interrupt may hold this object, which should not hold the memory


def _drain(fd: int) -> None:
    os.set_blocking(fd, False)
    with contextlib.suppress(BlockingIOError):
        while os.read(fd, 1 << 16):
            pass
    os.set_blocking(fd, True)
