"""A frozen VGG that keeps less gives the same features and gradients."""
import copy

import pytest
import torch
from torch import nn
from torchvision.models import vgg19

from sr_bigbatch.memory.device import saved_bytes
from sr_bigbatch.nets.frozen_features import lean


def _layers(frozen: bool = True) -> nn.Sequential:
    torch.manual_seed(1)
    layers = copy.deepcopy(vgg19(weights=None).features[:21])
    for layer in layers:
        if isinstance(layer, nn.MaxPool2d):
            layer.stride = 2
    return layers.requires_grad_(not frozen)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize('shape', [(2, 3, 32, 32), (1, 3, 37, 43)])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_features_and_gradients_are_bitwise_those_of_torch(dtype, shape, layout):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    images = torch.randn(*shape, dtype=wide).contiguous(memory_format=layout)
    results = []
    for make in (lambda layers: None, lean):
        layers = _layers().to(wide)
        make(layers)
        leaf = images.clone().requires_grad_()
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            output = layers(leaf)
        gradient, = torch.autograd.grad(output, leaf, torch.randn(output.shape, generator=torch.manual_seed(0)).to(output))
        results.append((output, gradient))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert results[0][0].dtype == dtype and results[0][1].abs().sum() > 0


def test_what_is_kept_is_a_quarter():
    images, kept = torch.rand(1, 3, 64, 64, requires_grad=True), []
    for make in (lambda layers: None, lean):
        layers = _layers()
        make(layers)
        kept.append(saved_bytes(lambda layers=layers: layers(images), layers))
    assert kept[1] < 0.25 * kept[0]


def test_layers_that_learn_or_differ_are_left_alone():
    layers = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 2, 1).requires_grad_(False), nn.MaxPool2d(3, 2),
                           nn.Conv2d(4, 4, 3, padding='same').requires_grad_(False))
    before = list(layers)
    lean(layers)
    assert list(layers) == before
