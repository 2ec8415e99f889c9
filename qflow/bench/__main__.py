"""Command line of the bench: ``python -m qflow.bench``, or with ``faults``, ``payloads``, ``cost``, ``device``, ``files`` or
``tables``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from qflow.bench.cost import Cost
from qflow.bench.device import Device
from qflow.bench.fault_rows import FAULTS
from qflow.bench.files import Files
from qflow.bench.matrix import Matrix
from qflow.bench.payload_rows import PAYLOADS
from qflow.bench.systems import SYSTEMS
from qflow.bench.tables import Tables
from qflow.bench.throughput.command import Throughput

_FOR_PAYLOADS = {"torch_as_is", "spdl_arena"}  # they differ from their neighbours in what is sent, not in what breaks

COMMANDS: dict[str, Matrix | Cost | Device | Files | Tables] = {
    "faults": Matrix(
        "Break the same things in qflow and its installed peers; who raises, hangs, loses results or leaves processes?",
        FAULTS,
        [name for name in SYSTEMS if name not in _FOR_PAYLOADS],
    ),
    "payloads": Matrix(
        "Send values that are hard to send through qflow and its installed peers; what comes out?",
        PAYLOADS,
        ["qflow", "torch_as_is", "nodes", "executor", "loky", "mpire", "spdl_subprocess", "spdl_arena", "grain", "pypeln"],
    ),
    "cost": Cost(),
    "device": Device(),
    "files": Files(),
    "tables": Tables(),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    throughput = Throughput()
    parser = argparse.ArgumentParser(prog="python -m qflow.bench", description=throughput.HELP, allow_abbrev=False)
    throughput.add_arguments(parser)
    choice = parser.add_subparsers(dest="command", metavar="command", help="something else than throughput")
    for name, command in COMMANDS.items():
        command.add_arguments(choice.add_parser(name, help=command.HELP, description=command.HELP, allow_abbrev=False))
    arguments = parser.parse_args(argv)
    return (COMMANDS[arguments.command] if arguments.command else throughput).run(arguments)


if __name__ == "__main__":
    sys.exit(main())
