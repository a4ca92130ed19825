"""What our models add to BasicSR's: a step of any batch size in place of ``optimize_parameters``."""
from __future__ import annotations

import warnings
from collections import OrderedDict
from typing import Any

import torch
from basicsr.utils import get_root_logger
from mmengine.registry import HOOKS, OPTIM_WRAPPERS
from torch import nn

from sr_bigbatch.hosts.basicsr.model import growth, saved_state
from sr_bigbatch.hosts.basicsr.model.event_log import EventLog
from sr_bigbatch.hosts.basicsr.model.growth import replan
from sr_bigbatch.hosts.basicsr.model.validation import generate
from sr_bigbatch.hosts.basicsr.plan import automatic
from sr_bigbatch.hosts.basicsr.plan.settings import audit, read_plan, rehearse
from sr_bigbatch.hosts.losses import HostLosses
from sr_bigbatch.hosts.mmengine.optim_wrapper import WRAPPER
from sr_bigbatch.hosts.registered import build_registered
from sr_bigbatch.memory.device import usable_bytes
from sr_bigbatch.memory.predict import Plan
from sr_bigbatch.options import OptionError, unshared
from sr_bigbatch.progressive.batch_schedule import BatchSchedule
from sr_bigbatch.progressive.crop_size import set_crop_size
from sr_bigbatch.step.audit import table
from sr_bigbatch.step.distributed import rank, same_everywhere, world_size, worst
from sr_bigbatch.step.noise_scale import verdict
from sr_bigbatch.step.plan import StepPlan
from sr_bigbatch.step.report import Event, StepReport
from sr_bigbatch.step.trial import PoisonedWeights
from sr_bigbatch.step.update import Verdict


