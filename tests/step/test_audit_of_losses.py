"""The audit finds losses that are not means over samples, and lets means run."""
import random
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sr_bigbatch.step.audit import Behaviour, judge_losses, study_losses
from tests.step import coupling_layers as layers


def _study(loss, lq_shape=(3, 16, 16), gt_shape=(3, 32, 32)):
    def losses(output, gt, lq):
        return {'loss': loss(output, gt), 'l1': F.l1_loss(output, gt)}

    found = study_losses(losses, lq_shape, gt_shape, torch.device('cpu'))
    return found['loss']


def _judge(behaviour):
    finding = judge_losses({'loss': behaviour})[0]
    return finding.exact, finding.because


def _masked(condition):
    """The mean error over the pixels that meet a condition."""
    def loss(output, gt):
        mask = condition(output, gt).to(output)
        return ((output - gt).abs() * mask).sum() / mask.sum().clamp_min(1)
    return loss


def _each(output, gt):
    return (output - gt).abs().mean((1, 2, 3))


NO_MEANS = {
    'hardest_sample': lambda o, g: _each(o, g).max(),
    'hardest_half': lambda o, g: _each(o, g).topk((len(o) + 1) // 2).values.mean(),
    'median': lambda o, g: _each(o, g).median(),
    'sum': lambda o, g: F.l1_loss(o, g, reduction='sum'),
    'fro': lambda o, g: torch.linalg.vector_norm(o - g),
    'rms': lambda o, g: (o - g).square().mean().sqrt(),
    'psnr': lambda o, g: -10 * torch.log10(1 / ((o - g).square().mean() + 1e-8)),
    'relative': lambda o, g: (o - g).abs().mean() / g.abs().mean(),
    'divided_by_itself': lambda o, g: F.l1_loss(o, g) / (o - g).abs().mean().detach(),
    'outside': lambda o, g: F.relu(o - 1).sum() + F.relu(-o).sum(),
    'gram_of_batch': lambda o, g: (o.flatten(1) @ o.flatten(1).mT).square().mean(),
    'mean_image': lambda o, g: F.l1_loss(o.mean(0), g.mean(0)),
    'positive_pixels': lambda o, g: (o - g)[o > 0].abs().mean(),
    'masked_by_gt': _masked(lambda o, g: g > 0.5),
    'masked_by_error': _masked(lambda o, g: (o - g).abs() > 0.05),
    'masked_by_large_error': _masked(lambda o, g: (o - g).abs() < 6),
    'masked_by_small_error': _masked(lambda o, g: (o - g).abs() > 1e-5),
    'masked_by_zero': _masked(lambda o, g: g.abs() > 0),
    'masked_by_range': _masked(lambda o, g: g <= 1.5),
    'gate_python': lambda o, g: F.l1_loss(o, g) if F.l1_loss(o, g) < 1e6 else F.mse_loss(o, g),
    'gate_item': lambda o, g: F.l1_loss(o, g) * (2 if (o - g).abs().max().item() > 1e6 else 1),
    'gate_tensor': lambda o, g: torch.where((o - g).mean() > 1e6, F.mse_loss(o, g), F.l1_loss(o, g)),
    'only_gradient': lambda o, g: F.l1_loss(layers.coupling_gradient(o), g),
    'functional_norm': lambda o, g: F.l1_loss(F.batch_norm(o, None, None, training=True), g),
    'shuffled': lambda o, g: F.l1_loss(o, g[torch.randperm(len(g))]),
}


@pytest.mark.parametrize('name', NO_MEANS)
def test_losses_that_are_not_means_are_found(name):
    behaviour = _study(NO_MEANS[name])
    assert behaviour.couples, behaviour
    exact, because = _judge(behaviour)
    assert not exact and ('not a mean over samples' in because or name == 'shuffled')


class _OwnMean:
    """Divides by its running mean."""

    def __init__(self, module=False):
        self.mean = 1.0

    def __call__(self, output, gt):
        loss = F.l1_loss(output, gt)
        self.mean = 0.9 * self.mean + 0.1 * float(loss)
        return loss / self.mean


def _warming(step):
    calls = [0]

    def loss(output, gt):
        calls[0] += 1
        return F.l1_loss(output, gt) * (1 + step * calls[0])
    return loss


def _counting():
    calls = 0

    def loss(output, gt):
        nonlocal calls
        calls += 1
        return F.l1_loss(output, gt) * (1 if calls < 1000 else 2)
    return loss


def _private_noise():
    generator = torch.Generator().manual_seed(0)
    return lambda output, gt: F.l1_loss(output + torch.rand(output.shape, generator=generator, dtype=output.dtype), gt)


@pytest.mark.parametrize('make', [_OwnMean, lambda: _warming(4e-5), lambda: _warming(0), _counting, _private_noise,
                                  lambda: lambda o, g: F.l1_loss(o.mul_(2), g)],
                         ids=['own_mean', 'warming', 'list', 'counting', 'private_noise', 'in_place'])
def test_losses_with_a_state_are_found_and_left_as_they_were(make):
    loss = make()
    before = vars(loss).copy() if isinstance(loss, _OwnMean) else [repr(c.cell_contents) for c in loss.__closure__ or ()]
    behaviour = _study(loss)
    assert behaviour.state and not _judge(behaviour)[0]
    after = vars(loss) if isinstance(loss, _OwnMean) else [repr(c.cell_contents) for c in loss.__closure__ or ()]
    assert before == after


@pytest.mark.parametrize('factor', [random.random, lambda: torch.rand(()), lambda: torch.rand(1)])
def test_losses_that_share_noise_are_found(factor):
    behaviour = _study(lambda o, g: F.l1_loss(o, g) * factor())
    assert behaviour.shares_noise and not _judge(behaviour)[0] and 'random' in _judge(behaviour)[1]


def _ms_ssim_like(output, gt):
    if output.shape[-1] < 64:
        raise ValueError('images must have 64 px or more')
    return sum(F.mse_loss(F.avg_pool2d(output, 2**level), F.avg_pool2d(gt, 2**level)) for level in range(4))


def _style(output, gt):
    """Gram matrices of samples, compared by their mean absolute difference, as in BasicSR."""
    def gram(x):
        features = x.flatten(2)
        return features @ features.mT / features.shape[-1]
    return F.l1_loss(gram(output), gram(gt))


def _guarded(output, gt):
    loss = F.l1_loss(output, gt)
    if not torch.isfinite(loss) or torch.isnan(loss):
        raise FloatingPointError('not finite')
    return loss


def _in_range(images):
    return (images.min() >= 0) & (images.max() <= 1)


_KERNEL = torch.ones(3, 1, 3, 3) / 9


MEANS = {
    'l1': F.l1_loss,
    'mse': F.mse_loss,
    'charbonnier': lambda o, g: ((o - g).square() + 1e-12).sqrt().mean(),
    'huber': lambda o, g: F.smooth_l1_loss(o, g, beta=0.1),
    'mean_of_norms': lambda o, g: torch.linalg.vector_norm((o - g).flatten(1), dim=1).mean(),
    'variation': lambda o, g: o.diff(dim=2).abs().mean() + o.diff(dim=3).abs().mean(),
    'spectrum': lambda o, g: (torch.fft.rfft2(o) - torch.fft.rfft2(g)).abs().mean(),
    'style': _style,
    'mask_without_denominator': lambda o, g: ((o - g).abs() * (g > 0.5)).mean(),
    'masked_in_each_sample': lambda o, g: (_each(o * (g > 0), g * (g > 0)) / (g > 0).to(o).mean((1, 2, 3)).add(0.1)).mean(),
    'dropped_pixels': lambda o, g: F.dropout((o - g).abs(), 0.5).mean(),
    'float32_constant': lambda o, g: F.l1_loss(F.conv2d(o, _KERNEL, groups=3), F.conv2d(g, _KERNEL, groups=3)),
    'guarded': _guarded,
    'volume': lambda o, g: F.l1_loss(F.avg_pool3d(o[:, None], 3, 1), F.avg_pool3d(g[:, None], 3, 1)),
    'one_element': lambda o, g: F.l1_loss(o, g).reshape(1),
    'zero': lambda o, g: 0 * o.mean(),
    'logarithm': lambda o, g: F.l1_loss(o.clamp(1e-3, 1).log(), g.clamp(1e-3, 1).log()),
    'only_in_range': lambda o, g: F.binary_cross_entropy(o.clamp(0.01, 0.99), g) if _in_range(g) else 1 / 0,
}


@pytest.mark.parametrize('name', MEANS)
def test_means_over_samples_are_exact(name):
    behaviour = _study(MEANS[name])
    assert behaviour == Behaviour(draws_noise=name == 'dropped_pixels')
    assert _judge(behaviour) == (True, 'a mean over samples')


@pytest.mark.parametrize('side', [64, 96])
def test_losses_that_need_large_images(side):
    assert _study(_ms_ssim_like, (3, side // 4, side // 4), (3, side, side)) == Behaviour()


@dataclass
class _HostLosses:
    """Like those of a host: modules, and a function of the host."""

    pixel: nn.Module
    average: object = None

    def __call__(self, output, gt, lq):
        losses = {'pix': self.pixel(output, gt)}
        if self.average is not None:
            with torch.no_grad():
                weight = (self.average(lq) - gt).abs()
            losses['weighted'] = (weight * (output - gt).abs()).mean()
        return losses


class _Perceptual(nn.Module):
    def __init__(self, norm='mean'):
        super().__init__()
        self.features, self.norm = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2)), norm

    def forward(self, output, gt):
        gap = self.features(output) - self.features(gt)
        return gap.abs().mean() if self.norm == 'mean' else gap.norm()


def test_losses_of_a_host():
    device, shapes = torch.device('cpu'), ((3, 8, 8), (3, 16, 16))
    assert study_losses(_HostLosses(_Perceptual()), *shapes, device) == {'pix': Behaviour()}
    assert study_losses(_HostLosses(_Perceptual('fro')), *shapes, device)['pix'].couples
    host = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(3, 3, 1))
    for average in (host, host.forward, lambda lq: host(lq)):
        found = study_losses(_HostLosses(_Perceptual(), average), *shapes, device)
        assert found == {'pix': Behaviour(), 'weighted': Behaviour()}


