"""Random networks and losses: what the audit calls exact is exact. There is no third outcome.

The oracle is plain autograd, the whole batch against its parts, at weights and inputs that the audit does not know. It uses
none of the audit's code. For it, :class:`_Noise` layers take the noise of each sample from a table.
"""
import copy
import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from sr_bigbatch.step.audit import judge_losses, judge_network, study_losses, study_network, toy_batches
from tests.step import coupling_layers as layers

_C = 4  # channels


class _Noise(nn.Module):
    """Multiplies each sample by noise of its own, of this shape; ``rows`` fixes it."""

    rows = None  # numbers of the samples of the next call; set by the oracle

    def __init__(self, shape, draw):
        super().__init__()
        self.shape, self.draw = shape, draw

    def forward(self, x):
        if _Noise.rows is None:
            return x * self.draw(x.new_empty(len(x), *self.shape(x)))
        generator = torch.Generator().manual_seed(11)
        return x * torch.rand(8, *self.shape(x), dtype=x.dtype, generator=generator)[_Noise.rows]


class _Attention(nn.Module):
    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        return x + F.scaled_dot_product_attention(tokens, tokens, tokens).transpose(1, 2).view_as(x)


def _strength(r):
    return 10 ** r.uniform(-7, 0)


def _threshold(r):
    return r.uniform(-0.5, 1)


def _mean_gate(r):
    threshold, statistic = _threshold(r), r.choice([torch.mean, torch.amax, torch.std])
    if r.random() < 0.5:
        return layers.Apply(lambda x: 2 * x if statistic(x) > threshold else x)
    return layers.Apply(lambda x: torch.where(statistic(x) > threshold, F.relu(x), x))


def _sample_gate(r):
    threshold = _threshold(r)
    if r.random() < 0.5:
        return layers.Apply(lambda x: torch.stack([2 * image if image.mean() > threshold else image for image in x]))
    return layers.Apply(lambda x: torch.where(x.mean((1, 2, 3), keepdim=True) > threshold, 2 * x, x))


def _shift(function):
    return lambda r: (lambda strength: layers.Apply(lambda x: x + strength * function(x)))(_strength(r))


_NEUTRAL = {
    'conv': lambda r: nn.Conv2d(_C, _C, 3, padding=1),
    'spectral': lambda r: parametrizations.spectral_norm(nn.Conv2d(_C, _C, 1)),
    'leaky': lambda r: nn.LeakyReLU(r.uniform(0.01, 0.9)),
    'tanh': lambda r: nn.Tanh(),
    'instance_norm': lambda r: nn.InstanceNorm2d(_C, affine=r.random() < 0.5),
    'group_norm': lambda r: nn.GroupNorm(2, _C),
    'attention': lambda r: _Attention(),
    'shuffle': lambda r: nn.Sequential(nn.PixelUnshuffle(2), nn.PixelShuffle(2)),
    'pool': lambda r: nn.Sequential(nn.AvgPool2d(2), nn.Upsample(scale_factor=2)),
    'sample_gate': _sample_gate,
    'sample_mean': lambda r: layers.Apply(lambda x: x - x.mean((1, 2, 3), keepdim=True)),
    'cache': lambda r: layers.Cache(),
    'frozen_norm': lambda r: nn.BatchNorm2d(_C).eval(),
}
_OWN_NOISE = {
    'dropped': lambda r: _Noise(lambda x: x.shape[1:], lambda empty: empty.bernoulli_(0.5)),
    'dropped_channels': lambda r: _Noise(lambda x: (_C, 1, 1), lambda empty: F.dropout(torch.ones_like(empty), 0.3)),
    'dropped_path': lambda r: _Noise(lambda x: (1, 1, 1), lambda empty: torch.rand_like(empty)),
}
_BAD = {
    'minibatch_std': lambda r: nn.Sequential(layers.MinibatchStd(r.choice([2, 3, 4])), nn.Conv2d(_C + 1, _C, 1)),
    'functional_norm': lambda r: layers.Apply(lambda x: F.batch_norm(x, None, None, training=True)),
    'batch_norm': lambda r: nn.BatchNorm2d(_C),
    'batch_mean': _shift(lambda x: x.mean(0, keepdim=True)),
    'batch_softmax': _shift(lambda x: x.softmax(0)),
    'batch_largest': _shift(lambda x: x.amax()),
    'batch_order': _shift(lambda x: x.sort(0).values),
    'neighbour': _shift(lambda x: x.roll(1, 0)),
    'squared_mean': _shift(lambda x: x.mean().square()),
    'mean_gate': _mean_gate,
    'zero_gate': lambda r: layers.ZeroGate(),
    'closed_gate': lambda r: layers.ZeroGate(-r.uniform(0.01, 0.3), threshold=True),
    'gradient': lambda r: layers.Apply(layers.coupling_gradient.function),
    'hook': lambda r: layers.Apply(layers.hooked_gradient),
    'shuffled': _shift(lambda x: x[torch.randperm(len(x))]),
    'shared_noise': _shift(lambda x: torch.rand(1, *x.shape[1:], dtype=x.dtype)),
    'shared_number': _shift(lambda x: torch.rand(())),
    'python_noise': _shift(lambda x: random.random()),
    'counter': lambda r: layers.Counter(_strength(r)),
    'running_mean': lambda r: layers.RunningMean(used=r.random() < 0.5),
    'running_largest': lambda r: layers.RunningLargest(),
    'first_batch': lambda r: layers.FirstBatch(),
    'running_norm': lambda r: nn.InstanceNorm2d(_C, track_running_stats=True),
    'own_generator': lambda r: layers.FixedNoise(again=r.random() < 0.5),
}
_LAYERS = {**_NEUTRAL, **_OWN_NOISE, **_BAD}


