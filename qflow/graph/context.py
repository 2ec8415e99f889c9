"""Context: what a run is beside its data: seed, epoch and parameters; and what user code may ask of it.

    pipe(source, seed=0, epoch=3, params={"training": True})

A function that names ``rng`` among its parameters is given a `numpy.random.Generator`, one that names a parameter of the run
is given its value. A generator is keyed by seed, epoch, the step's name in the flow and the item's index path, so that what is
drawn depends on nothing else: not on the number of workers, the engine, the order of completion, or whether the item was tried
before. The same key seeds the global generators where a run has a seed.

Source: Philox 4x64-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3; 2011), keyed by BLAKE2b.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from qflow.errors import GraphError

RNG = "rng"


@dataclasses.dataclass(frozen=True)
class Context:
    """Of one run.

    Attributes:
        seed: from which all random numbers follow.
        epoch: of the data; another one gives other numbers.
        params: values for the parameters that steps name.
        seeded: the user chose the seed: global generators follow it, too.
        repeats: the source is repeated, and index paths begin with the repetition: epoch ``e + r``, item ...
        rank: which part of the source is read, whose streams number their results by themselves.
        numbered: the source numbers its items so, too.
        carries: values may be carriers; see `carrier`.
        notes: what operators tell each other when the run begins, by names of theirs.
    """

    seed: int = 0
    epoch: int = 0
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seeded: bool = False
    repeats: bool = False
    rank: int = 0
    numbered: bool = False
    carries: bool = False
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def key_at(self, label: str, path: tuple[int, ...], *words: object, behind: bool) -> int:
        """The key for what a step does with the value of an index path, ``behind`` a stream or not."""
        if self.rank and (behind or self.numbered):
            words = (*words, "rank", self.rank)
        if self.repeats and path:
            return dataclasses.replace(self, epoch=self.epoch + path[0]).key(label, path[1:], *words)
        return self.key(label, path, *words)

    def key(self, *words: object) -> int:
        """128 bits that depend on the seed, the epoch and some words."""
        from hashlib import blake2b  # 2 ms, and only where numbers are drawn

        return int.from_bytes(blake2b(repr((self.seed, self.epoch, *words)).encode(), digest_size=16).digest(), "little")


PLAIN = Context()


class Drawn(int):
    """A seed that nobody chose."""


def drawn_seed() -> Drawn:
    """A seed for a run that was given none."""
    return Drawn(int.from_bytes(os.urandom(8), "little") >> 1)


def generator(key: int) -> Any:
    """A `numpy.random.Generator` for a key of 128 bits."""
    from numpy.random import Generator, Philox  # only where numbers are drawn

    return Generator(Philox(key=key))


def permutation(key: int, number: int) -> Any:
    """The numbers from 0 on in an order for a key, as an array of 4 bytes each."""
    from numpy import arange, uint32, uint64

    return generator(key).permutation(arange(number, dtype=uint32 if number < 1 << 32 else uint64))


def fresh() -> Any:
    """A generator for a function that is called plainly."""
    from numpy.random import default_rng

    return default_rng()


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where a function is called: in which run, and by which step of its flow."""

    context: Context
    label: str

    def gives(self, name: str) -> bool:
        """Whether it has something for a parameter of this name."""
        return name == RNG or name in self.context.params

    def at(self, path: tuple[int, ...], *, behind: bool) -> None:
        """User code of the step is about to work on the value with an index path, ``behind`` a stream or not."""
        _at.path, _at.behind, _at.drawn = path, behind, 0
        if self.context.seeded:
            import random  # noqa: F401  user code may load them later, and would have other numbers then

            from numpy import random as _  # noqa: F401

            seed_globals(self.context.key_at(self.label, path, behind=behind))

    def answer(self, names: Iterable[str]) -> dict[str, Any]:
        """The arguments for names that it has something for."""
        return {name: self._generator() if name == RNG else self.context.params[name] for name in names}

    def _generator(self) -> Any:
        key = self.context.key_at(self.label, _at.path, _at.drawn, behind=_at.behind)
        _at.drawn += 1
        return generator(key)


def whereabouts() -> tuple[int, ...]:
    """The index path of the value on which user code of this thread is at work, where that depends on its run."""
    return _at.path


class _At(threading.local):
    """Where the user code of this thread is: on the value with which index path, and how many generators it was given there."""

    path: tuple[int, ...] = ()
    behind = False
    drawn = 0


_at = _At()


def seed_globals(key: int) -> None:
    """Seed those of Python, numpy and torch that are loaded."""
    random, numpy, torch = _loaded()
    if random is not None:
        random.seed(key)
    if numpy is not None:
        numpy.seed(key & 0xFFFFFFFF)
    if torch is not None:
        torch.manual_seed(key & 0x7FFFFFFFFFFFFFFF)


def _loaded() -> tuple[Any, Any, Any]:
    """The global generators of Python, numpy and torch, where they are loaded."""
    torch = getattr(sys.modules.get("torch"), "default_generator", None)
    return sys.modules.get("random"), sys.modules.get("numpy.random"), torch


@contextlib.contextmanager
def borrowed(context: Context) -> Iterator[None]:
    """Run user code of a run in a thread that is the caller's: afterwards the thread is where it was, and so are the global
    generators."""
    path, behind, drawn = _at.path, _at.behind, _at.drawn
    back = [*_states()] if context.seeded else []
    try:
        yield
    finally:
        _at.path, _at.behind, _at.drawn = path, behind, drawn
        for each in back:
            each()


def _states() -> Iterator[Callable[[], Any]]:
    """For each of the global generators what puts it back."""
    random, numpy, torch = _loaded()
    if random is not None:
        yield partial(random.setstate, random.getstate())
    if numpy is not None:
        yield partial(numpy.set_state, numpy.get_state())
    if torch is not None:
        yield partial(torch.set_state, torch.get_state())


def check_params(given: Mapping[str, Any], asked: Mapping[str, Iterable[str]], needed: Mapping[str, Iterable[str]]) -> None:
    """A GraphError for parameters that no step names, and for names that have no value.

    Args:
        given: the run's.
        asked: for each step, the names that it may be given.
        needed: for each step, those without which it can't be called.
    """
    known = sorted({name for names in asked.values() for name in names if name != RNG})
    for name in given:
        if name not in known:
            there = f"the steps name {', '.join(f'`{each}`' for each in known)}" if known else "no step names any"
            raise GraphError(f"`params` has `{name}`, which no step of this flow names as a parameter: {there}.")
    for step, names in needed.items():
        for name in names:
            if name not in given:
                raise GraphError(
                    f"Step {step!r} needs `{name}`, which has no value. "
                    f"Write `pipe(xs, params={{{name!r}: ...}})`, or bind it: `{step}.bind({name}=...)`."
                )
