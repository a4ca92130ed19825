"""BasicSR's ESRGAN with torch's own answer to overflow, to compare ours with."""
from __future__ import annotations

import torch
from basicsr.models.esrgan_model import ESRGANModel
from torch import Tensor


class GradScalerESRGANModel(ESRGANModel):  # type: ignore[misc]
    """BasicSR's ESRGAN step under autocast to float16, with a ``GradScaler`` per optimizer, as in torch's manual."""

    def init_training_settings(self) -> None:
        """Build what the host builds, and the scalers."""
        super().init_training_settings()
        self.scalers = [torch.amp.GradScaler(self.device.type) for _ in self.optimizers]

    def optimize_parameters(self, current_iter: int) -> None:
        """One step of the generator, then one of the discriminator."""
        losses = {}
        for parameter in self.net_d.parameters():
            parameter.requires_grad_(False)
        self.optimizer_g.zero_grad()
        with torch.autocast(self.device.type, torch.float16):
            self.output = self.net_g(self.lq)
            fake, real = self.net_d(self.output), self.net_d(self.gt).detach()
        losses['l_g_pix'] = self.cri_pix(self.output.float(), self.gt)
        real, fake = real.float(), fake.float()
        losses['l_g_gan'] = (self.cri_gan(real - fake.mean(), False) + self.cri_gan(fake - real.mean(), True)) / 2
        self._move(0, losses['l_g_pix'] + losses['l_g_gan'])
        for parameter in self.net_d.parameters():
            parameter.requires_grad_(True)
        self.optimizer_d.zero_grad()
        with torch.autocast(self.device.type, torch.float16):
            real, fake = self.net_d(self.gt), self.net_d(self.output.detach())
        real, fake = real.float(), fake.float()
        self._move(1, (self.cri_gan(real - fake.mean(), True, is_disc=True)
                       + self.cri_gan(fake - real.mean(), False, is_disc=True)) / 2)
        self.log_dict = {name: loss.item() for name, loss in losses.items()}
        self.log_dict['scale_g'] = self.scalers[0].get_scale()

    def _move(self, index: int, loss: Tensor) -> None:
        self.scalers[index].scale(loss).backward()
        self.scalers[index].step(self.optimizers[index])
        self.scalers[index].update()
