"""The degradations of Real-ESRGAN (Wang et al. 2021, https://arxiv.org/abs/2107.10833) for images that share a draw.

The order of operations and of random numbers is that of BasicSR's ``RealESRGANModel.feed_data``: with the same random
numbers, the images are the same bit for bit.
"""
from __future__ import annotations

import random
from typing import NamedTuple

import numpy as np
import torch
from basicsr.data.degradations import random_add_gaussian_noise_pt, random_add_poisson_noise_pt
from basicsr.data.transforms import paired_random_crop
from basicsr.utils import DiffJPEG
from basicsr.utils.img_process_util import filter2D
from torch import Tensor
from torch.nn import functional as F

from sr_bigbatch.hosts.basicsr.synthesis.settings import Half, SynthesisSettings
from sr_bigbatch.hosts.basicsr.synthesis.sharpen import Sharpen
from sr_bigbatch.step.precision import autocast

_MODES = ('area', 'bilinear', 'bicubic')


class Photographs(NamedTuple):
    """What a loader of ``RealESRGANDataset`` hands out: images (M, C, H, W) and a blur kernel (M, k, k) for each filter."""

    gt: Tensor
    kernel1: Tensor
    kernel2: Tensor
    sinc_kernel: Tensor


class Degradation:
    """Makes low-resolution images of photographs, in float32, under autocast, too.

    What is drawn once for all images of a call: factors and modes of resizing, the kinds of noise, whether the second blur
    is made, the order of the last two filters, and the place of the crop. What each image has of its own: kernels,
    strengths of noise, and qualities of JPEG.

    Args:
        settings: of the training.
        device: where it is computed.
    """

    def __init__(self, settings: SynthesisSettings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self._jpeg, self._sharpen = DiffJPEG(differentiable=False).to(device), Sharpen().to(device)

    @torch.no_grad()
    def __call__(self, photographs: Photographs) -> tuple[Tensor, Tensor]:
        """Degrade and crop; the random numbers are those of ``random``, numpy and torch.

        Args:
            photographs: on any device.

        Returns:
            Low-resolution images with 8-bit values in [0, 1], and ground truth; on the CPU.
        """
        gt, *kernels = (tensor.to(self.device, torch.float32) for tensor in photographs)
        with autocast(self.device, None):
            sharp = self._sharpen(gt) if self.settings.sharpens else gt
            out = self._first(_filtered(sharp, kernels[0]))
            height, width = (side // self.settings.scale for side in gt.shape[2:])
            out = self._second(out, kernels[1], tuple(gt.shape[2:]))
            out = self._last(out, kernels[2], (height, width))
            lq = torch.clamp((out * 255.0).round(), 0, 255) / 255.
        target = sharp if self.settings.keeps_sharp else photographs.gt.float()  # untouched by the device
        target, lq = paired_random_crop(target, lq, self.settings.gt_size, self.settings.scale)
        return lq.cpu().contiguous(), target.cpu().contiguous()

    def _first(self, out: Tensor) -> Tensor:
        half = self.settings.first
        factor = _factor(half)
        out = F.interpolate(out, scale_factor=factor, mode=random.choice(_MODES))
        return self._compressed(_noisy(out, half), half)

    def _second(self, out: Tensor, kernel: Tensor, size: tuple[int, ...]) -> Tensor:
        half, scale = self.settings.second, self.settings.scale
        if np.random.uniform() < self.settings.second_blur_prob:
            out = _filtered(out, kernel)
        factor = _factor(half)
        mode = random.choice(_MODES)
        out = F.interpolate(out, size=(int(size[0] / scale * factor), int(size[1] / scale * factor)), mode=mode)
        return _noisy(out, half)

    def _last(self, out: Tensor, kernel: Tensor, size: tuple[int, int]) -> Tensor:
        """Resizing to the final size and sinc filter before or after JPEG."""
        filter_first = np.random.uniform() < 0.5
        if not filter_first:
            out = self._compressed(out, self.settings.second)
        out = _filtered(F.interpolate(out, size=size, mode=random.choice(_MODES)), kernel)
        return self._compressed(out, self.settings.second) if filter_first else out

    def _compressed(self, out: Tensor, half: Half) -> Tensor:
        quality = out.new_zeros(out.shape[0]).uniform_(*half.jpeg_range)
        compressed: Tensor = self._jpeg(torch.clamp(out, 0, 1), quality=quality)
        return compressed


def _filtered(images: Tensor, kernel: Tensor) -> Tensor:
    """BasicSR's ``filter2D``, which does not take the layout that its JPEG leaves on a CPU."""
    filtered: Tensor = filter2D(images.contiguous(), kernel)
    return filtered


def _factor(half: Half) -> float:
    """A factor of resizing."""
    way = random.choices(('up', 'down', 'keep'), half.resize_prob)[0]
    if way == 'up':
        return float(np.random.uniform(1, half.resize_range[1]))
    return float(np.random.uniform(half.resize_range[0], 1)) if way == 'down' else 1


def _noisy(out: Tensor, half: Half) -> Tensor:
    if np.random.uniform() < half.gaussian_noise_prob:
        noisy: Tensor = random_add_gaussian_noise_pt(out, sigma_range=half.noise_range, clip=True, rounds=False,
                                                     gray_prob=half.gray_noise_prob)
        return noisy
    noisy = random_add_poisson_noise_pt(out, scale_range=half.poisson_scale_range, gray_prob=half.gray_noise_prob,
                                        clip=True, rounds=False)
    return noisy
