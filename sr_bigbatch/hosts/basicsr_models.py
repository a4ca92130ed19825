"""BasicSR models that take a whole effective batch as one iteration and work through it in micro-batches."""
from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Any

import torch
from basicsr.models.esrgan_model import ESRGANModel
from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from mmengine.registry import HOOKS, OPTIM_WRAPPERS
from torch import nn

from sr_bigbatch.core.audit import table
from sr_bigbatch.core.batch import StepPlan
from sr_bigbatch.core.distributed import same_everywhere, world_size
from sr_bigbatch.core.elastic_plan import ElasticPlan
from sr_bigbatch.core.growth import add_to_optimizer
from sr_bigbatch.core.memory import usable_bytes
from sr_bigbatch.core.replay import batch_norms
from sr_bigbatch.core.report import StepReport
from sr_bigbatch.core.step import AdversarialStep
from sr_bigbatch.core.supervised_step import SupervisedStep
from sr_bigbatch.core.update import Verdict
from sr_bigbatch.hosts.basicsr_data import set_gt_size
from sr_bigbatch.hosts.basicsr_losses import HostLosses
from sr_bigbatch.hosts.basicsr_plan import audit, read_plan
from sr_bigbatch.hosts.basicsr_predict import automatic_micro_batch
from sr_bigbatch.nets.vgg_discriminator import GrowableVGGDiscriminator
from sr_bigbatch.options import OptionError

_WRAPPER = {'type': 'OverflowSafeOptimWrapper', 'dtype': 'float32'}


class _Accumulating:
    """What both models add to BasicSR's: the step in place of ``optimize_parameters``, the wrapper, the hooks."""

    loss_prefix: str

    def __init__(self, opt: dict[str, Any]) -> None:
        if opt['num_gpu'] > 1 and not opt['dist']:
            raise OptionError([f'num_gpu is {opt["num_gpu"]} in one process: use num_gpu: 1, or one process per GPU '
                               '(torchrun --nproc_per_node=K ... --launcher pytorch)'])
        self.current_iter = 0
        self.report: StepReport | None = None
        super().__init__(opt)  # type: ignore[call-arg]

    def model_to_device(self: Any, net: nn.Module) -> nn.Module:
        """Move a network to the device. Gradients are synchronised by the step, so nothing is wrapped."""
        net = net.to(self.device)
        same_everywhere(net)
        return net

    def init_training_settings(self: Any) -> None:
        """Let the host build networks, losses and optimizers, then build the step around them."""
        super().init_training_settings()  # type: ignore[misc]
        wrapper = {**_WRAPPER, **self.opt['train'].get('optim_wrapper', {})}
        self.optim_wrappers = [OPTIM_WRAPPERS.build({**wrapper, 'optimizer': optimizer}) for optimizer in self.optimizers]
        self.dtype = self.optim_wrappers[0].cast_dtype
        self.losses = HostLosses(self.loss_prefix, self.cri_pix, self.cri_perceptual)
        self.first_gt_size = self.gt_size = self.opt['datasets']['train']['gt_size']
        self.first_plan = self._plan()
        self.step = self.build_step(self.first_plan)
        self._refuse_inexact(self.first_plan)
        self.hooks = [HOOKS.build(dict(settings)) for settings in self.opt.get('custom_hooks') or []]

    def _plan(self: Any) -> StepPlan:
        batch_size, net_d = int(self.opt['datasets']['train']['batch_size_per_gpu']), getattr(self, 'net_d', None)
        plan = read_plan(self.opt, net_d, self._automatic_micro_batch)
        get_root_logger().info(
            f'Effective batch {batch_size * world_size()} in {world_size()} process(es), '
            f'{"exact" if plan.exact else "plain"} accumulation. Samples at a time: generator {plan.micro.generator}, '
            f'pixel and perceptual losses {plan.micro.perceptual}, discriminator {plan.micro.discriminator}. '
            f'Generator graphs kept: {plan.kept_graphs}. Dtype: {self.dtype}.')
        return plan

    def _refuse_inexact(self: Any, plan: StepPlan) -> None:
        findings = audit(self, plan)
        get_root_logger().info(f'Is the update that of the whole batch?\n{table(findings)}')
        wrong = [f'{finding.part}: {finding.because}' for finding in findings if not finding.exact]
        if plan.exact and wrong:
            raise OptionError([*wrong, 'so the update would not be that of the whole batch. Change what is named, or let it '
                               'see the whole batch in one process (train.micro_batch_size), or accept the difference '
                               '(train.accumulation: plain)'])

    def _automatic_micro_batch(self: Any, batch_size: int) -> int:
        budget = self.opt['train'].get('memory_budget_gb')
        return automatic_micro_batch(self.opt, batch_size,
                                     usable_bytes(self.device) if budget is None else int(budget * 1e9))

    def optimize_parameters(self: Any, current_iter: int) -> None:
        """Make one update from the batch of ``feed_data``."""
        self.current_iter = current_iter
        batch = {'lq': self.lq, 'gt': self.gt}
        for hook in self.hooks:
            hook.before_train_iter(self, current_iter, batch)
        self.report = self.run_step(current_iter)
        self.output = self.report.output
        if self.ema_decay > 0 and self.report.verdicts.get('g') is Verdict.COMMITTED:
            self.model_ema(decay=self.ema_decay)
        for hook in self.hooks:
            hook.after_train_iter(self, current_iter, batch)

    def get_current_log(self) -> OrderedDict[str, float]:
        """Losses of the last iteration, over the whole batch of all processes."""
        losses = {} if self.report is None else self.report.losses
        return OrderedDict((name, value.item()) for name, value in losses.items())

    def set_gt_size(self: Any, gt_size: int) -> None:
        """Tell the data set the crop size of the stage."""
        if gt_size != self.gt_size and not set_gt_size(gt_size):
            raise OptionError(['the crop size cannot change: set datasets.train.type to ProgressivePairedImageDataset'])
        self.gt_size = gt_size

    def fit_to(self: Any, gt_size: int) -> None:
        """Shrink the micro-batches for crops of this size; the effective batch stays."""
        micro = self.first_plan.micro.for_crop(self.first_gt_size, gt_size)
        if hasattr(self, 'net_d') and batch_norms(self.net_d):
            micro = replace(micro, discriminator=self.first_plan.micro.discriminator)
        self.step.recovery.plan = ElasticPlan(replace(self.first_plan, micro=micro))

    def resume_training(self: Any, resume_state: dict[str, Any]) -> None:
        """Restore optimizers and schedulers, and tell the hooks where the run stands."""
        super().resume_training(resume_state)  # type: ignore[misc]
        self.current_iter = resume_state['iter'] + 1
        for hook in self.hooks:
            hook.after_load_checkpoint(self, resume_state)


@MODEL_REGISTRY.register()
class AccumulatingSRModel(_Accumulating, SRModel):  # type: ignore[misc]
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
class AccumulatingESRGANModel(_Accumulating, ESRGANModel):  # type: ignore[misc]
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
