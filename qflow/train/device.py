"""Device: batches move to where the model computes, while it computes.

    results, in shared memory     | | | |
    being copied                      =      one thread, a stream of its own; straight from locked cells
    on the device                   # #      at most ``prefetch``
    the model's                   #          its stream waits for the copy's event; the consumer's thread does not

At each step the results that are there are given to the thread, and the oldest one on the device is given out. A cell goes back
to its worker when its copy is over. Nothing is taken while the consumer is away, so that what a run is (its state, its failures,
its end) is seen by one thread only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from functools import partial
from typing import Any, NamedTuple, final

import torch

from qflow.errors import GraphError, got
from qflow.graph.flow import Operator
from qflow.graph.path import Path
from qflow.graph.run import NotYet, Run, StepStats
from qflow.graph.sizes import whole
from qflow.runtime.locks import Locks

EXAMPLE = 'pipe | qf.to_device("cuda")'


@final
class ToDevice(Operator[Any, Any]):
    """Moves batches to a device; see `to_device`."""

    last = True

    def __init__(self, device: str | None, prefetch: int) -> None:
        self.device, self.prefetch = _device(device), whole(prefetch, "prefetch", 'qf.to_device("cuda", prefetch=2)')
        self.locks = self.device.type == "cuda"

    @property
    def name(self) -> str:
        return f"to_device({self.device})"

    def transform(self, values: Iterator[Any]) -> Iterator[Any]:
        return values if self.device.type == "cpu" else (moved(value, self._to, self._to) for value in values)

    def length(self, items: int) -> int:
        return items

    def follow(self, run: Run[Any]) -> Run[Any]:
        return run if self.device.type == "cpu" else Moving(run, self.device, self.prefetch)

    def _to(self, value: Any) -> Any:
        return value.to(self.device)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ToDevice) and (self.device, self.prefetch) == (other.device, other.prefetch)

    def __hash__(self) -> int:
        return hash((ToDevice, self.device, self.prefetch))

    def __repr__(self) -> str:
        return f"qf.to_device({str(self.device)!r}{'' if self.prefetch == 2 else f', prefetch={self.prefetch}'})"


def _device(wanted: Any) -> torch.device:
    """The device of a name, if there is one."""
    if wanted is None:
        mps = getattr(torch.backends, "mps", None)
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps and mps.is_available() else "cpu")
    try:
        device: torch.device = torch.device(wanted)
    except (RuntimeError, TypeError) as error:
        raise GraphError(f"`qf.to_device` takes the name of a device, but got {got(wanted)}. Write `{EXAMPLE}`.") from error
    if device.type == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= found:
            there = f"{found} CUDA devices here" if found else "no CUDA device here, or this PyTorch is built without CUDA"
            raise GraphError(f"`qf.to_device({str(device)!r}`: there is {there}. `qf.to_device()` takes what there is.")
    return device


def moved(value: Any, move: Callable[[Any], Any], other: Callable[[Any], Any] | None = None) -> Any:
    """A batch with each of its tensors moved; one that it has twice is moved once.

    >>> moved({"x": (torch.zeros(2), "name")}, lambda tensor: tensor + 1)
    {'x': (tensor([1., 1.]), 'name')}

    Args:
        value: tuples, lists, dicts, dataclasses and data of PyTorch Geometric are looked into.
        move: for a tensor.
        other: for what is none of these and has ``to``; None: such values stay.
    """
    return _moved(value, move, other, {})


def _moved(value: Any, move: Callable[[Any], Any], other: Callable[[Any], Any] | None, known: dict[int, Any]) -> Any:
    if isinstance(value, torch.Tensor):
        found = known.get(id(value))
        if found is None:
            found = known[id(value)] = move(value)
        return found
    each = partial(_moved, move=move, other=other, known=known)
    geometric = getattr(sys.modules.get("torch_geometric.data.data"), "BaseData", None)
    if geometric is not None and isinstance(value, geometric):
        return copy(value).apply(each)
    if callable(getattr(type(value), "to", None)):
        return value if other is None else other(value)
    if type(value) is tuple or hasattr(value, "_fields"):
        parts = map(each, value)
        return tuple(parts) if type(value) is tuple else type(value)(*parts)
    if isinstance(value, list):
        found = copy(value)
        found[:] = map(each, value)
        return found
    if isinstance(value, MutableMapping):
        found = copy(value)
        found.update({key: each(part) for key, part in value.items()})
        return found
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = copy(value)
        for field in dataclasses.fields(value):
            if hasattr(value, field.name):
                object.__setattr__(found, field.name, each(getattr(value, field.name)))
        return found
    return value


class Copied(NamedTuple):
    """A batch on the device, its tensors, and the event after which they are there; what they were is held till then."""

    value: Any
    tensors: list[Any]
    event: Any = None


class Mover:
    """One thread that moves batches, one after another."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = ThreadPoolExecutor(1, "qflow-device")

    def begin(self, value: Any) -> Future[Copied]:
        """Begin to move a batch."""
        return self._pool.submit(self._move, value)

    def _move(self, value: Any) -> Copied:
        return Copied(moved(value, self._to, self._to), [])

    def _to(self, value: Any) -> Any:
        return value.to(self._device)

    def arrived(self, copied: Copied) -> Any:
        """The batch, for what the caller will do with it."""
        return copied.value

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown(cancel_futures=True)


