"""The audit judges networks and losses by what they do."""
import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import spectral_norm

from sr_bigbatch.step.audit import Finding, audit_losses, audit_network, table


class _MinibatchDeviation(nn.Module):
    """The layer of progressive GANs that shows each sample the spread of its batch."""

    def forward(self, x):
        return x + x.std(0, keepdim=True, unbiased=False)


class _Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


class _Counter(nn.Module):
    """Gives another answer at every call."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


class _CallsCuda(nn.Module):
    def forward(self, x):
        raise RuntimeError('this operator needs a GPU\nmore')


def _judge(*layers, whole=False):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), *layers)
    state = copy.deepcopy(net.state_dict())
    images, rng = torch.rand(3, 3, 8, 8), torch.get_rng_state()
    findings = audit_network('net', net, images, sees_whole_batch=whole)
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())
    return all(finding.exact for finding in findings), ' | '.join(finding.because for finding in findings)


@pytest.mark.parametrize('layers', [(), (nn.GroupNorm(2, 8),), (nn.InstanceNorm2d(8),), (spectral_norm(nn.Conv2d(8, 8, 1)),),
                                    (nn.BatchNorm2d(8).eval(),)],
                         ids=['plain', 'group', 'instance', 'spectral', 'frozen_batch'])
def test_layers_that_split_are_exact(layers):
    exact, because = _judge(*layers)
    assert exact and 'each sample by itself' in because


@pytest.mark.parametrize('layer', [nn.BatchNorm2d(8), nn.BatchNorm2d(8, track_running_stats=False), _MinibatchDeviation()])
def test_layers_that_couple_samples_are_exact_only_on_the_whole_batch(layer):
    exact, because = _judge(layer)
    assert not exact and 'couples samples' in because
    exact, because = _judge(layer, whole=True)
    assert exact and 'sees the whole batch' in because


def test_random_layers_are_told_but_do_not_hide_a_coupling():
    assert _judge(nn.Dropout(0.5))[0] and 'random' in _judge(nn.Dropout(0.5))[1]
    assert 'random' in _judge(_Noise())[1]
    exact, because = _judge(nn.Dropout2d(0.5), _MinibatchDeviation())
    assert not exact and 'random' in because


@pytest.mark.parametrize('layer', [_Counter(), _CallsCuda()])
def test_what_cannot_be_tried_is_not_called_exact(layer):
    exact, because = _judge(layer)
    assert not exact and 'could not be tried' in because and '\n' not in because


def test_losses_that_are_no_means_are_named():
    def losses(output, gt, lq):
        return {'l_pix': F.l1_loss(output, gt), 'l_sum': F.l1_loss(output, gt, reduction='sum'),
                'l_fro': torch.linalg.vector_norm(output - gt), 'l_max': (output - gt).abs().max(),
                'l_gram': (output.flatten(1) @ output.flatten(1).mT).square().mean()}

    findings = audit_losses(losses, *torch.rand(2, 4, 3, 8, 8), torch.rand(4, 3, 2, 2))
    assert {finding.part for finding in findings if finding.exact} == {'l_pix'}
    assert all('no mean over samples' in finding.because for finding in findings if not finding.exact)


def test_the_table_shows_what_is_wrong_first():
    lines = table([Finding('a', True, 'fine'), Finding('long name', False, 'bad')]).splitlines()
    assert 'NOT EXACT' in lines[0] and lines[0].index('bad') == lines[1].index('fine')
