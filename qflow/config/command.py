"""Command: ``qflow h5 run``: flows in YAML, one after the other, from one file into another."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time

from qflow.errors import QFlowError

HELP = "Run flows over HDF5 tables that are written in YAML."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options; those of h5flow have its names."""
    choice = parser.add_subparsers(dest="action", metavar="action", required=True)
    run_ = choice.add_parser("run", help=HELP, description=HELP, allow_abbrev=False)
    run_.set_defaults(parser=run_)
    add = run_.add_argument
    add(
        "-c",
        "--configs",
        nargs="+",
        required=True,
        metavar="FLOW",
        help="files of YAML; each goes on with the output of the one before",
    )
    add("-i", "--input", metavar="FILE", help="HDF5 file that is read")
    add("-o", "--output", required=True, metavar="FILE", help="HDF5 file that is written; it is there when it is complete")
    add("-s", "--start", type=_row, metavar="ROW", help="first row of the source")
    add("-e", "--end", type=_row, metavar="ROW", help="the row after the last")
    add(
        "-d",
        "--drop",
        nargs="+",
        default=[],
        metavar="TABLE",
        help="tables that are only wanted meanwhile, beside those of the files",
    )
    add("-z", "--compression", choices=("gzip", "lzf"), help="of new tables")
    add("-n", "--workers", type=_count, metavar="N", help="worker processes, where the functions have no marks (default: 1)")
    add("--exists", choices=("refuse", "overwrite", "append"), default="refuse", help="what to do with an output that is there")
    add(
        "--driver", choices=("mpio", "sec2"), help="all ranks of an MPI job write, or rank 0 (default: the first where it can be)"
    )
    add("--resume", action="store_true", help="go on with a run that was interrupted")
    add("-v", "--verbose", action="count", default=0, help="show the flows; twice: progress, too")


def run(arguments: argparse.Namespace) -> int:
    """Run them; 0 if all went well."""
    missing = [name for name, package in (("h5py", "h5py"), ("PyYAML", "yaml")) if importlib.util.find_spec(package) is None]
    if missing:
        return _fail(f"{' and '.join(missing)} can't be imported. Install what this needs: pip install 'qflow[h5]'")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # where functions are looked for, as `python -m` does
    try:
        _run(arguments)
    except (QFlowError, OSError) as error:
        notes = "\n".join(getattr(error, "__notes__", []))
        return _fail(f"{error}\n{notes}".rstrip())
    except KeyboardInterrupt as error:
        return _fail("\n".join(["interrupted", *getattr(error, "__notes__", [])]), 130)
    return 0


def _run(arguments: argparse.Namespace) -> None:
    from qflow.config.chain import run_all
    from qflow.config.entries import configuration
    from qflow.graph.ranks import rank

    configurations = {path: configuration(path) for path in arguments.configs}
    begun, first = time.monotonic(), rank().index == 0
    for path, flow, done in run_all(
        [(path, configurations[path]) for path in arguments.configs],
        arguments.input,
        arguments.output,
        n=arguments.workers,
        start=arguments.start,
        stop=arguments.end,
        exists=arguments.exists,
        resume=arguments.resume,
        drop=arguments.drop,
        compression=arguments.compression,
        driver=arguments.driver,
        progress=arguments.verbose > 1,
    ):
        if first and arguments.verbose:
            print(f"{path}: {flow!r}")
        if first:
            rows = ", ".join(f"{count} rows in {table}" for table, count in done.rows.items()) or "no rows"
            print(f"{path}: {done.slices} slices, {rows}, in {time.monotonic() - begun:.1f} s")
        begun = time.monotonic()


def _row(text: str) -> int:
    return _number(text, 0, "the number of a row, 0 or more,")


def _count(text: str) -> int:
    return _number(text, 1, "a number of at least 1")


def _number(text: str, least: int, what: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"{what} is wanted, but got {text!r}")
    return number


def _fail(text: str, status: int = 1) -> int:
    print(f"qflow h5 run: {text}", file=sys.stderr)
    return status
