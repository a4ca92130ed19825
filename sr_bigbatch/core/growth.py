"""Stages of a progressive run, and what grows at their borders."""
from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn


@dataclass(frozen=True)
class Stage:
    """A part of the training with crops of one size.

    Attributes:
        gt_size: width and height of the ground-truth crops, in pixels.
        until: last iteration of the stage; None for the last stage.
    """

    gt_size: int
    until: int | None


@runtime_checkable
class Training(Protocol):
    """What a progressive run needs of its host."""

    current_iter: int

    def set_gt_size(self, gt_size: int) -> None:
        """Have the data loader cut crops of this size from now on; batches under way keep theirs."""

    def fit_to(self, gt_size: int) -> None:
        """Make networks and micro-batches fit a batch of this crop size."""


def parse_stages(settings: Sequence[dict[str, Any]]) -> tuple[Stage, ...]:
    """Read ``[{gt_size: 128, until: 1000}, {gt_size: 256}]``.

    Raises:
        ValueError: if a key is missing or unknown, a stage is not after the one before it, or sizes do not double.
    """
    stages = []
    for number, setting in enumerate(settings, 1):
        last = number == len(settings)
        wanted = {'gt_size'} if last else {'gt_size', 'until'}
        if set(setting) - {'gt_size', 'until'} or wanted - set(setting):
            raise ValueError(f'stage {number} has the keys {sorted(setting)}, it needs gt_size and, unless it is the '
                             'last, until')
        stages.append(Stage(int(setting['gt_size']), None if last else int(setting['until'])))
    if not stages:
        raise ValueError('stages is empty: give at least one {gt_size: ...}')
    for before, after in itertools.pairwise(stages):
        ratio = after.gt_size / before.gt_size
        if ratio < 2 or ratio != int(ratio) or int(ratio) & (int(ratio) - 1):
            raise ValueError(f'gt_size must double (or quadruple, ...) at a border, got {before.gt_size} -> {after.gt_size}')
        if before.until is not None and after.until is not None and after.until <= before.until:
            raise ValueError(f'a stage until {after.until} cannot follow one until {before.until}')
    return tuple(stages)


def stage_at(stages: Sequence[Stage], iteration: int) -> Stage:
    """The stage to which an iteration (counted from 1) belongs."""
    return next(stage for stage in stages if stage.until is None or iteration <= stage.until)


def add_to_optimizer(optimizer: torch.optim.Optimizer, schedulers: Sequence[Any],
                     parameters: Sequence[nn.Parameter]) -> None:
    """Give new parameters a group of their own, with the settings of the first and the schedulers' knowledge of it.

    The state of the parameters that were there before is not touched.
    """
    template = {key: value for key, value in optimizer.param_groups[0].items() if key != 'params'}
    optimizer.add_param_group({**template, 'params': list(parameters)})
    for scheduler in schedulers:
        if scheduler.optimizer is optimizer:
            scheduler.base_lrs.append(template.get('initial_lr', template['lr']))
