"""Systems for the bench that do one thing wrong each, on purpose."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

Step = Callable[[int], Any]
Consume = Callable[[Iterable[Any]], None]


def good(step: Step, items: Sequence[int], consume: Consume) -> None:
    consume(map(step, items))


def loses(step: Step, items: Sequence[int], consume: Consume) -> None:
    consume(_successes(step, items))


def _successes(step: Step, items: Sequence[int]) -> Iterator[Any]:
    for item in items:
        with suppress(ValueError):
            yield step(item)


def hangs(step: Step, items: Sequence[int], consume: Consume) -> None:
    try:
        consume(map(step, items))
    except ValueError:
        time.sleep(3600)


def hangs_at_exit(step: Step, items: Sequence[int], consume: Consume) -> None:
    import atexit

    atexit.register(time.sleep, 3600)
    consume(map(step, items))


def leaves(step: Step, items: Sequence[int], consume: Consume) -> None:
    """A grandchild in a session of its own, adopted by init."""
    program = "import subprocess; subprocess.Popen(['sleep', '3600'], start_new_session=True)"
    subprocess.run([sys.executable, "-c", program], check=True)
    consume(map(step, items))


def doubles(step: Step, items: Sequence[int], consume: Consume) -> None:
    consume(step(item) for item in [*items, items[0]])


def shuffles(step: Step, items: Sequence[int], consume: Consume) -> None:
    consume(map(step, reversed(items)))


def dies(step: Step, items: Sequence[int], consume: Consume) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def quits(step: Step, items: Sequence[int], consume: Consume) -> None:
    os._exit(0)


def negates(step: Step, items: Sequence[int], consume: Consume) -> None:
    consume(-step(item) for item in items)