def test_without_losses_there_is_nothing_to_find():
    found = study_losses(lambda output, gt, lq: {}, (3, 8, 8), (3, 32, 32), torch.device('cpu'))
    assert found == {} and judge_losses(found) == []


@pytest.mark.parametrize(('loss', 'reason'), [
    (lambda o, g: F.l1_loss(o, g, reduction='none'), 'is not a scalar'), (lambda o, g: _each(o, g), 'is not a scalar'),
    (lambda o, g: 0.0, 'a float, not a tensor'), (lambda o, g: F.l1_loss(o, g) / 0, 'not finite')])
def test_losses_that_cannot_be_studied_are_never_exact(loss, reason):
    behaviour = _study(loss)
    assert reason in behaviour.untried
    assert not _judge(behaviour)[0] and reason in _judge(behaviour)[1]


def test_losses_that_raise_or_return_something_else_are_never_exact():
    device = torch.device('cpu')
    found = study_losses(lambda output, gt, lq: (1, 2), (3, 8, 8), (3, 8, 8), device)
    assert 'returns a tuple' in found['losses'].untried
    found = study_losses(lambda output, gt, lq: {'a': output[:, 7].mean()}, (3, 8, 8), (3, 8, 8), device)
    assert found['losses'].untried and not judge_losses(found)[0].exact
