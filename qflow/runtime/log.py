"""Log: what a stream has taken and not yet given out, in memory that outlives its worker.

    | snapshot | snapshot | records ... |        three regions of addresses, sparse

A snapshot is the state of the stream at some entry; the records are the values that it took after that.
Two snapshots take turns, so that the valid one stays whole while the next is written; the records of a
replaced snapshot are written over. Which counts stands in words elsewhere (`streaming`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from qflow.runtime import table
from qflow.runtime.codec import ALIGN, Body, Encoded, decode
from qflow.runtime.memory import Memory
from qflow.runtime.table import Alike, Part

REGIONS = 3
Content = Encoded | Alike | Part


class Log:
    """The log of one stream; ``memory`` has `REGIONS` times ``stride`` bytes."""

    def __init__(self, memory: Memory, stride: int) -> None:
        self._memory, self._stride = memory, stride
        whole = memoryview(memory)
        self._regions = [whole[number * stride : (number + 1) * stride] for number in range(REGIONS)]

    def write_snapshot(self, half: int, contents: Iterable[Content]) -> int:
        """Write a snapshot -> its bytes."""
        return self._write(half, 0, contents)

    def append(self, end: int, contents: Iterable[Content]) -> int:
        """Add records -> where the next one will lie."""
        return self._write(REGIONS - 1, end, contents)

    def _write(self, number: int, at: int, contents: Iterable[Content]) -> int:
        region = self._regions[number]
        for content in contents:
            size = content.nbytes
            self._memory.reserve(number * self._stride + at, ALIGN + size)
            region[at : at + ALIGN].cast("Q")[0] = size
            content.fill(region[at + ALIGN : at + ALIGN + size])
            at += ALIGN + -(-size // ALIGN) * ALIGN
        return at

    def snapshot(self, half: int) -> Iterator[Any]:
        """The values of a snapshot; not more may be asked for than were written."""
        return _read(self._regions[half], len(self._regions[half]))

    def records(self, end: int) -> Iterator[Any]:
        """The values of the records."""
        return _read(self._regions[-1], end)


def _read(region: memoryview, end: int) -> Iterator[Any]:
    at = 0
    while at < end:
        size = region[at : at + ALIGN].cast("Q")[0]
        part = region[at + ALIGN : at + ALIGN + size]
        if table.is_table(part):
            yield from table.whole(part).values(read_only=True)
        else:
            yield decode(Body(part), 0, read_only=True, views=False)[0]
        at += ALIGN + -(-size // ALIGN) * ALIGN


def copied(encoded: Encoded) -> Body:
    """An encoded item with bytes of its own."""
    body = memoryview(bytearray(encoded.nbytes))
    encoded.fill(body)
    return Body(body)
