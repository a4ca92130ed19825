"""The residual dense block of ESRGAN with a backward pass written by hand, which keeps each feature once.

BasicSR's block keeps 768 channels for its backward pass: every convolution's concatenated input and every activation's
output. Only 192 of them differ: the input x and the features x1..x4, which the last concatenation holds side by side.
Here that concatenation alone is kept; the other convolutions' inputs are its prefixes, and the sign that LeakyReLU's
derivative needs is read from its output. Keeping less, features are computed again from x. The operations and the order
of every sum are autograd's, so outputs and gradients are bitwise those of BasicSR's block on CPU in float32 and float64.
The idea of shared storage for dense blocks is that of Pleiss et al. 2017 (https://arxiv.org/abs/1707.06990).

Shapes: x (M, F, h, w) with F features, x1..x4 (M, G, h, w) with growth G.
"""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sr_bigbatch.step.precision import autocast_dtype
from sr_bigbatch.step.weight_copies import cast

from .lean_ops import activate, activate_backward, conv, conv_backward, like, uncast

RESIDUAL_SCALE = 0.2
GROWING_CONVS = 4


def _grow(features: list[Tensor], parameters: list[Tensor], first: int, last: int) -> list[Tensor]:
    """Append the features of convolutions ``first``..``last - 1`` to ``features``; return those convolutions' inputs."""
    inputs = []
    for index in range(first, last):
        inputs.append(features[0] if index == 0 else torch.cat(features, 1))
        features.append(activate(conv(inputs[-1], *parameters[2 * index:2 * index + 2])))
    return inputs


class _DenseBlock(torch.autograd.Function):
    """``(out, x) = block(x)``. An outer skip connection starts at the second output, so that the gradients of all uses
    of x are added in the order in which autograd adds them in BasicSR's network.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype | None, recomputed: int,
                *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Output and x; keeps what ``recomputed`` leaves."""
        ctx.dtype, ctx.recomputed, ctx.parameters = dtype, recomputed, parameters
        ctx.set_materialize_grads(False)
        working = cast(parameters, dtype)
        features = [x]
        _grow(features, working, 0, GROWING_CONVS)
        everything = torch.cat(features, 1)
        kept = [everything] if recomputed == 0 else [x, *features[1 + recomputed:]]
        ctx.save_for_backward(*kept, *parameters)
        return conv(everything, *working[-2:]).mul_(RESIDUAL_SCALE).add_(x), x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, skip: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of x and the parameters; ``skip`` is that of the second output."""
        count = 2 * (GROWING_CONVS + 1)
        if gradient is None:
            return (skip, None, None, *[None] * count)
        saved = ctx.saved_tensors  # once: a checkpointed tensor can be unpacked only once
        kept, parameters = saved[:-count], ctx.parameters  # themselves: a checkpoint hands out other tensors
        working = cast(parameters, ctx.dtype)
        inputs: list[Tensor] = []
        if ctx.recomputed == 0:
            everything = kept[0]
        else:
            features = [kept[0]]
            inputs = _grow(features, working, 0, ctx.recomputed)
            everything = torch.cat([*features, *kept[1:]], 1)
        needs_x, needs = ctx.needs_input_grad[0], ctx.needs_input_grad[3:]
        x_gradient, gradients = _backward(gradient, skip, everything, inputs, working, needs_x, needs)
        return (x_gradient, None, None, *uncast(gradients, parameters))


def _backward(gradient: Tensor, skip: Tensor | None, everything: Tensor, inputs: list[Tensor], parameters: list[Tensor],
              needs_x: bool, needs: tuple[bool, ...]) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of x and of the parameters. ``inputs`` are those of the first convolutions, where they are at hand."""
    gradient = like(gradient, everything)
    growth, channels = parameters[0].shape[0], everything.shape[1]
    gradients: list[Tensor | None] = [None] * len(parameters)
    total, gradients[-2], gradients[-1] = conv_backward(gradient * RESIDUAL_SCALE, everything, parameters[-2],
                                                        (True, *needs[-2:]))
    if total is None:
        raise RuntimeError('convolution_backward returned no gradient of its input')
    width = channels - GROWING_CONVS * growth
    total.narrow(1, 0, width).add_(gradient if skip is None else skip + gradient)
    for index in reversed(range(GROWING_CONVS)):
        start = width + index * growth
        through = activate_backward(total.narrow(1, start, growth), everything.narrow(1, start, growth))
        x = inputs[index] if index < len(inputs) else everything.narrow(1, 0, start)
        part, gradients[2 * index], gradients[2 * index + 1] = conv_backward(
            through, x, parameters[2 * index], (index > 0 or needs_x, *needs[2 * index:2 * index + 2]))
        if index > 0 and part is not None:
            total.narrow(1, 0, start).add_(part)
    return None if part is None else part.add_(total.narrow(1, 0, width)), gradients  # a part is dense: nothing is copied


def dense_block(x: Tensor, parameters: list[Tensor], recomputed: int) -> tuple[Tensor, Tensor]:
    """Apply a residual dense block; returns its output (M, F, h, w) and x, from which outer skips must start.

    Args:
        x: (M, F, h, w).
        parameters: weight and bias of conv1..conv5, ten tensors.
        recomputed: how many of the features x1..x4 are not kept but computed again in the backward pass, 0..4.
    """
    dtype = autocast_dtype(x.device)
    with torch.autocast(x.device.type, enabled=False):
        out, alias = _DenseBlock.apply(  # type: ignore[no-untyped-call]
            x if dtype is None else x.to(dtype), dtype, recomputed, *parameters)
    return out, alias
