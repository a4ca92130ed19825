"""What our models add to BasicSR's: a step of any batch size in place of ``optimize_parameters``."""
from __future__ import annotations

import logging
import warnings
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from basicsr.utils import get_root_logger
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, OPTIM_WRAPPERS
from torch import nn

from sr_bigbatch.hosts.basicsr.model import saved_state
from sr_bigbatch.hosts.basicsr.model.event_log import EventLog
from sr_bigbatch.hosts.basicsr.model.growth import recall_plan, replan
from sr_bigbatch.hosts.basicsr.model.host import Batch, TrainingState
from sr_bigbatch.hosts.basicsr.model.validation import generate, validate
from sr_bigbatch.hosts.basicsr.plan.automatic import choose_plan, plan_later_stages
from sr_bigbatch.hosts.basicsr.plan.rehearsal import rehearse
from sr_bigbatch.hosts.basicsr.settings import SEVERAL_GPUS, Options, TrainingSettings
from sr_bigbatch.hosts.basicsr.weights import weights_of
from sr_bigbatch.hosts.losses import HostLosses
from sr_bigbatch.hosts.mmengine.optim_wrapper import OverflowSafeOptimWrapper
from sr_bigbatch.hosts.registered import build_registered
from sr_bigbatch.memory.allocator import has_expandable_segments
from sr_bigbatch.memory.device import usable_bytes
from sr_bigbatch.memory.predict import Plan
from sr_bigbatch.memory.target import Target
from sr_bigbatch.nets.arrangement import arrange
from sr_bigbatch.options import OptionError, unshared
from sr_bigbatch.progressive.batch_schedule import BatchSchedule
from sr_bigbatch.progressive.crop_size import set_crop_size
from sr_bigbatch.step.arithmetic import set_tf32
from sr_bigbatch.step.audit import table
from sr_bigbatch.step.base import Step
from sr_bigbatch.step.check import NotExact
from sr_bigbatch.step.distributed import rank, same_everywhere, world_size, worst
from sr_bigbatch.step.noise_scale import batch_size_advice
from sr_bigbatch.step.overflow_guard import PoisonedWeights
from sr_bigbatch.step.plan import StepPlan, in_words
from sr_bigbatch.step.report import Event, StepReport
from sr_bigbatch.step.update import Verdict
from sr_bigbatch.step.words import count

if TYPE_CHECKING:
    from sr_bigbatch.hosts.basicsr.model.host import HostModel
else:
    HostModel = object  # BasicSR's own class stands behind ours; its type stands in for it


