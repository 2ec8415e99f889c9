"""Command: the options, and one training with them."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING

from qflow.errors import GraphError

if TYPE_CHECKING:
    from qflow.train.imagenet.files import Files
    from qflow.train.imagenet.world import World

STEPS = 20  # where neither steps nor epochs are given
HELP = "Train a small network on JPEG files: one process, or the ranks that torchrun has started."


def parser() -> argparse.ArgumentParser:
    """The options; counts are whole numbers of at least 1."""
    made = argparse.ArgumentParser(prog="python -m qflow.train.imagenet", description=HELP, allow_abbrev=False)
    add = made.add_argument
    add("-w", "--nworkers", type=_count, default=1, metavar="N", help="workers that decode, of each rank (default: 1)")
    add("-b", "--nbatch", type=_count, default=64, metavar="N", help="images in a batch, of each rank (default: 64)")
    add("--cache-size", type=_count, default=2, metavar="N", help="batches that wait for the training at most (default: 2)")
    add("-s", "--nsteps", type=_count, metavar="N", help=f"training steps (default: {STEPS}, or those of --epochs)")
    add("--epochs", type=_count, metavar="N", help="epochs at most (default: as many as the steps take)")
    add("--workers", choices=("threads", "processes", "serial"), default="threads", help="what decodes (default: threads)")
    add(
        "--base-dir", metavar="PATH", help="folder of the images, one folder in it for each label (default: tiles, made for this)"
    )
    add("--file-list-path", metavar="PATH", help="text file, one path on each line; relative ones begin in --base-dir")
    add("--remainder", choices=("drop", "pad"), default="drop", help="what ranks do to have equally many images (default: drop)")
    add("--on-error", choices=("raise", "skip"), default="raise", help="what to do about an image that is bad (default: raise)")
    add("--seed", type=int, default=0, metavar="N", help="of the order of the images and the network (default: 0)")
    add("--status-print-interval", type=_count, default=5, metavar="N", help="steps after which the rate is printed (default: 5)")
    trace = "profile some steps and write their trace (default: imagenet-WORKERS-nwN.json)"
    add("--profile", nargs="?", const="", metavar="PATH", help=trace)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Train; the exit status. Wrong options leave with status 2 and say what is right."""
    options = parser().parse_args(argv)
    try:
        _run(options)
    except KeyboardInterrupt:
        print("imagenet: interrupted", file=sys.stderr)
        return 130
    except (GraphError, OSError) as error:
        print(f"imagenet: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        return 1
    return 0


def _run(options: argparse.Namespace) -> None:
    from qflow.train.device import to_device
    from qflow.train.imagenet.flow import flow
    from qflow.train.imagenet.model import learner
    from qflow.train.imagenet.trace import LEAST, Trace
    from qflow.train.imagenet.training import Training
    from qflow.train.imagenet.world import world
    from qflow.train.loader import Loader

    with ExitStack() as stack:
        files = stack.enter_context(_files(options))
        here = stack.enter_context(world())
        source = flow(
            files, options.nbatch, workers=options.workers, n=options.nworkers, cache=options.cache_size, even=options.remainder
        )
        engine = "serial" if options.workers == "serial" else "processes"
        source |= to_device(str(here.device))
        loader = stack.enter_context(Loader(source, seed=options.seed, engine=engine, on_error=options.on_error))
        steps = STEPS if options.nsteps is options.epochs is None else options.nsteps
        path = options.profile or f"imagenet-{options.workers}-nw{options.nworkers}.json"
        most = min(steps or sys.maxsize, len(loader) * (options.epochs or sys.maxsize))
        if options.profile is not None and most < LEAST:
            raise GraphError(f"A profile takes at least {LEAST} steps, but there are {most}. Write `-s 20`.")
        if options.profile is not None and not os.path.isdir(os.path.dirname(path) or "."):
            raise GraphError(f"The trace can't be written: there is no folder for {path!r}. Make it before.")
        trace = None if options.profile is None or here.rank.index else Trace(path, most)
        _introduce(options, files, here)
        with trace or nullcontext():
            student = learner(len(files.labels), here, options.seed)
            rates = Training(loader, student, here, len(files), steps, options.epochs, options.status_print_interval, trace).run()
        here.say(rates.average())
        if trace:
            here.say(f"trace: {path}" if trace.written else "trace: none, there were too few steps")


@contextmanager
def _files(options: argparse.Namespace) -> Iterator[Files]:
    """The images; tiles, where no others are named, each rank its own copy of the same."""
    from qflow.train.imagenet import tiles
    from qflow.train.imagenet.files import found, listed

    if options.file_list_path:
        yield listed(options.file_list_path, options.base_dir or "")
    elif options.base_dir:
        yield found(options.base_dir)
    else:
        with tempfile.TemporaryDirectory(prefix="qflow-imagenet-") as folder:
            yield listed(tiles.cut(folder))


def _introduce(options: argparse.Namespace, files: Files, here: World) -> None:
    import torch

    if here.device.type == "cpu":  # only those that the workers leave free: two threads on one core spin for each other
        busy = 0 if options.workers == "serial" else options.nworkers
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // here.rank.count - busy))
    workers = options.workers if options.workers == "serial" else f"{options.workers}, n={options.nworkers}"
    ranks = f"rank {here.rank}" if here.many else "1 rank"
    here.say(f"{len(files)} images, {len(files.labels)} labels; {ranks} on {here.device}; decode: {workers}")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; write a whole number of at least 1")
    return int(text)
