"""The clock: which calls have lasted too long, and what is to be done about them."""

from __future__ import annotations

import time

import pytest

from qflow.runtime import clock
from qflow.runtime.board import Board, Phase, Shape, edge_shape, words_needed
from qflow.runtime.clock import BUILDING, SECOND_LOOK, STALLED, Clock

NOW = 1_000_000 * 10**9


@pytest.fixture
def board(monkeypatch):
    monkeypatch.setattr(time, "monotonic_ns", lambda: NOW)
    shape = Shape((edge_shape(None, 1, 2, ordered=True), edge_shape(None, 2, 1, ordered=True)))
    return Board(shape, memoryview(bytearray(8 * words_needed(shape))).cast("Q"))


def at(board, who, seconds, *, place=4, call=2, phase=Phase.RUN):
    """A participant has been at a call for so long."""
    board.at[who][:] = memoryview(bytearray(24)).cast("Q")
    board.at[who][0], board.at[who][1], board.at[who][2] = call << 3 | phase, place + 1, NOW - int(seconds * 1e9)


def actions(clock):
    found = [(due.action, due.running.who, due.running.place) for due in clock.due()]
    clock.wait()
    return found


def test_what_is_over_its_time_is_looked_at_and_then_ended(board):
    watch = Clock(board, range(1, 3), {1: 2.0})
    at(board, 1, 1.9)
    assert (actions(watch), watch.wait()) == ([], pytest.approx(100))
    at(board, 1, 2.0)
    assert actions(watch) == [("look", 1, 4)]
    assert watch.wait() == 1000 * SECOND_LOOK
    assert actions(watch) == [("end", 1, 4)]


def test_what_goes_on_to_other_work_between_the_looks_lives(board):
    watch = Clock(board, range(1, 3), {1: 2.0})
    at(board, 1, 2.5)
    assert actions(watch) == [("look", 1, 4)]
    at(board, 1, 0.01)
    assert actions(watch) == []
    at(board, 1, 2.5, place=5)
    assert actions(watch) == [("look", 1, 5)]


def test_calls_within_one_result_share_its_time(board):
    watch = Clock(board, range(1, 3), {1: 2.0})
    at(board, 1, 2.5, call=7)
    assert actions(watch) == [("look", 1, 4)]
    at(board, 1, 2.5, call=900)
    assert actions(watch) == [("end", 1, 4)]


@pytest.mark.parametrize(
    ("phase", "seconds"), [(Phase.RUN, 2.0), (Phase.SEND, 2.0), (Phase.OPEN, BUILDING), (Phase.LOAD, BUILDING)]
)
def test_calls_and_sending_have_their_time_and_loading_at_least_a_minute(board, phase, seconds):
    watch = Clock(board, range(1, 3), {1: 2.0})
    at(board, 1, seconds - 0.1, phase=phase)
    assert actions(watch) == []
    at(board, 1, seconds + 0.1, phase=phase)
    assert actions(watch) == [("look", 1, 4)]


def test_no_time_is_counted_for_waiting(board):
    watch = Clock(board, range(1, 3), {1: 2.0})
    at(board, 1, 99, phase=Phase.IDLE)
    assert actions(watch) == []


def test_after_a_pause_of_the_machine_all_begin_anew(board, monkeypatch):
    watch = Clock(board, range(1, 3), {1: 2.0})
    at(board, 1, 0.5)
    assert watch.wait() == pytest.approx(1500)
    monkeypatch.setattr(time, "monotonic_ns", lambda: NOW + 30 * 10**9)
    assert (actions(watch), watch.wait()) == ([], pytest.approx(2000))


def test_who_had_to_wait_for_others_begins_anew(board):
    watch = Clock(board, range(1, 3), {1: 2.0})
    at(board, 1, 2.5)
    assert actions(watch) == [("look", 1, 4)]
    watch.excuse(1)
    assert (actions(watch), watch.wait()) == ([], pytest.approx(2000))


def test_a_long_call_is_told_of_each_time_that_as_much_has_passed(board, monkeypatch):
    watch = Clock(board, range(1, 3), {})
    assert watch.wait() == 1000 * STALLED
    told = []
    at(board, 2, 0)
    for seconds in range(0, 200, 10):
        monkeypatch.setattr(time, "monotonic_ns", lambda seconds=seconds: NOW + seconds * 10**9)
        told += [(action, seconds) for action, *_ in actions(watch)]
        told += [(action, seconds) for action, *_ in actions(watch)]
    assert told == [(action, seconds) for seconds in (60, 120, 180) for action in ("look", "tell")]
    assert clock.STALLED == 60
