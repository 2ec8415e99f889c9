"""Path: where a result comes from, which orders it and names it.

It is the source item's number, then the position among the results of each iterator; a stream numbers its results anew.
The path of a stream's result also has its origin: where the stream would have to go on so that this result is its next one.

    ORIGIN | words, path of a value, words of the stream: how much of it was used, ...; number, positions ...

Where the source is repeated, every path begins with the repetition, in which a stream numbers its results from 0 on.

The value at which the result before was given is that one; its path has the origin of an earlier stream, down to the source.
So the path of any result says all that is needed to go on behind it (`resume`), and it is known wherever the result is.
"""

from __future__ import annotations

Path = tuple[int, ...]
ORIGIN = 1 << 62  # in an index path: so many words follow that are the origin


def origin_of(path: Path) -> tuple[int, int] | None:
    """Where the origin in a path begins and ends, if it has one."""
    for at, word in enumerate(path[:2]):  # where the source is repeated, the repetition comes first
        if word & ORIGIN:
            return at + 1, at + 1 + (word ^ ORIGIN)
    return None


def index_of(path: Path) -> Path:
    """A path without its origin: what users know, and what orders the results of one operator."""
    found = origin_of(path)
    return path if found is None else path[: found[0] - 1] + path[found[1] :]
