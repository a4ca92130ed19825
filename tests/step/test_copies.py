"""Copies to try things on."""
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from sr_bigbatch.step.copies import copy_in, copy_losses


class Odd(nn.Module):
    """Holds a plain tensor, a list of tensors, a complex parameter and a tensor with a graph."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(2))
        self.wave = nn.Parameter(torch.rand(2, dtype=torch.complex64))
        self.mean, self.kernels, self.count = torch.rand(2), [torch.rand(2)], torch.tensor(3)
        self.made = self.weight * 2


def test_every_floating_point_tensor_changes_and_nothing_of_the_original():
    net = Odd()
    made = net.made
    twin = copy_in(net, torch.float64)
    assert {twin.weight.dtype, twin.mean.dtype, twin.kernels[0].dtype, twin.made.dtype} == {torch.float64}
    assert (twin.wave.dtype, twin.count.dtype) == (torch.complex128, torch.int64)
    assert net.made is made and net.made.grad_fn is not None and net.weight.dtype is torch.float32
    assert twin.weight.data_ptr() != net.weight.data_ptr()


def test_the_old_weight_norm_can_be_copied():
    with pytest.warns(FutureWarning):
        net = nn.utils.weight_norm(nn.Linear(2, 2))
    net(torch.rand(1, 2))
    torch.testing.assert_close(copy_in(net, torch.float64)(torch.ones(1, 2).double()).float(), net(torch.ones(1, 2)))


def test_losses_are_copied_as_far_as_they_are_modules():
    @dataclass(frozen=True)
    class Losses:
        net: nn.Module
        weight: float

    losses = Losses(nn.Linear(1, 1), 2.0)
    twin = copy_losses(losses, torch.float64)
    assert twin.net.weight.dtype is torch.float64 and losses.net.weight.dtype is torch.float32 and twin.weight == 2.0
    assert copy_losses(nn.L1Loss(), torch.float64) is not None
    assert copy_losses(max, torch.float64) is max
