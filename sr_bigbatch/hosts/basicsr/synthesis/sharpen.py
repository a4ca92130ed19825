"""Unsharp masking as Real-ESRGAN does it."""
from __future__ import annotations

import torch
from basicsr.utils import USMSharp
from basicsr.utils.img_process_util import filter2D
from torch import Tensor


class Sharpen(USMSharp):  # type: ignore[misc]
    """BasicSR's ``USMSharp`` in the type of its images, for comparisons in float64, too; in float32 bit for bit the same."""

    def forward(self, images: Tensor, weight: float = 0.5, threshold: float = 10) -> Tensor:
        """Sharpened ``images`` (M, C, H, W) with values in [0, 1]; ``threshold`` in 8-bit levels."""
        kernel = self.kernel.to(images.dtype)
        residual = images - filter2D(images, kernel)
        mask = (residual.abs() * 255 > threshold).to(images.dtype)
        soft_mask = filter2D(mask, kernel)
        sharp = torch.clip(images + weight * residual, 0, 1)
        result: Tensor = soft_mask * sharp + (1 - soft_mask) * images
        return result
