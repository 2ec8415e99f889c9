"""Steps: what happens to an event between the file and the network, and the flow of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import qflow as qf
from qflow import h5

Example = tuple[NDArray[Any], int]
Batch = tuple[torch.Tensor, torch.Tensor]

_LUMA = np.array([0.299, 0.587, 0.114], np.float32) / 255  # ITU-R BT.601


@qf.pool
def transform(event: dict[str, Any]) -> Example:
    """What the network sees of one event: ``float32[2, 32, 32]`` and the label.

    Brightness without noise of single pixels, its median taken out, at most 1; and how steep it is.
    """
    grey = _smooth(event["image"] @ _LUMA)
    flat = grey - np.median(grey)
    steep = np.hypot(*np.gradient(grey))
    planes = flat / (np.abs(flat).max() + 0.05), steep / (steep.max() + 0.02)
    return np.stack([_coarse(plane) for plane in planes]).astype(np.float32), int(event["label"])


@qf.process
def collate(examples: list[Example]) -> Batch:
    """One batch: ``float32[batch, 2, 32, 32]`` and ``int64[batch]``, on the CPU."""
    images, labels = zip(*examples, strict=True)
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)


def pipeline(batch: int, workers: int) -> qf.Flow[h5.Chunk, Batch]:
    """Chunks of rows -> batches of ``batch`` examples; ``workers`` processes for `transform`."""
    return h5.read(["image", "label"]) | transform.using(n=workers) | qf.repack(batch) | collate | qf.queue(4)


def _smooth(grey: NDArray[Any]) -> NDArray[Any]:
    """Weights 1 2 1 in both directions; the edge is repeated."""
    padded = np.pad(grey, 1, mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    smooth: NDArray[Any] = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) * np.float32(1 / 16)
    return smooth


def _coarse(plane: NDArray[Any]) -> NDArray[Any]:
    """Means of 3 x 3 pixels."""
    height, width = plane.shape
    means: NDArray[Any] = plane.reshape(height // 3, 3, width // 3, 3).mean((1, 3))
    return means
