"""Tries an automatic plan with one real step before the training relies on it."""
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from basicsr.utils import get_root_logger
from torch import Tensor

from sr_bigbatch.hosts.basicsr.model.saved_state import networks
from sr_bigbatch.hosts.basicsr.settings import DataSettings
from sr_bigbatch.memory.live_bytes import peak_of, tensors_of
from sr_bigbatch.memory.predict import Plan
from sr_bigbatch.options import OptionError
from sr_bigbatch.step.base import Step
from sr_bigbatch.step.plan import StepPlan

if TYPE_CHECKING:
    from sr_bigbatch.hosts.basicsr.model.accumulating import Accumulating


def rehearse(model: Accumulating, data: DataSettings, chosen: Plan) -> StepPlan:
    """Check an automatic plan with one real step that changes nothing; returns the plan that fits.

    Args:
        model: one of our models, with its step.
        data: the size of its batches.
        chosen: what was predicted.

    Raises:
        OptionError: if not even the smallest micro-batch stays within the budget.
    """
    settings, step = model.settings, model.step
    count, size, low, channels = data.batch_size, data.gt_size, data.gt_size // settings.scale, settings.channels
    lq, gt = torch.rand(count, channels, low, low), torch.rand(count, channels, size, size)
    step.trial.observer, before = _StateToCome(step), step.trial.observer
    try:
        return _shrunk_until_it_fits(model, chosen, lq, gt)
    finally:
        step.trial.observer = before


class _StateToCome:
    """Holds the memory of the state that the optimizers' first step makes, until the step reserves it; an observer."""

    def __init__(self, step: Step) -> None:
        self._bytes = sum(update.bytes_of_missing_state for update in step.updates.values())
        self._device, self._held = step.trial.device, torch.empty(0)

    def on_phase(self, name: str) -> None:
        """Take the memory before the first piece of work, give it back before the last."""
        if name == 'commit':
            self._held = torch.empty(0)
        elif not len(self._held):
            self._held = torch.empty(self._bytes, dtype=torch.uint8, device=self._device)

    def on_part(self, part: str, samples: slice) -> None:
        """Nothing: all parts find the same memory."""


def _shrunk_until_it_fits(model: Accumulating, chosen: Plan, lq: Tensor, gt: Tensor) -> StepPlan:
    step, budget_bytes = model.step, model.budget_bytes
    while True:
        peak = peak_of(lambda: step.rehearse(lq, gt), model.device, [*tensors_of(*networks(model).values()), lq, gt])
        plan: StepPlan = step.plan
        total = chosen.target.bytes_for(peak)
        get_root_logger().info(f'Automatic plan: {", ".join(chosen.options)}. Predicted {chosen.total_bytes / 1e9:.2f} GB, '
                               f'one real step took {total / 1e9:.2f} GB at micro-batch {plan.micro.generator}; there are '
                               f'{budget_bytes / 1e9:.2f} GB.')
        if total <= budget_bytes:
            step.plan = plan  # what did not fit now will not fit later
            return plan
        if not step.trial.memory.shrink_something():
            raise OptionError([f'one real step took {total / 1e9:.2f} GB, and there are {budget_bytes / 1e9:.2f} GB '
                               '(train.memory_budget_gb): see what tools/plan.py proposes'])
