"""Command: a chain of files as a program.

    if __name__ == "__main__":
        sys.exit(files.main(chain))

What its options say is what the arguments of `write`, `workers` and `records` say.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from qflow.errors import GraphError, QFlowError
from qflow.files.fitting import workers
from qflow.files.listed import records
from qflow.files.names import WORDS
from qflow.files.planned import outputs
from qflow.files.record import Record, shown
from qflow.files.writing import SWITCHES
from qflow.graph.flow import Flow, Joins
from qflow.graph.marks import process
from qflow.graph.step import Step


def add_arguments(parser: argparse.ArgumentParser, **defaults: Any) -> argparse.ArgumentParser:
    """Add the options of a run of files to a parser of one's own; `run_with` understands what comes of them.

    >>> import argparse, qflow as qf
    >>> parser = qf.files.add_arguments(argparse.ArgumentParser(), outdir="reduced")
    >>> options = parser.parse_args(["--append", "_r", "a.fits"])
    >>> options.outdir, options.append, options.names
    ('reduced', '_r', ['a.fits'])

    Args:
        parser: gets ``names`` and the options ``--outdir``, ``--create-outdir``, ``--append``, ``--outname``,
            ``--skip-existing``, ``--n``, ``--process-size``, ``--mem-frac``, ``--mem-available``, ``--cache``,
            ``--renew``, ``--set NAME=VALUE``, ``--dry-run`` and ``--quiet``.
        defaults: others than those of `write` and `workers`, by the options' names.
    """
    unset = argparse.SUPPRESS
    switch = argparse.BooleanOptionalAction
    add = parser.add_argument
    add("names", nargs="*", metavar="FILE", help="files to work on")
    add("--outdir", default=unset, help="folder of the outputs")
    add("--create-outdir", action=switch, default=unset, help="make it, if it is not there")
    add("--append", default=unset, help="what stands between the stem and the suffix of a name")
    add("--outname", default=unset, metavar="TEMPLATE", help="such as '{stem}_r{suffix}', in place of that")
    add("--skip-existing", action=switch, default=unset, help="do only what is missing or older than its input")
    add("--n", type=_count, default=unset, help="workers; between 0 and 1 a part of the physical cores; 0: all of them")
    add("--process-size", default=unset, metavar="SIZE", help="memory that one worker takes, such as 3GB")
    add("--mem-frac", type=float, default=unset, metavar="PART", help="part of the available memory for all workers (0.8)")
    add("--mem-available", default=unset, metavar="SIZE", help="memory for all workers, in place of that")
    add("--cache", default=unset, metavar="PATH", help="keep the records there, and do only what is not in them")
    add("--renew", action="store_true", help="do all of it again, and keep that")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="value of a parameter of the steps; JSON, else a text")
    add("--dry-run", action="store_true", help="say what would be written, and do nothing")
    add("--quiet", action="store_true", help="no progress bar")
    known = {action.dest for action in parser._actions}
    for name in defaults:
        if name not in known:
            raise GraphError(
                f"`add_arguments` has no option `{name}`: there are {', '.join(f'`{each}`' for each in sorted(known))}."
            )
    parser.set_defaults(**defaults)
    return parser


def _count(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a number is wanted, but got {text!r}") from None
    return int(number) if number.is_integer() else number


def params_of(options: argparse.Namespace) -> dict[str, Any]:
    """The parameters of a run that options say."""
    said = {word: getattr(options, word) for word in (*WORDS, *SWITCHES) if hasattr(options, word)}
    for each in options.set:
        name, equals, value = each.partition("=")
        if not equals:
            raise GraphError(f"`--set` takes NAME=VALUE, but got {each!r}.")
        try:
            said[name] = json.loads(value)
        except ValueError:
            said[name] = value
    return said


def run_with(options: argparse.Namespace, chain: Joins[Any, Record], **more: Any) -> list[Record]:
    """Run a chain as the options of `add_arguments` say, and give its records.

    Args:
        options: parsed.
        chain: from `read` to `write`, without a mark: it gets ``--n`` workers.
        more: options of the run.
    """
    params = {**more.pop("params", {}), **params_of(options)}
    kept = {"cache": getattr(options, "cache", None), "renew": options.renew}
    bar = not options.quiet and find_spec("tqdm") is not None
    return records(_marked(options, chain), options.names, **kept, progress=bar, params=params, **more)


def _marked(options: argparse.Namespace, chain: Joins[Any, Record]) -> Joins[Any, Record]:
    """The chain with as many workers as options say."""
    words = ("n", "process_size", "mem_frac", "mem_available")
    said = {word: getattr(options, word) for word in words if hasattr(options, word)}
    if not any(isinstance(each, Step) for each in chain.operators):
        return process(n=workers(**said))(chain)
    if said:
        word = next(iter(said)).replace("_", "-")
        raise GraphError(f"`--{word}` is for a chain without marks; here the marks say how many workers there are.")
    return chain


def main(chain: Joins[Any, Record], *, argv: Sequence[str] | None = None, **defaults: Any) -> int:
    """A whole command line for a chain: parse, run, say what failed -> the exit status, 0: all went well.

    Args:
        chain: from `read` to `write`.
        argv: in place of ``sys.argv[1:]``.
        defaults: of `add_arguments`.
    """
    parser = add_arguments(argparse.ArgumentParser(description=sys.modules["__main__"].__doc__), **defaults)
    options = parser.parse_args(argv)
    try:
        if options.dry_run:
            pipe, params = _marked(options, chain), params_of(options)
            planned = outputs(pipe, options.names, params=params)
            print(Flow(pipe).plan(), end="\n\n")
            for input, output, skipped in planned:
                print(f"{_text(input)} -> {output}{'  (is there)' if skipped else ''}")
            return 0
        begun = time.monotonic()
        found = run_with(options, chain)
    except QFlowError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    failed = [record for record in found if record.error is not None]
    for record in failed:
        notes = "\n".join(getattr(record.error, "__notes__", []))
        print(f"{_text(record.input)}: {type(record.error).__name__}: {record.error}\n{notes}", file=sys.stderr)
    written = sum(record.output is not None for record in found)
    outputs_ = f"{written} output{'' if written == 1 else 's'}"
    print(f"{len(options.names)} inputs, {outputs_}, {len(failed)} failed, in {time.monotonic() - begun:.1f} s")
    return 1 if failed else 0


def _text(input: Any) -> str:
    found = shown(input)
    return ", ".join(map(_text, found)) if isinstance(found, list) else str(found)
