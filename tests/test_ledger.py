"""The ledger: which item a death is charged to, when several were in hand."""

from __future__ import annotations

import pytest

from qflow.runtime.board import CLOSED, SHIFT, Board, Phase, Shape, edge_shape, words_needed
from qflow.runtime.ledger import STORM, Ledger


@pytest.fixture
def board():
    shape = Shape((edge_shape(None, 1, 2, ordered=True), edge_shape(None, 2, 1, ordered=True)))
    return Board(shape, memoryview(bytearray(8 * words_needed(shape))).cast("Q"))


def death(ledger, board, **places):
    """Two threads of one process die, each in the second call for the item at its place, or at rest."""
    for who, name in enumerate(("first", "second"), 1):
        place = places.get(name)
        board.at[who][0] = Phase.IDLE if place is None else 2 << 3 | Phase.RUN
        board.at[who][1] = 0 if place is None else place + 1
        board.job[who][0] += 1
    return ledger.judge(board, 0, (1, 2), stream=False)


def test_an_item_that_was_alone_once_and_with_another_then_is_known(board):
    ledger = Ledger(attempts=2)
    assert not death(ledger, board, first=5).condemned
    assert death(ledger, board, first=5, second=6).condemned == {(5, 2): ("died", 2)}


def test_of_two_that_were_there_each_time_neither_is_known(board):
    ledger = Ledger(attempts=2)
    for _ in range(2):
        decision = death(ledger, board, first=5, second=6)
        assert (decision.condemned, decision.suspects) == ({}, {(5, 0), (6, 0)})
    assert death(ledger, board, second=6).condemned == {(6, 2): ("died", 3)}


def test_who_was_at_rest_is_not_charged(board):
    ledger = Ledger(attempts=1)
    assert death(ledger, board).condemned == {}
    assert death(ledger, board, second=6).condemned == {(6, 2): ("died", 1)}


def test_a_step_gives_up_when_nothing_is_committed_whatever_is_claimed(board):
    ledger = Ledger(attempts=2)
    given_up = [death(ledger, board, first=place).given_up for place in range(STORM)]
    assert [bool(text) for text in given_up] == [False] * (STORM - 1) + [True]


@pytest.mark.parametrize("commit", ["an entry", "a value of one", "an item", "a value without results"])
def test_a_step_that_commits_goes_on(board, commit):
    ledger, out = Ledger(attempts=2), board.edges[1]
    for place in range(3 * STORM):
        assert not death(ledger, board, first=place).given_up
        item = board.job[1][0]  # that the first will have claimed when it dies again
        if commit == "an entry":
            out.head[item % out.window] = (item << SHIFT) + 1
        elif commit == "a value of one":
            board.job[1][0] = 0  # at the same item
            out.head[0] = 1
            out.grown[0] += 1
        else:
            board.job[2][7 if commit == "an item" else 8] += 1


@pytest.mark.parametrize("change", ["opened its lane", "closed its entry"])
def test_what_is_no_commit_does_not_count_as_one(board, change):
    ledger, out = Ledger(attempts=2), board.edges[1]
    given_up = []
    out.head[0] = change == "closed its entry"
    for place in range(STORM):
        given_up.append(death(ledger, board, first=place).given_up)
        if change == "opened its lane":
            item = board.job[1][0]
            out.head[item % out.window] = item << SHIFT
        else:
            board.job[1][0] = board.job[2][0] = 0  # at the same item
            out.grown[0] |= CLOSED
    assert any(given_up)
