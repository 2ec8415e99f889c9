"""Wirings that a type checker accepts, with the types that it finds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import qflow as qf
from qflow import files
from qflow.graph.flow import Sourced


@qf.process(n=2)
def read(path: str) -> list[bytes]:
    return [path.encode()]


@qf.pool(n=2)
def decode(data: bytes) -> float:
    return float(len(data))


@qf.process
def collate(batch: list[float], scale: float = 1.0) -> complex:
    return complex(scale * sum(batch))


@qf.thread(n=2)
def letters(text: str) -> Iterator[str]:
    yield from text


@qf.process
def length(text: str) -> int:
    return qf.SKIP if not text else len(text)


class Detector:
    def __init__(self, weights: str) -> None:
        self.weights = weights

    def __call__(self, text: str) -> bytes:
        return text.encode()


def untyped(value):  # type: ignore[no-untyped-def]
    return value


def first(values: list[bytes]) -> bytes:
    return values[0]


def decoded(data: bytes) -> str:
    return data.decode()


def split(text: str) -> Iterator[bytes]:
    yield text.encode()


# The marked function is still the function.
assert_type(read("a"), list[bytes])
assert_type(collate([1.0], scale=2.0), complex)
assert_type(length.using(n=8)("a"), int)

# Step after step, and the elements of lists.
assert_type(read | decode, qf.Flow[str, list[float]])
assert_type(read | decode | qf.repack(64) | collate | qf.queue(4), qf.Flow[str, complex])
assert_type(read | qf.unpack(), qf.Flow[str, bytes])
assert_type(read | qf.repack(64), qf.Flow[str, list[bytes]])
assert_type(length | qf.pack(4), qf.Flow[str, list[int]])
assert_type(length | qf.pack(4) | qf.unpack() | qf.queue(2), qf.Flow[str, int])
assert_type(read | qf.map(first), qf.Flow[str, bytes])
assert_type(length | qf.filter(bool), qf.Flow[str, int])
assert_type(read | (decode | qf.unpack()), qf.Flow[str, float])
assert_type(qf.Flow(read), qf.Flow[str, list[bytes]])

# A generator function gives its elements, wherever it stands.
assert_type(letters | length, qf.Flow[str, int])
assert_type(letters | split, qf.Flow[str, bytes])

# Plain functions on either side.
assert_type(read | len, qf.Flow[str, int])

# A source before a step, a run, its items.
assert_type(["a"] | read, Sourced[list[bytes]])
assert_type(["a"] | read | decode | qf.unpack(), Sourced[float])
assert_type(qf.source(["a"]) | length, Sourced[int])
assert_type((name for name in ["a"]) | length | qf.pack(2), Sourced[list[int]])
assert_type((read | decode)(["a"]), qf.Run[list[float]])
assert_type(qf.run(length, ["a"], engine="serial"), qf.Run[int])
assert_type(qf.run(len, ["a"], engine="serial"), qf.Run[int])
for batch in (read | decode | qf.repack(2) | collate)(["a"]):
    assert_type(batch, complex)
for number in ["a"] | length:
    assert_type(number, int)

# A class is called with its constructor's arguments, then it is a step.
detect = qf.process(n=2)(Detector)
assert_type(["a"] | detect("w.pt"), Sourced[bytes])
assert_type(["a"] | qf.process(Detector)("w.pt") | qf.pack(2), Sourced[list[bytes]])

# A chain in each worker.
assert_type(qf.process(n=4)(qf.map(split) | decoded) | qf.pack(2), qf.Flow[str, list[str]])

# Functions without types, and lambdas.
assert_type([1] | qf.process(untyped), Sourced[Any])
print(length | (lambda number: number + 1) | qf.pack(2))

# What is shared is a sequence of the same elements, or the same array.
names = qf.shared(["a"])
assert_type(names, Sequence[str])
assert_type(names[0], str)
assert_type(names[1:] | length, Sourced[int])
assert_type(qf.shared(np.zeros(3)), NDArray[np.float64])

# Several inputs are one source.
assert_type(qf.mix(["a"], ["b"], weights=[1, 2]) | length, Sourced[int])


# Between reading and writing a step names what it wants beside the data.
def noted(data: bytes, meta: files.Meta, level: int = 0) -> bytes:
    meta["level"] = level
    return data


def save(path: str, data: bytes) -> None: ...


chain = files.read() | noted | (lambda data: data) | files.defaults(level=1) | noted | files.write(save)
assert_type(chain, qf.Flow[Any, files.Record])
assert_type(chain(["a"]), qf.Run[files.Record])
print(qf.process(n=files.workers(process_size="1GB"))(chain), qf.process(n="auto")(chain))
