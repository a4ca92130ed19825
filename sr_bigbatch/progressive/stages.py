"""Stages of a progressive run, and what is measured where a discriminator grows."""
from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_KEYS = {'gt_size', 'until', 'until_images', 'batch_size'}


@dataclass(frozen=True)
class Stage:
    """A part of the training with crops of one size.

    Attributes:
        gt_size: width and height of the ground-truth crops, in pixels.
        until: last iteration of the stage, counted from 1; None for the last stage.
        batch_size: effective batch of the stage; None for that of the training.
    """

    gt_size: int
    until: int | None = None
    batch_size: int | None = None


def parse_stages(settings: Sequence[dict[str, Any]], batch_size: int | None = None) -> tuple[Stage, ...]:
    """Read ``[{gt_size: 128, until: 1000}, {gt_size: 256}]``.

    Args:
        settings: a stage each. The end of all but the last is given in iterations (``until``) or in images shown since the
            beginning of the training (``until_images``), rounded up to whole batches.
        batch_size: effective batch of the training, in images; needed for ``until_images``.

    Raises:
        ValueError: if a key is missing or unknown, a stage is not after the one before it, or sizes do not double.
    """
    stages = []
    for number, setting in enumerate(settings, 1):
        last = number == len(settings)
        ends = {'until', 'until_images'} & set(setting)
        if set(setting) - _KEYS or 'gt_size' not in setting or len(ends) != (0 if last else 1):
            raise ValueError(f'stage {number} has the keys {sorted(setting)}, it needs gt_size and, unless it is the '
                             'last, until (iterations) or until_images')
        until = setting.get('until')
        if 'until_images' in setting:
            if batch_size is None:
                raise ValueError('until_images needs to know the effective batch: give until, in iterations')
            until = math.ceil(int(setting['until_images']) / batch_size)
        stages.append(Stage(int(setting['gt_size']), None if last else int(until or 0), setting.get('batch_size')))
    if not stages:
        raise ValueError('stages is empty: give at least one {gt_size: ...}')
    for before, after in itertools.pairwise(stages):
        _check_pair(before, after)
    return tuple(stages)


def _check_pair(before: Stage, after: Stage) -> None:
    ratio = after.gt_size / before.gt_size
    if ratio < 2 or ratio != int(ratio) or int(ratio) & (int(ratio) - 1):
        raise ValueError(f'gt_size must double (or quadruple, ...) at a border, got {before.gt_size} -> {after.gt_size}')
    if before.until is not None and (before.until < 1 or (after.until is not None and after.until <= before.until)):
        raise ValueError(f'a stage until {after.until} cannot follow one until {before.until}')


def stage_at(stages: Sequence[Stage], iteration: int) -> Stage:
    """The stage to which an iteration (counted from 1) belongs."""
    return next(stage for stage in stages if stage.until is None or iteration <= stage.until)


def border_before(stages: Sequence[Stage], iteration: int) -> int | None:
    """The last iteration of the stage before that of ``iteration``; None in the first stage."""
    return next((before.until for before, stage in itertools.pairwise(stages)
                 if stage is stage_at(stages, iteration)), None)


def cut(lq: Tensor, gt: Tensor, gt_size: int, count: int | None = None) -> tuple[Tensor, Tensor]:
    """The same corner of both images of a pair, ``gt_size`` pixels wide in ``gt`` (B, C, H, W), of the first samples."""
    scale = gt.shape[-1] // lq.shape[-1]
    low = gt_size // scale
    return lq[:count, ..., :low, :low], gt[:count, ..., :gt_size, :gt_size]


def add_to_optimizer(optimizer: torch.optim.Optimizer, schedulers: Sequence[Any], parameters: Sequence[nn.Parameter],
                     lr_factor: float = 1.0) -> None:
    """Give new parameters a group of their own, with the settings of the first and the schedulers' knowledge of it.

    The state of the parameters that were there before is not touched.

    Args:
        optimizer: of the network that has grown.
        schedulers: torch's or mmengine's, of all networks; those of other optimizers are left alone.
        parameters: the new ones.
        lr_factor: their learning rate over that of the others.
    """
    template = {key: value for key, value in optimizer.param_groups[0].items() if key != 'params'}
    for key in ('lr', 'initial_lr'):
        if key in template:
            template[key] *= lr_factor
    optimizer.add_param_group({**template, 'params': list(parameters)})
    for scheduler in schedulers:
        if getattr(scheduler.optimizer, 'optimizer', scheduler.optimizer) is optimizer:
            known = scheduler.base_lrs if hasattr(scheduler, 'base_lrs') else scheduler.base_values
            known.append(template.get('initial_lr', template['lr']))


@dataclass(frozen=True)
class Growth:
    """What a discriminator thought of a few real and generated images before and after it grew.

    Attributes:
        gap_before, gap_after: mean logit of the real images minus that of the generated ones.
        ranking: rank correlation of the logits of all images before and after (Spearman), -1..1.
    """

    gap_before: float
    gap_after: float
    ranking: float

    def __str__(self) -> str:
        """For a line in the log."""
        return (f'logit gap of real to generated images {self.gap_before:.4g} before, {self.gap_after:.4g} after; rank '
                f'correlation {self.ranking:.3f}')


@torch.no_grad()
def measure(net_d: nn.Module, grow: Callable[[Tensor], Any], real: Tensor, fake: Tensor, way: str) -> Growth:
    """Let a discriminator grow, and compare what it thinks before and after.

    Before, it judges what the grown one will see of the same images: halved ones for ``prepend``, whose logit is then to
    stay the same, and the four quarters of each for ``append``, whose logit is then to stay about their mean.

    Args:
        net_d: the discriminator, in the mode of which it is left.
        grow: makes it judge images of twice the size, like those that it is given.
        real: (M, C, 2S, 2S)
        fake: generated images of the same shape.
        way: ``append`` or ``prepend``.
    """
    images, size = torch.cat([real, fake]), real.shape[-1] // 2
    halves = (slice(None, size), slice(size, None))
    views = ([F.avg_pool2d(images, 2)] if way == 'prepend'
             else [images[..., rows, columns] for rows in halves for columns in halves])
    training = net_d.training
    before = torch.stack([_logits(net_d.eval(), view) for view in views]).mean(0)
    net_d.train(training)
    grow(images)
    after = _logits(net_d.eval(), images)
    net_d.train(training)
    gaps = [float(logits[:len(real)].mean() - logits[len(real):].mean()) for logits in (before, after)]
    ranks = torch.stack([logits.argsort().argsort().double() for logits in (before, after)])
    return Growth(gaps[0], gaps[1], float(torch.corrcoef(ranks)[0, 1]))


def _logits(net_d: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([net_d(image[None]).float().flatten() for image in images])
