"""Networks of a few weights, and a batch for them."""
import torch
from torch import nn
from torch.nn import functional as F

from sr_bigbatch.step.adversarial_step import AdversarialStep
from sr_bigbatch.step.supervised_step import SupervisedStep


def generator():
    """(B, 3, h, w) -> (B, 3, 2h, 2w)."""
    return nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.LeakyReLU(0.2), nn.PixelShuffle(2)).double()


def discriminator(*layers):
    """(B, 3, H, W) -> (B, 1)."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), *layers, nn.LeakyReLU(0.2), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                         nn.Linear(16, 1)).double()


def batch(count):
    """Low resolution and ground truth."""
    return torch.rand(count, 3, 6, 6, dtype=torch.float64), torch.rand(count, 3, 12, 12, dtype=torch.float64)


def l1(output, gt, lq):
    """A mean over samples."""
    return {'l1': F.l1_loss(output, gt)}


def gan_loss(logits, real, is_disc=False):
    """The vanilla GAN."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))


def supervised(net=None, **settings):
    """A step by SGD, so that the update is the gradient."""
    net = net or generator()
    return SupervisedStep(net, torch.optim.SGD(net.parameters(), 0.1), settings.pop('losses', l1), **settings)


def adversarial(net_d=None, **settings):
    """Likewise, with a discriminator."""
    net_g, net_d = generator(), net_d or discriminator()
    optimizers = [torch.optim.SGD(net.parameters(), 0.1) for net in (net_g, net_d)]
    return AdversarialStep(net_g, net_d, *optimizers, l1, gan_loss, **settings)
