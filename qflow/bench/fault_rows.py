"""Fault rows: what is broken, one row each.

The first has no fault: a system that fails it is not measured.
"""

from __future__ import annotations

import signal

from qflow.bench import steps
from qflow.bench.row import Row, Signal

DESCRIPTORS = 64
SHM = 2 << 20  # bytes of /dev/shm

FAULTS: dict[str, Row] = {
    "none": Row("nothing: 20 numbers", steps.healthy, quick=True),
    "value-error": Row("`raise ValueError`", steps.value_error, quick=True),
    "two-arguments": Row("exception whose `__init__` takes 2 args (fails to unpickle)", steps.error_of_two_arguments),
    "error-with-lambda": Row("exception holding a lambda (fails to pickle)", steps.error_with_a_lambda),
    "returns-lambda": Row("returns a lambda", steps.a_lambda, quick=True),
    "fragile": Row("returns an object that raises on unpickle", steps.fragile),
    "returns-none": Row("returns None (all items)", steps.none, right=steps.none),
    "stop-iteration": Row("`raise StopIteration`", steps.stop_iteration, quick=True),
    "generator-exit": Row("`raise GeneratorExit`", steps.generator_exit),
    "keyboard-interrupt": Row("`raise KeyboardInterrupt`", steps.keyboard_interrupt),
    "base-exception": Row("`raise` BaseException subclass", steps.base_exception),
    "sys-exit-0": Row("`sys.exit(0)`", steps.sys_exit_0),
    "sys-exit-3": Row("`sys.exit(3)`", steps.sys_exit_3),
    "os-exit-0": Row("`os._exit(0)`", steps.os_exit_0, quick=True),
    "os-exit-7": Row("`os._exit(7)`", steps.os_exit_7),
    "killed": Row("SIGKILL itself, each time", steps.killed, quick=True),
    "segfault": Row("segfault, each time", steps.segfault),
    "killed-once": Row("SIGKILL itself, once", steps.killed_once, survivable=True, quick=True),
    "killed-once-outside": Row(
        "killed from outside while it works, once",
        steps.killed_once_from_outside,
        signal=Signal("victim", signal.SIGKILL),
        survivable=True,
    ),
    "killed-once-pickling": Row("SIGKILL while its result is pickled, once", steps.killed_once_in_pickling, survivable=True),
    "stuck-break": Row("consumer breaks, a worker is stuck in sleep; script ends", steps.stuck, leaves=True, awaited="struck"),
    "break": Row("consumer breaks after 3; script ends", steps.healthy, leaves=True),
    "parent-killed": Row("parent SIGKILLed", steps.slow, items=200, signal=Signal("parent", signal.SIGKILL), quick=True),
    "ctrl-c": Row("Ctrl-C (SIGINT to the group)", steps.slow, items=200, signal=Signal("group", signal.SIGINT)),
    "terminated": Row("SIGTERM to the parent only", steps.slow, items=200, signal=Signal("parent", signal.SIGTERM)),
    "small-shm": Row("/dev/shm of 2 MiB, 4 MiB results", steps.large, right=steps.large, shm=SHM),
    "few-descriptors": Row(
        f"RLIMIT_NOFILE={DESCRIPTORS}, consumer keeps 200 small results",
        steps.small_array,
        right=steps.small_array,
        items=200,
        descriptors=DESCRIPTORS,
    ),
}
