"""Samples: a dict of an array of 10 KB, a number and a small array, as a data set gives them."""

from __future__ import annotations

from typing import Any

from qflow.bench.throughput.workload import Workload
from qflow.bench.throughput.workloads.stock import stock, variety

SIZE = 10 << 10


def sample(number: int) -> dict[str, Any]:
    import numpy as np

    return {
        "x": stock(SIZE)[number % variety(SIZE)],
        "label": number,
        "box": np.array([number, 1, 2, 3], np.float32),
    }


def label(item: dict[str, Any]) -> int:
    return int(item["label"])


def whole(item: dict[str, Any]) -> int | None:
    import numpy as np

    right = sample(label(item))
    return label(item) if all(np.array_equal(np.asarray(item[name]), right[name]) for name in right) else None


SAMPLES = Workload(
    "samples: a dict of a 10 KB array, a number and a small array",
    (sample,),
    glance=label,
    look=whole,
    most=1 << 19,
    least=500,
    checked=200,
    block=100,
    chunks=(8, 32, 128),
    unit="samples",
    size=SIZE + 24,
    quick=True,
)
