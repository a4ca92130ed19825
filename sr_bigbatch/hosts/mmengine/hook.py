"""Progressive resolution as an mmengine Hook."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from sr_bigbatch.hosts.mmengine.growth import RunnerTraining, cut_batch, width_of
from sr_bigbatch.hosts.mmengine.types import Settings, State
from sr_bigbatch.nets.vgg_growth import WAYS
from sr_bigbatch.progressive.stages import Stage, border_before, parse_stages, stage_at
from sr_bigbatch.step.distributed import world_size


@runtime_checkable
class Growing(Protocol):
    """A training whose crops and discriminator can grow.

    Attributes:
        current_iter: the running iteration, counted from 1.
        effective_batch: images of an iteration, in all processes.
        batches_under_way: how many batches a data loader may have begun before they are asked for.
        optimizers: of all networks.
    """

    @property
    def current_iter(self) -> int: ...  # noqa: D102
    @property
    def effective_batch(self) -> int: ...  # noqa: D102
    @property
    def batches_under_way(self) -> int: ...  # noqa: D102
    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]: ...  # noqa: D102

    def set_gt_size(self, gt_size: int) -> None:
        """Have the data loader cut crops of this size from now on; batches under way keep theirs."""

    def enter_stage(self, gt_size: int, batch: dict[str, Any], growth: str, lr_factor: float) -> None:
        """Make networks and micro-batches fit crops of this size; ``batch`` is the first of them."""

    def set_fade(self, share: float) -> None:
        """How much a prepended stage of the discriminator counts, 0..1."""


@HOOKS.register_module()
class ProgressiveResolutionHook(Hook):  # type: ignore[misc]
    """Trains on larger crops from stage to stage, with a discriminator that grows and an effective batch that does not
    shrink.

    A border falls on its iteration exactly. The data loader is told the new size before, so that no batch that comes
    after the border is of the old size; batches that come before it and are already of the new size are cut.

    Everything that depends on the iteration is computed from it, so a resumed run goes on as the uninterrupted one would.

    Args:
        stages: ``[{gt_size: 128, until: 200000}, {gt_size: 256}]``: crop size in pixels and last iteration, or
            ``until_images`` in images shown since the beginning. ``batch_size`` gives a stage an effective batch of its own.
        growth: how the discriminator grows: ``append`` (as BasicSR's larger one) or ``prepend`` (faded in); see
            :mod:`sr_bigbatch.nets.vgg_growth`. Discriminators for any size, as U-Nets, do not grow.
        fade_iters: with ``prepend``, iterations until a new stage counts in full.
        new_lr_factor: learning rate of new parameters over that of the others.
        warmup_iters: iterations after a border in which all learning rates rise from 0 to what their schedules say.
        change_effective_batch: must be true for a stage with ``batch_size``: a smaller batch at the border is what makes
            results worse.
        lead: batches under way at most; None for what the options of the data loader say.

    Raises:
        ValueError: if the stages do not follow one another, a number is out of its range, or a stage would change the
            effective batch without being told so.
    """

    def __init__(self, stages: list[Settings], growth: str = 'append', fade_iters: int = 0, new_lr_factor: float = 1.0,
                 warmup_iters: int = 0, change_effective_batch: bool = False, lead: int | None = None) -> None:
        if not any('until_images' in stage for stage in stages):  # those need to know the effective batch
            parse_stages(stages)
        if growth not in WAYS:
            raise ValueError(f'growth must be one of {", ".join(WAYS)}, got {growth!r}')
        if fade_iters < 0 or warmup_iters < 0 or not new_lr_factor > 0 or (lead is not None and lead < 0):
            raise ValueError('fade_iters, warmup_iters and lead must not be negative, and new_lr_factor must be positive, '
                             f'got {fade_iters}, {warmup_iters}, {lead} and {new_lr_factor}')
        if fade_iters and growth == 'append':
            raise ValueError('fade_iters is for growth: prepend; an appended stage starts by passing on what it is given')
        for number, stage in enumerate(stages, 1):
            if 'batch_size' in stage and not change_effective_batch:
                raise ValueError(f'stage {number} has a batch_size of its own, so the effective batch would change at a '
                                 'border: leave it out, or say change_effective_batch: true')
        self._settings, self.growth, self.new_lr_factor, self.lead = stages, growth, new_lr_factor, lead
        self.fade_iters, self.warmup_iters = fade_iters, warmup_iters
        self._gt_size: int | None = None
        self._rates: list[tuple[dict[str, Any], float]] = []

    def stages(self, training: Growing) -> tuple[Stage, ...]:
        """The stages of a training with its effective batch."""
        return parse_stages(self._settings, training.effective_batch)

    def before_train(self, runner: Any) -> None:
        """Have the first batch cut to its stage, also that of a resumed run."""
        training = self._training(runner)
        self._announce(training, self.stages(training))

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Announce the crop size that is needed next, and fit networks, micro-batches and learning rates to the batch.

        Args:
            runner: an mmengine Runner whose model can grow, or one of our BasicSR models.
            batch_idx: not looked at.
            data_batch: dict with ``lq`` and ``gt``, (B, C, h, w) and (B, C, H, W), or a batch of mmagic; cut in place.

        Raises:
            RuntimeError: if a batch of an earlier stage comes after its border.
        """
        training = self._training(runner)
        stages = self.stages(training)
        stage = stage_at(stages, training.current_iter)
        self._announce(training, stages)
        width = width_of(data_batch)
        if width < stage.gt_size:
            raise RuntimeError(f'a batch of {width} px came in the stage of {stage.gt_size} px: the data loader keeps more '
                               f'than {self._lead(training)} batches under way. Give their number to '
                               'ProgressiveResolutionHook as lead')
        count = None if stage.batch_size is None else stage.batch_size // world_size()
        if width > stage.gt_size or count is not None or stage.gt_size != self._gt_size:
            cut_batch(data_batch, stage.gt_size, count)
        if stage.gt_size != self._gt_size:
            training.enter_stage(stage.gt_size, data_batch, self.growth, self.new_lr_factor)
            self._gt_size = stage.gt_size
        border = border_before(stages, training.current_iter)
        if border is not None:
            self._after_border(training, training.current_iter - border)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Give the schedules back their learning rates."""
        for group, rate in self._rates:
            group['lr'] = rate
        self._rates = []

    def _announce(self, training: Growing, stages: Sequence[Stage]) -> None:
        # The batch that is begun now is asked for so many iterations later.
        training.set_gt_size(stage_at(stages, training.current_iter + self._lead(training) + 1).gt_size)

    def _lead(self, training: Growing) -> int:
        return training.batches_under_way if self.lead is None else self.lead

    def _after_border(self, training: Growing, iterations: int) -> None:
        if self.growth == 'prepend':
            training.set_fade(min(1.0, iterations / (self.fade_iters + 1)))
        if iterations <= self.warmup_iters:
            self._rates = [(group, group['lr']) for optimizer in training.optimizers for group in optimizer.param_groups]
            for group, rate in self._rates:
                group['lr'] = rate * iterations / (self.warmup_iters + 1)

    def before_save_checkpoint(self, runner: Any, checkpoint: State) -> None:
        """Have a Runner's checkpoint remember how the discriminator has grown."""
        RunnerTraining(runner, self._first_size).remember(checkpoint)

    def after_load_checkpoint(self, runner: Any, checkpoint: State) -> None:
        """Let a Runner's discriminator grow to what the checkpoint holds."""
        RunnerTraining(runner, self._first_size).recall(checkpoint)

    @property
    def _first_size(self) -> int:
        return int(self._settings[0]['gt_size'])

    def _training(self, runner: Any) -> Growing:
        return runner if isinstance(runner, Growing) else RunnerTraining(runner, self._first_size)
