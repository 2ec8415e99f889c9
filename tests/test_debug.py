"""QFLOW_DEBUG_POISON: cells that are free are overwritten, so that a view that should not be there shows itself."""

from __future__ import annotations

import pytest
from scenario import script

KEEPING = """
    import collections
    import numpy as np
    import qflow as qf

    class Keeps:
        "Keeps its last arrays, or all, and says whether each is as it was."

        def __init__(self, most):
            self.kept = collections.deque(maxlen=most)

        def __call__(self, rows):
            self.kept.append((rows, float(rows[0])))
            return rows + 1, all((rows == first).all() for rows, first in self.kept)

    def full(x):
        return np.full(20_000, float(x))

    for most in 2, None:
        with qf.process(n=2)(full) | qf.queue(2) | qf.MARK(n=2)(Keeps)(most) | qf.queue(1) as pipe:
            kept = []
            for _ in range(3):  # runs on the same cells
                kept += pipe(range(30))
        assert all(as_it_was for _, as_it_was in kept), "a step's"
        assert all((rows == 1 + n % 30).all() for n, (rows, _) in enumerate(kept)), "the consumer's"
"""


@pytest.mark.parametrize("mark", ["process", "thread"])
def test_kept_arrays_never_change(mark):
    done = script(KEEPING.replace("MARK", mark), QFLOW_DEBUG_POISON="1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


FREED = """
    import numpy as np
    import qflow as qf
    from qflow.runtime.board import SHIFT

    class Looks:
        "At the third item, what lies in the cells of the first two."

        def __init__(self):
            self.cells = []

        def __call__(self, rows):
            from qflow.runtime.whereabouts import here  # of this thread: it can't be sent
            desk = here.info.__self__
            while not desk.taker.found(2 << SHIFT, 0):  # all three lie in cells before the first is free
                pass
            self.cells.append(desk._claim.cell)
            return [{*bytes(desk.inputs.region(cell)[:160_000])} for cell in self.cells[:-1]]

    with qf.process(lambda x: np.full(20_000, float(x))) | qf.queue(4) | qf.process(Looks) as pipe:
        print([*pipe(range(3))][-1])

    with qf.process(lambda x: np.full(20_000, float(x))) | qf.queue(1) as pipe, pipe(range(40)) as run:
        rows = next(run)
        (cell,) = run._session.crew.channels.leases.held
        cells = run._session.crew.channels.leases.cells
        assert bytes(cells.region(cell)[:8]) != b"\\xdb" * 8
        cells.returned.clear()
        del rows
        (freed,) = cells.returned
        consumer = run._session._consumer
        for _ in consumer.unkeep():
            pass
        print(freed == cell, {*bytes(cells.region(cell)[:64])})
"""


def test_a_free_cell_is_overwritten():
    done = script(FREED, QFLOW_DEBUG_POISON="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "[{219}, {219}]\nTrue {219}\n"


def test_a_free_cell_is_left_alone_otherwise():
    done = script(FREED, QFLOW_DEBUG_POISON=None)
    assert (done.returncode, done.stderr) == (0, "")
    assert "{219}" not in done.stdout


FORWARDING = """
    import numpy as np
    import qflow as qf

    WAYS = {
        "itself": lambda rows: rows,
        "a view": lambda rows: rows[10:-10:3],
        "in others": lambda rows: {"whole": rows, "part": [rows[100:], rows]},
        "turned": lambda rows: rows.reshape(100, -1).T,
        "one by one": lambda rows: iter([rows, rows[1:], rows]),
    }
    items = [np.arange(n, n + 20_000) for n in range(40)]

    def same(a, b):
        if isinstance(a, dict):
            return [*a] == [*b] and all(same(a[key], b[key]) for key in a)
        if isinstance(a, list):
            return len(a) == len(b) and all(map(same, a, b))
        return a.dtype == b.dtype and np.array_equal(a, b)

    for name, way in WAYS.items():
        again = qf.process(n=2)(lambda x: x) | qf.queue(1)
        for flow in qf.process(way) | qf.queue(1), qf.process(n=2)(way) | qf.queue(1) | again:
            with flow as pipe:
                given = list(pipe(items))
            expected = list(flow(items, engine="serial"))
            assert same(given, expected), name
"""


def test_a_step_may_give_its_input_or_a_view_on_it():
    """P14: what it gives is another cell's content before the input's cell is free."""
    done = script(FORWARDING, QFLOW_DEBUG_POISON="1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
