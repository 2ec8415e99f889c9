"""Fence: let a store be seen before a load that follows it, between one who waits and one who wakes.

Who waits stores a mark and looks again; who wakes stores what the other waits for and looks for the mark. Unless
each store is seen before the load after it, both may miss the other. So both take and release a lock of their own in
between, which is a full fence on x86 and costs 75 ns.

That is too much for a step that makes a number in 300 ns, though hardly ever anybody waits for it. It says so once
(`board.quick`) and leaves its fences out; whoever waits then pays for both: membarrier(2) makes every
process that has registered pass a full fence, in 1 us, or in 25 us while the other processors are at work (measured on
2 shared cores). Where the system call is missing, nobody leaves fences out. Whether it is missing is found once, by
the process that runs the pipe, and holds for all its workers.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable

from qflow.runtime.environment import lacking

_MEMBARRIER = 324  # the number of the system call on x86-64, the machine whose stores need no fence between them
_EXPEDITED, _REGISTER = 1 << 1, 1 << 2  # MEMBARRIER_CMD_GLOBAL_EXPEDITED, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED


class Fence:
    """Of one participant.

    Attributes:
        needed: whether quick stores need it, too.
        all: a fence in every process.
    """

    def __init__(self) -> None:
        self.needed = "membarrier" in lacking()
        lock = threading.Lock()  # nobody else's: a lock that another thread has is no fence
        self._acquire, self._release = lock.acquire, lock.release
        self.all: Callable[[], None] = self.own if self.needed else _barrier()

    def own(self) -> None:
        """A fence of this participant."""
        self._acquire()
        self._release()


_barriers: dict[int, Callable[[], None]] = {}  # of this process, by its number


def _barrier() -> Callable[[], None]:
    """Register this process, for which others may call it, too -> a fence in all that have."""
    if os.getpid() not in _barriers:
        call = ctypes.CDLL(None, use_errno=True).syscall
        numbers = [ctypes.c_long(_MEMBARRIER), ctypes.c_int(_EXPEDITED), ctypes.c_uint(0), ctypes.c_int(0)]

        def barrier() -> None:
            if call(*numbers) != 0:
                raise OSError(ctypes.get_errno(), "membarrier was refused")

        if call(numbers[0], ctypes.c_int(_REGISTER), *numbers[2:]) != 0:
            raise OSError(ctypes.get_errno(), "membarrier was refused")
        _barriers.clear()
        _barriers[os.getpid()] = barrier
    return _barriers[os.getpid()]
