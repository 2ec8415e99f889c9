"""Reducer: the work of `filing` as BigMultiPipe wants it, a subclass that can be imported."""

from __future__ import annotations

from typing import Any

import numpy as np

from qflow.bench.filing import load, scaled

try:
    from bigmultipipe import BigMultiPipe
except ImportError:  # `filing` says so where it is needed
    BigMultiPipe = object


class Reducer(BigMultiPipe):  # type: ignore[misc]
    """Reads, scales and writes arrays."""

    def file_read(self, in_name: str, **_: Any) -> Any:
        """Read one."""
        return load(in_name)

    def data_process(self, data: Any, **_: Any) -> Any:
        """Work on it."""
        return scaled(data)

    def file_write(self, data: Any, outname: str, **_: Any) -> str:
        """Write it."""
        np.save(outname, data)
        return outname
