"""Connections that a step cannot treat exactly are named."""
import pytest
import torch
from torch import nn

from sr_bigbatch.step.update import SafeUpdate
from sr_bigbatch.step.wiring import wiring_findings
from tests.step.small import discriminator, generator


def _findings(change):
    nets = {'g': generator(), 'd': discriminator()}
    optimizers = {name: torch.optim.SGD(net.parameters(), 0.1) for name, net in nets.items()}
    change(nets, optimizers)
    return list(wiring_findings(nets, {name: SafeUpdate(optimizer) for name, optimizer in optimizers.items()}))


def _share(nets, optimizers):
    nets['d'].shared = nets['g'][0].weight


ODD = {
    'gradient hook': lambda nets, optimizers: nets['g'][0].weight.register_hook(lambda gradient: gradient),
    'parameters of its own': _share,
    'DataParallel': lambda nets, optimizers: nets.update(g=nn.DataParallel(nets['g'])),
    'outside the discriminator, which would get no gradient': lambda nets, optimizers:
        optimizers['d'].add_param_group({'params': [nn.Parameter(torch.rand(1))]}),
    'LBFGS': lambda nets, optimizers: optimizers.update(g=torch.optim.LBFGS(nets['g'].parameters())),
}


@pytest.mark.parametrize('reason', ODD)
def test_what_a_step_cannot_treat_is_named(reason):
    assert any(reason in text for _, text in _findings(ODD[reason]))


def test_plain_networks_are_fine():
    assert _findings(lambda nets, optimizers: None) == []
