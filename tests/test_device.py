"""Batches on their way to a device. The copies themselves need a GPU; all else is the same for PyTorch's device ``meta``."""

from __future__ import annotations

import dataclasses
import gc
import os
import threading
from collections import OrderedDict, UserDict, namedtuple
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import qflow as qf
from qflow.runtime.locks import Locks
from qflow.train import device
from qflow.train.device import Copied, Mover, Moving, ToDevice, moved

META = torch.device("meta")
Pair = namedtuple("Pair", "x y")


@dataclasses.dataclass
class Sample:
    image: torch.Tensor
    name: str


def tensor(number: int) -> tuple[int, torch.Tensor]:
    return number, torch.full((3, 1000), number)


def large(number: int) -> dict[str, Any]:
    return {"x": torch.full((300_000,), number), "y": torch.full((50_000,), number), "number": number}


def fails_at_three(number: int) -> tuple[int, torch.Tensor]:
    if number == 3:
        raise ValueError("three")
    return tensor(number)


def to_meta(value: Any) -> Any:
    return value.to(META)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("qflow-device")]


def join_threads() -> None:
    """Wait for the threads that move batches to end."""
    while threads():
        for thread in threading.enumerate():
            if thread.name.startswith("qflow-device"):
                thread.join(60)
                assert not thread.is_alive()


# ---- what is moved


def test_tensors_are_found_wherever_they_are() -> None:
    x = torch.zeros(2)
    there = OrderedDict(b=x, a=Pair([x, 1], Sample(x, "s")))
    array = np.zeros(2)
    found = moved({"k": (there, x, array), "none": None}, to_meta, to_meta)
    inside, again, same = found["k"]
    assert same is array
    assert found["none"] is None
    assert type(inside) is OrderedDict
    assert [*inside] == ["b", "a"]
    assert type(inside["a"]) is Pair
    assert type(inside["a"].y) is Sample
    assert inside["a"].y.name == "s"
    assert {each.device.type for each in (inside["b"], inside["a"].x[0], inside["a"].y.image, again)} == {"meta"}
    assert inside["b"] is inside["a"].x[0] is again  # what was one stays one
    assert there["b"] is x
    assert there["a"].y.image is x


def test_data_of_torch_geometric_and_packed_sequences_are_moved() -> None:
    geometric = pytest.importorskip("torch_geometric.data")
    data = geometric.Data(x=torch.zeros(4, 2), edge_index=torch.zeros(2, 3, dtype=torch.long), name="graph")
    packed = torch.nn.utils.rnn.pack_sequence([torch.zeros(3), torch.zeros(2)])
    graph, sequence = moved([data, packed], to_meta, to_meta)
    assert graph.x.is_meta
    assert graph.edge_index.is_meta
    assert graph.name == "graph"
    assert not data.x.is_meta
    assert sequence.data.is_meta
    seen: list[Any] = []
    moved([data, packed], seen.append)
    assert len(seen) == 2  # those of the graph


# ---- runs


@given(st.integers(0, 12), st.integers(0, 4))
def test_the_serial_engine_gives_the_same_in_order(items: int, prefetch: int) -> None:
    pipe = qf.map(tensor) | qf.to_device("meta", prefetch=prefetch)
    found = [*pipe(range(items), engine="serial")]
    assert [number for number, _ in found] == [*range(items)]
    assert all(each.is_meta and each.shape == (3, 1000) for _, each in found)
    assert not threads()


@pytest.mark.parametrize("step", [tensor, large])
def test_processes_give_the_same_in_order(step: Any) -> None:
    with qf.process(n=2)(step) | qf.queue(4) | qf.to_device("meta", prefetch=3) as pipe:
        for _ in range(2):
            run = pipe(range(100))
            found = [*run]
            numbers = [each["number"] if isinstance(each, dict) else each[0] for each in found]
            assert numbers == [*range(100)]
            assert len(run) == 100
            assert run.stats()[0].results == 100
            assert not threads()


def test_results_that_are_there_are_moved_before_they_are_asked_for_and_no_more() -> None:
    with qf.process(tensor) | qf.queue(8) | qf.to_device("meta", prefetch=2) as pipe, pipe(range(8)) as run:
        assert isinstance(run, Moving)
        next(run)
        while run.stats()[0].results < 8:
            os.sched_yield()
        next(run)
        assert len(run._taken) == 2
        assert [number for number, _ in run] == [2, 3, 4, 5, 6, 7]


