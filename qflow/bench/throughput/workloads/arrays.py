"""Arrays of 1 MB, of 16 MB, the same as tensors; made by the step, or by the source and again by the step."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from qflow.bench.throughput.workload import Bare, Lazy, Workload
from qflow.bench.throughput.workloads.stock import ends, in_turn, stock, variety

MB = 1 << 20
PARTS = 20
PART = MB // PARTS // 64 * 64  # bytes of each tensor of a dict


def array(number: int, *, size: int = MB) -> Any:
    """The array of a number."""
    return stock(size)[number % variety(size)]


def array_16mb(number: int) -> Any:
    return array(number, size=16 * MB)


def another(item: Any) -> Any:
    """An array like the one that came, of this process's own."""
    return stock(MB)[int(item[0])]


def tensor(number: int) -> Any:
    import torch

    return torch.from_numpy(array(number))


def tensors(number: int) -> Any:
    """A dict of 20 tensors, together about 1 MB."""
    import torch

    return {f"part{part}": torch.from_numpy(array(number + part, size=PART)) for part in range(PARTS)}


def key(item: Any) -> tuple[float, float]:
    """The first and the last number."""
    return float(item[0]), float(item[-1])


def whole(item: Any, *, size: int = MB) -> tuple[float, float] | None:
    import numpy as np

    found = np.asarray(item)
    right = stock(size)[int(found[0]) % variety(size)]
    return key(found) if found.dtype == right.dtype and np.array_equal(found, right) else None


def key_of_parts(item: Any) -> tuple[float, float]:
    """Of the first part the first number, of the last part the last."""
    return float(item["part0"][0]), float(item[f"part{PARTS - 1}"][-1])


def whole_parts(item: Any) -> tuple[float, float] | None:
    first = int(item["part0"][0])
    parts = [whole(item[f"part{part}"], size=PART) for part in range(PARTS)]
    return key_of_parts(item) if parts == in_turn(ends(PART), first, first + PARTS) and len(item) == PARTS else None


def keys(start: int, stop: int, *, size: int = MB) -> list[Any]:
    return in_turn(ends(size), start, stop)


def keys_of_parts(start: int, stop: int) -> list[Any]:
    first, last = (in_turn(ends(PART), start + shift, stop + shift) for shift in (0, PARTS - 1))
    return [(one[0], other[1]) for one, other in zip(first, last, strict=True)]


def copies(count: int, *, size: int = MB) -> float:
    """Seconds that a loop of ``np.copyto`` takes over the same arrays, into 4 buffers in turn."""
    import numpy as np

    arrays, buffers = stock(size), [np.zeros(size // 4, np.float32) for _ in range(4)]
    began = time.perf_counter()
    for number in range(count):
        np.copyto(buffers[number % 4], arrays[number % len(arrays)])
    return time.perf_counter() - began


ARRAY = Workload(
    "arrays of 1 MB, made by the step",
    (array,),
    keys,
    key,
    whole,
    size=MB,
    most=40_000,
    checked=34,
    chunks=(2, 4, 8),
    bare=Bare("np.copyto loop", copies),
    quick=True,
)
THROUGH = ARRAY.but(
    title="arrays of 1 MB, made by the source and again by the step",
    steps=(another,),
    items=partial(Lazy, array),
    here=True,
    quick=False,
)
ARRAY_16MB = ARRAY.but(
    title="arrays of 16 MB, made by the step",
    steps=(array_16mb,),
    keys=partial(keys, size=16 * MB),
    look=partial(whole, size=16 * MB),
    size=16 * MB,
    most=2_000,
    checked=10,
    block=4,
    chunks=(1, 2),
    bare=Bare("np.copyto loop", partial(copies, size=16 * MB)),
    quick=False,
)
TENSOR = ARRAY.but(title="torch tensors of 1 MB", steps=(tensor,), packages=("torch",), quick=False)
TENSORS = TENSOR.but(
    title="a dict of 20 torch tensors, together 1 MB",
    steps=(tensors,),
    keys=keys_of_parts,
    glance=key_of_parts,
    look=whole_parts,
    size=PARTS * PART,
)
