"""Command line: ``qflow demo``, also ``python -m qflow demo``.

A command is a module with ``HELP`` (a line), ``add_arguments(parser)`` and ``run(arguments)``, which
returns the exit status. It loads what is heavy in ``run``, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn, Protocol

import qflow
from qflow.config import command as tables
from qflow.demo import command as demo
from qflow.errors import near


class Command(Protocol):
    """What a module has to be a command."""

    @property
    def HELP(self) -> str: ...
    def add_arguments(self, parser: argparse.ArgumentParser, /) -> None: ...
    def run(self, arguments: argparse.Namespace, /) -> int: ...


COMMANDS: dict[str, Command] = {"demo": demo, "h5": tables}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status. A wrong option leaves with status 2 and says what is right."""
    parser = argparse.ArgumentParser(prog="qflow", description="Worker processes and queues, joined with |.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"qflow {qflow.__version__}")
    choice = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name, command in COMMANDS.items():
        command.add_arguments(choice.add_parser(name, help=command.HELP, description=command.HELP, allow_abbrev=False))
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        _refuse(getattr(arguments, "parser", choice.choices[arguments.command]), unknown[0])
    return COMMANDS[arguments.command].run(arguments)


def _refuse(parser: argparse.ArgumentParser, word: str) -> NoReturn:
    """An unknown word of the command line: name the option that was likely meant, and all there are."""
    options = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    parser.error(f"no option {word!r}{near(word.partition('=')[0], options)}; there are {', '.join(options)}.")


if __name__ == "__main__":
    sys.exit(main())