class CudaMover(Mover):
    """Copies on a stream of its own, out of locked memory."""

    def __init__(self, device: torch.device, cells: Any) -> None:
        super().__init__(device)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._cells, self._locking = cells, cells is not None and cells.shape.locked
        self._locks = _locks_of(device)

    def begin(self, value: Any) -> Future[Copied]:
        return self._pool.submit(self._move_for, torch.cuda.current_stream(self._device), value)

    def _move_for(self, stream: torch.cuda.Stream, value: Any) -> Copied:
        """Move a batch for those who will use it on a stream."""

        def other(value: Any) -> Any:  # its tensors can't be had, so that they belong to that stream from the beginning
            with torch.cuda.stream(stream):
                return value.to(self._device)

        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            here: list[Any] = []
            moved(value, here.append)
            if any(tensor.is_cuda for tensor in here):
                self._stream.wait_stream(stream)  # on which they are made
            locked = self._cells.lock(map(_place, here), self._locks) if self._locking else set()
            tensors: list[Any] = []
            found = moved(value, partial(self._tensor, locked, tensors, other), other)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(self._stream)
            return Copied(found, tensors, event)

    def _tensor(self, locked: set[int], tensors: list[Any], other: Callable[[Any], Any], tensor: Any) -> Any:
        if tensor.layout is not torch.strided:
            return other(tensor)
        if _place(tensor)[0] not in locked and tensor.is_cpu:
            tensor = tensor.pin_memory()  # in PyTorch's own cache, which waits for the copy before it uses it again
        found = tensor.to(self._device, non_blocking=True)
        tensors.append(found)
        return found

    def arrived(self, copied: Copied) -> Any:
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(copied.event)
        for tensor in copied.tensors:
            tensor.record_stream(stream)  # else its memory could be used again while the stream still works with it
        return copied.value

    def close(self) -> None:
        super().close()
        self._stream.synchronize()
        self._cells = None


def _locks_of(device: torch.device) -> Locks:
    """Locks by CUDA's runtime."""
    cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]

    def lock(start: int, size: int) -> bool:
        with torch.cuda.device(device):
            if int(cudart.cudaHostRegister(start, size, 0)) == 0:
                return True
            with contextlib.suppress(RuntimeError):  # whoever asks for the last error next would be told of this one
                torch.zeros(1, device=device)
        return False

    def unlock(start: int) -> None:
        with torch.cuda.device(device):
            cudart.cudaHostUnregister(start)

    return Locks(lock, unlock)


def _place(tensor: Any) -> tuple[int, int]:
    """The addresses at which a tensor's memory begins and ends; nothing of one that has none here."""
    if not tensor.is_cpu or tensor.layout is not torch.strided:
        return 0, 0
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.data_ptr() + storage.nbytes()


@dataclasses.dataclass
class Ahead:
    """A result that was taken: what it is, where the run was then, and the copy that was begun."""

    host: Any
    last: tuple[Path, int]
    error: BaseException | None = None
    copy: Future[Copied] | None = None

    def settle(self) -> None:
        """Let go of what the copy was made of, if it is over; a cell goes back then."""
        if self.copy is not None and self.copy.done() and self.copy.exception() is None:
            event = self.copy.result().event
            if event is None or event.query():
                self.host = None


