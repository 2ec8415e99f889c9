"""Command: the options of ``qflow demo``, and what is said when it can't run."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from qflow.demo import cap
from qflow.errors import WorkerDied
from qflow.graph import bytesizes

T = TypeVar("T")

HELP = "Train a small network on real digits over real pictures, through worker processes; show what it took."
LEAST = 10**6  # bytes of data: 32 events to train on, 4 held out
_NEEDED = ("h5py", "skimage", "sklearn", "tqdm")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options; sizes are texts such as 4GB, counts whole numbers of at least 1."""
    size, data, count = _typed(bytesizes.parse), _typed(_data), _typed(_count)
    add = parser.add_argument
    where = "where the HDF5 files are kept (default: $XDG_CACHE_HOME/qflow/demo, else ~/.cache/qflow/demo)"
    add("--size", type=data, default="200MB", metavar="SIZE", help="how much data to make, by tiling (default: 200MB)")
    add("--memory", type=size, metavar="SIZE", help="cap the job's memory, and fail if its peak is above (default: no cap)")
    add("--folder", type=Path, metavar="PATH", help=where)
    add("--rows", type=count, default=256, metavar="N", help="events read at once (default: 256)")
    add("--batch", type=count, default=64, metavar="N", help="events in a batch (default: 64)")
    add("--epochs", type=count, metavar="N", help="how often to go through the data (default: 4, from 1GB on 1)")
    add("--engine", choices=("processes", "serial"), default="processes", help="what runs the steps (default: processes)")
    add(
        "--workers",
        type=count,
        default=cores(),
        metavar="N",
        help="processes of the step transform (default: %(default)s, as cores)",
    )


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; 0 if it went well and kept to its memory, else 1."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return _fail(f"{' and '.join(missing)} can't be imported. Install what the demo needs: pip install 'qflow[examples]'")
    root, limit = os.getpid(), "none"
    if arguments.memory:
        forked = cap.fork_capped(arguments.memory)
        if isinstance(forked, int):
            return forked
        limit = forked
    return _job(arguments, root, limit)


def _job(arguments: argparse.Namespace, root: int, limit: str) -> int:
    """The job, loaded only now: its memory is inside the cap."""
    from qflow.demo.job import Options, run

    arguments = argparse.Namespace(**{key: value for key, value in vars(arguments).items() if key != "command"})
    try:
        return run(Options(**vars(arguments)), root, limit)
    except KeyboardInterrupt:
        print("qflow demo: interrupted", file=sys.stderr)
        return 130
    except (OSError, WorkerDied) as error:
        return _fail(str(error))
    except MemoryError:
        return _fail("out of memory. Write a larger --memory, or fewer --workers or --rows.")


def _fail(text: str) -> int:
    print(f"qflow demo: {text}", file=sys.stderr)
    return 1


def _data(text: str) -> int:
    size = bytesizes.parse(text)
    if size < LEAST:
        raise ValueError(f"got {text!r}; at least {bytesizes.show(LEAST)} of data are needed to train and to hold out")
    return size


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"got {text!r}; write a whole number of at least 1")
    return int(text)


def _typed(parse: Callable[[str], T]) -> Callable[[str], T]:
    """As a type of argparse, which shows the text only of errors of its own."""

    def parsed(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parsed
