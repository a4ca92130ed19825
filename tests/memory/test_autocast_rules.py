"""Autocast on the CPU under the rules of CUDA's."""
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from sr_bigbatch.memory.autocast_rules import IN_FLOAT32, LEFT_ALONE, TO_FLOAT32, autocast_as_on
from sr_bigbatch.memory.device import saved_bytes

HEADER = Path(torch.__file__).parent / 'include' / 'ATen' / 'autocast_mode.h'
KNOWN = {
    'group_norm': (lambda x: F.group_norm(x, 2), True), 'layer_norm': (lambda x: F.layer_norm(x, x.shape[1:]), True),
    'softplus': (F.softplus, True), 'interpolate': (lambda x: F.interpolate(x, scale_factor=2), True),
    'bicubic': (lambda x: F.interpolate(x, scale_factor=2, mode='bicubic'), True), 'exp': (torch.exp, True),
    'pow': (lambda x: x**2, True), 'softmax': (lambda x: x.softmax(1), True), 'sum': (lambda x: x.sum(), True),
    'einsum': (lambda x: torch.einsum('bchw,bchw->bc', x, x), False),
    'instance_norm': (F.instance_norm, False), 'leaky_relu': (lambda x: F.leaky_relu(x, 0.2), False),
    'reflection_pad': (lambda x: F.pad(x, (1, 1, 1, 1), mode='reflect'), False), 'add': (lambda x: x + x, False),
    'max_pool2d': (lambda x: F.max_pool2d(x, 2), False), 'mean': (lambda x: x.mean(), False)}


def _macro(name):
    body = re.search(rf'#define {name}\(_\)(.*?)\n\n', HEADER.read_text(), re.DOTALL)[1]
    return {'.'.join(found.split(', ')) for found in re.findall(r'_\((\w+(?:, \w+)?)\)', body)}


def test_the_rules_are_those_of_this_torch():
    knows = torch._C._dispatch_has_kernel_for_dispatch_key
    both = {name for name in _macro('AT_FORALL_FP32') if knows(f'aten::{name}', 'AutocastCPU')}
    assert set(IN_FLOAT32) == _macro('AT_FORALL_FP32') - both
    set_dtype = {name for name in _macro('AT_FORALL_FP32_SET_OPT_DTYPE') if not knows(f'aten::{name}', 'AutocastCPU')}
    assert set(TO_FLOAT32) == set_dtype
    assert all(knows(f'aten::{name}', 'AutocastCPU') and not knows(f'aten::{name}', 'AutocastCUDA') for name in LEFT_ALONE)


@pytest.mark.parametrize('values', ['real', 'fake'])
@pytest.mark.parametrize('name', KNOWN)
def test_operations_run_in_the_dtype_of_cuda(name, values):
    run, widens = KNOWN[name]
    with FakeTensorMode() if values == 'fake' else torch.autocast('cpu', enabled=False):
        x = torch.rand(2, 4, 8, 8).bfloat16()
        with autocast_as_on('cuda'), torch.autocast('cpu', torch.bfloat16, cache_enabled=False):
            assert run(x).dtype == (torch.float32 if widens else torch.bfloat16)


@pytest.mark.parametrize('name', KNOWN)
def test_the_rules_of_the_cpu_come_back(name):
    x, run = torch.rand(2, 4, 8, 8).bfloat16(), KNOWN[name][0]
    with torch.autocast('cpu', torch.bfloat16, cache_enabled=False):
        before = run(x)
    with autocast_as_on('cuda'):
        pass
    with torch.autocast('cpu', torch.bfloat16, cache_enabled=False):
        after = run(x)
    assert after.dtype == before.dtype and torch.equal(after, before)


def test_outside_of_autocast_and_in_float64_nothing_is_cast():
    x = torch.rand(2, 4, 8, 8)
    with autocast_as_on('cuda'):
        assert F.group_norm(x.bfloat16(), 2).dtype is torch.bfloat16
        with torch.autocast('cpu', torch.bfloat16):
            assert F.group_norm(x.double(), 2).dtype is torch.float64
            assert x.bool().sum().dtype is torch.int64


def test_a_normalised_layer_keeps_float32_under_the_rules_of_cuda():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.LeakyReLU(0.2), nn.Conv2d(8, 8, 3, padding=1))
    kept = {}
    for kind in ('cpu', 'cuda'):
        with autocast_as_on(kind), torch.autocast('cpu', torch.bfloat16, cache_enabled=False):
            kept[kind] = saved_bytes(lambda: net(torch.rand(1, 3, 32, 32)), net)
    assert kept['cuda'] >= kept['cpu'] + 2 * 8 * 32 * 32 * 2
