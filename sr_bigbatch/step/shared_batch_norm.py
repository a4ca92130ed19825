"""BatchNorm over the batches of all processes, as if one process had seen them all.

Each process finds the mean and the squared deviations of its own samples; they are combined as in Chan et al. 1979
(http://i.stanford.edu/pub/cstr/reports/cs/tr/79/773/CS-TR-79-773.pdf), which cancels no digits. torch's SyncBatchNorm does
the same, but on GPUs only.

Shapes: x (M, C, ...) with M samples of this process, which may differ between processes; statistics (C,).
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from sr_bigbatch.step.distributed import gather_batch, sum_in_place, world_size
from sr_bigbatch.step.precision import widen

Normalisation = Callable[[Tensor, 'Tensor | None', 'Tensor | None'], Tensor]
"""``normalise(x, weight, bias)``, with statistics that are already known."""

_REPLACEABLE = (_BatchNorm.forward, nn.SyncBatchNorm.forward)


@dataclass(frozen=True)
class _Statistics:
    """Mean and biased variance of each channel over all processes, and from how many values."""

    mean: Tensor
    variance: Tensor
    count: Tensor

    @staticmethod
    @torch.no_grad()
    def over_processes(x: Tensor) -> _Statistics:
        """Those of ``x`` in all processes: float64 for float64, otherwise float32.

        Raises:
            ValueError: if this process has no sample.
        """
        wide, channels, count = widen(x), x.shape[1], x.numel() // x.shape[1]
        if count == 0:
            raise ValueError('BatchNorm over several processes needs at least one sample in each of them, got none here')
        variance, mean = torch.var_mean(wide, [0, *range(2, x.ndim)], correction=0)
        mine = torch.cat([mean.new_tensor([count]).double(), mean.double(), variance.double() * count])
        counts, means, squares = gather_batch(mine[None], [1] * world_size()).split([1, channels, channels], 1)
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        variance = (squares + counts * (means - mean)**2).sum(0) / total
        return _Statistics(mean.to(wide.dtype), variance.to(wide.dtype), total)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, statistics: _Statistics,
                eps: float) -> Tensor:
        """The output; keeps x, the weight and the statistics."""
        mean, variance = statistics.mean, statistics.variance
        ctx.save_for_backward(x, weight, mean, variance, statistics.count)
        ctx.eps = eps
        return F.batch_norm(x, mean, variance, _like(weight, mean), _like(bias, mean), eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, to which all processes contribute, and this process's share of those of weight and bias."""
        x, weight, mean, variance, count = ctx.saved_tensors
        # In eval mode this operation treats the statistics as constants; its last two results are the sums that we need.
        _, along, total = torch.ops.aten.native_batch_norm_backward(
            gradient, x, torch.ones_like(mean), mean, variance, None, None, False, ctx.eps, [False, True, True])
        x_gradient = None
        if ctx.needs_input_grad[0]:
            sums = torch.stack([along, total]).double()
            sum_in_place([sums])
            mean_along, mean_gradient = (sums / count).to(mean.dtype)
            scale = (variance + ctx.eps).rsqrt()
            if weight is not None:
                scale = scale * weight
            through_statistics = F.batch_norm(widen(x), mean, variance, mean_along, mean_gradient, eps=ctx.eps)
            shape = [1, -1] + [1] * (x.ndim - 2)
            x_gradient = through_statistics.neg_().add_(gradient).mul_(scale.view(shape)).to(x.dtype)
        needs_weight, needs_bias = ctx.needs_input_grad[1:3]
        return (x_gradient, along.to(weight.dtype) if needs_weight else None,
                total.to(weight.dtype) if needs_bias else None, None, None)


def _like(parameter: Tensor | None, statistic: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.to(statistic.dtype)


class SharedForward:
    """Takes the place of the ``forward`` of a BatchNorm layer.

    Args:
        norm: the layer.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        self._norm = norm

    def __call__(self, x: Tensor) -> Tensor:
        """What the layer makes of ``x`` (M, C, ...); running statistics move as in one process with the whole batch."""
        norm = self._norm
        normalise = self.normalisation(x)
        if normalise is not None:
            return normalise(x, norm.weight, norm.bias)
        output: Tensor = type(norm).forward(norm, x)
        return output

    def normalisation(self, x: Tensor) -> Normalisation | None:
        """Find the statistics of ``x`` in all processes and move the running ones.

        Returns:
            The normalisation with these statistics; it can be called again without moving the running ones. None if the
            layer normalises with running statistics, or if there is one process: its own ``forward`` is right then.
        """
        norm = self._norm
        if world_size() == 1 or not (norm.training or norm.running_mean is None):
            return None
        norm._check_input_dim(x)
        statistics, eps = _Statistics.over_processes(x), norm.eps
        _track(norm, statistics)

        def normalise(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
            output: Tensor = _Normalise.apply(x, weight, bias, statistics, eps)  # type: ignore[no-untyped-call]
            return output

        return normalise


@torch.no_grad()
def _track(norm: _BatchNorm, statistics: _Statistics) -> None:
    """Move the running statistics, if the layer keeps them, as its own ``forward`` does."""
    if not norm.training or not norm.track_running_stats or norm.running_mean is None or norm.running_var is None:
        return
    momentum = norm.momentum or 0.0
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:  # the mean of all batches
            momentum = 1 / float(norm.num_batches_tracked)
    unbiased = statistics.variance * (statistics.count / (statistics.count - 1))
    norm.running_mean.lerp_(statistics.mean.to(norm.running_mean.dtype), momentum)
    norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), momentum)


@contextmanager
def batch_norms_over_processes(net: nn.Module) -> Iterator[None]:
    """Let the BatchNorm layers of ``net`` use the statistics of the batches of all processes.

    Outputs, gradients and running statistics are then those of one process with all batches, if each process
    differentiates its own share of one total: the sum over processes of a parameter's gradients is the gradient of the
    total. A layer that normalises with running statistics does so here, too. With one process nothing happens.

    Every process must run the same passes in the same order, forward and backward. A process that fails inside leaves the
    others waiting for it until it ends.

    Args:
        net: the network, or one layer.

    Raises:
        ValueError: from a layer, if this process has no sample.
        TypeError: for a layer that derives from BatchNorm but has a ``forward`` of its own.
    """
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm)] if world_size() > 1 else []
    own = [norm for norm in norms if not isinstance(vars(norm).get('forward'), SharedForward)]
    for norm in own:
        if vars(norm).get('forward', type(norm).forward) not in _REPLACEABLE:
            raise TypeError(f'{type(norm).__name__} has a forward of its own: its statistics cannot be shared by processes')
    for norm in own:
        vars(norm)['forward'] = SharedForward(norm)
    try:
        yield
    finally:
        for norm in own:
            del vars(norm)['forward']
