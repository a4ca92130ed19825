"""The losses of a host as one function of any number of samples."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sr_bigbatch.nets.frozen_features import lean
from sr_bigbatch.step.precision import autocast, autocast_dtype, widen

_LDL_WINDOW = 7  # as in BasicSR's RealESRGANModel


class Float32Features(nn.Module):
    """Runs a feature extractor under autocast and returns its features in float32, so that losses are taken in float32.

    Args:
        extractor: maps images to features, as a tensor or a dict, list or tuple of them; its VGG layers are made lean.

    Attributes:
        dtype: of autocast, or None.
    """

    def __init__(self, extractor: nn.Module) -> None:
        super().__init__()
        self.extractor = extractor
        self.dtype: torch.dtype | None = None
        layers = getattr(extractor, 'vgg_net', None)
        if isinstance(layers, nn.Sequential):
            lean(layers)

    def forward(self, images: Tensor) -> Any:
        """Features of ``images`` (M, C, H, W), as the extractor arranges them; BasicSR's in a dict by layer name."""
        with autocast(images.device, self.dtype):
            features = self.extractor(images)
        return _widened(features)


def _widened(features: Any) -> Any:
    if isinstance(features, Tensor):
        return widen(features).contiguous()  # a style loss takes a view of them
    if isinstance(features, dict):
        return {name: _widened(feature) for name, feature in features.items()}
    return type(features)(map(_widened, features)) if isinstance(features, list | tuple) else features


@dataclass
class HostLosses:
    """The pixel, perceptual, style and artifact losses of a model of BasicSR or mmagic, in float32 or wider.

    Only the features of a perceptual loss like BasicSR's, which has them from its ``vgg``, are computed under the autocast
    in which the losses are called.

    Attributes:
        prefix: of the logged names: ``l_g_`` in adversarial models, ``l_`` in others, as BasicSR has them.
        pixel: ``(output, gt) -> scalar`` or None.
        perceptual: ``(output, gt) -> (perceptual | None, style | None)``, or the perceptual loss alone; or None.
        artifact: locally discriminative learning (Liang et al. 2022, https://arxiv.org/abs/2203.09195), or None.
        ema_output: images of the averaged generator for ``lq``; needed by ``artifact``.
        target: makes of the ground truth what the losses named in ``of_target`` compare with, such as sharpened images.
        of_target: ``pixel``, ``perceptual``; the artifact loss always compares with the ground truth itself.
    """

    prefix: str
    pixel: nn.Module | None = None
    perceptual: nn.Module | None = None
    artifact: nn.Module | None = None
    ema_output: Callable[[Tensor], Tensor] | None = None
    target: nn.Module | None = None
    of_target: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        extractor = getattr(self.perceptual, 'vgg', None)
        if self.perceptual is not None and isinstance(extractor, nn.Module) and not isinstance(extractor, Float32Features):
            self.perceptual.vgg = Float32Features(extractor)

    @property
    def extractor(self) -> Float32Features | None:
        """What computes the features of the perceptual loss, if it is like BasicSR's."""
        extractor = getattr(self.perceptual, 'vgg', None)
        return extractor if isinstance(extractor, Float32Features) else None

    def __call__(self, output: Tensor, gt: Tensor, lq: Tensor) -> dict[str, Tensor]:
        """Losses of ``output`` (M, C, H, W) by their logged names."""
        if self.extractor is not None:
            self.extractor.dtype = autocast_dtype(output.device)
        with autocast(output.device, None):
            return self._losses(output, gt, lq)

    def _losses(self, output: Tensor, gt: Tensor, lq: Tensor) -> dict[str, Tensor]:
        losses: dict[str, Tensor | None] = {}
        target = gt
        if self.target is not None and self.of_target:
            with torch.no_grad():
                target = self.target(gt)
        if self.pixel is not None:
            losses['pix'] = self.pixel(output, target if 'pixel' in self.of_target else gt)
        if self.artifact is not None and self.ema_output is not None:
            with torch.no_grad():
                averaged = widen(self.ema_output(lq))
            from basicsr.losses.loss_util import get_refined_artifact_map  # not installed beside every mmagic
            weight = get_refined_artifact_map(gt, output, averaged, _LDL_WINDOW)
            losses['ldl'] = self.artifact(weight * output, weight * gt)
        if self.perceptual is not None:
            found = self.perceptual(output, target if 'perceptual' in self.of_target else gt)
            losses['percep'], losses['style'] = found if isinstance(found, tuple) else (found, None)
        return {self.prefix + name: _scalar(loss) for name, loss in losses.items() if loss is not None}


def _scalar(loss: Tensor) -> Tensor:
    """The mean of a loss with a value for each pixel (``reduction: none``), as mmengine has it."""
    return loss.mean() if isinstance(loss, Tensor) and loss.dim() else loss
