"""Workloads: all there are, by name; a new one is a file beside this one and a line here."""

from __future__ import annotations

from qflow.bench.throughput.workload import Workload
from qflow.bench.throughput.workloads import arrays, hdf5, index, jpeg, numbers, python, samples, skewed, starts

WORKLOADS: dict[str, Workload] = {
    "array": arrays.ARRAY,
    "array-through": arrays.THROUGH,
    "array-16mb": arrays.ARRAY_16MB,
    "tensor": arrays.TENSOR,
    "tensors": arrays.TENSORS,
    "samples": samples.SAMPLES,
    "ints": numbers.INTS,
    "null-1": numbers.nulls(1),
    "null-3": numbers.nulls(3),
    "null-6": numbers.nulls(6),
    "null-1-array": numbers.small_arrays(1),
    "null-3-array": numbers.small_arrays(3),
    "null-6-array": numbers.small_arrays(6),
    "python": python.PYTHON,
    "skewed": skewed.SKEWED,
    "skewed-ordered": skewed.ORDERED,
    "hdf5": hdf5.LIGHT,
    "hdf5-heavy": hdf5.HEAVY,
    "jpeg": jpeg.JPEG,
    "first": starts.FIRST,
    "hdf5-large": hdf5.LARGE,
    "index-n1": index.lookups(1),
    "index-n8": index.lookups(8),
}
