"""Report: what the demo prints about its data, its training and its memory."""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import Any

import torch

from qflow.demo import folder
from qflow.demo.events import EVENT_BYTES
from qflow.demo.memory import Peak
from qflow.demo.split import DIGITS, PICTURES
from qflow.graph import bytesizes
from qflow.graph.run import StepStats

_BAR = 30  # characters of a full bar


@dataclasses.dataclass(frozen=True)
class Epoch:
    """What one way through some chunks took.

    Attributes:
        events: how many events came.
        seconds: from the start of the run to its end.
        waited: of these, seconds in which the training loop waited for a batch.
        loss: mean over the events.
        stats: of the run's steps; empty for the serial engine.
    """

    events: int
    seconds: float
    waited: float
    loss: float
    stats: list[StepStats]

    @property
    def rate(self) -> float:
        return self.events / self.seconds

    @property
    def waiting(self) -> float:
        return self.waited / self.seconds


def say(word: str, text: str) -> None:
    """One fact: a word, and text of one or more lines beside it."""
    print(f"{word:<13}" + text.replace("\n", "\n" + 13 * " "), flush=True)


def introduce(layout: folder.Layout, device: torch.device, limit: str) -> None:
    """Say what is trained on what, where."""
    train, heldout = folder.events(layout.train), folder.events(layout.heldout)
    digits = {side: len(numbers) for side, numbers in DIGITS.items()}
    say(
        "training",
        f"{train} events, {bytesizes.show(train * EVENT_BYTES)}, tiled: each of {digits['train']} real digits is in "
        f"{train / digits['train']:.1f} of them,\n"
        f"at other places and in other inks, over tiles of {len(PICTURES['train'])} real pictures",
    )
    say(
        "held out",
        f"{heldout} events of {digits['heldout']} other digits over {len(PICTURES['heldout'])} other pictures "
        f"({', '.join(PICTURES['heldout'])}):\n"
        "no digit and no picture is on both sides",
    )
    cpu = f"CPU, {torch.get_num_threads()} of {os.cpu_count()} threads for the network"
    say("device", torch.cuda.get_device_name() if device.type == "cuda" else cpu)
    say("memory cap", limit)


def conclude(pipe: Any, last: Epoch, serial: Epoch | None, accuracy: float, heldout: int, engine: str) -> None:
    """Say how well it learned and how fast, and draw the flow with the share of time that each step was busy."""
    say("accuracy", f"{accuracy:.1%} of {heldout} held-out events (guessing: 10%)")
    say("events/s", f"{last.rate:.0f} with engine={engine!r}, in the last epoch" + (_compared(last, serial) if serial else ""))
    say("waiting", f"{last.waiting:.0%} of the last epoch, the training loop waited for a batch")
    print(f"\nchunks | {pipe!r}\n\n{pipe.plan()}\n")
    if last.stats:
        print("busy share of each step's workers in the last epoch:")
        for step in last.stats:
            _bar(step.name, step.share, f"n={step.n}, {step.items} items in, {step.results} out")
        _bar("training", 1 - last.waiting, "this process")
        print()


def _compared(last: Epoch, serial: Epoch) -> str:
    return (
        f", {last.rate / serial.rate:.2f} times the serial rate\n"
        f"{serial.rate:.0f} with engine='serial': the same steps and training steps, {serial.events} events"
    )


def _bar(name: str, share: float, text: str) -> None:
    print(f"  {name:<12}{share:>5.0%} {'#' * round(_BAR * min(share, 1)):<{_BAR}} {text}")


def judge(peak: Peak, memory: int | None) -> int:
    """Say the peak; 1 if it is above what was allowed, else 0."""
    what = f"summed PSS of {peak.processes} processes, the highest of {peak.times} measurements"
    say("peak memory", f"{bytesizes.show(peak.bytes)} {what}")
    if memory is None or peak.bytes <= memory:
        return 0
    print(
        f"qflow demo: the peak of {bytesizes.show(peak.bytes)} is above --memory {bytesizes.show(memory)}. "
        "Write a larger --memory, or fewer --workers or --rows.",
        file=sys.stderr,
    )
    return 1
