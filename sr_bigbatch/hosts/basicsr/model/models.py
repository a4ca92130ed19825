"""BasicSR models that take a whole effective batch as one iteration and work through it in micro-batches."""
from __future__ import annotations

import torch
from basicsr.models.esrgan_model import ESRGANModel
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from torch import nn

from sr_bigbatch.hosts.basicsr.model.accumulating import Accumulating
from sr_bigbatch.hosts.basicsr.model.growth import enlarged, grow_to_match
from sr_bigbatch.hosts.basicsr.model.host import Batch, TrainingState
from sr_bigbatch.hosts.basicsr.model.saved_state import OURS
from sr_bigbatch.hosts.basicsr.weights import weights_of
from sr_bigbatch.nets.vgg_discriminator import GrowableVGGDiscriminator
from sr_bigbatch.nets.vgg_growth import grow_to, regroup
from sr_bigbatch.step.adversarial_step import AdversarialStep
from sr_bigbatch.step.distributed import same_everywhere
from sr_bigbatch.step.plan import StepPlan
from sr_bigbatch.step.report import StepReport
from sr_bigbatch.step.supervised_step import SupervisedStep


@MODEL_REGISTRY.register()
class AccumulatingSRModel(Accumulating, SRModel):  # type: ignore[misc]
    """BasicSR's ``SRModel`` at an effective batch of any size: the PSNR-oriented stage.

    Args:
        opt: the options of ``SRModel``, plus ``train.micro_batch_size`` and ``train.optim_wrapper``.
    """

    loss_prefix = 'l_'
    step: SupervisedStep

    def build_step(self, plan: StepPlan) -> SupervisedStep:
        """The step without discriminator."""
        return SupervisedStep(self.net_g, self.optim_wrappers[0].safe_update, self.losses, plan=plan, dtype=self.dtype,
                              verify_every=self.settings.verify_every)

    def run_step(self, current_iter: int) -> StepReport:
        """One update."""
        return self.step(self.lq, self.gt)


@MODEL_REGISTRY.register()
class AccumulatingESRGANModel(Accumulating, ESRGANModel):  # type: ignore[misc]
    """BasicSR's ``ESRGANModel`` at an effective batch of any size, with the update of the undivided batch.

    Args:
        opt: the options of ``ESRGANModel``, plus ``train.micro_batch_size``, ``train.kept_graphs``,
            ``train.accumulation``, ``train.relativistic_gan``, ``train.optim_wrapper`` and ``custom_hooks``.
    """

    loss_prefix = 'l_g_'
    step: AdversarialStep
    real_images: nn.Module | None = None

    def build_step(self, plan: StepPlan) -> AdversarialStep:
        """The step of generator and discriminator."""
        self.losses.artifact = getattr(self, 'cri_ldl', None)
        self.losses.ema_output = getattr(self, 'net_g_ema', None)
        update_g, update_d = (wrapper.safe_update for wrapper in self.optim_wrappers)
        return AdversarialStep(self.net_g, self.net_d, update_g, update_d, self.losses, self.cri_gan, plan=plan,
                               relativistic=self.settings.relativistic, dtype=self.dtype,
                               verify_every=self.settings.verify_every, real_images=self.real_images)

    def run_step(self, current_iter: int) -> StepReport:
        """One update of the discriminator and, where ``net_d_iters`` and ``net_d_init_iters`` say so, of the generator."""
        update_g = current_iter % self.net_d_iters == 0 and current_iter > self.net_d_init_iters
        return self.step(self.lq, self.gt, update_g=update_g)

    def load_network(self, net: nn.Module, load_path: str, strict: bool = True, param_key: str = 'params') -> None:
        """Load weights as BasicSR does; a growable discriminator grows to the size of the saved one, or that to its own."""
        if isinstance(net, GrowableVGGDiscriminator):
            state = weights_of(load_path, [param_key])
            larger = enlarged(net, state)
            if larger is not None:
                net.load_state_dict(larger.state_dict())
                same_everywhere(net)  # what it has grown by does not come from the file
                return
            grow_to_match(net, state)
        super().load_network(net, load_path, strict, param_key)

    def resume_training(self, resume_state: TrainingState) -> None:
        """Restore the state, with the parameter groups of a discriminator that had grown."""
        groups, ours = len(resume_state['optimizers'][1]['param_groups']), resume_state.get(OURS)
        self.growths = ours['growths'] if ours is not None and 'growths' in ours else ['append'] * (groups - 1)
        regroup(self.net_d, self.optimizer_d, self.schedulers, self.growths)
        super().resume_training(resume_state)

    def enter_stage(self, gt_size: int, batch: Batch, growth: str, lr_factor: float) -> None:
        """Let the discriminator grow and the micro-batches shrink; the effective batch stays."""
        if isinstance(self.net_d, GrowableVGGDiscriminator):
            images, seed = {'lq': batch['lq'], 'gt': batch['gt']}, self.opt.get('manual_seed')
            devices = [torch.cuda.current_device()] if self.device.type == 'cuda' else []
            with torch.random.fork_rng(devices):
                if seed is not None:  # new layers are the same in any number of processes
                    torch.manual_seed(seed + self.current_iter)
                for line in grow_to(self.net_g, self.net_d, self.optimizer_d, self.schedulers, images, gt_size, growth,
                                    lr_factor):
                    self.growths.append(growth)
                    get_root_logger().info(line)
        super().enter_stage(gt_size, batch, growth, lr_factor)

    def set_fade(self, share: float) -> None:
        """How much a prepended stage of the discriminator counts."""
        if isinstance(self.net_d, GrowableVGGDiscriminator) and self.net_d.prepended:
            self.net_d.set_fade(share)