def _names(pool):
    return st.lists(st.sampled_from(sorted(pool)), min_size=1, max_size=3)


@st.composite
def _mixed(draw, good, bad):
    """Names of good parts and, half of the time, one or more bad ones in between."""
    names = draw(_names(good))
    if draw(st.booleans()):
        names = draw(st.permutations(names + draw(_names(bad))[:2]))
    return names


def _network(names, seed):
    torch.manual_seed(seed)
    numbers = random.Random(seed)
    return nn.Sequential(nn.Conv2d(3, _C, 3, padding=1), *(_LAYERS[name](numbers) for name in names), nn.Conv2d(_C, 3, 1))


def _gradients(net, images, partition):
    """Output and gradients of a fixed, nonlinear function of each sample's output, summed over samples; None: it raises."""
    outputs, inputs, net = [], [], copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, parametrizations._SpectralNorm):
            module.eval()  # a step makes one power iteration
    for rows in partition:
        _Noise.rows = rows
        part = images[rows].requires_grad_()
        try:
            output = net(part.clone())
        except RuntimeError:
            return None  # groups of samples that do not fit: it stops there, and makes no wrong update
        output.sin().mul(output).mean((1, 2, 3)).sum().backward()
        outputs.append(output.detach())
        inputs.append(part.grad)
    return [torch.cat(outputs), torch.cat(inputs), torch.cat([parameter.grad.flatten() for parameter in net.parameters()
                                                              if parameter.grad is not None])]


