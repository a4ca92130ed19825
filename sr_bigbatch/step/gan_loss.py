"""The adversarial loss of a whole batch, as values and as gradients with respect to the logits.

Shapes: logits are (B, ...): (B, 1) from a discriminator that judges images, (B, 1, H, W) from one that judges pixels.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sr_bigbatch.step.finite import nan_unless_finite

GanLoss = Callable[..., Tensor]
"""``gan_loss(logits, target_is_real, is_disc=...) -> scalar``, as BasicSR's ``GANLoss``."""


@dataclass(frozen=True)
class Grades:
    """Loss values and d(loss)/d(logits) of one batch; each gradient has the shape of its logits (B, ...)."""

    g_loss: Tensor
    d_real_loss: Tensor
    d_fake_loss: Tensor
    g_fake: Tensor
    d_real: Tensor
    d_fake: Tensor

    def at(self, samples: slice) -> Grades:
        """The gradients of some samples. The losses stay those of the whole batch."""
        return Grades(self.g_loss, self.d_real_loss, self.d_fake_loss,
                      self.g_fake[samples], self.d_real[samples], self.d_fake[samples])

    @staticmethod
    def weighted(parts: list[tuple[float, Grades]]) -> list[Grades]:
        """The grades of each part of a batch whose loss is the weighted sum of the losses of its parts (weight, grades)."""
        losses = [torch.stack([weight * getattr(grades, name) for weight, grades in parts]).sum(0) for name in _LOSSES]
        return [Grades(*losses, *(weight * getattr(grades, name) for name in _GRADIENTS)) for weight, grades in parts]


_LOSSES = ('g_loss', 'd_real_loss', 'd_fake_loss')
_GRADIENTS = ('g_fake', 'd_real', 'd_fake')


def grade(gan_loss: GanLoss, real: Tensor, fake: Tensor, *, relativistic: bool) -> Grades:
    """Evaluate the GAN losses of generator and discriminator on all logits of a batch at once.

    Relativistic: the relativistic average GAN of ESRGAN (Wang et al. 2018, https://arxiv.org/abs/1809.00219, equations
    1 and 2). In the generator's loss the gradient also flows through the mean of the fake logits; in the
    discriminator's two losses the other half's mean is a constant, and each half counts 0.5, as in BasicSR.

    Args:
        gan_loss: the host's own loss.
        real: logits of the ground truth, (B, ...), float32 or float64, without graph.
        fake: logits of the generated images, the same shape.
        relativistic: whether each logit is judged relative to the mean of the other kind.
    """
    with torch.enable_grad():
        fake_g, real_d, fake_d = (logits.detach().clone().requires_grad_() for logits in (fake, real, fake))
        if relativistic:
            real, fake = real.detach(), fake.detach()
            g_loss = (gan_loss(real - fake_g.mean(), False, is_disc=False)
                      + gan_loss(fake_g - real.mean(), True, is_disc=False)) / 2
            d_real_loss = gan_loss(real_d - fake.mean(), True, is_disc=True) * 0.5
            d_fake_loss = gan_loss(fake_d - real.mean(), False, is_disc=True) * 0.5
        else:
            g_loss = gan_loss(fake_g, True, is_disc=False)
            d_real_loss = gan_loss(real_d, True, is_disc=True)
            d_fake_loss = gan_loss(fake_d, False, is_disc=True)
        gradients = [torch.autograd.grad(loss, logits)[0]
                     for loss, logits in ((g_loss, fake_g), (d_real_loss, real_d), (d_fake_loss, fake_d))]
    health = nan_unless_finite(1.0, real, fake)
    gradients = [gradient * health.to(gradient.dtype) for gradient in gradients]
    return Grades(g_loss.detach(), d_real_loss.detach(), d_fake_loss.detach(), *gradients)
