"""The gradients of an undivided batch, in the plainest way: what every divided step is compared with."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from sr_bigbatch.step.gan_loss import GanLoss
from sr_bigbatch.step.sample_losses import SampleLosses

Gradients = dict[str, list[Tensor | None]]


def supervised_gradients(net_g: nn.Module, losses: SampleLosses, lq: Tensor, gt: Tensor) -> Gradients:
    """Gradients of the sum of ``losses`` at the generator's parameters that require one; None for one without any."""
    loss = sum(losses(net_g(lq), gt, lq).values(), lq.new_zeros(()))
    return {'g': _gradients(loss, net_g)}


def adversarial_gradients(net_g: nn.Module, net_d: nn.Module, losses: SampleLosses, gan_loss: GanLoss, lq: Tensor,
                          gt: Tensor, *, relativistic: bool,
                          real_images: nn.Module | None = None) -> Gradients:
    """Gradients of an ESRGAN update (relativistic) or SRGAN update at the parameters of generator and discriminator.

    Wang et al. 2018, https://arxiv.org/abs/1809.00219, equations 1 and 2, as in BasicSR: the discriminator's half uses the
    generator of before the update. ``real_images`` are as in :class:`sr_bigbatch.step.adversarial_step.AdversarialStep`.
    """
    with torch.no_grad():
        real = gt if real_images is None else real_images(gt)
    fake = net_g(lq)
    loss_g = sum(losses(fake, gt, lq).values(), lq.new_zeros(()))
    real_logits, fake_logits = net_d(real).detach(), net_d(fake)
    if relativistic:
        loss_g = loss_g + (gan_loss(real_logits - fake_logits.mean(), False, is_disc=False)
                           + gan_loss(fake_logits - real_logits.mean(), True, is_disc=False)) / 2
    else:
        loss_g = loss_g + gan_loss(fake_logits, True, is_disc=False)
    gradients_g = _gradients(loss_g, net_g, net_d)
    real_logits, fake_logits = net_d(real), net_d(fake.detach())
    if relativistic:
        loss_d = (gan_loss(real_logits - fake_logits.detach().mean(), True, is_disc=True)
                  + gan_loss(fake_logits - real_logits.detach().mean(), False, is_disc=True)) / 2
    else:
        loss_d = gan_loss(real_logits, True, is_disc=True) + gan_loss(fake_logits, False, is_disc=True)
    return {'g': gradients_g, 'd': _gradients(loss_d, net_d)}


def _gradients(loss: Tensor, net: nn.Module, *others: nn.Module) -> list[Tensor | None]:
    """Gradients at ``net``; what a backward pass adds to ``.grad``, also of others that it reaches, is taken away again."""
    reached = [parameter for each in (net, *others) for parameter in each.parameters()]
    before = [parameter.grad for parameter in reached]
    for parameter in reached:
        parameter.grad = None
    try:
        loss.backward()  # type: ignore[no-untyped-call]  # torch.autograd.grad would meet reentrant checkpoints, which refuse it
        return [parameter.grad for parameter in net.parameters() if parameter.requires_grad]
    finally:
        for parameter, gradient in zip(reached, before, strict=True):
            parameter.grad = gradient
