"""`qf.empty`: what is made where it will lie goes out uncopied, and never changes afterwards."""

from __future__ import annotations

import os
import signal
import threading

import numpy as np
import pytest
import torch

import qflow as qf
from qflow.bench import cost
from qflow.graph.plan import SMALL
from qflow.runtime import channels, outgoing
from qflow.runtime.board import SMALL_CELLS, Board, shape_of, words_needed
from qflow.runtime.desk import Desk
from qflow.runtime.putter import Putter
from qflow.runtime.whereabouts import here

SHAPE = (100, 200)  # 80 kB of float32, 160 kB of float64
LARGE = (400, 200)  # 320 kB of float32: no small cell has it


def filled(number, shape=SHAPE):
    found = qf.empty(shape, np.float32)
    found[:] = number
    return found


def alone(number):
    return filled(number, LARGE)


def in_dict(number):
    return {"label": number, "x": filled(number), "name": f"n{number}", "y": filled(-number)}


def tensors(number):
    return {"x": torch.from_numpy(filled(number)), "y": torch.from_numpy(filled(number + 1, LARGE))}


def swapped(number):
    first, second = filled(number), filled(-number)
    return (second, first) if number % 3 else (first, second)


def turned(number):
    """Two of three are swapped, and one is where it was made."""
    first, second, third = filled(number), filled(-number), filled(number + 0.5)
    return (second, first, third) if number % 3 else (first, second, third)


def elsewhere(number):
    """An array that is not returned lies where another one will."""
    first, second = filled(number), filled(-number)
    return (first, second[::-1].copy()) if number % 3 else (second, np.array(first))


def half(number):
    """One of two is returned, now and then another array."""
    first, second = filled(number), filled(-number)
    return (first, np.array(second) if number % 2 else second)


def twice(number):
    found = filled(number)
    return (found, found)


def view(number):
    found = filled(number)
    return found[::2] if number % 5 == 4 else found


def thrown(number):
    filled(number)
    return filled(number)


def kept(number):
    """The same array is filled and returned again and again."""
    if "buffer" not in vars(kept):
        kept.buffer = qf.empty(SHAPE, np.float32)
    kept.buffer[:] = number
    return kept.buffer


def kept_late(number):
    """One that was made when cells are given out."""
    if number == 20:
        kept_late.buffer = filled(number)
    if number < 20 or "buffer" not in vars(kept_late):
        return filled(number)
    kept_late.buffer[:] = number
    return kept_late.buffer


def errs(number):
    found = filled(number)
    if number % 4 == 3:
        raise LookupError(number)
    return found


def dies(number):
    found = filled(number)
    if number in (7, 23) and qf.worker() is not None and qf.worker().attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return found


def several(number):
    for each in range(3):
        yield filled(10 * number + each)


