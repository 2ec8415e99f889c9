"""Wirings that a type checker rejects, each in a line that ends with ``# wrong``."""

from __future__ import annotations

from collections.abc import Iterator

import qflow as qf


@qf.process(n=2)
def read(path: str) -> list[bytes]:
    return [path.encode()]


@qf.process
def decode(data: bytes) -> float:
    return float(len(data))


@qf.process
def add(batch: list[float]) -> float:
    return sum(batch)


@qf.process
def letters(text: str) -> Iterator[str]:
    yield from text


@qf.process
class Detector:
    def __init__(self, weights: str) -> None:
        self.weights = weights

    def __call__(self, text: str) -> bytes:
        return text.encode()


def plain(data: bytes) -> int:
    return len(data)


# A source that the step does not take.
["a"] | decode  # wrong
range(3) | read  # wrong
[b"a"] | (read | qf.unpack() | decode)  # wrong
qf.source(["a"]) | decode  # wrong
(read | qf.unpack())([1, 2])  # wrong
qf.run(read, [1, 2])  # wrong
3 | read  # wrong

# A step that takes something else than the one before gives.
read | decode  # wrong
read | plain  # wrong
read | qf.map(plain)  # wrong
letters | decode  # wrong
decode | qf.unpack()  # wrong
decode | qf.repack(4)  # wrong
read | qf.unpack() | add  # wrong
read | qf.repack(4) | add  # wrong
decode | qf.pack(4) | decode  # wrong
read | qf.queue(2) | decode  # wrong
read | qf.unpack() | qf.filter(add)  # wrong
plain | read  # wrong
["a"] | Detector("w.pt") | read  # wrong

# Not a wiring at all.
read | 3  # wrong
read(3)  # wrong
qf.process(2)  # wrong
qf.process(workers=2)(plain)  # wrong
qf.process(n="two")(plain)  # wrong
qf.repack(4)(["a"])  # wrong
