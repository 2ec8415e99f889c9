"""Device: how fast batches get to where the model computes, and how long the loop waits for them.

Batches are tensors that a step has; what is measured is the way from the worker to the device, beside a "model" that keeps
the device busy for some milliseconds a batch. On a machine without a GPU the device is the CPU, and what is left to measure is
what `qf.to_device` adds to a batch that stays where it is.
"""

from __future__ import annotations

import argparse
import statistics


class Device:
    """The command ``python -m qflow.bench device``."""

    HELP = "How fast batches get to the device, and how long the loop waits for each."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """What the command takes."""
        parser.add_argument("--device", help='as "cuda" (default: the one that is there)')
        parser.add_argument(
            "--megabytes", type=float, default=38.5, help="of a batch (default: 64 images of 3 x 224 x 224 floats)"
        )
        parser.add_argument("--batches", type=int, default=200, help="of an epoch (default: %(default)s)")
        parser.add_argument("--busy", type=float, default=5, help="milliseconds of the device for a batch (default: %(default)s)")
        parser.add_argument("--repeats", type=int, default=3, help="in turns, of which medians count (default: %(default)s)")

    def run(self, arguments: argparse.Namespace) -> int:
        """Measure and print."""
        from qflow.bench.transfer import Figures, Made, bound, measured, model_of, systems
        from qflow.train.device import to_device

        device = to_device(arguments.device).device
        made = Made(arguments.batches, int(arguments.megabytes * 1e6) // 4 * 4)
        model = model_of(device, arguments.busy / 1000)
        found: dict[str, list[Figures]] = {}
        ways = systems(made, device)
        for turn in range(1 + arguments.repeats):
            for name, epoch in ways.items():
                figures = measured(epoch, made, device, model)
                if turn:  # the first one starts the workers
                    found.setdefault(name, []).append(figures)
        print(f"{device}, batches of {made.nbytes / 1e6:.1f} MB, {arguments.busy:g} ms of the device for each")
        print(f"{'':42}{'batches/s':>10}{'GB/s':>8}{'wait, us':>10}")
        for name, each in found.items():
            rate, nbytes, wait = (statistics.median(column) for column in zip(*each, strict=True))
            print(f"{name:42}{rate:10.1f}{nbytes / 1e9:8.2f}{wait:10.1f}")
        if device.type == "cuda":
            print(f"{'copies from locked memory, nothing else':42}{'':10}{bound(device, made.nbytes) / 1e9:8.2f}")
        return 0
