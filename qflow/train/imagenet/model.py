"""Model: a small convolutional network, and how it learns from a batch."""

from __future__ import annotations

import contextlib
import dataclasses
from contextlib import AbstractContextManager

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from qflow.train.imagenet.flow import Batch
from qflow.train.imagenet.world import World


@dataclasses.dataclass(frozen=True)
class Learner:
    """A network and what changes it.

    Attributes:
        network: ``float32[batch, 3, side, side]``, 0 to 1 -> ``float32[batch, labels]``.
        optimizer: stochastic gradient descent, rate 0.001, momentum 0.9.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer

    def learn(self, batch: Batch) -> float:
        """One step with a batch on the network's device; its mean loss, when the step is done."""
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.network(batch.images.float().div_(255)), batch.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.item()

    def joined(self) -> AbstractContextManager[object]:
        """A block in which ranks may take different numbers of steps: who has no batch left answers the others.

        Images that are skipped are not spread evenly, and a rank that waits for gradients of another that is done hangs.
        """
        if isinstance(self.network, DistributedDataParallel):
            joined: AbstractContextManager[object] = self.network.join()
            return joined
        return contextlib.nullcontext()


def learner(labels: int, world: World, seed: int = 0) -> Learner:
    """A fresh learner; several ranks learn as one."""
    torch.manual_seed(seed)
    network: nn.Module = _network(labels).to(world.device)
    if world.many:
        network = DistributedDataParallel(network)
    return Learner(network, torch.optim.SGD(network.parameters(), lr=0.001, momentum=0.9))


def _network(labels: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 7, stride=4, padding=3), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(64, labels),
    )
