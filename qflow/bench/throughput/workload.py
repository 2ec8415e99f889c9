"""Workload: what is to be done, as pure functions that every system can import, and how its results are told right."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    import qflow as qf

Step = Callable[[Any], Any]
Keys = Callable[[int, int], list[Any]]


def same(item: Any) -> Any:
    """A step that does nothing; the key of a result that is its own."""
    return item


def numbers(start: int, stop: int) -> list[int]:
    """The keys of results that are the numbers of their items."""
    return list(range(start, stop))


@dataclass(frozen=True)
class Lazy(Sequence[Any]):
    """``length`` items, each made when it is read.

    >>> list(Lazy(str, 3)), Lazy(str, 3)[1:]
    (['0', '1', '2'], ['1', '2'])
    """

    make: Callable[[int], Any]
    length: int

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        numbers = range(self.length)[index]
        return list(map(self.make, numbers)) if isinstance(numbers, range) else self.make(numbers)


@dataclass(frozen=True)
class InTurn:
    """Several steps as one."""

    steps: Sequence[Step]

    def __call__(self, item: Any) -> Any:
        for step in self.steps:
            item = step(item)
        return item


@dataclass(frozen=True)
class Stages:
    """A workload of several kinds of stages, for the systems that have them: chunks -> rows -> rows -> batches.

    Attributes:
        chunks: the first so many batches' chunks.
        read: a chunk -> its rows; None: a chunk is a row.
        transform: a row -> a row.
        size: rows of a batch.
        collate: rows -> a batch.
        row: the number of a row -> the row as it was read, for systems that read row by row.
        flows: the same for qflow, by the name of the way; "" for an only one.
    """

    chunks: Callable[[int], Sequence[Any]]
    read: Step | None
    transform: Step
    size: int
    collate: Step
    row: Step
    flows: Mapping[str, Callable[[], qf.Flow[Any, Any]]]


@dataclass(frozen=True)
class Bare:
    """What the machine can do without any library: seconds for so many items; and what it is, in words."""

    title: str
    seconds: Callable[[int], float]


@dataclass(frozen=True)
class Workload:
    """What is measured.

    Attributes:
        title: in words.
        steps: what each item goes through, in order.
        make: makes the step where it runs, if it is too large to be described.
        keys: start, stop -> the keys of the right results of these items.
        glance: a result -> its key, at next to no cost; this runs while time counts.
        look: a result -> its key if the whole of it is right, else None.
        items: how many -> that many items.
        n: workers of each step.
        workers: other numbers worth trying where a system has stages and only one of them takes long.
        ordered: whether results have to come in the order of the items.
        least, most: how many items are measured; between these so many as take the time that was asked for.
        multiple: of which the number of items has to be one.
        checked: how many items are looked at as a whole before anything is measured.
        block: how many results are told right at a time.
        chunks: sizes worth trying where a system sends items in chunks made by hand.
        unit: what a result is called.
        size: bytes of a result, where they matter.
        here: the items come from the consumer's process and not from a number.
        bare: what the machine could do.
        stages: the same as several stages.
        packages: what has to be installed.
        prepare: makes files in a folder.
        measure: what: "rate" or "first".
        watched: the memory is what is asked for, so that one watched measurement is enough.
        cap: bytes of memory that the whole measurement may take.
        quick: whether ``--quick`` has it.
        also: the peers that ``--quick`` has here and not elsewhere.
        rare: only ``--all`` has it.
        only: the systems it is for, if not for all.
    """

    title: str
    steps: tuple[Step, ...] = ()
    keys: Keys = numbers
    glance: Step = same
    look: Step = same
    items: Callable[[int], Sequence[Any]] = range
    n: int = 2
    workers: tuple[int, ...] = ()
    ordered: bool = True
    least: int = 64
    most: int = 1 << 20
    multiple: int = 1
    checked: int = 100
    block: int = 16
    chunks: tuple[int, ...] = (8, 64)
    unit: str = "items"
    size: int = 0
    here: bool = False
    make: Callable[[], Step] | None = None
    bare: Bare | None = None
    stages: Stages | None = None
    packages: tuple[str, ...] = ()
    prepare: Callable[[Path], None] | None = None
    measure: str = "rate"
    watched: bool = False
    cap: int = 0
    quick: bool = False
    also: tuple[str, ...] = ()
    rare: bool = False
    only: tuple[str, ...] = ()

    def job(self) -> Job:
        """This, with its steps made."""
        return Job(self, (self.make(),) if self.make else self.steps)

    def but(self, **changes: Any) -> Workload:
        """A changed copy."""
        return replace(self, **changes)


@dataclass(frozen=True)
class Job:
    """A workload with its steps: what a peer is given."""

    workload: Workload
    steps: tuple[Step, ...]

    @property
    def step(self) -> Step:
        """All steps as one."""
        return self.steps[0] if len(self.steps) == 1 else InTurn(self.steps)

    @property
    def stages(self) -> Stages | None:
        return self.workload.stages

    @property
    def n(self) -> int:
        return self.workload.n

    @property
    def ordered(self) -> bool:
        return self.workload.ordered

    def items(self, count: int) -> Sequence[Any]:
        """So many items."""
        return self.workload.items(count)

    def chunked(self, count: int, size: int) -> Sequence[Any]:
        """So many items in chunks of a size, made when they are read; as they are if the size is 1."""
        items = self.items(count)
        return items if size == 1 else Lazy(Chunk(items, size), -(-count // size))

    def on_chunks(self, size: int) -> Step:
        """The step for such chunks."""
        return self.step if size == 1 else Each(self.step)


@dataclass(frozen=True)
class Chunk:
    """The chunk of a number."""

    items: Sequence[Any]
    size: int

    def __call__(self, number: int) -> Sequence[Any]:
        return self.items[number * self.size : (number + 1) * self.size]


@dataclass(frozen=True)
class Each:
    """A step on each item of a chunk."""

    step: Step

    def __call__(self, chunk: Iterable[Any]) -> list[Any]:
        return list(map(self.step, chunk))


def flat(chunks: Iterable[Any], size: int) -> Iterable[Any]:
    """The elements of chunks of a size; what came if the size is 1."""
    return chunks if size == 1 else itertools.chain.from_iterable(chunks)