def _is_exact(net, seed):
    """The oracle: whole batch against parts, at the initial weights and at others, with inputs of several ranges."""
    try:
        for number in range(6):
            generator = torch.Generator().manual_seed(seed + number)
            twin = copy.deepcopy(net).double()
            if number % 2:
                with torch.no_grad():
                    for parameter in twin.parameters():
                        parameter.add_(0.3 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
            size = torch.randint(3, 7, (), generator=generator)
            images = torch.rand(int(size), 3, 8, 8, dtype=torch.float64, generator=generator)
            shift = torch.rand(len(images), 1, 1, 1, dtype=torch.float64, generator=generator)
            images = images * (1 + number) - number * shift
            whole = _gradients(twin, images, [list(range(len(images)))])
            for cut in range(1, len(images)):
                parts = _gradients(twin, images, [list(range(cut)), list(range(cut, len(images)))])
                for ours, expected in zip(parts, whole, strict=True) if parts and whole else ():
                    if (ours - expected).norm() > 1e-10 * (1e-6 + expected.norm()):
                        return False
    finally:
        _Noise.rows = None
    return True


def _check_network(names, seed):
    net = _network(names, seed)
    behaviour = study_network(net, toy_batches(3, [8], 'cpu'))
    findings = judge_network('net', behaviour, sees_whole=False, processes=1)
    if all(finding.exact for finding in findings):
        assert _is_exact(net, seed), (names, behaviour)
    if not set(names) & set(_BAD):
        assert all(finding.exact for finding in findings), (names, findings)


def _term(function):
    return lambda r: function


def _masked(condition):
    def make(r):
        threshold = _threshold(r)

        def loss(o, g):
            mask = condition(o, g, threshold).to(o)
            return ((o - g).abs() * mask).sum() / mask.sum().clamp_min(1)
        return loss
    return make


def _each(o, g):
    return (o - g).abs().mean((1, 2, 3))


def _counting(r):
    step, calls = _strength(r), [0]

    def loss(o, g):
        calls[0] += 1
        return F.l1_loss(o, g) * (1 + step * calls[0])
    return loss


def _loss_gate(r):
    threshold = 10 ** r.uniform(-4, 2)
    return lambda o, g: F.l1_loss(o, g) if F.mse_loss(o, g) > threshold else F.mse_loss(o, g)


def _own_generator(r):
    generator = torch.Generator().manual_seed(0)
    return lambda o, g: F.l1_loss(o + torch.rand(o.shape, dtype=o.dtype, generator=generator), g)


_GOOD_TERMS = {
    'l1': _term(F.l1_loss), 'mse': _term(F.mse_loss), 'huber': _term(F.smooth_l1_loss),
    'variation': _term(lambda o, g: o.diff(dim=2).abs().mean()),
    'norms': _term(lambda o, g: (o - g).flatten(1).norm(dim=1).mean()),
    'spectrum': _term(lambda o, g: torch.fft.rfft2(o - g).abs().mean()),
    'gram': _term(lambda o, g: (o.flatten(2) @ o.flatten(2).mT).square().mean()),
    'mask': lambda r: (lambda threshold: lambda o, g: ((o - g) * (g > threshold)).square().mean())(_threshold(r)),
    'each_relative': _term(lambda o, g: (_each(o, g) / (0.1 + g.abs().mean((1, 2, 3)))).mean()),
}
_BAD_TERMS = {
    'largest': _term(lambda o, g: _each(o, g).max()),
    'half': _term(lambda o, g: _each(o, g).topk((len(o) + 1) // 2)[0].mean()),
    'median': _term(lambda o, g: _each(o, g).median()), 'sum': _term(lambda o, g: (o - g).abs().sum()),
    'fro': _term(lambda o, g: (o - g).norm()), 'rms': _term(lambda o, g: (o - g).square().mean().sqrt()),
    'deviation': _term(lambda o, g: _each(o, g).var(correction=0)), 'product': _term(lambda o, g: o.mean() * g.mean()),
    'outside': _term(lambda o, g: F.relu(o - 1).sum()), 'positive': _term(lambda o, g: (o - g)[o > 0].square().mean()),
    'masked_by_gt': _masked(lambda o, g, t: g > t), 'masked_by_output': _masked(lambda o, g, t: o > t),
    'masked_by_error': _masked(lambda o, g, t: (o - g).abs() > t**2 / 10), 'counting': _counting, 'gate': _loss_gate,
    'own_generator': _own_generator, 'shared': lambda r: lambda o, g: F.l1_loss(o, g) * random.random(),
    'mean_image': _term(lambda o, g: F.mse_loss(o.mean(0), g.mean(0))),
    'gradient': _term(lambda o, g: F.mse_loss(layers.coupling_gradient(o), g)),
}
_TERMS = {**_GOOD_TERMS, **_BAD_TERMS}


def _loss_is_exact(losses, seed):
    for number in range(8):
        generator = torch.Generator().manual_seed(seed + number)
        gt = torch.rand(5, 3, 16, 16, dtype=torch.float64, generator=generator) * (1 + number) - number / 3
        gt[:2, :, :number] = 0
        error = torch.randn(gt.shape, dtype=torch.float64, generator=generator)
        output = gt + error * 10 ** (number / 2 - 3) * torch.rand(5, 1, 1, 1, dtype=torch.float64, generator=generator)

        def at(rows, output=output, gt=gt):
            images = output[rows].requires_grad_()
            value = losses(images, gt[rows], None)['loss']
            return value.detach(), torch.autograd.grad(value, images)[0]

        whole = at(list(range(5)))
        for cut in range(1, 5):
            one, other = at(list(range(cut))), at(list(range(cut, 5)))
            value = (cut * one[0] + (5 - cut) * other[0]) / 5
            gradient = torch.cat([one[1] * cut / 5, other[1] * (5 - cut) / 5])
            if (value - whole[0]).abs() > 1e-10 * whole[0].abs() or (gradient - whole[1]).norm() > 1e-10 * whole[1].norm():
                return False
    return True


def _check_loss(names, seed):
    numbers = random.Random(seed)
    terms = [(_strength(numbers), _TERMS[name](numbers)) for name in names]

    def losses(output, gt, lq):
        return {'loss': sum(weight * term(output, gt) for weight, term in terms)}

    findings = judge_losses(study_losses(losses, (3, 16, 16), (3, 16, 16), torch.device('cpu')))
    if all(finding.exact for finding in findings):
        assert _loss_is_exact(losses, seed), (names, seed)
    if not set(names) & set(_BAD_TERMS):
        assert all(finding.exact for finding in findings), (names, findings)


_SEARCHES = {'networks': (_check_network, _mixed([*_NEUTRAL, *_OWN_NOISE], _BAD)),
             'losses': (_check_loss, _mixed(_GOOD_TERMS, _BAD_TERMS))}


def _search(what, **options):
    check, examples = _SEARCHES[what]

    @settings(deadline=None, database=None, suppress_health_check=list(HealthCheck), **options)
    @given(examples, st.integers(0, 2**20))
    def search(names, seed):
        check(names, seed)

    search()


@pytest.mark.parametrize('what', _SEARCHES)
def test_what_is_called_exact_is_exact(what):
    _search(what, max_examples=200, derandomize=True)


@pytest.mark.slow
@pytest.mark.parametrize('what', _SEARCHES)
def test_what_is_called_exact_is_exact_in_many_examples(what, request):
    """The same examples each time; ``--hypothesis-seed=N`` looks for new ones."""
    _search(what, max_examples=2000, derandomize=request.config.getoption('--hypothesis-seed') is None)


@pytest.mark.parametrize('name', ['minibatch_std', 'functional_norm', 'batch_norm', 'batch_mean', 'gradient', 'hook'])
def test_the_oracle_sees_coupling(name):
    assert not _is_exact(_network([name], 3), 3) and _is_exact(_network(['conv', 'instance_norm'], 3), 3)


@pytest.mark.parametrize('name', ['batch_norm', 'functional_norm'])
def test_coupling_that_later_layers_nearly_hide_is_refused(name):
    """Instance normalization removes scale and shift: behind two, the coupling is 1e-11 here and 3e-10 at other weights."""
    behaviour = study_network(_network([name, 'instance_norm', 'instance_norm'], 0), toy_batches(3, [8], 'cpu'))
    assert not all(finding.exact for finding in judge_network('net', behaviour, sees_whole=False, processes=1)), behaviour


@pytest.mark.parametrize('name', ['group_norm', 'instance_norm', 'sample_mean'])
def test_what_is_kept_of_the_first_batch_is_found_where_it_is_nearly_zero_at_first(name):
    """The mean of normalised values is zero until the norm's bias has learned."""
    behaviour = study_network(_network([name, 'first_batch'], 5676), toy_batches(3, [8], 'cpu'))
    findings = judge_network('net', behaviour, sees_whole=False, processes=1)
    assert not all(finding.exact for finding in findings) or _is_exact(_network([name, 'first_batch'], 5676), 5676)


@pytest.mark.parametrize('name', sorted(_BAD))
def test_every_bad_layer_is_refused(name):
    """Each bad layer alone is refused, so that the random search is not satisfied by refusals of other layers."""
    behaviour = study_network(_network([name], 3), toy_batches(3, [8], 'cpu'))
    assert not all(finding.exact for finding in judge_network('net', behaviour, sees_whole=False, processes=1)), behaviour
