"""The audit finds what makes a divided update differ, and lets right things run."""
import copy
import random

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from sr_bigbatch.step.audit import Behaviour, Finding, judge_network, study_network, table, toy_batches, toy_sizes
from tests.step import coupling_layers as layers


def _study(*parts, channels=3, sizes=(8, 16, 32, 64)):
    net = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.LeakyReLU(0.2), *parts)
    return study_network(net, toy_batches(channels, sizes, 'cpu'))


def _judge(behaviour, whole=False, processes=1):
    findings = judge_network('net', behaviour, sees_whole=whole, processes=processes)
    return all(finding.exact for finding in findings), ' | '.join(finding.because for finding in findings)


def _functional_norm(x):
    return F.batch_norm(x, None, None, training=True)


COUPLING = {
    'functional_norm': lambda: [layers.Apply(_functional_norm)],
    'minibatch_std': lambda: [layers.MinibatchStd()],
    'minibatch_std_pairs': lambda: [layers.MinibatchStd(2)],
    'mean_of_batch': lambda: [layers.Apply(lambda x: x - x.mean())],
    'softmax_over_batch': lambda: [layers.Apply(lambda x: x.softmax(0))],
    'tiny': lambda: [layers.Apply(lambda x: x + 1e-8 * x.mean(0))],
    'only_next_sample': lambda: [layers.Apply(lambda x: x + x.roll(1, 0))],
    'hardest_sample': lambda: [layers.Apply(lambda x: x / x.abs().max())],
    'couples_and_drops': lambda: [nn.Dropout(0.5), layers.MinibatchStd()],
    'drops_and_functional_norm': lambda: [layers.Apply(_functional_norm), nn.Dropout2d(0.5)],
    'noise_by_place': lambda: [layers.FixedNoise(again=True)],
    'zero_gate': lambda: [layers.ZeroGate()],
    'closed_gate': lambda: [layers.ZeroGate(-0.1, threshold=True)],
    'zero_buffer_gate': lambda: [_BufferGate()],
    'gradient': lambda: [layers.coupling_gradient],
    'gradient_of_weights': lambda: [layers.WeightGradient()],
    'tensor_hook': lambda: [layers.Apply(layers.hooked_gradient)],
    'module_hook': lambda: [layers.with_backward_hook()],
    'gate_python': lambda: [layers.gate_on(torch.mean, 'python')],
    'gate_item': lambda: [layers.gate_on(torch.max, 'item')],
    'gate_tensor': lambda: [layers.gate_on(torch.mean, 'tensor')],
    'gate_channels': lambda: [layers.gate_on(lambda x: x.amax((0, 2, 3), keepdim=True), 'tensor')],
    'clipped_gradient': lambda: [layers.Apply(layers.clipped_gradient)],
    'seeded_noise': lambda: [layers.Apply(layers.seeded_noise)],
    'shuffled_samples': lambda: [layers.Apply(lambda x: x + x[torch.randperm(len(x))])],
    'squeezed': lambda: [nn.AdaptiveAvgPool2d(1), layers.Apply(torch.squeeze), nn.Linear(8, 1)],
    'one_number': lambda: [layers.Apply(torch.mean)],
}


