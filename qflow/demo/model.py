"""Model: a small convolutional network, how it learns from a batch, and how often it is right."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from torch import nn

from qflow.demo.steps import Batch


@dataclasses.dataclass(frozen=True)
class Learner:
    """A network and what changes it.

    Attributes:
        network: ``float32[batch, 2, 32, 32]`` -> ``float32[batch, 10]``.
        optimizer, schedule: AdamW, its rate rising and falling once (Smith and Topin 2019, arXiv:1708.07120).
        device: where it is.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    device: torch.device

    def learn(self, batch: Batch) -> torch.Tensor:
        """One step; the loss summed over the batch, on the device."""
        images, labels = (tensor.to(self.device, non_blocking=True) for tensor in batch)
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.network(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.schedule.step()
        return loss.detach() * len(labels)

    def accuracy(self, batches: Iterable[Batch]) -> float:
        """The share of events whose digit it names, 0 to 1."""
        self.network.eval()
        right = total = 0
        with torch.no_grad():
            for images, labels in batches:
                right += int((self.network(images.to(self.device)).argmax(1).cpu() == labels).sum())
                total += len(labels)
        self.network.train()
        return right / total


def learner(steps: int, device: torch.device) -> Learner:
    """A fresh learner for so many steps; the same every time on the CPU."""
    torch.manual_seed(1)
    network = _network().to(device)
    optimizer = torch.optim.AdamW(network.parameters())
    # One more: the schedule refuses a single step.
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=steps + 1)
    return Learner(network, optimizer, schedule, device)


def _network() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(2, 16, 5, stride=2, padding=2), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Flatten(),
        nn.Linear(48 * 4 * 4, 10),
    )
