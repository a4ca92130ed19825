"""What the options of a BasicSR training mean to us: read once, here; everything else takes typed fields."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sr_bigbatch.hosts.basicsr.synthesis.settings import REAL_ESRGAN, sharpened_for
from sr_bigbatch.hosts.mmengine.optim_wrapper import DTYPES, WRAPPER
from sr_bigbatch.memory.predict import Plan
from sr_bigbatch.options import OptionError
from sr_bigbatch.progressive.stages import Stage, parse_stages, stage_at
from sr_bigbatch.step.distributed import world_size
from sr_bigbatch.step.plan import WHOLE, MicroBatchSizes, StepPlan
from sr_bigbatch.step.replay import batch_norms

Options = dict[str, Any]
"""BasicSR's raw option tree, or a section of it, as its builders and mmengine's take it."""

SEVERAL_GPUS = ('num_gpu is {} in one process: use num_gpu: 1, or one process per GPU (torchrun --nproc_per_node=K ... '
                '--launcher pytorch)')
_GROWS = 'ProgressiveResolutionHook'


@dataclass(frozen=True)
class DataSettings:
    """The training set.

    Attributes:
        gt_size: of the crops of the first stage, in pixels.
        batch_size: of this process, in samples.
        batches_under_way: how many batches BasicSR's loaders and prefetchers may have begun before they are asked for.
    """

    gt_size: int
    batch_size: int
    batches_under_way: int = 0

    @classmethod
    def from_options(cls, opt: Options) -> DataSettings | None:
        """Those of ``datasets.train``; None where the options do not say what a batch looks like, as in a script."""
        data = (opt.get('datasets') or {}).get('train') or {}
        if 'gt_size' not in data or 'batch_size_per_gpu' not in data:
            return None
        workers = int(data.get('num_worker_per_gpu') or 0) * (1 if opt.get('dist') else max(1, gpus_of(opt)))
        prefetched = {'cpu': int(data.get('num_prefetch_queue', 1)) + 1, 'cuda': 1}
        return cls(int(data['gt_size']), int(data['batch_size_per_gpu']),
                   2 * workers + prefetched.get(str(data.get('prefetch_mode')), 0))


@dataclass(frozen=True)
class TrainingSettings:
    """What our models, the planner and the checks have to know of a training.

    Attributes:
        network_g, network_d: for the builders; there may be no discriminator.
        losses: settings of the ``pixel``, ``perceptual`` and ``gan`` loss, or None, for the builders.
        scale: of the generator.
        data: None where the options name no training set.
        micro_batch_size: samples at a time, one number for all parts or one each; None leaves it to the program.
        kept_graphs: how many of the generator's micro-batches keep their graph; None leaves it to the program.
        exact: False for plain accumulation.
        relativistic: False for the plain GAN of SRGAN.
        verify_every: iterations from one comparison with the undivided batch to the next; 0 for the first one alone.
        tf32: whether float32 may be rounded to TF32; None for what torch does.
        budget_bytes: what the training may use; None for what the device has.
        batch_schedule: of :class:`sr_bigbatch.progressive.batch_schedule.BatchSchedule`, or None.
        optim_wrapper: for mmengine's builder.
        averages: whether there is an averaged generator.
        stages: of a progressive run; none in another.
        prepends: whether the discriminator grows at its input.
        hooks: of mmengine, for its builder.
        gpus: of this process.
        sharpened: which of the ``pixel``, ``perceptual`` and ``gan`` loss see sharpened ground truth.
    """

    network_g: Options
    network_d: Options | None
    losses: Mapping[str, Options | None]
    scale: int
    data: DataSettings | None
    micro_batch_size: MicroBatchSizes | int | None
    kept_graphs: int | None
    exact: bool
    relativistic: bool
    verify_every: int
    tf32: bool | None
    budget_bytes: int | None
    batch_schedule: Any
    optim_wrapper: Options
    averages: bool
    stages: tuple[Stage, ...]
    prepends: bool
    hooks: tuple[Options, ...]
    gpus: int
    sharpened: frozenset[str]

    @classmethod
    def from_options(cls, opt: Options) -> TrainingSettings:
        """Read the options of a training, checked or of a script.

        Raises:
            OptionError: if the memory policy is left to the program, and the options do not say what a batch looks like.
            ValueError: for invalid values, of options that are not checked.
        """
        train, data = opt.get('train') or {}, DataSettings.from_options(opt)
        hooks = tuple(opt.get('custom_hooks') or ())
        by_itself = opt['network_g'].get('activation_memory') == 'auto'
        if by_itself and data is None:
            raise OptionError(['network_g.activation_memory is auto, which needs the crop and the batch of datasets.train: '
                               'give it as a value'])
        budget = train.get('memory_budget_gb')
        return cls(
            network_g=opt['network_g'], network_d=opt.get('network_d'),
            losses={name: train.get(f'{name}_opt') or None for name in ('pixel', 'perceptual', 'gan')},
            scale=int(opt.get('scale') or 1), data=data,
            micro_batch_size=_micro_batch_size(train.get('micro_batch_size'), data),
            kept_graphs=_kept_graphs(train.get('kept_graphs', None if by_itself else 0)),
            exact=train.get('accumulation', 'exact') == 'exact',
            relativistic=bool(train.get('relativistic_gan', opt.get('model_type') != REAL_ESRGAN)),
            verify_every=int(train.get('verify_every') or 0), tf32=train.get('tf32'),
            budget_bytes=None if budget is None else int(budget * 1e9),
            batch_schedule=train.get('batch_schedule'), optim_wrapper={**WRAPPER, **(train.get('optim_wrapper') or {})},
            averages=bool(train.get('ema_decay')), stages=stages_of(opt),
            prepends='prepend' in {hook.get('growth') for hook in hooks}, hooks=hooks, gpus=gpus_of(opt),
            sharpened=sharpened_for(opt))

    @property
    def batch_size(self) -> int:
        """Samples of a batch of this process; WHOLE where the options name no training set."""
        return WHOLE if self.data is None else self.data.batch_size

    @property
    def first_size(self) -> int | None:
        """Crop size of the first stage, in pixels; None where the options do not say it."""
        if self.data is not None:
            return self.data.gt_size
        return self.stages[0].gt_size if self.stages else None

    @property
    def channels(self) -> int:
        """Of an image; BasicSR's networks have three names for it."""
        names = ('num_in_ch', 'in_chans', 'in_channels')
        return next((int(self.network_g[name]) for name in names if name in self.network_g), 3)

    @property
    def activation_memory(self) -> Any:
        """What the generator keeps; ``auto`` leaves it to the program, None: it has no such option."""
        return self.network_g.get('activation_memory')

    @property
    def dtype(self) -> torch.dtype:
        """Of autocast."""
        return DTYPES[str(self.optim_wrapper['dtype'])]

    @property
    def is_automatic(self) -> bool:
        """Whether a part of the plan is left to the program."""
        return self.micro_batch_size is None or self.activation_memory == 'auto'

    def plan(self, net_d: nn.Module | None) -> StepPlan:
        """How the batch is cut; what is left to the program begins with the whole batch.

        Args:
            net_d: the discriminator. One with BatchNorm gets the whole batch where one number is given for all parts,
                because only that is exact.
        """
        batch, sizes, kept = self.batch_size, self.micro_batch_size, self.kept_graphs or 0
        adapts = not isinstance(sizes, MicroBatchSizes)
        if not isinstance(sizes, MicroBatchSizes):
            size = min(batch, WHOLE if sizes is None else sizes)
            sizes = MicroBatchSizes(size, size, batch if net_d is not None and batch_norms(net_d) else size)
        return StepPlan(sizes, batch if kept == WHOLE else kept, self.exact, adapts)

    def with_memory(self, policy: Any) -> TrainingSettings:
        """The same training with another ``activation_memory``; None: the generator has no such option."""
        return self if policy is None else replace(self, network_g={**self.network_g, 'activation_memory': policy})

    def with_plan(self, plan: Plan) -> TrainingSettings:
        """The same training with the values of a plan where the program was to choose."""
        chosen = self.with_memory(plan.memory) if self.activation_memory == 'auto' else self
        if chosen.kept_graphs is None:
            chosen = replace(chosen, kept_graphs=WHOLE if plan.kept else 0)
        return replace(chosen, micro_batch_size=plan.micro) if self.micro_batch_size is None else chosen

    def for_crop(self, gt_size: int) -> TrainingSettings:
        """The same training in other crops: one number for all parts changes, so that a micro-batch keeps its pixels."""
        if self.data is None or not isinstance(self.micro_batch_size, int):
            return self
        return replace(self, micro_batch_size=max(1, self.micro_batch_size * self.data.gt_size**2 // gt_size**2))


def _micro_batch_size(setting: Any, data: DataSettings | None) -> MicroBatchSizes | int | None:
    batch = WHOLE if data is None else data.batch_size
    if setting == 'auto':
        return WHOLE if data is None else None  # there the step begins with the whole batch, and cuts it where it must
    if isinstance(setting, dict):
        return MicroBatchSizes(**{part: min(int(size), batch) for part, size in setting.items()})
    return batch if setting is None else min(int(setting), batch)


def _kept_graphs(setting: Any) -> int | None:
    return WHOLE if setting == 'all' else None if setting is None else int(setting)


def gpus_of(opt: Options) -> int:
    """GPUs of this process: those that are asked for, but none where there is none; ``auto`` is one at most."""
    if not torch.cuda.is_available():
        return 0
    return 1 if opt.get('num_gpu') == 'auto' else int(opt.get('num_gpu') or 0)


def stages_of(opt: Options) -> tuple[Stage, ...]:
    """The stages of a progressive run; of another run there are none."""
    data = DataSettings.from_options(opt)
    batch = None if data is None else data.batch_size * world_size()
    hooks = [hook for hook in opt.get('custom_hooks') or [] if hook['type'] == _GROWS]
    return parse_stages(hooks[0]['stages'], batch) if hooks else ()


@dataclass(frozen=True)
class LoopSettings:
    """What the training loop has to know.

    Attributes:
        folder: of the experiment.
        seed: of weights and data order.
        total_iter: the last iteration.
        warmup_iter: iterations in which the learning rate rises; -1 for none.
        print_every, save_every: iterations from one log line, or save, to the next.
        validate_every: likewise; None for no validation.
        validate_first: whether to validate before the first iteration.
        save_images: whether validation images are kept.
        crop_sizes: the crop size of an iteration; None if it never changes.
    """

    folder: Path
    seed: int
    total_iter: int
    warmup_iter: int
    print_every: int
    save_every: int
    validate_every: int | None
    validate_first: bool
    save_images: bool
    crop_sizes: Callable[[int], int] | None

    @classmethod
    def from_options(cls, opt: Options) -> LoopSettings:
        """Read completed options."""
        train, val, logger, stages = opt['train'], opt.get('val') or {}, opt['logger'], stages_of(opt)
        return cls(Path(opt['path']['experiments_root']), int(opt['manual_seed']), int(train['total_iter']),
                   int(train.get('warmup_iter', -1)), int(logger['print_freq']), int(logger['save_checkpoint_freq']),
                   int(val['val_freq']) if val else None, bool(val.get('val_at_start')), bool(val.get('save_img', False)),
                   (lambda iteration: stage_at(stages, iteration).gt_size) if stages else None)
