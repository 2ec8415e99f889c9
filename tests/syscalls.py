"""A copy of this process that is killed at its k-th system call, wherever that is; Linux on x86-64 and arm64."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

_TRACEME, _KILL, _SYSCALL, _SETOPTIONS = 0, 8, 24, 0x4200
_EXITKILL, _SYSGOOD = 1 << 20, 1
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def _ptrace(request: int, process: int, data: int = 0) -> None:
    if _libc.ptrace(request, process, None, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def killed_at(number: int, act: Callable[[], object]) -> bool:
    """Do something in a forked copy, which is killed where it enters its system call of a number -> whether it came that far."""
    child = os.fork()
    if not child:
        try:
            _ptrace(_TRACEME, 0)
            os.kill(os.getpid(), signal.SIGSTOP)
            act()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    _ptrace(_SETOPTIONS, child, _EXITKILL | _SYSGOOD)
    stops, passed = 0, 0
    while True:
        _ptrace(_SYSCALL, child, passed)
        _, status = os.waitpid(child, 0)
        if not os.WIFSTOPPED(status):
            return False
        found = os.WSTOPSIG(status)
        passed = 0 if found == signal.SIGTRAP | 0x80 else found
        stops += not passed
        if stops == 2 * number + 1:  # each is met when it begins and when it ends
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True


def possible() -> bool:
    """Whether processes may be watched so here."""
    try:
        return not killed_at(10**9, lambda: None)
    except PermissionError:
        return False
