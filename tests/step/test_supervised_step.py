"""The divided supervised update is the undivided one."""
import copy

import pytest
import torch

from sr_bigbatch.step.check import NotExact
from tests.step.small import batch, generator, supervised


@pytest.mark.parametrize('micro', [1, 2, 3, 5, None, 'auto'])
def test_it_is_the_update_of_the_undivided_batch(micro):
    net, (lq, gt) = generator(), batch(5)
    plain = copy.deepcopy(net)
    optimizer = torch.optim.SGD(plain.parameters(), 0.1)
    (plain(lq) - gt).abs().mean().backward()
    optimizer.step()
    report = supervised(net, micro_batch_size=micro)(lq, gt)
    torch.testing.assert_close(net.state_dict(), plain.state_dict(), rtol=0, atol=1e-12)
    assert report.committed == {'g'} and report.output.shape == gt.shape


def test_it_needs_a_loss():
    nothing = supervised(losses=lambda output, gt, lq: {})
    with pytest.raises(NotExact, match='losses: there is none'):
        nothing(*batch(2))
    with pytest.raises(ValueError, match='at least one loss'):
        supervised(losses=lambda output, gt, lq: {}, exact=False, verify_every=None)(*batch(2))


def test_a_real_batch_can_be_verified():
    step = supervised(micro_batch_size=2)
    assert step.verify(*batch(5))['g'] < 1e-12
