"""The plain gradients that every divided step is compared with."""
import pytest
import torch

from sr_bigbatch.step.undivided import adversarial_gradients, supervised_gradients
from tests.step.small import batch, discriminator, gan_loss, generator, l1


def test_supervised_gradients_are_those_of_autograd():
    net, (lq, gt) = generator(), batch(3)
    l1(net(lq), gt, lq)['l1'].backward()
    torch.testing.assert_close(supervised_gradients(net, l1, lq, gt)['g'], [p.grad for p in net.parameters()])


@pytest.mark.parametrize('relativistic', [True, False])
def test_each_network_gets_the_gradient_of_its_own_loss_and_none_where_there_is_none(relativistic):
    net_g, net_d, (lq, gt) = generator(), discriminator(), batch(3)
    net_d.unused = torch.nn.Parameter(torch.rand(1))
    found = adversarial_gradients(net_g, net_d, l1, gan_loss, lq, gt, relativistic=relativistic)
    fake = net_g(lq)
    real_logits, fake_logits = net_d(gt), net_d(fake.detach())
    if relativistic:
        real_logits, fake_logits = (real_logits - fake_logits.mean().detach()) / 1, fake_logits - real_logits.mean().detach()
    loss = gan_loss(real_logits, True) + gan_loss(fake_logits, False)
    loss = loss / 2 if relativistic else loss
    expected = torch.autograd.grad(loss, list(net_d.parameters()), allow_unused=True)
    torch.testing.assert_close([g for g in found['d'] if g is not None], [g for g in expected if g is not None])
    assert [g is None for g in found['d']] == [g is None for g in expected]
    assert all(gradient is not None for gradient in found['g'])
