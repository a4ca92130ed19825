"""Bytes of tensors that live, and operations."""
import torch
from torch import nn

from sr_bigbatch.memory.live_bytes import Flops, LiveBytes, peak_of, tensors_of

CPU = torch.device('cpu')


def test_a_tensor_counts_until_it_dies_and_views_do_not_count():
    with LiveBytes() as live:
        kept = torch.zeros(1024)
        live.phase('middle')
        other = torch.zeros(2048)
        view = other[:10]
        del other, view
        live.phase('end')
        again = kept + 1
    assert live.peak == {'': 4096, 'middle': 12288, 'end': 8192} and again.shape == kept.shape


def test_what_lived_before_is_in_the_peak():
    net = nn.Linear(256, 256, bias=False)
    before = tensors_of(net, None)
    assert len(before) == 1 and peak_of(lambda: torch.zeros(256), CPU, before) == 256 * 256 * 4 + 1024


def test_operations_of_forward_and_backward_are_counted():
    net, image = nn.Conv2d(2, 3, 3, padding=1, bias=False), torch.rand(1, 2, 8, 8)
    with Flops() as flops:
        net(image)
    forward = flops.total
    assert forward == 2 * 8 * 8 * 2 * 3 * 9
    with Flops() as flops:
        net(image).sum().backward()
    assert flops.total == 2 * forward  # no gradient at the image
