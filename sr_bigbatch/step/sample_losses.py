"""Losses that are means over samples: the part of the objective that splits by itself."""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SampleLosses = Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]
"""``losses(output, gt, lq) -> {name: scalar}`` on any number of samples; each scalar is a mean over the samples."""


class LossSums:
    """Adds up the losses of micro-batches, by name, without synchronising the device."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    def add(self, losses: dict[str, Tensor], weight: float) -> Tensor:
        """Add ``weight`` times each loss; returns their weighted total, with graph."""
        if not losses:
            raise ValueError('no loss: at least one pixel or perceptual loss is needed')
        for name, value in losses.items():
            part = value.detach() * weight
            self.values[name] = self.values[name] + part if name in self.values else part
        return torch.stack([value.reshape(()) for value in losses.values()]).sum() * weight
