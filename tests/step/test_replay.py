import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm

from sr_bigbatch.step.replay import RngState, batch_norms, frozen_running_statistics, one_power_iteration

APIS = {'hook': spectral_norm, 'parametrization': parametrizations.spectral_norm}


def _weight(net):
    net.eval()
    weight = net[0].weight.detach().clone()
    with torch.no_grad():
        net(torch.rand(1, 3, 4, 4))
        weight = net[0].weight.detach().clone()
    net.train()
    return weight


@pytest.mark.parametrize('api', APIS)
@pytest.mark.parametrize('passes', [0, 1, 7])
def test_spectral_norm_advances_once_whatever_the_number_of_passes(api, passes):
    net = nn.Sequential(APIS[api](nn.Conv2d(3, 8, 3)))
    once = copy.deepcopy(net)
    once(torch.rand(1, 3, 4, 4))  # one pass in training mode: one power iteration
    seen = []
    with one_power_iteration(net):
        for _ in range(passes):
            seen.append(net(torch.ones(1, 3, 4, 4)))
    assert all(torch.equal(first, seen[0]) for first in seen)
    assert torch.equal(_weight(net), _weight(once))
    assert all(module.training for module in net.modules())


@pytest.mark.parametrize('api', APIS)
def test_spectral_norm_of_a_network_in_evaluation_mode_stays(api):
    net = nn.Sequential(APIS[api](nn.Conv2d(3, 8, 3)))
    before = copy.deepcopy(net.state_dict())
    with one_power_iteration(net.eval()):
        net(torch.rand(1, 3, 4, 4))
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_frozen_statistics_normalise_as_in_training_but_do_not_move():
    norm, images = nn.BatchNorm2d(3), torch.rand(4, 3, 5, 5)
    expected = copy.deepcopy(norm)(images)
    before = copy.deepcopy(norm.state_dict())
    with frozen_running_statistics(norm):
        assert torch.equal(norm(images), expected)
    assert all(torch.equal(before[key], value) for key, value in norm.state_dict().items())
    assert norm.track_running_stats


def test_batch_norms_are_those_that_use_the_batch():
    assert len(batch_norms(nn.BatchNorm2d(3))) == 1
    assert not batch_norms(nn.BatchNorm2d(3).eval())
    assert len(batch_norms(nn.BatchNorm2d(3, track_running_stats=False).eval())) == 1
    assert not batch_norms(nn.GroupNorm(1, 3))


def test_replayed_numbers_are_the_same_and_leave_the_stream_alone():
    device = torch.device('cpu')
    state = RngState.capture(device)
    first = torch.rand(3)
    expected_next = torch.rand(3)
    state.restore(device)
    torch.rand(3)
    with state.replayed(device):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.rand(3), expected_next)