def plain(value):
    """A result as values that can be compared."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return [plain(each) for each in value]
    if isinstance(value, np.ndarray | torch.Tensor):
        return type(value).__name__, tuple(value.shape), str(value.dtype), bytes(np.asarray(value))
    return value


STEPS = [alone, in_dict, tensors, swapped, turned, elsewhere, half, twice, view, thrown, kept, kept_late, errs, dies, several]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
@pytest.mark.parametrize("n", [1, 2])
def test_results_are_as_in_serial(step, n):
    with qf.process(n=n)(step) | qf.queue(2) as pipe:
        for source in (range(40), range(40, 50)):
            with pipe(source, engine="serial", on_error="skip") as run:
                expected = [plain(each) for each in run]
            with pipe(source, on_error="skip") as run:
                results = list(run)  # all kept
            assert [plain(each) for each in results] == expected


def keeps_other(number):
    """Keeps the one of two that it does not return, and tells whether the last one is as it was."""
    first, second = filled(number), filled(-number)
    before = getattr(keeps_other, "second", None)
    same = before is None or bool((before == before[0, 0]).all() and before[0, 0] <= 0)
    keeps_other.second = second
    return first, np.full(SHAPE, float(same), np.float32)


def test_what_is_kept_and_not_returned_is_left_alone():
    with qf.Flow(qf.process(keeps_other)) as pipe:
        assert [float(each[1][0, 0]) for each in pipe(range(40))] == [1.0] * 40


def test_the_memory_of_what_a_step_keeps_is_not_given_back_between_runs(monkeypatch):
    monkeypatch.setattr(channels, "RESTING", 0)
    with qf.Flow(qf.process(kept_from_the_first)) as pipe:
        for _ in range(3):
            assert [float(each.min()) for each in pipe(range(20))][-1] == 7


def kept_from_the_first(number):
    """An array that was made in the first run, larger than those whose pages nobody counts."""
    found = qf.empty((500, 400), np.float32)
    found[:] = 7
    if not hasattr(kept_from_the_first, "made") and number == 10:
        kept_from_the_first.made = found
    return getattr(kept_from_the_first, "made", found).copy()


def keeps_all(number):
    keeps_all.kept.append(filled(number))
    return keeps_all.kept[-1] if number % 2 else keeps_all.kept[-1].copy()


keeps_all.kept = []


@pytest.mark.parametrize("queue", [(), (qf.queue(1),), (qf.queue(3),)], ids=["unwritten", "one", "three"])
@pytest.mark.parametrize("n", [1, 2])
def test_a_step_that_keeps_them_all_leaves_cells_for_its_results(n, queue):
    with qf.Flow(qf.process(n=n)(keeps_all), *queue) as pipe:
        for _ in range(2):
            with pipe(range(60)) as run:
                results = [run.next(timeout=30) for _ in range(60)]
            assert [float(each[5, 5]) for each in results] == list(range(60))


def test_after_a_stream_too():
    with (
        qf.process(filled) | qf.pack(3) | qf.process(lambda some: np.stack(some, out=qf.empty((len(some), *SHAPE), np.float32)))
    ) as pipe:
        found = [(each.shape, each[:, 0, 0].tolist()) for each in pipe(range(20))]
    assert found == [((min(3, 20 - k), *SHAPE), list(range(k, min(k + 3, 20)))) for k in range(0, 20, 3)]


def large_then_small(number):
    """Keeps one of its large results, and tells later whether it is as it was."""
    if number < 10:
        large_then_small.kept = filled(number)
        return large_then_small.kept
    return int((large_then_small.kept == 9).all()) if number % 100 == 99 else -number


def one_at_a_time(numbers, seen):
    """Each is given when the result of the one before has been seen."""
    for number in numbers:
        yield number
        assert seen.acquire(timeout=30)


def test_what_a_step_keeps_is_left_alone_by_the_small_results_of_the_next_run():
    seen = threading.Semaphore(0)
    with qf.Flow(qf.process(large_then_small)) as pipe:
        for _ in pipe(one_at_a_time([*range(10), *range(20, 60)], seen)):
            seen.release()
        assert list(pipe(range(200, 2000)))[99::100] == [1] * 18


def test_a_small_cell_is_not_replaced_by_a_large_one():
    """Which one it will be is decided before it is filled."""
    shape = shape_of(qf.Flow(qf.process(abs)).plan())
    board = Board(shape, memoryview(bytearray(8 * words_needed(shape))).cast("Q"))
    putter = Putter(board, board.edges[1], 0)
    taken = []
    while (cell := putter.take_free(1000)) is not None:
        taken.append(cell)
    assert len(taken) == SMALL_CELLS
    assert putter.take_free(SMALL + 1) is not None


def test_outside_of_a_worker_it_is_an_empty_array():
    found = qf.empty((2, 3), "i2")
    assert (found.shape, found.dtype, found.flags.c_contiguous, found.flags.writeable) == ((2, 3), np.dtype("i2"), True, True)
    assert qf.empty(3).dtype == float
    assert qf.empty(np.int64(3)).shape == (3,)
    assert qf.empty([2, np.int64(3)]).shape == (2, 3)
    with pytest.raises(ValueError, match="negative"):
        qf.empty(-1)
    with pytest.raises(TypeError):
        qf.empty("3")


@pytest.fixture
def sent(monkeypatch):
    """The kinds of content that were sent."""
    found = []
    original_start, original_sent = Desk.start, outgoing.Outgoing.sent

    def start(self, *arguments):
        monkeypatch.setattr(here, "empty", self.empty)
        original_start(self, *arguments)

    def note(self, *arguments):
        content, cell = original_sent(self, *arguments)
        found.append(type(content).__name__)
        return content, cell

    monkeypatch.setattr(Desk, "start", start)
    monkeypatch.setattr(outgoing.Outgoing, "sent", note)
    return found


@pytest.mark.parametrize(("step", "expected"), [(alone, "Whole"), (in_dict, "Whole"), (tensors, "Whole"), (kept_late, "Copied")])
def test_nothing_is_copied_unless_somebody_holds_it(step, expected, sent, monkeypatch):
    monkeypatch.setattr(cost, "identity", step)
    vars(kept_late).pop("buffer", None)
    cost.measured(range(21 if step is kept_late else 30))
    assert len(sent) > 15
    assert sent[-1] == expected
    assert {*sent[:-1]} == {"Whole"}
    vars(kept_late).pop("buffer", None)


def test_a_cell_in_which_an_array_is_kept_is_used_again_when_it_is_gone(sent, monkeypatch):
    keeps = []

    def step(number):
        if number % 10 == 0:
            keeps.clear()
        found = filled(number)
        if number % 10 == 5:
            keeps.append(found)
        return found

    monkeypatch.setattr(cost, "identity", step)
    cost.measured(range(200))
    assert sent.count("Copied") == 20
    assert sent.count("Whole") > 160
