"""Layers and losses that do to a batch what an exact step cannot divide, and some that look as if they did."""
import random

import torch
from torch import nn
from torch.nn import functional as F


class Apply(nn.Module):
    """A function as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class MinibatchStd(nn.Module):
    """StyleGAN2's: one more channel with the spread of each group of samples."""

    def __init__(self, group=4):
        super().__init__()
        self.group = group

    def forward(self, x):
        n, c, h, w = x.shape
        group = min(n, self.group)
        y = x.view(group, -1, c, h, w)
        y = (y - y.mean(0)).square().mean(0).add(1e-8).sqrt().mean([1, 2, 3], keepdim=True)
        return torch.cat([x, y.repeat(group, 1, h, w)], 1)


class ZeroGate(nn.Module):
    """Couples samples by a strength that is 0 at first."""

    def __init__(self, start=0.0, threshold=False):
        super().__init__()
        self.gate = nn.Parameter(torch.tensor(start))
        self.threshold = threshold

    def forward(self, x):
        return x + (F.relu(self.gate) if self.threshold else self.gate) * x.mean(0, keepdim=True)


class LayerDrop(nn.Module):
    """Leaves a layer out by a draw of ``uniform``."""

    def __init__(self, uniform):
        super().__init__()
        self.layer, self.uniform = nn.Conv2d(8, 8, 1), uniform

    def forward(self, x):
        return self.layer(x) if self.uniform() < 0.5 else x


class Counter(nn.Module):
    """Its result depends on the number of calls."""

    def __init__(self, step=4e-5):
        super().__init__()
        self.calls, self.step = 0, step

    def forward(self, x):
        self.calls += 1
        return x * (1 + self.step * self.calls)


class RunningMean(nn.Module):
    """Subtracts, or only records, a running mean."""

    def __init__(self, used):
        super().__init__()
        self.used = used
        self.register_buffer('mean', torch.zeros(()))

    def forward(self, x):
        self.mean.mul_(0.9).add_(0.1 * x.detach().mean())
        return x - self.mean if self.used else x


class RunningLargest(nn.Module):
    """A statistic that moves only when a larger value comes."""

    def __init__(self):
        super().__init__()
        self.register_buffer('largest', torch.zeros(()))

    def forward(self, x):
        self.largest.copy_(torch.maximum(self.largest, x.detach().max()))
        return x


class FirstBatch(nn.Module):
    """Normalises with the mean of the first batch that it meets."""

    def __init__(self):
        super().__init__()
        self.mean = None

    def forward(self, x):
        if self.mean is None:
            self.mean = x.detach().mean()
        return x - self.mean


class Cache(nn.Module):
    """Sets an attribute and a buffer at the first call, whatever the batch."""

    def __init__(self):
        super().__init__()
        self.grid = None
        self.register_buffer('mask', torch.zeros(0))

    def forward(self, x):
        if self.grid is None:
            self.grid = torch.linspace(0, 1, x.shape[-1], dtype=x.dtype)
            self.mask = self.grid + 1
        return x * self.grid * self.mask


class _CouplingGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient - gradient.mean(0, keepdim=True)


class _CouplingWeightGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        of_weight = (gradient * x).sum((2, 3)).sum(0)
        return gradient * weight, (of_weight / of_weight.norm()).view_as(weight)


class WeightGradient(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(1, 8, 1, 1))

    def forward(self, x):
        return _CouplingWeightGradient.apply(x, self.weight)


def hooked_gradient(x):
    y = x * 1
    if y.requires_grad:
        y.register_hook(lambda gradient: gradient / gradient.norm())
    return y


def clipped_gradient(x):
    """Clips the gradient of the whole batch by its length, as a hook."""
    y = x * 1
    if y.requires_grad:
        y.register_hook(lambda gradient: gradient * 1e4 / gradient.norm() if gradient.norm() > 1e4 else gradient)
    return y


def seeded_noise(x):
    """The same noise in each call, which belongs to places in the batch and not to samples."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return x + torch.rand_like(x)


_calls = 0


def counted(x):
    global _calls
    _calls += 1
    return x


class ClassCounter(nn.Module):
    """Counts the calls of all its instances."""

    calls = 0

    def forward(self, x):
        ClassCounter.calls += 1
        return x


def hooked_with_a_list():
    layer, seen = nn.Identity(), []
    layer.register_forward_hook(lambda _, __, output: seen.append(1))
    return layer


def with_backward_hook():
    layer = nn.Conv2d(8, 8, 1)
    layer.register_full_backward_hook(lambda _, inputs, __: (inputs[0] - inputs[0].mean(0),))
    return layer


def gate_on(statistic, how):
    """A layer that takes another way if a statistic of the batch is above a threshold."""
    def layer(x):
        value = statistic(x)
        if how == 'python':
            return 2 * x if value > 0.3 else x
        if how == 'item':
            return 2 * x if value.item() > 1e6 else x
        return torch.where(value > 1e6, 2 * x, x)
    return Apply(layer)


class FixedNoise(nn.Module):
    """Draws from a generator of its own, which starts again at each call if ``again``."""

    def __init__(self, again=False):
        super().__init__()
        self.generator, self.again = torch.Generator().manual_seed(0), again

    def forward(self, x):
        if self.again:
            self.generator.manual_seed(0)
        return x + torch.rand(x.shape, generator=self.generator, dtype=x.dtype)


class PythonGenerator(nn.Module):
    def __init__(self):
        super().__init__()
        self.random = random.Random(0)

    def forward(self, x):
        return x * (1 + 1e-3 * self.random.random())


coupling_gradient = Apply(_CouplingGradient.apply)
