"""Losses that are means over samples: the part of the objective that splits by itself."""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SampleLosses = Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]
"""``losses(output, gt, lq) -> {name: scalar}`` on any number of samples; each scalar is a mean over the samples."""


def no_losses(output: Tensor, gt: Tensor, lq: Tensor) -> dict[str, Tensor]:
    """No pixel and no perceptual loss: the generator learns from the discriminator alone."""
    return {}


class LossSums:
    """Adds up the losses of micro-batches, by name, without synchronising the device."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    def add(self, losses: dict[str, Tensor], weight: float) -> Tensor | None:
        """Add ``weight`` times each loss; returns their weighted total, with graph, or None if there is no loss."""
        for name, value in losses.items():
            part = value.detach() * weight
            self.values[name] = self.values[name] + part if name in self.values else part
        return torch.stack([value.reshape(()) for value in losses.values()]).sum() * weight if losses else None
