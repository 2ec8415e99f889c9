"""Regions: for each row of a table from where to where among its references those of the row lie.

What lies between may be others' references, too: a region is from the first of a row's to behind the last, and grows when
more are appended. So they are noted without a look at the references before.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qflow.h5.blocks import runs

NOTED = 1 << 16  # pairs: 10 M of them took 0.95 s so many at once, 1.4 s by a million (2 MiB of L2 cache), 1.8 s by 8192


def note(region: Any, rows: Any, first: int) -> None:
    """Note pairs that lie one behind the other from some place on.

    Args:
        region: a dataset of ``start`` and ``stop``, at least as long as the largest of these rows wants; its integers can
            be as large as the last place.
        rows: of each pair its row.
        first: the place of the first pair.
    """
    step = NOTED if (rows[:-1] <= rows[1:]).all() else len(rows)  # else each piece would read all of the region
    for at in range(0, len(rows), step):
        _enlarge(region, rows[at : at + step].astype(np.int64), first + at)


def _enlarge(region: Any, rows: Any, first: int) -> None:
    """Note pairs of these rows, that lie one behind the other from some place on."""
    wanted, starts, stops = _places(rows)
    dense = wanted[-1] - wanted[0] + 1 == len(wanted)
    reads = (wanted[:1], wanted[-1:] + 1) if dense else (wanted, wanted + 1)
    for start, stop in runs(region, *reads):
        inside = slice(*np.searchsorted(wanted, [start, stop]))
        block, begin, end = region[start:stop], first + starts[inside], first + stops[inside]
        places: Any = slice(None) if dense else wanted[inside] - start
        old = block[places]
        some = old["start"] != old["stop"]
        if some.any():
            begin = np.where(some, np.minimum(old["start"], begin), begin)
            end = np.where(some, np.maximum(old["stop"], end), end)
        block["start"][places], block["stop"][places] = begin, end
        region[start:stop] = block


def _places(rows: Any) -> tuple[Any, Any, Any]:
    """The different ones of some numbers, where each is first, and behind where it is last."""
    steps = np.diff(rows)
    if (steps >= 0).all():  # as functions give them; to sort them would take longer than to write them
        edges = np.flatnonzero(steps) + 1
        starts = np.concatenate([[0], edges])
        return rows[starts], starts, np.concatenate([edges, [len(rows)]])
    wanted, starts = np.unique(rows, return_index=True)
    return wanted, starts, len(rows) - np.unique(rows[::-1], return_index=True)[1]