def test_a_state_is_that_of_the_batch_that_was_given_out_not_of_those_ahead() -> None:
    with qf.process(n=2)(tensor) | qf.pack(2) | qf.to_device("meta") as pipe:
        whole = [[number for number, _ in batch] for batch in pipe(range(20))]
        for cut in range(0, 10, 3):
            with pipe(range(20)) as run:
                for _ in range(cut):
                    next(run)
                state = run.state_dict()
            assert [[number for number, _ in batch] for batch in pipe(range(20), resume=state)] == whole[cut:]
        assert len(list((qf.process(tensor) | qf.pack(2))(range(20), resume=state))) == 1  # elsewhere, too


def test_failures_come_in_their_turn() -> None:
    with qf.process(fails_at_three) | qf.queue(8) | qf.to_device("meta", prefetch=4) as pipe:
        run = pipe(range(6))
        seen = []
        with pytest.raises(ValueError, match="three"):
            for number, _ in run:
                seen.append(number)
        assert seen == [0, 1, 2]
        run = pipe(range(6), on_error="skip")
        assert [number for number, _ in run] == [0, 1, 2, 4, 5]
        assert [failure.index for failure in run.failures] == [(3,)]
    assert not threads()


def test_no_thread_stays_when_a_run_is_dropped_or_closed_early() -> None:
    with qf.process(tensor) | qf.to_device("meta") as pipe:
        with pipe(range(100)) as run:
            next(run)
        assert not threads()
        run = pipe(range(100))
        next(run)
        assert threads()
        del run
        gc.collect()
        join_threads()


def test_a_result_that_takes_too_long_is_told_and_nothing_is_lost() -> None:
    gate = threading.Event()

    def source() -> Any:
        yield 0
        gate.wait()
        yield 1

    with qf.process(tensor) | qf.to_device("meta") as pipe, pipe(source()) as run:
        assert next(run)[0] == 0
        with pytest.raises(qf.StepTimeout):
            run.next(timeout=0.05)
        gate.set()
        assert run.next(timeout=60)[0] == 1


def test_the_cpu_is_left_as_it_is() -> None:
    pipe = qf.map(tensor) | qf.to_device("cpu")
    run = pipe([1], engine="serial")
    assert not isinstance(run, Moving)
    assert next(run)[1].device.type == "cpu"


def test_kinds_of_containers_stay() -> None:
    @dataclasses.dataclass
    class Partly:
        x: torch.Tensor
        later: int = dataclasses.field(init=False)

    class Many(list):  # type: ignore[type-arg]
        pass

    size, x = torch.zeros(2, 3).shape, torch.zeros(2)
    found = moved([size, Many([x]), UserDict(x=x), Partly(x)], to_meta)
    assert [type(each) for each in found] == [torch.Size, Many, UserDict, Partly]
    assert all(each.is_meta for each in (found[1][0], found[2]["x"], found[3].x))


class Held(Mover):
    """Copies that are begun at once, and are over when the test says so."""

    gate: ClassVar[threading.Event]
    closing: ClassVar[threading.Event]

    def _move(self, value: Any) -> Copied:
        return Copied(value[0], [], self)

    def query(self) -> bool:
        return self.gate.is_set()

    def close(self) -> None:
        super().close()
        self.closing.set()
        self.gate.wait(60)


@pytest.mark.parametrize("closes", [False, True])
def test_a_cell_is_not_used_again_while_it_is_copied(monkeypatch: pytest.MonkeyPatch, closes: bool) -> None:
    monkeypatch.setattr(device, "Mover", Held)
    for event in ("gate", "closing"):
        monkeypatch.setattr(Held, event, threading.Event(), raising=False)
    with qf.process(far) | qf.queue(1) | qf.to_device("meta") as pipe:
        run = pipe(range(1, 20))
        assert next(run) == 1
        cells = run._run.cells
        if closes:
            threading.Thread(target=run.close, name="qflow-device").start()
        del run
        gc.collect()
        assert Held.closing.wait(60)
        assert not cells.returned  # nobody may write there
        Held.gate.set()
        join_threads()
    del cells


def far(number: int) -> tuple[int, torch.Tensor]:
    return number, torch.full((300_000,), number)


def test_a_copy_that_fails_or_is_late_loses_no_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Mover):
        def _move(self, value: Any) -> Copied:
            if value[0] == 2:
                raise RuntimeError("out of memory")
            return super()._move(value)

    pipe = qf.map(tensor) | qf.to_device("meta")
    for engine in ("serial", "processes"):
        with monkeypatch.context() as patched:
            patched.setattr(device, "Mover", Broken)
            run = pipe(range(6), engine=engine)
            with pytest.raises(RuntimeError, match="out of memory"):
                for number, _ in run:
                    last = number
        assert last == 1
        assert [number for number, _ in pipe(range(6), engine=engine, resume=run.state_dict())] == [2, 3, 4, 5]


