"""Operations that our hand-written backward passes share.

Each is the operation that autograd itself would run, so that gradients come out bit for bit.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

SLOPE = 0.2


def conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """3x3 convolution that keeps the size."""
    return F.conv2d(x, weight, bias, 1, 1)


def conv_backward(gradient: Tensor, x: Tensor, weight: Tensor, needs: Sequence[bool], *, stride: int = 1,
                  ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, weight and bias of a convolution with padding 1, each only where ``needs`` asks for it."""
    result: tuple[Tensor | None, Tensor | None, Tensor | None] = torch.ops.aten.convolution_backward(
        gradient, x, weight, [weight.shape[0]], [stride, stride], [1, 1], [1, 1], False, [0, 0], 1, list(needs))
    return result


def activate(x: Tensor) -> Tensor:
    """LeakyReLU in place."""
    return F.leaky_relu_(x, SLOPE)


def activate_backward(gradient: Tensor, output: Tensor) -> Tensor:
    """Gradient of LeakyReLU's input; its output has the sign of its input."""
    result: Tensor = torch.ops.aten.leaky_relu_backward(gradient, output, SLOPE, True)
    return result


def layout(x: Tensor) -> torch.memory_format:
    """The memory layout of ``x``; a tensor that fits both is contiguous."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


def like(gradient: Tensor, x: Tensor) -> Tensor:
    """``gradient`` in the memory layout of ``x``."""
    return gradient.contiguous(memory_format=layout(x))


def uncast(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients in the dtype of their parameters."""
    return [None if gradient is None else gradient.to(parameter.dtype)
            for gradient, parameter in zip(gradients, parameters, strict=True)]
