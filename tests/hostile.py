"""Hostile: values that pickle badly, in a module that is loaded at once, and the step that makes them in a worker."""

from __future__ import annotations

import functools
import threading

import numpy as np


def build(x):
    """The value that a partial makes; other values as they are."""
    return x() if isinstance(x, functools.partial) else x


class Refusing:
    """Raises when it is pickled."""

    def __init__(self, how):
        self.how = how

    def __reduce__(self):
        raise self.how("on leaving")


class Broken:
    """Raises when it is rebuilt."""

    def __init__(self, how):
        self.how = how

    def __reduce__(self):
        return broken, (self.how,)


def broken(how):
    raise how("on arrival")


class Lying:
    """Reduces to whatever it is told to."""

    def __init__(self, reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


class Slots:
    """Has no ``__dict__``."""

    __slots__ = ("a", "b")

    def __init__(self, a):
        self.a = a


class Temporary:
    """What can't be sent is made while it is pickled."""

    def __init__(self):
        self.array = np.ones(3)

    def __getstate__(self):
        return {"array": self.array, "lock": threading.Lock()}


class Endless:
    """Never ends when it is pickled."""

    def __getstate__(self):
        return self.__getstate__()