class _BufferGate(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer('gate', torch.zeros(()))

    def forward(self, x):
        return x + self.gate * x.mean(0)


@pytest.mark.parametrize('name', COUPLING)
def test_coupling_is_found(name):
    behaviour = _study(*COUPLING[name]())
    assert behaviour.couples and not behaviour.only_batch_norm and not behaviour.untried, behaviour
    exact, because = _judge(behaviour)
    assert not exact and 'couples samples' in because
    assert not _judge(behaviour, whole=True, processes=2)[0]


@pytest.mark.parametrize('layer', [nn.BatchNorm2d(8), nn.BatchNorm2d(8, track_running_stats=False),
                                   nn.BatchNorm2d(8, affine=False, momentum=None)])
def test_batch_norm_is_told_from_other_coupling(layer):
    behaviour = _study(layer)
    assert behaviour == Behaviour(couples='BatchNorm2d', only_batch_norm=True)
    assert not _judge(behaviour)[0]
    assert _judge(behaviour, whole=True) == (True, 'couples samples (BatchNorm2d), but sees the whole batch')
    assert _judge(behaviour, whole=True, processes=4)[0]
    behaviour = _study(layer, layers.MinibatchStd())
    assert 'BatchNorm2d' in behaviour.couples and 'depends on the other samples' in behaviour.couples
    assert not behaviour.only_batch_norm and not _judge(behaviour, whole=True, processes=2)[0]


def test_batch_norm_that_needs_more_than_one_sample():
    behaviour = _study(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(8), nn.Linear(8, 1))
    assert behaviour == Behaviour(couples='BatchNorm1d', only_batch_norm=True)


STATES = {
    'counter': (lambda: layers.Counter(), 'result changes'),
    'silent_counter': (lambda: layers.Counter(0.0), 'attribute 2.calls'),
    'running_mean': (lambda: layers.RunningMean(used=True), 'result changes'),
    'first_batch': (lambda: layers.FirstBatch(), 'result changes'),
    'own_generator': (lambda: layers.FixedNoise(), 'result changes'),
    'own_python_generator': (lambda: layers.PythonGenerator(), 'result changes'),
    'global_counter': (lambda: layers.Apply(layers.counted), 'changes from call to call'),
    'class_counter': (lambda: layers.ClassCounter(), 'changes from call to call'),
    'hook_with_list': (lambda: layers.hooked_with_a_list(), 'changes from call to call'),
    'bound_generator': (lambda: layers.LayerDrop(random.Random(0).random), 'changes from call to call'),
    'bound_numpy_generator': (lambda: layers.LayerDrop(numpy.random.RandomState(0).rand), 'changes from call to call'),
    'numpy_generator': (lambda: layers.LayerDrop(numpy.random.default_rng(0).random), 'changes from call to call'),
    'in_place': (lambda: None, 'input in place'),
}


@pytest.mark.parametrize('name', STATES)
def test_state_is_found_and_never_exact(name):
    make, reason = STATES[name]
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 3, 1)) if name == 'in_place' else None
    behaviour = study_network(net, toy_batches(3, [8], 'cpu')) if net else _study(make())
    assert reason in behaviour.state
    assert not _judge(behaviour, whole=True)[0]


@pytest.mark.parametrize(('layer', 'buffers'), [
    (nn.InstanceNorm2d(8, track_running_stats=True), ('2.num_batches_tracked', '2.running_mean', '2.running_var')),
    (layers.RunningMean(used=False), ('2.mean',)), (layers.RunningLargest(), ('2.largest',))])
def test_buffers_that_a_pass_changes_are_named(layer, buffers):
    behaviour = _study(layer)
    assert set(behaviour.buffers) <= set(buffers) and behaviour.buffers and behaviour.state is None
    assert _judge(behaviour, whole=True)[0]
    assert not _judge(behaviour)[0] and buffers[-1] in _judge(behaviour)[1]
    assert not _judge(behaviour, whole=True, processes=2)[0]


@pytest.mark.parametrize(('uniform', 'name'), [(random.random, 'random'), (lambda: numpy.random.rand(), 'numpy'),
                                               (lambda: torch.rand(()), 'torch'), (lambda: torch.rand(1), 'torch'),
                                               (lambda: torch.rand(1, 3, 1, 1).mean(), 'torch')])
def test_noise_that_samples_share_is_found(uniform, name):
    behaviour = _study(layers.LayerDrop(uniform))
    assert name in behaviour.shares_noise and behaviour.couples is None and behaviour.state is None
    assert not _judge(behaviour)[0] and not _judge(behaviour, whole=True, processes=2)[0]
    assert _judge(behaviour, whole=True)[0]


def _drop_path(x):
    return x * torch.bernoulli(torch.full((len(x), 1, 1, 1), 0.5, dtype=x.dtype))


def _noise_of_copies(x):
    both = torch.cat([x, -x])
    return sum((both + torch.randn_like(both)).chunk(2))


def _noise_of_windows(x):
    windows = x.unfold(2, 4, 4).flatten(0, 0).permute(0, 2, 1, 3, 4).flatten(0, 1)
    windows = F.dropout(windows, 0.5)
    return windows.unflatten(0, (len(x), -1)).mean(1)


def _noise_of_sequences(x):
    tokens = x.flatten(2).permute(2, 0, 1)
    return F.dropout(tokens, 0.5).permute(1, 2, 0)


@pytest.mark.parametrize('layer', [nn.Dropout(0.5), nn.Dropout2d(0.5), nn.AlphaDropout(0.3), nn.RReLU(),
                                   layers.Apply(lambda x: x + torch.randn_like(x)),
                                   layers.Apply(lambda x: x * torch.rand(len(x), 1, 1, 1, dtype=x.dtype)),
                                   layers.Apply(_drop_path), layers.Apply(_noise_of_copies), layers.Apply(_noise_of_windows),
                                   layers.Apply(_noise_of_sequences),
                                   layers.Apply(lambda x: x + torch.empty_like(x).uniform_())])
def test_noise_of_each_sample_is_exact(layer):
    behaviour = _study(layer)
    assert behaviour == Behaviour(draws_noise=True)
    assert _judge(behaviour)[0] and _judge(behaviour, processes=2)[0]


class _Float32Constant(nn.Module):
    def forward(self, x):
        return F.conv2d(x, torch.ones(8, 1, 3, 3) / 9, padding=1, groups=8)


