"""The upsampling end of RRDBNet with a backward pass written by hand, which keeps no enlarged copies.

BasicSR's tail keeps, besides the four convolutions' outputs, both nearest-neighbour enlargements. Those are made again for
nothing, and the last maps, which are 16 times as large as the trunk's, are cheap to compute again.

Shapes: features (M, F, h, w), first map (M, F, 2h, 2w), second and third map (M, F, 4h, 4w), output (M, C, 4h, 4w).
"""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sr_bigbatch.step.precision import autocast_dtype
from sr_bigbatch.step.weight_copies import cast

from .lean_ops import activate, activate_backward, conv, conv_backward, like, uncast

MAPS = 3


def _enlarge(x: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.upsample_nearest2d(x, None, [2.0, 2.0])
    return result


def _enlarge_backward(gradient: Tensor, x: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    result: Tensor = torch.ops.aten.upsample_nearest2d_backward(gradient, [2 * height, 2 * width], list(x.shape), 2.0, 2.0)
    return result


def _grow(features: Tensor, maps: list[Tensor], parameters: list[Tensor]) -> None:
    """Append the missing ones of the three maps to ``maps``."""
    for index in range(len(maps), MAPS):
        x = maps[-1] if maps else features
        maps.append(activate(conv(x if index == MAPS - 1 else _enlarge(x), *parameters[2 * index:2 * index + 2])))


class _Tail(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, dtype: torch.dtype | None, recomputed: int, *parameters: Tensor) -> Tensor:
        """The output; keeps the features and the first ``3 - recomputed`` maps."""
        ctx.dtype, ctx.recomputed, ctx.parameters = dtype, recomputed, parameters
        maps: list[Tensor] = []
        working = cast(parameters, dtype)
        _grow(features, maps, working)
        ctx.save_for_backward(features, *maps[:MAPS - recomputed], *parameters)
        return conv(maps[-1], *working[-2:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the features and the parameters."""
        saved = ctx.saved_tensors  # once: a checkpointed tensor can be unpacked only once
        count = 2 * (MAPS + 1)
        features, maps, parameters = saved[0], list(saved[1:-count]), ctx.parameters
        working, needs = cast(parameters, ctx.dtype), ctx.needs_input_grad[3:]
        _grow(features, maps, working)
        gradients: list[Tensor | None] = [None] * count
        gradient = like(gradient, maps[-1])
        for index in reversed(range(MAPS + 1)):
            source = maps.pop() if maps else features
            enlarged = index < MAPS - 1
            x = _enlarge(source) if enlarged else source
            goes_on = index > 0 or ctx.needs_input_grad[0]
            part, gradients[2 * index], gradients[2 * index + 1] = conv_backward(
                gradient, x, working[2 * index], (goes_on, *needs[2 * index:2 * index + 2]))
            del x
            if part is None:
                return (None, None, None, *uncast(gradients, parameters))
            gradient = _enlarge_backward(part, source) if enlarged else part
            if index > 0:
                gradient = activate_backward(gradient, source)
            del part, source
        return (gradient, None, None, *uncast(gradients, parameters))


def upsampling_tail(features: Tensor, parameters: list[Tensor], recomputed: int) -> Tensor:
    """Enlarge ``features`` (M, F, h, w) to images (M, C, 4h, 4w).

    Args:
        features: the trunk's output.
        parameters: weight and bias of conv_up1, conv_up2, conv_hr and conv_last, eight tensors.
        recomputed: how many of the three maps between them, from the last, are computed again in the backward pass, 0..3.
    """
    dtype = autocast_dtype(features.device)
    with torch.autocast(features.device.type, enabled=False):
        images: Tensor = _Tail.apply(  # type: ignore[no-untyped-call]
            features if dtype is None else features.to(dtype), dtype, recomputed, *parameters)
    return images
