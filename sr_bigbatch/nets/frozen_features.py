"""Layers of a frozen feature extractor that keep only what the gradient to the image needs.

torch keeps the input of a convolution even where its weight is frozen, a ReLU keeps its output, and a pooling layer 64-bit
indices. The gradient to the image needs the weight, one sign and a quarter of a byte. Values and gradients are unchanged,
bit for bit.
"""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sr_bigbatch.step.precision import autocast_dtype
from sr_bigbatch.step.weight_copies import cast

from .lean_ops import layout

_POSITIONS = 2  # rows and columns of a pooling window
_CHANNELS_LAST = 0, 2, 3, 1


class _Conv(torch.autograd.Function):
    """A convolution with stride 1 whose weight and bias are constants."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        ctx.weight = weight
        ctx.padding, ctx.shape, ctx.layout = padding, x.shape, layout(x)
        working, = cast([weight], x.dtype)
        return F.conv2d(x, working, None if bias is None else cast([bias], x.dtype)[0], 1, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of the input; the weights are frozen."""
        weight, = cast([ctx.weight], gradient.dtype)
        # Of the input only its shape counts, and its layout, by which torch chooses the algorithm.
        anything = (gradient.new_empty(1).expand(ctx.shape) if ctx.layout is torch.contiguous_format
                    else torch.empty(ctx.shape, dtype=gradient.dtype, device=gradient.device, memory_format=ctx.layout))
        pair = [ctx.padding, ctx.padding]
        result = torch.ops.aten.convolution_backward(gradient, anything, weight, None, [1, 1], pair, [1, 1], False,
                                                     [0, 0], 1, [True, False, False])
        return result[0], None, None, None


class _Relu(torch.autograd.Function):
    """ReLU that keeps one byte a value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        output = x.relu()
        ctx.save_for_backward(output > 0)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        positive, = ctx.saved_tensors
        return torch.where(positive, gradient, 0)


class _Pool(torch.autograd.Function):
    """2x2 max pooling that keeps one byte a window."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The maxima; keeps their positions."""
        output, index = F.max_pool2d(x, _POSITIONS, return_indices=True)
        width = x.shape[-1]
        row, column = torch.div(index, width, rounding_mode='floor') % _POSITIONS, index % width % _POSITIONS
        ctx.save_for_backward((row * _POSITIONS + column).to(torch.uint8))
        ctx.shape, ctx.layout = x.shape, layout(x)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """The gradient, where the maxima were."""
        position, = ctx.saved_tensors
        count, channels, height, width = ctx.shape
        position = position.long()
        row = torch.arange(gradient.shape[-2], device=gradient.device).view(-1, 1) * _POSITIONS + position // _POSITIONS
        column = torch.arange(gradient.shape[-1], device=gradient.device) * _POSITIONS + position % _POSITIONS
        index = row * width + column
        if ctx.layout is torch.contiguous_format:
            result = gradient.new_zeros(count, channels, height * width)
            result.scatter_(2, index.flatten(2), gradient.flatten(2))
            return result.view(ctx.shape)
        result = gradient.new_zeros(count, height * width, channels)
        result.scatter_(1, index.permute(_CHANNELS_LAST).flatten(1, 2), gradient.permute(_CHANNELS_LAST).flatten(1, 2))
        return result.view(count, height, width, channels).permute(0, 3, 1, 2)


class _FrozenConv(nn.Module):
    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        dtype = autocast_dtype(x.device)
        output: Tensor = _Conv.apply(  # type: ignore[no-untyped-call]
            x if dtype is None else x.to(dtype), self.conv.weight, self.conv.bias, self.conv.padding[0])
        return output


class _LeanRelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = _Relu.apply(x)  # type: ignore[no-untyped-call]
        return output


class _LeanPool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = _Pool.apply(x)  # type: ignore[no-untyped-call]
        return output


def lean(layers: nn.Sequential) -> None:
    """Replace, in place, the layers of a frozen VGG by equals that keep less. Others are left as they are.

    Replaced are convolutions with frozen parameters, stride 1 and square padding, ReLU, and 2x2 max pooling.
    """
    for name, layer in list(layers.named_children()):
        if isinstance(layer, nn.Conv2d) and _is_plain(layer):
            setattr(layers, name, _FrozenConv(layer))
        elif isinstance(layer, nn.ReLU):
            setattr(layers, name, _LeanRelu())
        elif isinstance(layer, nn.MaxPool2d) and _both(layer.kernel_size, 2) and _both(layer.stride, 2):
            setattr(layers, name, _LeanPool())


def _both(setting: int | tuple[int, ...], value: int) -> bool:
    return setting in (value, (value, value))


def _is_plain(conv: nn.Conv2d) -> bool:
    frozen = not any(parameter.requires_grad for parameter in conv.parameters())
    return (frozen and conv.stride == (1, 1) and conv.dilation == (1, 1) and conv.groups == 1
            and conv.padding_mode == 'zeros' and not isinstance(conv.padding, str) and conv.padding[0] == conv.padding[1])
