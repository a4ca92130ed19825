"""The perceptual loss as a metric of validation images."""
from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from basicsr.losses import build_loss
from basicsr.utils import img2tensor
from basicsr.utils.registry import METRIC_REGISTRY

_LAYER = 'conv5_4'  # ESRGAN's


@METRIC_REGISTRY.register()  # type: ignore[untyped-decorator]
def calculate_perceptual_distance(img: np.ndarray, img2: np.ndarray, crop_border: int, vgg_type: str = 'vgg19',
                                  **kwargs: Any) -> float:
    """ESRGAN's perceptual loss between an image and its ground truth; smaller is nearer.

    The mean absolute difference between features of VGG before the last activation (Wang et al. 2018,
    https://arxiv.org/abs/1809.00219). The network stays on the CPU, so that validation takes no memory from a training.

    Args:
        img: (H, W, 3), blue first, 0..255.
        img2: likewise.
        crop_border: pixels at each border that are not looked at.
        vgg_type: as in ``train.perceptual_opt``.
        **kwargs: ``better: lower``, which is for BasicSR.
    """
    with torch.no_grad():
        distance, _ = _loss(vgg_type)(*(_batch(image, crop_border) for image in (img, img2)))
    return float(distance)


@lru_cache(maxsize=1)
def _loss(vgg_type: str) -> Any:
    return build_loss({'type': 'PerceptualLoss', 'layer_weights': {_LAYER: 1.0}, 'vgg_type': vgg_type, 'criterion': 'l1'})


def _batch(image: np.ndarray, border: int) -> torch.Tensor:
    inside = image[border:image.shape[0] - border, border:image.shape[1] - border]
    batch: torch.Tensor = img2tensor(inside.astype(np.float32) / 255)[None]
    return batch
