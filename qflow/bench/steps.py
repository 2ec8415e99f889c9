"""Steps: ten times the item, and on one item what no step should do.

They are plain functions of an importable module, so that every system can send them to its workers.
"""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import sys
import time
from typing import Any, NoReturn

import numpy as np

from qflow.bench.marks import mark
from qflow.bench.systems import Step

ITEM = 5  # the item on which a step breaks
PAUSE = 0.05  # seconds that a slow item takes
LARGE = 1 << 20  # float32 numbers: 4 MiB


def healthy(item: int) -> int:
    return 10 * item


def breaks(step: Step) -> Step:
    """A step that does what the function says on item 5, and marks the moment; any other item it multiplies by ten."""

    @functools.wraps(step)
    def at_one_item(item: int) -> Any:
        if item != ITEM:
            return healthy(item)
        mark("struck")
        return step(item)

    return at_one_item


def once(step: Step) -> Step:
    """A step that does what the function says on item 5, the first time only."""

    @functools.wraps(step)
    def at_first(item: int) -> Any:
        return step(item) if item == ITEM and mark("struck") else healthy(item)

    return at_first


@breaks
def value_error(item: int) -> NoReturn:
    raise ValueError("boom")


class TwoArguments(Exception):
    """Can't be unpickled: pickle calls it with the one argument it hands on."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


@breaks
def error_of_two_arguments(item: int) -> NoReturn:
    raise TwoArguments("bo", "om")


@breaks
def error_with_a_lambda(item: int) -> NoReturn:
    raise ValueError("boom", lambda: item)


@breaks
def a_lambda(item: int) -> Any:
    return lambda: healthy(item)


class Fragile:
    """Pickles, but can't be unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return _refuse, ("can't be unpickled",)


def _refuse(text: str) -> NoReturn:
    raise ValueError(text)


@breaks
def fragile(item: int) -> Any:
    return Fragile()


def none(item: int) -> None:
    return None


@breaks
def stop_iteration(item: int) -> NoReturn:
    raise StopIteration


@breaks
def generator_exit(item: int) -> NoReturn:
    raise GeneratorExit


@breaks
def keyboard_interrupt(item: int) -> NoReturn:
    raise KeyboardInterrupt


class Alien(BaseException):
    """An exception that is no Exception."""


@breaks
def base_exception(item: int) -> NoReturn:
    raise Alien("boom")


@breaks
def sys_exit_0(item: int) -> NoReturn:
    sys.exit(0)


@breaks
def sys_exit_3(item: int) -> NoReturn:
    sys.exit(3)


@breaks
def os_exit_0(item: int) -> NoReturn:
    os._exit(0)


@breaks
def os_exit_7(item: int) -> NoReturn:
    os._exit(7)


@breaks
def killed(item: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@breaks
def segfault(item: int) -> None:
    ctypes.string_at(0)


@once
def killed_once(item: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@once
def killed_once_from_outside(item: int) -> int:
    """The runner kills the process that the mark names; until then it is at work."""
    mark(f"victim-{os.getpid()}")
    time.sleep(60)
    return healthy(item)


class Deadly:
    """The process that pickles it first is killed by that; then it is a number."""

    def __init__(self, item: int) -> None:
        self.item = item

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        if mark("struck"):
            os.kill(os.getpid(), signal.SIGKILL)
        return healthy, (self.item,)


def killed_once_in_pickling(item: int) -> Any:
    return Deadly(item) if item == ITEM else healthy(item)


@breaks
def stuck(item: int) -> None:
    time.sleep(3600)


def slow(item: int) -> int:
    time.sleep(PAUSE)
    return healthy(item)


def large(item: int) -> Any:
    return np.full(LARGE, item, np.float32)


def small_array(item: int) -> Any:
    return np.full(4, item, np.float32)
