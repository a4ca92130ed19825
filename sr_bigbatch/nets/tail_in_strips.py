"""RRDBNet for large images: the upsampling tail, which needs most of the memory, works through them in strips."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from .rrdb import CheckpointedRRDBNet

_PIXELS = 8192  # of a strip of features
_FACTOR = 4  # of the tail
_REACH = 2  # rows of features on either side that a row of the output depends on


class TailInStrips(nn.Module):
    """The same images as those of ``net``, without gradients, in about a quarter of the memory.

    Args:
        net: whose trunk sees the image as a whole.
    """

    def __init__(self, net: CheckpointedRRDBNet) -> None:
        super().__init__()
        self.net = net

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """(1, C, h, w) to (1, C, H, W)."""
        features = self.net.trunk(x)
        height, width = features.shape[-2:]
        rows = max(4 * _REACH, _PIXELS // width)
        images: list[Tensor] = []
        for start in range(0, height, rows):
            first = max(0, start - _REACH)
            strip = self.net.tail(features[..., first:start + rows + _REACH, :])
            skipped = (start - first) * _FACTOR
            images.append(strip[..., skipped:skipped + rows * _FACTOR, :].clone())
        return torch.cat(images, -2)