# ---- locked memory


class Recorder:
    """What was locked, where no device is."""

    def __init__(self) -> None:
        self.locked: dict[int, int] = {}
        self.calls = 0
        self.refuse = False

    def lock(self, start: int, size: int) -> bool:
        assert start % 4096 == 0
        assert size % 4096 == 0
        assert not any(start < other + length and other < start + size for other, length in self.locked.items())
        self.calls += 1
        if not self.refuse:
            self.locked[start] = size
        return not self.refuse

    def unlock(self, start: int) -> None:
        del self.locked[start]

    def covers(self, found: torch.Tensor) -> bool:
        begin = found.data_ptr()
        end = begin + found.nbytes
        return any(start <= begin and end <= start + size for start, size in self.locked.items())


class Locking(ToDevice):  # type: ignore[misc]
    """A flow's end that locks memory, on a machine without a device."""

    def __init__(self) -> None:
        super().__init__("cpu", 0)
        self.locks = True


def addresses(batch: dict[str, Any]) -> list[tuple[int, int]]:
    storages = [each.untyped_storage() for each in batch.values() if isinstance(each, torch.Tensor)]
    return [(storage.data_ptr(), storage.data_ptr() + storage.nbytes()) for storage in storages]


def test_cells_are_locked_once_and_let_go_before_they_are_unmapped() -> None:
    recorder = Recorder()
    with qf.process(large) | qf.queue(2) | Locking() as pipe:
        for epoch in range(3):
            run = pipe(range(50))
            locks = Locks(recorder.lock, recorder.unlock)
            cells = run.cells
            for batch in run:
                found = cells.lock(addresses(batch), locks)
                assert found == {start for start, _ in addresses(batch)}
                assert recorder.covers(batch["x"])
                assert recorder.covers(batch["y"])
            assert recorder.calls <= 8, epoch
        ordinary = torch.zeros(10)
        assert cells.lock(addresses({"x": ordinary}), locks) == set()
        assert recorder.locked
    del run, batch, cells
    gc.collect()
    assert not recorder.locked


def test_a_lock_grows_with_what_lies_there_and_what_was_refused_is_not_asked_again() -> None:
    recorder = Recorder()
    locks = Locks(recorder.lock, recorder.unlock)
    assert locks.cover(4096, 5000)
    assert locks.cover(4096, 4097)
    assert recorder.locked == {4096: 4096}
    assert locks.cover(4096, 9000)
    assert recorder.locked == {4096: 8192}
    recorder.refuse = True
    assert not locks.cover(40960, 40970)
    assert not locks.cover(81920, 81930)
    assert recorder.calls == 3
    assert locks.cover(4096, 9000)
    locks.release()
    assert not recorder.locked


def giant_pages(cells: Any) -> int:
    """In how many places of 64 there is still what lay in the first cell."""
    return sum(cells.region(0)[place << 20] == 7 for place in range(64))


def giant(number: int) -> np.ndarray[Any, Any]:
    return np.full(64 << 20, number, np.uint8)


@pytest.mark.parametrize(("end", "kept"), [((), False), ((Locking(),), True)])
def test_pages_that_a_device_may_read_are_never_given_back(end: tuple[Any, ...], kept: bool) -> None:
    with qf.Flow(qf.process(giant), *end) as pipe, pipe([7]) as run:
        cells = run.cells
        next(run)
    assert (giant_pages(cells) > 32) == kept


# ---- wrong words


def test_what_is_wrong_is_said_where_it_is_written() -> None:
    with pytest.raises(qf.GraphError, match=r"takes the name of a device, but got .*'gpu'"):
        qf.to_device("gpu")
    with pytest.raises(qf.GraphError, match="prefetch must be a whole number"):
        qf.to_device("cpu", prefetch=-1)
    with pytest.raises(qf.GraphError, match="stands at the end of a flow"):
        (qf.to_device("cpu") | qf.pack(2)).plan()
    if not torch.cuda.is_available():
        with pytest.raises(qf.GraphError, match=r"no CUDA device here.*`qf.to_device\(\)` takes what there is"):
            qf.to_device("cuda")
        assert qf.to_device() == qf.to_device("cpu") or torch.backends.mps.is_available()


def test_plan_and_picture_say_where_results_go() -> None:
    pipe = qf.process(tensor) | qf.to_device("meta")
    assert str(pipe.plan()).endswith("consumer  to_device(meta)")
    assert repr(pipe).endswith("qf.to_device('meta')")