class _Asserts32(nn.Module):
    def forward(self, x):
        if x.dtype is not torch.float32:
            raise TypeError('float32 only')
        return 2 * x


class _Spectrum(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 1, 1, dtype=torch.complex64))

    def forward(self, x):
        return torch.fft.irfft2(torch.fft.rfft2(x) * self.weight, s=x.shape[-2:])


class _RetypedMean(nn.Module):
    """As in BasicSR's EDSR."""

    def __init__(self):
        super().__init__()
        self.mean = torch.rand(1, 8, 1, 1)

    def forward(self, x):
        self.mean = self.mean.type_as(x)
        return x - self.mean


class _Volume(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 3, padding=1)

    def forward(self, x):
        return self.conv(x[:, None]).flatten(1, 2)


class _Windows(nn.Module):
    def forward(self, x):
        return x.unflatten(2, (-1, 16)).unflatten(4, (-1, 16)).transpose(3, 4).softmax(-1).flatten(1)


class _Router(nn.Module):
    """Sends each sample through the branch that it asks for, as ClassSR does."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList([nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)])

    def forward(self, x):
        return torch.cat([self.branches[int(image.mean() > 0)](image[None]) for image in x])


def _checked(x):
    if torch.isnan(x).any() or not torch.isfinite(x).all():
        raise ValueError('not finite')
    if x.abs().max() > 1e6:
        raise ValueError('too large')
    return x


class _Attention(nn.Module):
    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        return F.scaled_dot_product_attention(tokens, tokens, tokens).transpose(1, 2).view_as(x)


class _Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant
        self.block = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Dropout(0.5))

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.block, x, use_reentrant=self.reentrant)


def _used(layer):
    layer(torch.rand(1, 8, 4, 4))  # leaves a weight with a graph behind
    return layer


RIGHT = {
    'plain': lambda: nn.Identity(),
    'group_norm': lambda: nn.GroupNorm(2, 8),
    'instance_norm': lambda: nn.InstanceNorm2d(8, affine=True),
    'frozen_batch_norm': lambda: nn.BatchNorm2d(8).eval(),
    'old_spectral': lambda: _used(spectral_norm(nn.Conv2d(8, 8, 1))),
    'new_spectral': lambda: parametrizations.spectral_norm(nn.Conv2d(8, 8, 1)),
    'old_weight_norm': lambda: _used(weight_norm(nn.Conv2d(8, 8, 1))),
    'new_weight_norm': lambda: parametrizations.weight_norm(nn.Conv2d(8, 8, 1)),
    'float32_constant': lambda: _Float32Constant(),
    'float32_only': lambda: _Asserts32(),
    'float32_inside': lambda: layers.Apply(lambda x: x.float().softmax(1, dtype=torch.float32).type_as(x)),
    'spectrum': lambda: _Spectrum(),
    'retyped_mean': lambda: _RetypedMean(),
    'volume': lambda: _Volume(),
    'windows_of_16': lambda: _Windows(),
    'router': lambda: _Router(),
    'checked': lambda: layers.Apply(_checked),
    'attention': lambda: _Attention(),
    'cache': lambda: layers.Cache(),
    'no_gradient': lambda: layers.Apply(torch.detach),
    'complex_output': lambda: layers.Apply(lambda x: torch.fft.rfft2(x)),
    'logarithm': lambda: layers.Apply(lambda x: x.abs().add(0.1).log()),
    'logits': lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1)),
    'vector_of_logits': lambda: nn.Sequential(nn.Flatten(), layers.Apply(lambda x: x.mean(1))),
}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', RIGHT)
def test_right_networks_are_exact(name):
    behaviour = _study(RIGHT[name]())
    assert behaviour == Behaviour()
    assert _judge(behaviour, processes=2) == (True, 'each sample by itself, whatever its neighbours')


@pytest.mark.parametrize('reentrant', [True, False])
def test_checkpointed_networks_are_exact(reentrant):
    assert _study(_Checkpointed(reentrant)) == Behaviour(draws_noise=True)


@pytest.mark.parametrize('channels', [1, 4])
def test_other_numbers_of_channels(channels):
    assert _study(nn.Conv2d(8, 8, 1), channels=channels) == Behaviour()


def test_images_outside_of_the_range_are_not_forced_on_a_network():
    net = nn.Sequential(layers.Apply(torch.log), nn.Conv2d(3, 3, 1))
    assert study_network(net, toy_batches(3, [8], 'cpu')) == Behaviour()


@pytest.mark.filterwarnings('ignore:torch.meshgrid')
def test_networks_of_basicsr():
    from basicsr.archs.ecbsr_arch import ECBSR
    from basicsr.archs.edsr_arch import EDSR
    from basicsr.archs.swinir_arch import SwinIR

    swin = SwinIR(img_size=16, window_size=8, depths=(2,), embed_dim=12, num_heads=(2,), upscale=2, upsampler='pixelshuffle')
    assert study_network(swin, toy_batches(3, toy_sizes(16), 'cpu')) == Behaviour(draws_noise=True)
    swin = SwinIR(img_size=32, window_size=16, depths=(2,), embed_dim=12, num_heads=(2,), drop_path_rate=0)
    assert study_network(swin, toy_batches(3, toy_sizes(32), 'cpu')) == Behaviour()
    for net, channels in ((ECBSR(1, 1, 2, 4, True, 'prelu', 2), 1), (EDSR(3, 3, num_feat=8, num_block=1, upscale=2), 3)):
        assert study_network(net, toy_batches(channels, [8], 'cpu')) == Behaviour()


@pytest.mark.parametrize(('result', 'reason'), [((1, 2), 'a tuple'), ([1], 'a list'), ({}, 'a dict')])
def test_a_network_that_returns_no_tensor_gets_a_clear_sentence(result, reason):
    behaviour = _study(layers.Apply(lambda x: result))
    assert reason in behaviour.untried and 'one tensor' in behaviour.untried
    assert not _judge(behaviour, whole=True)[0]


class _Uncopied(nn.Module):
    def __deepcopy__(self, memo):
        raise TypeError('cannot be copied')

    def forward(self, x):
        return x


def _needs_a_gpu(x):
    raise RuntimeError('this operator needs a GPU\nmore')


@pytest.mark.parametrize('layer', [_Uncopied(), layers.Apply(_needs_a_gpu), layers.Apply(lambda x: x / 0 * 0)])
def test_what_cannot_be_tried_is_never_exact(layer):
    behaviour = _study(layer)
    assert behaviour.untried and '\n' not in behaviour.untried
    exact, because = _judge(behaviour, whole=True)
    assert not exact and 'could not be tried' in because


def test_a_study_changes_nothing():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), spectral_norm(nn.Conv2d(8, 8, 1)), nn.Dropout(0.5),
                        layers.Counter(), layers.RunningMean(used=True), layers.FixedNoise(),
                        layers.LayerDrop(random.random), layers.LayerDrop(lambda: numpy.random.rand()))
    calls = []
    net[0].register_forward_hook(lambda *_: calls.append(1))
    net(torch.rand(2, 3, 8, 8)).sum().backward()
    state, attributes = copy.deepcopy(net.state_dict()), [dict(vars(module)) for module in net.modules()]
    gradients = [(parameter.grad, copy.deepcopy(parameter.grad)) for parameter in net.parameters()]
    own = net[6].generator.get_state()
    generators = torch.get_rng_state(), random.getstate(), str(numpy.random.get_state())
    study_network(net, toy_batches(3, [8, 16], 'cpu'))
    assert torch.equal(generators[0], torch.get_rng_state()) and generators[1] == random.getstate()
    assert generators[2] == str(numpy.random.get_state()) and torch.equal(own, net[6].generator.get_state())
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())
    assert attributes == [dict(vars(module)) for module in net.modules()] and calls == [1]
    for parameter, (gradient, value) in zip(net.parameters(), gradients, strict=True):
        assert parameter.grad is gradient and (gradient is None or torch.equal(gradient, value))


@pytest.mark.parametrize('size', [7, 8, 12, 96, 128])
def test_toy_sizes_grow_up_to_that_of_training(size):
    sizes = toy_sizes(size)
    assert sizes[-1] == size and sizes == sorted(set(sizes)) and (sizes[0] == 8 or size < 8)


@pytest.mark.parametrize('norm', [True, False])
def test_a_large_network_is_studied_at_the_cost_of_some_passes(norm):
    from torch.utils.flop_counter import FlopCounterMode

    def block(inputs, outputs):
        return [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.BatchNorm2d(outputs) if norm else nn.Identity(), nn.LeakyReLU(0.2)]

    net = nn.Sequential(*block(3, 48), *block(48, 96), *block(96, 96), nn.Flatten(), nn.Linear(96 * 64, 1))
    toys = toy_batches(3, [64], 'cpu')
    with FlopCounterMode(display=False) as one:
        net(toys[0][:1])
    with FlopCounterMode(display=False) as study:
        behaviour = study_network(net, toys)
    assert behaviour.only_batch_norm == norm and bool(behaviour.couples) == norm
    assert study.get_total_flops() <= 34 * one.get_total_flops()


def test_the_table_shows_what_is_wrong_first():
    lines = table([Finding('a', True, 'fine'), Finding('long name', False, 'bad')]).splitlines()
    assert 'NOT EXACT' in lines[0] and lines[0].index('bad') == lines[1].index('fine')
