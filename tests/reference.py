"""Undivided updates to compare with, made by BasicSR's own code."""
from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from basicsr.archs.discriminator_arch import UNetDiscriminatorSN
from basicsr.archs.rrdbnet_arch import RRDBNet
from basicsr.losses.gan_loss import GANLoss  # also for the tests of the step, which import no host themselves
from basicsr.models.esrgan_model import ESRGANModel
from basicsr.models.srgan_model import SRGANModel
from torch import Tensor, nn
from torch.nn import functional as F

from sr_bigbatch.nets.vgg_discriminator import GrowableVGGDiscriminator
from sr_bigbatch.step.adversarial_step import AdversarialStep
from sr_bigbatch.step.plan import MicroBatchSizes, StepPlan
from sr_bigbatch.step.report import StepReport
from sr_bigbatch.step.update import SafeUpdate

DISCRIMINATORS = ('none', 'group', 'spectral', 'batch', 'unet')
SIZE = 32


@dataclass
class Case:
    """Networks, batch and losses of one update; :meth:`undivided` and :meth:`divided` start from copies of them."""

    net_g: nn.Module
    net_d: nn.Module
    lq: Tensor
    gt: Tensor
    gan_loss: nn.Module
    relativistic: bool

    def undivided(self, copies: tuple | None = None) -> tuple[nn.Module, nn.Module, dict[str, Tensor]]:
        """BasicSR's update on the whole batch; a spectral norm advances once before and is frozen in it."""
        net_g, net_d, optimizers = copies or self._copies()
        if any('spectral' in type(m).__name__.lower() or hasattr(m, 'weight_u') for m in net_d.modules()):
            with torch.no_grad():
                net_d.train()(self.gt[:1])
            net_d.eval()
        host = SimpleNamespace(
            net_g=net_g, net_d=net_d, optimizer_g=optimizers[0], optimizer_d=optimizers[1], lq=self.lq, gt=self.gt,
            cri_pix=nn.L1Loss(), cri_perceptual=None, cri_gan=self.gan_loss, net_d_iters=1, net_d_init_iters=0,
            ema_decay=0, reduce_loss_dict=lambda losses: losses)
        (ESRGANModel if self.relativistic else SRGANModel).optimize_parameters(host, 1)
        return net_g, net_d, host.log_dict

    def divided(self, micro: tuple[int, int, int], kept_graphs: int = 0, exact: bool = True,
                losses: Callable | None = None) -> tuple[nn.Module, nn.Module, StepReport]:
        """Our update, cut into micro-batches."""
        net_g, net_d, (optimizer_g, optimizer_d) = self._copies()
        step = AdversarialStep(net_g, net_d, SafeUpdate(optimizer_g), SafeUpdate(optimizer_d), losses or pixel_loss,
                               self.gan_loss, plan=StepPlan(MicroBatchSizes(*micro), kept_graphs, exact),
                               relativistic=self.relativistic)
        return net_g, net_d, step(self.lq, self.gt)

    def _copies(self):
        net_g, net_d = copy.deepcopy(self.net_g), copy.deepcopy(self.net_d)
        # SGD: the update is the gradient, so a difference cannot hide behind Adam's normalisation.
        return net_g, net_d, [torch.optim.SGD(net.parameters(), 1e-2, momentum=0.9) for net in (net_g, net_d)]


def pixel_loss(output: Tensor, gt: Tensor, lq: Tensor) -> dict[str, Tensor]:
    return {'l_g_pix': F.l1_loss(output, gt)}


def make_case(discriminator: str = 'group', gan_type: str = 'vanilla', relativistic: bool = True, batch: int = 5,
              dtype: torch.dtype = torch.float64, seed: int = 0) -> Case:
    """A case whose logits are spread by more than 3, as a trained discriminator's are."""
    torch.manual_seed(seed)
    net_g = RRDBNet(3, 3, 4, 8, 1, 4).to(dtype)
    net_d = (UNetDiscriminatorSN(3, 4) if discriminator == 'unet'
             else GrowableVGGDiscriminator(3, 8, SIZE, discriminator)).to(dtype)
    with torch.no_grad():
        net_g.conv_last.weight.mul_(20)
        net_g.conv_last.bias.fill_(0.3)
    lq = torch.rand(batch, 3, SIZE // 4, SIZE // 4, dtype=dtype)
    fake = net_g(lq).detach()
    noise = torch.rand(batch, 3, SIZE, SIZE, dtype=dtype) - 0.5  # near the generated images, in another order: D errs
    gt = fake.flip(0) + noise * torch.linspace(0.02, 0.2, batch, dtype=dtype).view(-1, 1, 1, 1)
    _spread(net_d, fake, gt)
    return Case(net_g, net_d, lq, gt, GANLoss(gan_type, 1.0, 0.0, 5e-3), relativistic)


def _spread(net_d: nn.Module, fake: Tensor, real: Tensor) -> None:
    for module in net_d.modules():  # without this, features of an untrained network hardly depend on the image
        if isinstance(module, nn.Conv2d | nn.Linear) and 'weight' in dict(module.named_parameters()):
            nn.init.kaiming_normal_(module.weight, a=0.2)
    last = net_d.conv9 if isinstance(net_d, UNetDiscriminatorSN) else net_d.linear2
    with torch.no_grad():
        judge = copy.deepcopy(net_d)
        spread = torch.stack([judge(fake).std(), judge(real).std()]).min() if len(real) > 1 else judge(real).abs().max()
        last.weight.mul_(3 / spread)
        last.bias.sub_(copy.deepcopy(net_d)(real).mean())


def checked(step: Any, lq: Tensor, gt: Tensor) -> Any:
    """``step``, checked once and for all: faults that a test injects from now on meet the work of the step alone."""
    step.check(lq, gt)
    step.verify_every, step._check.is_due = None, lambda *_: False
    return step


def difference(update: nn.Module, reference: nn.Module, start: nn.Module) -> float:
    """|update - reference| / |reference - start| over all parameters, in the 2-norm."""
    error = sum(((p - q)**2).sum() for p, q in zip(update.parameters(), reference.parameters(), strict=True))
    moved = sum(((p - q)**2).sum() for p, q in zip(start.parameters(), reference.parameters(), strict=True))
    return (error / moved if moved > 0 else error).sqrt().item()  # a saturated hinge loss moves nothing
