"""HDF5: read chunks of 100 rows, transform each row, regroup into batches of 64, collate.

The systems with stages get the stages; the others get one step that makes the whole batch of a number, which is what
an expert would write for them. A number beyond the file begins again at its start.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qflow.bench.throughput.workload import Lazy, Stages, Workload
from qflow.bench.throughput.workloads.python import rounds

if TYPE_CHECKING:
    import qflow as qf

FOLDER = "QFLOW_BENCH_DATA"  # the environment variable that names the folder of the bench's files
WIDTH, CHUNK, SIZE = 1024, 100, 64  # numbers of a row, rows of a chunk, rows of a batch
PERIOD = 1000  # rows whose content differs
ROW = 4 * WIDTH  # bytes
_ROUNDS = 2_000  # about 0.1 ms

Row = dict[str, Any]


@dataclass(frozen=True)
class File:
    """A file of rows ``x: float32[1024]`` and ``y: int64``, the number of the row."""

    name: str
    rows: int

    @property
    def path(self) -> str:
        return str(Path(os.environ[FOLDER], self.name))

    @property
    def batches(self) -> int:
        return self.rows // SIZE

    def write(self, folder: Path) -> None:
        """Make it, unless it is there."""
        import h5py  # type: ignore[import-untyped]
        import numpy as np

        if (folder / self.name).exists():
            return
        with h5py.File(folder / f"{self.name}.part", "w") as file:
            x = file.create_dataset("x", (self.rows, WIDTH), "f4", chunks=(CHUNK, WIDTH))
            for start in range(0, self.rows, PERIOD):
                x[start : start + PERIOD] = content(np.arange(start, min(start + PERIOD, self.rows)))
            file["y"] = np.arange(self.rows)
        (folder / f"{self.name}.part").rename(folder / self.name)

    def columns(self, start: int, stop: int) -> tuple[Any, Any]:
        """The rows from ``start`` to ``stop``, in the file that this process keeps open."""
        file = opened(self.path, os.getpid())
        return file["x"][start:stop], file["y"][start:stop]

    def chunks(self, batches: int) -> Sequence[Any]:
        """The chunks of so many batches, as ``qf.h5.chunks`` writes them: ``[(path, start, stop)]``."""
        return Lazy(partial(_chunk, self.path, self.rows), batches * SIZE // CHUNK)


@cache
def opened(path: str, process: int) -> Any:
    """The file, open until ``opened.cache_clear()``; a forked process opens its own."""
    import h5py

    return h5py.File(path)


def _chunk(path: str, rows: int, number: int) -> Any:
    start = number * CHUNK % rows
    return ((path, start, start + CHUNK),)


def content(numbers: Any) -> Any:
    """What rows of these numbers hold: ``float32[rows, 1024]``."""
    import numpy as np

    return ((numbers % PERIOD)[:, None] + np.arange(WIDTH) / WIDTH).astype(np.float32)


def light(row: Row) -> Row:
    return {"x": row["x"] * 2, "y": row["y"]}


def heavy(row: Row) -> Row:
    rounds(1, _ROUNDS)
    return {"x": row["x"] * 2, "y": row["y"]}


def collate(rows: Sequence[Row]) -> Row:
    import numpy as np

    return {"x": np.stack([row["x"] for row in rows]), "y": np.array([row["y"] for row in rows])}


def rows_of(x: Any, y: Any) -> list[Row]:
    return [{"x": one, "y": other} for one, other in zip(x, y, strict=True)]


@dataclass(frozen=True)
class ReadChunk:
    """A chunk -> its rows."""

    file: File

    def __call__(self, chunk: Any) -> list[Row]:
        ((_, start, stop),) = chunk
        return rows_of(*self.file.columns(start, stop))


@dataclass(frozen=True)
class ReadRow:
    """The number of a row -> the row."""

    file: File

    def __call__(self, number: int) -> Row:
        x, y = self.file.columns(number % self.file.rows, number % self.file.rows + 1)
        return {"x": x[0], "y": y[0]}


@dataclass(frozen=True)
class Batch:
    """The number of a batch -> the batch: all stages in one step."""

    file: File
    transform: Any

    def __call__(self, number: int) -> Row:
        start = number * SIZE % self.file.rows
        return collate([self.transform(row) for row in rows_of(*self.file.columns(start, start + SIZE))])


def key(batch: Row) -> int:
    """The number of its first row."""
    return int(batch["y"][0])


def whole(batch: Row) -> int | None:
    import numpy as np

    x, y = np.asarray(batch["x"]), np.asarray(batch["y"])
    right = np.array_equal(y, np.arange(y[0], y[0] + SIZE)) and np.array_equal(x, 2 * content(y))
    return key(batch) if right else None


@dataclass(frozen=True)
class Flow:
    """The flow of qflow: 1 process reads, 2 transform, 1 collates."""

    transform: Any

    def __call__(self) -> qf.Flow[Any, Any]:
        import qflow as qf

        rows = qf.h5.read(["x", "y"], n=1) | qf.pool(n=2)(self.transform)
        return qf.Flow(rows | qf.repack(SIZE) | qf.process(n=1)(collate))


def first_rows(rows: int, start: int, stop: int) -> list[int]:
    """The keys of batches."""
    return [number * SIZE % rows for number in range(start, stop)]


def pipeline(title: str, file: File, transform: Any, **options: Any) -> Workload:
    """The workload on a file."""
    stages = Stages(file.chunks, ReadChunk(file), transform, SIZE, collate, ReadRow(file), {"": Flow(transform)})
    multiple = 25  # batches that are a whole number of chunks
    return Workload(
        title,
        (Batch(file, transform),),
        partial(first_rows, file.rows),
        key,
        whole,
        least=2 * multiple,
        most=40 * file.batches,
        multiple=multiple,
        checked=2 * multiple,
        block=5,
        chunks=(2, 8),
        unit="batches",
        size=SIZE * ROW,
        stages=stages,
        packages=("h5py",),
        prepare=file.write,
    ).but(**options)


_SMALL = File("small.h5", 16_000)  # 64 MB
_LARGE = File("large.h5", 1_024_000)  # 4.2 GB

LIGHT = pipeline("HDF5 chunks -> rows, 1 product each -> batches of 64", _SMALL, light, quick=True)
HEAVY = pipeline("HDF5 chunks -> rows, 0.1 ms of Python each -> batches of 64", _SMALL, heavy)
LARGE = pipeline(
    "4 GB of HDF5 with 1 GB of memory",
    _LARGE,
    light,
    least=_LARGE.batches,
    most=_LARGE.batches,
    watched=True,
    cap=10**9,
    rare=True,
    only=("qflow", "torch_batched"),
)