@final
class Moving(Run[Any]):
    """The results of a run, on a device; see the head of this module."""

    def __init__(self, run: Run[Any], device: torch.device, prefetch: int) -> None:
        super().__init__(run._length, run._options, run._plan)
        self._run, self._prefetch = run, prefetch if run.ahead else 0
        self._mover = CudaMover(device, run.cells) if device.type == "cuda" else Mover(device)
        self._taken: deque[Ahead] = deque()
        self._given: deque[Ahead] = deque()  # whose copies may not be over
        self._at: tuple[Path, int] = ((), 0)
        self._abandoned = weakref.finalize(self, _abandon, self._mover, self._taken, self._given)
        self._abandoned.atexit = False

    def _next(self) -> Any:
        for each in (*self._given, *self._taken):
            each.settle()
        while self._given and self._given[0].host is None:
            self._given.popleft()
        while len(self._taken) <= self._prefetch and self._take():
            pass
        each = self._taken[0]
        if each.error is not None:
            self._taken.popleft()
            raise each.error
        value = self._mover.arrived(self._copied(each))
        self._given.append(self._taken.popleft())
        self._at = each.last
        return value

    def _copied(self, each: Ahead) -> Copied:
        """What was begun, when it is done."""
        assert each.copy is not None
        try:
            return each.copy.result(None if self._deadline is None else max(0, self._deadline - time.monotonic()))
        except TimeoutError:
            if each.copy.done():  # the copy's own
                raise
            raise NotYet from None

    def _take(self) -> bool:
        """Take the next result: the first one when it comes, others if they are there -> whether there may be more."""
        if self._taken and self._taken[-1].error is not None:
            return False
        self._run._deadline = time.monotonic() if self._taken else self._deadline
        try:
            value = self._run._next()
        except NotYet:
            if not self._taken:
                raise
            return False
        except Exception as error:  # in its turn, StopIteration, too
            self._taken.append(Ahead(None, self._run._last(), error))
            return False
        self._taken.append(Ahead(value, self._run._last(), None, self._mover.begin(value)))
        return True

    def _last(self) -> tuple[Path, int]:
        return self._at

    def stats(self) -> list[StepStats]:
        return self._run.stats()

    def _close(self) -> None:
        self._abandoned.detach()
        try:
            self._mover.close()
        finally:
            self._taken.clear()
            self._given.clear()
            self._run.close()


def _abandon(mover: Mover, *held: deque[Ahead]) -> None:
    """A run was dropped: what is being copied is held until that is over, by a thread, for this may be any at any point."""

    def wait() -> None:
        mover.close()
        for each in held:
            each.clear()

    with contextlib.suppress(RuntimeError):  # the interpreter ends
        threading.Thread(target=wait, name="qflow-device", daemon=True).start()


def to_device(device: str | None = None, prefetch: int = 2) -> ToDevice:
    """Move batches to where the model computes, while it computes; the last operator of a flow.

    >>> import qflow as qf
    >>> import torch
    >>> pipe = qf.map(torch.tensor) | qf.pack(2) | qf.to_device("cpu")
    >>> list(pipe([1, 2, 3], engine="serial"))
    [[tensor(1), tensor(2)], [tensor(3)]]

    Each: T -> T. Order: kept. Tensors are moved wherever they are in tuples, lists, dicts, dataclasses and data of PyTorch
    Geometric, and so is what has a method ``to``; all else stays, NumPy's arrays, too. Holds: on the device ``prefetch`` batches
    beside the one that was given out last; here what is being copied.

    With CUDA the copies are made on a stream of their own, for which the current stream waits, not the caller; they are made
    straight from shared memory, whose pages are locked when they are first used, and then stay with the flow's workers (about as
    many bytes as its last queue holds). With ``memory=`` at the last queue or the run, and for small batches, they go through the
    locked memory that PyTorch keeps. With the CPU nothing is done.

    Args:
        device: ``"cuda"``, ``"cuda:1"``, ``"mps"``, ``"cpu"``, ...; None: CUDA, else MPS, if there is one, else the CPU.
        prefetch: batches that are moved before they are asked for, if they are ready. For engines that compute in the caller's
            thread none are.
    Raises:
        GraphError: there is no such device; or it is not the last operator.
    """
    return ToDevice(device, prefetch)
