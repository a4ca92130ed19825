"""Small images on which samples that influence each other give themselves away."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SAMPLES = 4  # the smallest number with uneven partitions and groups of two
ALL = list(range(SAMPLES))
UNEVEN = [[0], [1, 2, 3]]
PARTITIONS = (UNEVEN, [[0, 1], [2], [3]])
_CONTRASTS = (1.0, 0.3, 1.6, 0.6)
_OFFSETS = (0.5, 0.3, -0.4, 1.3)  # so that any threshold in between separates the mean of one sample from the batch's
_ZEROS = (0, 2, 5, 3)  # eighths of an image that are exactly zero
_SMALLEST = 8  # px
_FACTORS = (1 / 64, 1 / 16, 1 / 4, 4, 16, 40)  # of errors, so near that a threshold lies between those of two samples


def toy_sizes(largest: int) -> list[int]:
    """Sides of toy images, in px: 8, 16, 32, ... and at last ``largest`` itself."""
    sizes = [_SMALLEST]
    while sizes[-1] * 2 < largest:
        sizes.append(sizes[-1] * 2)
    return [size for size in sizes if size < largest] + [largest]


def toy_batches(channels: int, sizes: Sequence[int], device: torch.device | str,
                dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """One batch (4, channels, size, size) for each of ``sizes``.

    The images are independent. They differ in contrast and mean, some values lie outside of [0, 1], and areas of different
    size are exactly zero.
    """
    return [_images((channels, size, size), seed=1, outside=True, zeros=True).to(device, dtype) for size in sizes]


def toy_losses_input(gt_shape: Sequence[int], lq_shape: Sequence[int], device: torch.device,
                     dtype: torch.dtype) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Several kinds of (output, gt, lq), each with four samples: (4, C, H, W) twice and (4, c, h, w).

    Kinds: natural images; images with values outside of [0, 1]; large areas in which output and gt are exactly zero; tiny
    errors; the range of 8-bit images; smaller and larger errors.
    """
    natural, wild, bare = (_images(gt_shape, seed=2, outside=outside, zeros=zeros)
                           for outside, zeros in ((False, False), (True, False), (True, True)))
    # Each sample has an error of its own size: a loss that picks the hardest picks the same one alone and among others.
    errors = torch.randn(SAMPLES, *gt_shape, generator=_generator(3)) * _column((0.02, 0.3, 0.1, 0.05))
    tiny = 1e-4 if dtype is torch.float64 else 3e-2  # no smaller than rounding allows
    pairs = [(natural + errors, natural), (wild + 2 * errors, wild), (bare + errors * (bare != 0), bare),
             (natural + tiny * errors, natural), (255 * wild + 40 * errors, 255 * wild),
             *((natural + factor * errors, natural) for factor in _FACTORS)]
    lq = _images(lq_shape, seed=4, outside=True, zeros=False)
    return [(output.to(device, dtype), gt.to(device, dtype), lq.to(device, dtype)) for output, gt in pairs]


def _images(shape: Sequence[int], *, seed: int, outside: bool, zeros: bool) -> Tensor:
    """Images (4, C, H, W) in float64 on the CPU: the same on every device and in every type."""
    images = torch.rand(SAMPLES, *shape, dtype=torch.float64, generator=_generator(seed)) - 0.5
    contrasts, offsets = _column(_CONTRASTS), _column(_OFFSETS)
    images = offsets + contrasts * images if outside else 0.5 + 0.2 * offsets + 0.4 * contrasts * images
    if zeros:
        flat = images.flatten(2)
        for sample, eighths in zip(flat, _ZEROS, strict=True):
            sample[:, :eighths * flat.shape[-1] // 8] = 0
    return images


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
