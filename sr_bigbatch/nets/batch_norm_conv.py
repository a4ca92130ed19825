"""BatchNorm, LeakyReLU and convolution as one operation that keeps only what went in.

A discriminator built from the three keeps each convolution's output, its normalised copy and the activation: three maps.
The last two cost next to nothing to compute again, so here the first alone is kept, and a discriminator with BatchNorm can
judge a whole batch at once, which is what makes it exact. The idea is that of In-Place ABN (Rota Bulo et al. 2018,
https://arxiv.org/abs/1712.02616); unlike there nothing is inverted, so gradients are those of the three layers, bit for bit.

Shapes: x (M, C, h, w), output (M, C', h', w').
"""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sr_bigbatch.step.precision import autocast_dtype
from sr_bigbatch.step.shared_batch_norm import Normalisation, SharedForward
from sr_bigbatch.step.weight_copies import cast

from .lean_ops import activate, activate_backward, conv_backward, like


def _normalise(norm: nn.BatchNorm2d, x: Tensor) -> tuple[Tensor, Normalisation]:
    """``norm(x)``, and the same as a function that can be called again: it does not touch the running statistics."""
    shared = norm.forward.normalisation(x) if isinstance(norm.forward, SharedForward) else None
    if shared is not None:
        return shared(x, norm.weight, norm.bias), shared
    output, eps = norm(x), norm.eps
    if norm.training or norm.running_mean is None:
        return output, lambda x, weight, bias: F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)
    mean, variance = norm.running_mean, norm.running_var
    return output, lambda x, weight, bias: F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)


class _BatchNormConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: nn.BatchNorm2d, stride: int, dtype: torch.dtype | None, norm_weight: Tensor,
                norm_bias: Tensor, weight: Tensor) -> Tensor:
        """The output; keeps x. The running statistics of ``norm`` move as in its own forward pass."""
        normalised, ctx.normalise = _normalise(norm, x)
        ctx.stride, ctx.dtype, ctx.weight = stride, dtype, weight
        ctx.save_for_backward(x, norm_weight, norm_bias, weight)
        working, = cast([weight], dtype)
        return F.conv2d(activate(normalised), working, None, stride, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, of the normalisation's parameters and of the weight."""
        x, norm_weight, norm_bias, _ = ctx.saved_tensors
        needs = ctx.needs_input_grad
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in (x, norm_weight, norm_bias)]
            normalised = ctx.normalise(*leaves)
        active = activate(normalised.detach())  # in place: BatchNorm's own backward pass does not look at its output
        working, = cast([ctx.weight], ctx.dtype)
        through, weight_gradient, _ = conv_backward(like(gradient, active), active, working, (True, needs[6], False),
                                                    stride=ctx.stride)
        if through is None:
            raise RuntimeError('convolution_backward returned no gradient of its input')
        through = activate_backward(through, active)
        del active
        wanted = [leaf for leaf, index in zip(leaves, (0, 4, 5), strict=True) if needs[index]]
        found = iter(torch.autograd.grad(normalised, wanted, through) if wanted else ())
        x_gradient, *norm_gradients = (next(found) if needs[index] else None for index in (0, 4, 5))
        return (x_gradient, None, None, None, *norm_gradients,
                None if weight_gradient is None else weight_gradient.to(ctx.weight.dtype))


def batch_norm_conv(x: Tensor, norm: nn.BatchNorm2d, conv: nn.Conv2d) -> Tensor:
    """``conv(leaky_relu(norm(x)))``, keeping x alone for the backward pass.

    Args:
        x: (M, C, h, w), the output of the convolution before.
        norm: with weight and bias; in training mode its running statistics move once per call.
        conv: without bias, padding 1.
    """
    dtype = autocast_dtype(x.device)
    with torch.autocast(x.device.type, enabled=False):
        output: Tensor = _BatchNormConv.apply(  # type: ignore[no-untyped-call]
            x, norm, int(conv.stride[0]), dtype, norm.weight, norm.bias, conv.weight)
    return output