class Accumulating:
    """To be put before a model of BasicSR. The model says in ``build_step`` and ``run_step`` what a step is."""

    loss_prefix: str

    def __init__(self, opt: dict[str, Any]) -> None:
        if opt['num_gpu'] > 1 and not opt['dist']:
            raise OptionError([f'num_gpu is {opt["num_gpu"]} in one process: use num_gpu: 1, or one process per GPU '
                               '(torchrun --nproc_per_node=K ... --launcher pytorch)'])
        self.current_iter, self.restores = 0, 0
        self.report: StepReport | None = None
        self.events, self.files = EventLog(), list[str]()
        self.growths: list[str] = []
        self.saved_plan: dict[str, int] | None = None
        self.idle: list[int] = []  # optimizers whose network was left as it is in the last iteration
        self.budget_bytes = self._budget(opt)
        self.stage_plans = growth.plan_later_stages(opt, self.budget_bytes)
        self.automatic: Plan | None = None
        self.chooses_micro = opt['train'].get('micro_batch_size') == 'auto'
        if automatic.is_automatic(opt):
            self.automatic = automatic.choose_plan(opt, int(opt['datasets']['train']['gt_size']), self.budget_bytes)
            automatic.fill_in(opt, self.automatic)
        super().__init__(opt)  # type: ignore[call-arg]

    @staticmethod
    def _budget(opt: dict[str, Any]) -> int:
        budget = opt['train'].get('memory_budget_gb')
        device = torch.device('cuda' if opt['num_gpu'] > 0 else 'cpu')
        return usable_bytes(device) if budget is None else int(budget * 1e9)

    def model_to_device(self: Any, net: nn.Module) -> nn.Module:
        """Move a network to the device. Gradients are synchronised by the step, so nothing is wrapped."""
        net = net.to(self.device)
        same_everywhere(net)
        return net

    def init_training_settings(self: Any) -> None:
        """Let the host build networks, losses and optimizers, then build the step around them."""
        self.opt['train'] = unshared(self.opt['train'])
        super().init_training_settings()  # type: ignore[misc]
        wrapper = {**WRAPPER, **self.opt['train'].get('optim_wrapper', {})}
        self.optim_wrappers = [build_registered(OPTIM_WRAPPERS, wrapper, 'train.optim_wrapper', optimizer=optimizer)
                               for optimizer in self.optimizers]
        self.dtype = self.optim_wrappers[0].cast_dtype
        self.losses = HostLosses(self.loss_prefix, self.cri_pix, self.cri_perceptual)
        for label, net in saved_state.networks(self).items():
            if label != 'net_d':
                net.to(  # type: ignore[call-overload]
                    memory_format=torch.channels_last)  # a fifth faster; the discriminator is not: docs/memory.md
        self.first_plan = self._plan()
        self.step = self.build_step(self.first_plan)
        self._refuse_inexact(self.first_plan)
        if self.automatic is not None:
            self.first_plan = rehearse(self, self.automatic, self.budget_bytes)
        schedule = self.opt['train'].get('batch_schedule')
        self.batch_schedule = None if schedule is None else BatchSchedule(schedule, self.effective_batch, world_size())
        self.hooks = [build_registered(HOOKS, settings, 'custom_hooks') for settings in self.opt.get('custom_hooks') or []]
        for hook in self.hooks:
            hook.before_train(self)

    def _plan(self: Any) -> StepPlan:
        batch_size, net_d = int(self.opt['datasets']['train']['batch_size_per_gpu']), getattr(self, 'net_d', None)
        plan = read_plan(self.opt, net_d)
        memory = self.opt['network_g'].get('activation_memory')
        get_root_logger().info(
            f'Effective batch {batch_size * world_size()} in {world_size()} process(es), '
            f'{"exact" if plan.exact else "plain"} accumulation. Samples at a time: generator {plan.micro.generator}, '
            f'pixel and perceptual losses {plan.micro.perceptual}, discriminator {plan.micro.discriminator}. '
            f'Generator graphs kept: {plan.kept_graphs}. Dtype: {self.dtype}.'
            f'{"" if memory is None else f" Activation memory: {memory}."}')
        return plan

    def _refuse_inexact(self: Any, plan: StepPlan) -> None:
        findings = audit(self, plan)
        get_root_logger().info(f'Is the update that of the whole batch?\n{table(findings)}')
        wrong = [f'{finding.part}: {finding.because}' for finding in findings if not finding.exact]
        if plan.exact and wrong:
            raise OptionError([*wrong, 'so the update would not be that of the whole batch. Change what is named, or let it '
                               'see the whole batch in one process (train.micro_batch_size), or accept the difference '
                               '(train.accumulation: plain)'])

    def feed_data(self: Any, data: dict[str, Any]) -> None:
        """Take a batch and leave it where it is: the step moves what a micro-batch needs to the device."""
        self.lq, self.files = data['lq'], [str(path) for path in data.get('gt_path', data.get('lq_path', ()))]
        if 'gt' in data:
            self.gt = data['gt']

    def optimize_parameters(self: Any, current_iter: int) -> None:
        """Make one update from the batch of ``feed_data``."""
        self.current_iter = current_iter
        batch = {'lq': self.lq, 'gt': self.gt}
        for hook in self.hooks:
            hook.before_train_iter(self, current_iter, batch)
        self.lq, self.gt = self._scheduled(batch['lq'], batch['gt'])
        try:
            self.report = self.run_step(current_iter)
        except PoisonedWeights as error:
            self.report = self._restored(str(error))
        self.events.take(current_iter, self.report.events, self.files)
        self.idle = [index for index, name in enumerate('gd'[:len(self.optimizers)])
                     if self.report.verdicts.get(name) is Verdict.REFUSED or not self.report.losses]
        if self.report.output is not None:
            self.output = self.report.output
        if self.ema_decay > 0 and self.report.verdicts.get('g') is Verdict.COMMITTED:
            self.model_ema(decay=self.ema_decay)
        for hook in self.hooks:
            hook.after_train_iter(self, current_iter, batch)

    def _scheduled(self: Any, lq: torch.Tensor, gt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As much of a batch as ``train.batch_schedule`` says."""
        if self.batch_schedule is None:
            return lq, gt
        noise, before = self.optim_wrappers[0].safe_update.noise.value, self.batch_schedule.size
        if noise is not None:
            noise = worst(int(noise), self.device)  # every process must choose the same
        size = self.batch_schedule.at(self.current_iter, noise)
        if size != before:
            get_root_logger().info(f'Iteration {self.current_iter}: the effective batch is now {size}.')
        return lq[:size // world_size()], gt[:size // world_size()]

    def _restored(self: Any, reason: str) -> StepReport:
        saved = saved_state.return_to_last_good(self, reason)
        return StepReport({}, None, {}, [Event('weights restored', 'all', f'{reason}; back to iteration {saved}')])

    def update_learning_rate(self: Any, current_iter: int, warmup_iter: int = -1) -> None:
        """Move the schedules on, but not that of a network whose last step was refused or left out."""
        schedulers, idle = self.schedulers, [self.optimizers[index] for index in self.idle]
        self.schedulers = [scheduler for scheduler in schedulers if scheduler.optimizer not in idle]
        super().update_learning_rate(current_iter, warmup_iter)  # type: ignore[misc]
        self.schedulers = schedulers

    def test(self) -> None:
        """Generate the validation image. One that does not fit is tried with all memory released, then on the CPU."""
        generate(self, super().test)  # type: ignore[misc]

    def get_current_log(self: Any) -> OrderedDict[str, float]:
        """Losses of the last iteration, over the whole batch of all processes; loss scales; counters of events."""
        losses = {} if self.report is None else self.report.losses
        scales = {f'scale_{name}': wrapper.safe_update.scale
                  for name, wrapper in zip('gd', self.optim_wrappers, strict=False) if self.dtype is torch.float16}
        noise = {f'noise_scale_{name}': wrapper.safe_update.noise.value
                 for name, wrapper in zip('gd', self.optim_wrappers, strict=False)}
        return OrderedDict({**{name: value.item() for name, value in losses.items()}, **scales, **self.events.values(),
                            **{name: value for name, value in noise.items() if value is not None}})

    @property
    def effective_batch(self: Any) -> int:
        """Images of an iteration, in all processes."""
        return int(self.opt['datasets']['train']['batch_size_per_gpu']) * world_size()

    @property
    def batches_under_way(self: Any) -> int:
        """How many batches BasicSR's loaders and prefetchers may have begun before they are asked for."""
        data = self.opt['datasets']['train']
        workers = int(data.get('num_worker_per_gpu', 0)) * (1 if self.opt['dist'] else max(1, self.opt['num_gpu']))
        prefetched = {'cpu': int(data.get('num_prefetch_queue', 1)) + 1, 'cuda': 1}
        return 2 * workers + prefetched.get(data.get('prefetch_mode'), 0)

    def set_gt_size(self: Any, gt_size: int) -> None:
        """Tell the data set the crop size that is needed next."""
        if not set_crop_size(gt_size) and gt_size != self.opt['datasets']['train']['gt_size']:
            raise OptionError(['the crop size cannot change: set datasets.train.type to ProgressivePairedImageDataset'])

    def enter_stage(self: Any, gt_size: int, batch: dict[str, Any], growth: str, lr_factor: float) -> None:
        """Make the micro-batches fit crops of this size; the effective batch stays."""
        if gt_size != self.opt['datasets']['train']['gt_size']:
            replan(self, gt_size, len(batch['gt']) * world_size())

    def set_fade(self, share: float) -> None:
        """Nothing: without a discriminator nothing is faded in."""

    def save(self: Any, epoch: int, current_iter: int) -> None:
        """Save as BasicSR does, but never weights that are not finite: those go back to the last good ones."""
        broken = saved_state.not_finite(self)
        if broken:
            saved_state.return_to_last_good(self, f'{len(broken)} tensors are not finite, {broken[0]} first')
        with saved_state.one_set(self, current_iter):
            super().save(epoch, current_iter)  # type: ignore[misc]
        if current_iter == -1:
            get_root_logger().info(self.events.summary())
            for name, wrapper in zip(('generator', 'discriminator'), self.optim_wrappers, strict=False):
                noise = wrapper.safe_update.noise.value
                if noise is not None:
                    get_root_logger().info(verdict(name, noise, self.effective_batch))

    def save_network(self: Any, net: Any, net_label: str, current_iter: int, param_key: Any = 'params') -> None:
        """Write ``NET_LABEL_ITERATION.pth`` whole or not at all."""
        nets, keys = (value if isinstance(value, list) else [value] for value in (net, param_key))
        if rank() == 0:
            saved_state.save_networks(self, net_label, current_iter, dict(zip(keys, nets, strict=True)))

    def load_network(self: Any, net: nn.Module, load_path: str, strict: bool = True, param_key: str = 'params') -> None:
        """Load weights as BasicSR does, from files that hold nothing but tensors."""
        weights = saved_state.weights_of(load_path, param_key)
        self._print_different_keys_loading(net, weights, strict)
        net.load_state_dict(weights, strict=strict)

    def save_training_state(self: Any, epoch: int, current_iter: int) -> None:
        """Write ``ITERATION.state`` whole or not at all."""
        if current_iter != -1 and rank() == 0:
            saved_state.save_training_state(self, epoch, current_iter)

    def resume_training(self: Any, resume_state: dict[str, Any]) -> None:
        """Restore optimizers, schedulers and our own state, and tell the hooks where the run stands."""
        super().resume_training(resume_state)  # type: ignore[misc]
        # The optimizer has made a step before the schedule's first, but in the process that saved; torch would warn of none
        warnings.filterwarnings('ignore', 'Detected call of `lr_scheduler.step', UserWarning)
        saved_state.load_our_state(self, resume_state)
        self.current_iter = resume_state['iter'] + 1
        for hook in self.hooks:
            hook.before_train(self)