class Accumulating(HostModel):
    """To be put before a model of BasicSR. The model says in ``build_step`` and ``run_step`` what a step is.

    Attributes:
        settings: what the options say, with a plan in the place of ``auto``.
        first_plan: how the batches of the first stage are cut.
        stage_plans: what was predicted for later stages, by crop size.
        automatic: the plan that was chosen for ``auto``; None if nothing was left to the program.
        step: makes the updates.
        report: of the last step.
        growths: ways in which the discriminator has grown.
        idle: optimizers whose network was left as it is in the last iteration.
        refusals: how often in a row the gradient of a network was refused, by ``g`` and ``d``.
        restores: how often the last good weights were restored.
        told: about saves that could not be removed.
        fingerprint: of the run, for its training states; None in a script.
    """

    loss_prefix: str
    step: Step

    def __init__(self, opt: Options) -> None:
        opt = unshared(opt)  # BasicSR takes sections apart
        given = TrainingSettings.from_options(opt)
        if given.gpus > 1 and not opt.get('dist'):
            raise OptionError([SEVERAL_GPUS.format(given.gpus)])
        set_tf32(given.tf32)
        self.current_iter, self.restores = 0, 0
        self.report: StepReport | None = None
        self.events, self.files, self.told = EventLog(), list[str](), list[str]()
        self.fingerprint: Mapping[str, Any] | None = None
        self.growths: list[str] = []
        self.saved_plan: Options | None = None
        self.idle: list[int] = []
        self.refusals: Counter[str] = Counter()
        device = torch.device('cuda' if given.gpus else 'cpu')
        self.budget_bytes = usable_bytes(device) if given.budget_bytes is None else given.budget_bytes
        target = Target(device.type, has_expandable_segments(), world_size())
        self.stage_plans = plan_later_stages(given, self.budget_bytes, target)
        self.chooses_micro = given.micro_batch_size is None
        self.automatic: Plan | None = None
        if given.data is not None and given.is_automatic:
            self.automatic = choose_plan(given, given.data.gt_size, self.budget_bytes, target)
        self.settings = given if self.automatic is None else given.with_plan(self.automatic)
        super().__init__({**opt, 'network_g': self.settings.network_g, 'num_gpu': given.gpus})

    def build_step(self, plan: StepPlan) -> Step:
        """Build the step around the networks, losses and optimizer wrappers."""
        raise NotImplementedError

    def run_step(self, current_iter: int) -> StepReport:
        """Make one update."""
        raise NotImplementedError

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """Move a network to the device. Gradients are synchronised by the step, so nothing is wrapped."""
        net = net.to(self.device)
        same_everywhere(net)
        return net

    def init_training_settings(self) -> None:
        """Let the host build networks, losses and optimizers, then build the step around them."""
        super().init_training_settings()
        settings = self.settings
        self.optim_wrappers: list[OverflowSafeOptimWrapper] = [
            build_registered(OPTIM_WRAPPERS, settings.optim_wrapper, 'train.optim_wrapper', optimizer=optimizer)
            for optimizer in self.optimizers]
        self.dtype = self.optim_wrappers[0].cast_dtype
        self.losses = HostLosses(self.loss_prefix, self.cri_pix, self.cri_perceptual)
        arrange(*saved_state.networks(self).values(), self.losses.extractor)
        self.step = self.build_step(settings.plan(getattr(self, 'net_d', None)))
        self._refuse_inexact()
        self.first_plan = self.step.plan
        self._say_plan()
        if self.automatic is not None and settings.data is not None:
            self.first_plan = rehearse(self, settings.data, self.automatic)
        schedule = settings.batch_schedule
        self.batch_schedule = None if schedule is None else BatchSchedule(schedule, self.effective_batch, world_size())
        self.hooks: list[Hook] = [build_registered(HOOKS, hook, 'custom_hooks') for hook in settings.hooks]
        for hook in self.hooks:
            hook.before_train(self)

    def _say_plan(self) -> None:
        plan, settings = self.first_plan, self.settings
        processes = f'in {count(world_size(), "process", "processes")}'
        effective = '' if settings.data is None else f'Effective batch {self.effective_batch} {processes}, '
        memory = '' if settings.activation_memory is None else f' Activation memory: {settings.activation_memory}.'
        get_root_logger().info(
            f'{effective}{"exact" if plan.exact else "plain"} accumulation. Samples at a time: generator '
            f'{in_words(plan.micro.generator)}, pixel and perceptual losses {in_words(plan.micro.perceptual)}, '
            f'discriminator {in_words(plan.micro.discriminator)}. Generator graphs kept: {in_words(plan.kept_graphs)}. '
            f'Dtype: {self.dtype}.{memory}')

    def _refuse_inexact(self) -> None:
        """Check before the first batch, where the options say what it will look like."""
        data, scale, channels = self.settings.data, self.settings.scale, self.settings.channels
        if data is None:
            return  # the step checks when it sees its first batch
        size = getattr(getattr(self, 'net_d', None), 'input_size', data.gt_size)  # of a resumed, grown one
        lq, gt = torch.empty(1, channels, size // scale, size // scale), torch.empty(1, channels, size, size)
        try:
            findings = self.step.check(lq, gt, data.batch_size)
        except NotExact as error:
            get_root_logger().info(f'Is the update that of the whole batch?\n{table(self.step.findings)}')
            raise OptionError([f'{finding.part}: {finding.because}' for finding in error.findings] + [
                'so the update would not be that of the whole batch. Change what is named, or let it see the whole batch in '
                'one process (train.micro_batch_size), or accept the difference (train.accumulation: plain)']) from error
        get_root_logger().info(f'Is the update that of the whole batch?\n{table(findings)}')

    def feed_data(self, data: Batch) -> None:
        """Take a batch and leave it where it is: the step moves what a micro-batch needs to the device."""
        self.lq, self.files = data['lq'], [str(path) for path in data.get('gt_path', data.get('lq_path', []))]
        if 'gt' in data:
            self.gt = data['gt']

    def optimize_parameters(self, current_iter: int) -> None:
        """Make one update from the batch of ``feed_data``."""
        self.current_iter, self.output = current_iter, None  # those of the last iteration are in the way
        batch: Batch = {'lq': self.lq, 'gt': self.gt}
        for hook in self.hooks:
            hook.before_train_iter(self, current_iter, batch)
        self.lq, self.gt = self._scheduled(batch['lq'], batch['gt'])
        try:
            self.report = self.run_step(current_iter)
        except PoisonedWeights as error:
            self.report = self._restored(str(error))
        self.report = self._unless_stuck(self.report)
        self.events.take(current_iter, self.report.events, self.files)
        self.idle = [index for index, name in enumerate('gd'[:len(self.optimizers)])
                     if self.report.verdicts.get(name) is Verdict.REFUSED or not self.report.losses]
        if self.report.output is not None:
            self.output = self.report.output
        if self.ema_decay > 0 and self.report.verdicts.get('g') is Verdict.COMMITTED:
            self.model_ema(decay=self.ema_decay)
        for hook in self.hooks:
            hook.after_train_iter(self, current_iter, batch)

    def _scheduled(self, lq: torch.Tensor, gt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
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

    def _unless_stuck(self, report: StepReport) -> StepReport:
        """The report of a step; a network that is refused again and again is answered as one whose weights are broken."""
        for name, verdict in report.verdicts.items():
            self.refusals[name] = self.refusals[name] + 1 if verdict is Verdict.REFUSED else 0
        stuck = [name for name, times in self.refusals.items() if times >= saved_state.MOST_REFUSALS]
        if not stuck:
            return report
        restored = self._restored(f'the gradient of {" and ".join(f"net_{name}" for name in stuck)} was refused '
                                  f'{saved_state.MOST_REFUSALS} times in a row')
        return replace(restored, events=[*report.events, *restored.events])

    def _restored(self, reason: str) -> StepReport:
        self.refusals.clear()
        saved = saved_state.return_to_last_good(self, reason)
        return StepReport({}, None, {}, [Event('weights restored', 'all', f'{reason}; back to iteration {saved}')])

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """Move the schedules on, but not that of a network whose last step was refused or left out."""
        schedulers, idle = self.schedulers, [self.optimizers[index] for index in self.idle]
        self.schedulers = [scheduler for scheduler in schedulers if scheduler.optimizer not in idle]
        super().update_learning_rate(current_iter, warmup_iter)
        self.schedulers = schedulers

    def test(self) -> None:
        """Generate the validation image. One that does not fit is tried with all memory released, then on the CPU."""
        generate(self, super().test)

    def nondist_validation(self, dataloader: Any, current_iter: int, tb_logger: Any, save_img: bool) -> None:
        """Generate and judge the images of a validation set; a metric that fails on one image loses that image alone."""
        validate(self, dataloader, current_iter, tb_logger, save_img)

    @property
    def log_dict(self) -> dict[str, float]:
        """What is logged of the last iteration; a GPU is waited for only by who asks."""
        return self.get_current_log()

    @log_dict.setter
    def log_dict(self, log: dict[str, float]) -> None:
        """BasicSR's own update sets it; what counts is the report of ours."""

    def get_current_log(self) -> OrderedDict[str, float]:
        """Losses of the last iteration, over the whole batch of all processes; loss scales; counters of events.

        With ``train.verify_every``, also ``verify_g`` and ``verify_d``: how far the gradients of the batch that was compared
        last are from those of the undivided one, relative to their length.
        """
        losses = {} if self.report is None else self.report.losses
        values = torch.stack([value.double() for value in losses.values()]).tolist() if losses else []
        scales = {f'scale_{name}': wrapper.safe_update.scale
                  for name, wrapper in zip('gd', self.optim_wrappers, strict=False) if self.dtype is torch.float16}
        noise = {f'noise_scale_{name}': wrapper.safe_update.noise.value
                 for name, wrapper in zip('gd', self.optim_wrappers, strict=False)}
        verified = self.step.last_verification if self.settings.verify_every else {}
        return OrderedDict({**dict(zip(losses, values, strict=True)), **scales, **self.events.values(),
                            **{f'verify_{name}': value for name, value in verified.items()},
                            **{name: value for name, value in noise.items() if value is not None}})

    @property
    def effective_batch(self) -> int:
        """Images of an iteration, in all processes."""
        return self.settings.batch_size * world_size()

    @property
    def batches_under_way(self) -> int:
        """How many batches BasicSR's loaders and prefetchers may have begun before they are asked for."""
        return 0 if self.settings.data is None else self.settings.data.batches_under_way

    def state_of_data(self) -> Mapping[str, Any] | None:
        """What the batches of a resumed run hang on beside seed and iteration; a training state holds it."""
        return None

    def set_gt_size(self, gt_size: int) -> None:
        """Tell the data set the crop size that is needed next."""
        if not set_crop_size(gt_size) and gt_size != self.settings.first_size:
            raise OptionError(['the crop size cannot change: set datasets.train.type to ProgressivePairedImageDataset'])

    def enter_stage(self, gt_size: int, batch: Batch, growth: str, lr_factor: float) -> None:
        """Make the micro-batches fit crops of this size; the effective batch stays."""
        if gt_size != self.settings.first_size:
            replan(self, gt_size, len(batch['gt']) * world_size())
        recall_plan(self)

    def set_fade(self, share: float) -> None:
        """Nothing: without a discriminator nothing is faded in."""

    def save(self, epoch: int, current_iter: int) -> None:
        """Save as BasicSR does, but never weights that are not finite: those go back to the last good ones."""
        broken = saved_state.not_finite(self)
        if broken:
            saved_state.return_to_last_good(self, f'{len(broken)} tensors are not finite, {broken[0]} first')
        with saved_state.one_set(self, current_iter):
            super().save(epoch, current_iter)
        if current_iter == -1:
            get_root_logger().info(self.events.summary())
            noise = {name: wrapper.safe_update.noise.value
                     for name, wrapper in zip(('generator', 'discriminator'), self.optim_wrappers, strict=False)}
            known = {name: value for name, value in noise.items() if value is not None}
            batch = self.effective_batch if self.batch_schedule is None else self.batch_schedule.size
            if known:
                get_root_logger().info(batch_size_advice(known, batch))

    def print_network(self, net: nn.Module) -> None:
        """A line for the screen; the modules of the network, hundreds of lines, go into the log file alone."""
        logger, text = get_root_logger(), f'{type(net).__name__}, {sum(map(torch.numel, net.parameters())):,d} parameters'
        logger.info(f'Network: {text}')
        record = logger.makeRecord(logger.name, logging.INFO, __file__, 0, str(net), (), None)
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                handler.handle(record)

    def save_network(self, net: nn.Module | list[nn.Module], net_label: str, current_iter: int,
                     param_key: str | list[str] = 'params') -> None:
        """Write ``NET_LABEL_ITERATION.pth`` whole or not at all."""
        nets, keys = net if isinstance(net, list) else [net], param_key if isinstance(param_key, list) else [param_key]
        if rank() == 0:
            saved_state.save_networks(self, net_label, current_iter, dict(zip(keys, nets, strict=True)))

    def load_network(self, net: nn.Module, load_path: str, strict: bool = True, param_key: str = 'params') -> None:
        """Load weights as BasicSR does, from files that hold nothing but tensors."""
        weights = weights_of(load_path, [param_key, self.opt['path'].get('param_key_g', param_key)])
        self._print_different_keys_loading(net, weights, strict)
        net.load_state_dict(weights, strict=strict)

    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """Write ``ITERATION.state`` whole or not at all."""
        if current_iter != -1 and rank() == 0:
            saved_state.save_training_state(self, epoch, current_iter)

    def resume_training(self, resume_state: TrainingState) -> None:
        """Restore optimizers, schedulers and our own state, and tell the hooks where the run stands."""
        super().resume_training(resume_state)
        # The optimizer has made a step before the schedule's first, but in the process that saved; torch would warn of none
        warnings.filterwarnings('ignore', 'Detected call of `lr_scheduler.step', UserWarning)
        saved_state.load_our_state(self, resume_state)
        self.current_iter = resume_state['iter'] + 1
        for hook in self.hooks:
            hook.before_train(self)
