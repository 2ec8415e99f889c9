"""Books: a run of which a count is wrong does not end as if all were well."""

from __future__ import annotations

import pytest
from plain_steps import add, flip

import qflow as qf
from qflow.engines.processes import Processes
from qflow.engines.simulated import Simulated

BETWEEN = ["source and add", "add and flip", "flip and consumer"]
engines = pytest.mark.parametrize("engine", [Processes(), Simulated(3)], ids=["processes", "simulated"])


def at_its_end(run):
    """The board of a run when everybody rests and all results but the end have been taken."""
    assert [next(run) for _ in range(5)] == [[-1, -2], [-3, -4], [-5, -6], [-7, -8], [-9, -10]]
    if hasattr(run, "_session"):
        assert run._session.crew.rest(10)
        return run._session.crew.channels.board
    while run._simulation.actors:
        run._act()
    return run._board


def flow():
    return qf.process(n=2)(add) | qf.process(flip) | qf.pack(2)


@engines
def test_a_run_of_which_all_was_taken_ends(engine):
    with flow() as pipe, pipe(range(10), engine=engine) as run:
        at_its_end(run)
        assert list(run) == []


@engines
@pytest.mark.parametrize(("word", "change"), [("taken", -1), ("taken", 1), ("total", -1), ("total", 1)])
@pytest.mark.parametrize("edge", range(3))
def test_a_forged_count_ends_the_run_with_an_error(engine, edge, word, change):
    if edge == 2:  # the consumer hears of the end of what it has taken when it asks for more
        word, change = "taken", abs(change) + 9
    with flow() as pipe, pipe(range(10), engine=engine) as run:
        getattr(at_its_end(run).edges[edge], word)[0] += change
        with pytest.raises(qf.errors.InternalError, match=f"Accounts do not balance between {BETWEEN[edge]}: "):
            next(run)
