"""Payload rows: values that are hard to send, one row each, and how what comes out may differ.

torch is imported where it is needed: that changes how multiprocessing sends things.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qflow.bench.row import Row
from qflow.bench.steps import small_array

SIZE = 100_000  # elements: enough for the shared memory of whoever has one
LARGE = 10_000_000  # float32 numbers: 40 MB


def grad(item: int) -> Any:
    import torch

    return torch.ones(SIZE, requires_grad=True) * 2


def bfloat16(item: int) -> Any:
    import torch

    return torch.arange(SIZE).to(torch.bfloat16)


def sparse(item: int) -> Any:
    import torch

    return torch.eye(1000).to_sparse()


def view(item: int) -> Any:
    import torch

    return torch.zeros(LARGE)[:3]


def masked(item: int) -> Any:
    return np.ma.masked_array(np.arange(SIZE), mask=np.arange(SIZE) % 2 == 1)


def structured(item: int) -> Any:
    return np.array([(1, 2.5)] * SIZE, dtype=[("id", "<i4"), ("weight", "<f8")])


def datetimes(item: int) -> Any:
    return np.array(["2026-11-21", "NaT"] * SIZE, dtype="datetime64[s]")


def matrix(item: int) -> Any:
    return np.ones((2, SIZE)).view(np.matrix)


def fortran(item: int) -> Any:
    return np.asfortranarray(np.ones((1000, SIZE // 1000)))


def read_only(item: int) -> Any:
    array = np.arange(SIZE)
    array.flags.writeable = False
    return array


def big_endian(item: int) -> Any:
    return np.arange(SIZE, dtype=">i4")


def shared(item: int) -> Any:
    array = np.arange(SIZE)
    return {"all": array, "part": array[10 : SIZE // 2], "again": array}


def endless(item: int) -> Any:
    values: list[Any] = []
    values.append(values)
    return values


def tensor_differs(result: Any, right: Any) -> str:
    """How a tensor differs in kind, type or values."""
    if type(result) is not type(right):
        return _became(result, right)
    for what in ("dtype", "layout", "requires_grad"):
        if getattr(result, what) != getattr(right, what):
            return f"{what} became {getattr(result, what)}"
    return "" if bool((result.to_dense() == right.to_dense()).all()) else "other values"


def array_differs(result: Any, right: Any) -> str:
    """How an array differs in class, type, mask or values; a subclass of its class is no difference.

    >>> array_differs(np.asarray(masked(0)), masked(0))
    'MaskedArray became ndarray'
    """
    if not isinstance(result, type(right)):
        return _became(result, right)
    if result.dtype != right.dtype:
        return f"dtype became {result.dtype}"
    if not np.array_equal(np.ma.getmaskarray(result), np.ma.getmaskarray(right)):
        return "other mask"
    return "" if result.tobytes() == right.tobytes() else "other values"


def _became(result: Any, right: Any) -> str:
    return f"{type(right).__name__} became {type(result).__name__}"


def _byte_order_differs(result: Any) -> str:
    return "" if result.dtype.byteorder == ">" else "lost"


def _fortran_differs(result: Any) -> str:
    return "" if result.flags.f_contiguous else "lost"


def _read_only_differs(result: Any) -> str:
    return "lost" if result.flags.writeable else ""


def _shared_differs(result: Any) -> str:
    arrays = list(result.values())
    alone = [not any(np.shares_memory(array, other) for other in arrays[:place]) for place, array in enumerate(arrays)]
    return f"{sum(alone)} copies" if sum(alone) > 1 else ""


def _view_differs(result: Any) -> str:
    sent = result.untyped_storage().nbytes()
    return f"ships {sent / 1e6:.0f} MB" if sent > LARGE else ""


def _endless_differs(result: Any) -> str:
    return "" if type(result) is list and result[0] is result else "other"


def _tensor(title: str, step: Any) -> Row:
    return Row(title, step, items=4, differs=lambda result: tensor_differs(result, step(0)))


def _array(title: str, step: Any) -> Row:
    return Row(title, step, items=4, differs=lambda result: array_differs(result, step(0)))


PAYLOADS: dict[str, Row] = {
    "grad": _tensor("non-leaf tensor with requires_grad", grad),
    "bfloat16": _tensor("bfloat16 tensor", bfloat16),
    "sparse": _tensor("sparse tensor", sparse),
    "masked": _array("masked array", masked),
    "structured": _array("structured dtype", structured),
    "datetime": _array("datetime64", datetimes),
    "matrix": _array("np.matrix (a subclass)", matrix),
    "endless": Row("self-referencing list", endless, items=4, differs=_endless_differs),
    "big-endian": Row("byte order", big_endian, items=4, differs=_byte_order_differs, mild=True),
    "fortran": Row("F-order", fortran, items=4, differs=_fortran_differs, mild=True),
    "read-only": Row("read-only flag", read_only, items=4, differs=_read_only_differs, mild=True),
    "shared": Row("a, a part of it, a again in one dict", shared, items=4, differs=_shared_differs, mild=True),
    "view": Row("3-element view of a 40 MB tensor", view, items=4, differs=_view_differs, mild=True),
    "quiet": Row("what 20 arrays write to stderr", small_array, right=small_array, quiet=True, mild=True),
}
