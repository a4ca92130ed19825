"""BasicSR models that take a whole effective batch as one iteration and work through it in micro-batches."""
from __future__ import annotations

from typing import Any

import torch
from basicsr.models.esrgan_model import ESRGANModel
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from torch import nn

from sr_bigbatch.core.batch import StepPlan
from sr_bigbatch.core.growth import add_to_optimizer
from sr_bigbatch.core.report import StepReport
from sr_bigbatch.core.step import AdversarialStep
from sr_bigbatch.core.supervised_step import SupervisedStep
from sr_bigbatch.hosts.basicsr_accumulating import Accumulating
from sr_bigbatch.nets.vgg_discriminator import GrowableVGGDiscriminator


@MODEL_REGISTRY.register()
class AccumulatingSRModel(Accumulating, SRModel):  # type: ignore[misc]
    """BasicSR's ``SRModel`` at an effective batch of any size: the PSNR-oriented stage.

    Args:
        opt: the options of ``SRModel``, plus ``train.micro_batch_size`` and ``train.optim_wrapper``.
    """

    loss_prefix = 'l_'

    def build_step(self, plan: StepPlan) -> SupervisedStep:
        """The step without discriminator."""
        return SupervisedStep(self.net_g, self.optim_wrappers[0].safe_update, self.losses, plan, self.dtype)

    def run_step(self, current_iter: int) -> StepReport:
        """One update."""
        report: StepReport = self.step(self.lq, self.gt)
        return report


@MODEL_REGISTRY.register()
class AccumulatingESRGANModel(Accumulating, ESRGANModel):  # type: ignore[misc]
    """BasicSR's ``ESRGANModel`` at an effective batch of any size, with the update of the undivided batch.

    Args:
        opt: the options of ``ESRGANModel``, plus ``train.micro_batch_size``, ``train.kept_graphs``,
            ``train.accumulation``, ``train.relativistic_gan``, ``train.optim_wrapper`` and ``custom_hooks``.
    """

    loss_prefix = 'l_g_'

    def build_step(self, plan: StepPlan) -> AdversarialStep:
        """The step of generator and discriminator."""
        self.losses.artifact = getattr(self, 'cri_ldl', None)
        self.losses.ema_output = getattr(self, 'net_g_ema', None)
        update_g, update_d = (wrapper.safe_update for wrapper in self.optim_wrappers)
        return AdversarialStep(self.net_g, self.net_d, update_g, update_d, self.losses, self.cri_gan, plan,
                               self.opt['train'].get('relativistic_gan', True), self.dtype)

    def run_step(self, current_iter: int) -> StepReport:
        """One update of the discriminator and, where ``net_d_iters`` and ``net_d_init_iters`` say so, of the generator."""
        update_g = current_iter % self.net_d_iters == 0 and current_iter > self.net_d_init_iters
        report: StepReport = self.step(self.lq, self.gt, update_g=update_g)
        return report

    def load_network(self, net: nn.Module, load_path: str, strict: bool = True, param_key: str = 'params') -> None:
        """Load weights as BasicSR does; a growable discriminator first grows to the size of the saved one."""
        if isinstance(net, GrowableVGGDiscriminator):
            saved = torch.load(load_path, map_location='cpu', weights_only=True)
            net.grow_to_match(saved.get(param_key, saved))
        super().load_network(net, load_path, strict, param_key)

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        """Restore the state, with the parameter groups of a discriminator that had grown."""
        grown = len(resume_state['optimizers'][1]['param_groups']) - 1
        if grown > 0 and isinstance(self.net_d, GrowableVGGDiscriminator):
            late = self.net_d.stage_parameters()[-grown:]
            ids = {id(parameter) for stage in late for parameter in stage}
            first = self.optimizer_d.param_groups[0]
            first['params'] = [parameter for parameter in first['params'] if id(parameter) not in ids]
            for stage in late:
                add_to_optimizer(self.optimizer_d, self.schedulers, stage)
        super().resume_training(resume_state)

    def fit_to(self, gt_size: int) -> None:
        """Grow the discriminator and shrink the micro-batches for crops of this size; the effective batch stays."""
        if isinstance(self.net_d, GrowableVGGDiscriminator):
            while self.net_d.input_size < gt_size:
                add_to_optimizer(self.optimizer_d, self.schedulers, self.net_d.grow())
                get_root_logger().info(f'The discriminator has grown to {self.net_d.input_size} px.')
        super().fit_to(gt_size)
