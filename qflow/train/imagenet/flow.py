"""Flow: from entries of a list to batches of tensors.

Files | shard | decode | pack | collate | queue
 entry           image   list   Batch     at most `cache` wait
                 n threads or processes
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import qflow as qf
from qflow.graph.flow import Sourced
from qflow.train.imagenet.files import Entry, Files

Workers = Literal["threads", "processes", "serial"]
Even = Literal["drop", "pad"]
SIDE = 256  # pixels of a decoded image


class Image(NamedTuple):
    """A decoded image: its number in the list, its pixels ``uint8[side, side, 3]``, its label."""

    number: int
    pixels: NDArray[np.uint8]
    label: int


@dataclasses.dataclass(frozen=True)
class Batch:
    """What a training step takes, on the CPU.

    Attributes:
        images: ``uint8[batch, 3, side, side]``, 0 to 255; in memory the colours of a pixel lie side by side (channels last).
        labels: ``int64[batch]``.
        numbers: ``int64[batch]``, which images of the list they are.
    """

    images: torch.Tensor
    labels: torch.Tensor
    numbers: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


def decode(entry: Entry, side: int = SIDE) -> Image:
    """Read a file and scale it to ``side`` x ``side`` pixels, bilinear, in colours; 1.6 ms for a tile (1 core, 2026-11).

    Raises:
        OSError: it can't be read or decoded; the text begins with its path.
    """
    from PIL import Image as Pictures

    try:
        with Pictures.open(entry.path) as picture:
            scaled = picture.convert("RGB").resize((side, side), Pictures.Resampling.BILINEAR)
    except Exception as error:  # of many types: pillow's decoders raise what they come upon
        raise OSError(f"{entry.path}: not an image that can be decoded: {error}") from error
    return Image(entry.number, np.asarray(scaled), entry.label)


def collate(images: list[Image]) -> Batch:
    """One batch of a list of images; the pixels are copied once, to where they are sent from."""
    numbers, pixels, labels = zip(*images, strict=True)
    stacked = qf.empty((len(images), *pixels[0].shape), "uint8")
    np.stack(pixels, out=stacked)
    return Batch(torch.from_numpy(stacked).permute(0, 3, 1, 2), torch.tensor(labels), torch.tensor(numbers))


def flow(
    files: Files,
    batch: int,
    *,
    workers: Workers = "threads",
    n: int = 1,
    cache: int = 2,
    even: Even | None = None,
    side: int = SIDE,
) -> Sourced[Batch]:
    """The flow of a rank's images, each once an epoch, in another order in each; for `qf.train.Loader`.

    >>> print(flow(Files(["train/cat/1.jpg"]), 64, n=4).plan())
    source   1 thread of this process  shard(0 of 1)
      |  1 item waits, or several up to 4 MiB together
    decode   4 threads in 1 process
      |  1 item waits, or several up to 4 MiB together
    collate  1 thread in 1 process     pack(64) | collate
      |  at most 2 items wait
    consumer

    Stream: entries -> batches of ``batch`` images; the last one of an epoch may be shorter.
    Order: that of the seed and epoch, whatever ``workers`` and ``n``. Holds: ``cache`` batches, one at work, ``batch`` images
    and what the ``n`` workers have in hand.

    Args:
        files: all images; `qf.shard` reads this rank's.
        batch: images in a batch.
        workers: what decodes; ``"serial"`` is for runs with ``engine="serial"``, where marks make no difference.
        n: how many of them.
        cache: batches that wait for the training loop at most.
        even: what all ranks do that they have equally many images, as of `qf.shard`.
        side: pixels of an image's sides.
    """
    mark: Any = qf.process if workers == "processes" else qf.thread
    steps: qf.Flow[Entry, Batch] = mark(n=n)(decode).bind(side=side) | qf.pack(batch) | mark(collate) | qf.queue(cache)
    return qf.source(files, shuffle=True) | qf.shard(even=even) | steps
