"""Tries an automatic plan with one real step before the training relies on it."""
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from basicsr.utils import get_root_logger

from sr_bigbatch.hosts.basicsr.model.saved_state import networks
from sr_bigbatch.hosts.basicsr.settings import DataSettings
from sr_bigbatch.memory.live_bytes import peak_of, tensors_of
from sr_bigbatch.memory.predict import Plan, total_bytes
from sr_bigbatch.options import OptionError
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
    settings, step, budget_bytes = model.settings, model.step, model.budget_bytes
    count, size, low, channels = data.batch_size, data.gt_size, data.gt_size // settings.scale, settings.channels
    lq, gt = torch.rand(count, channels, low, low), torch.rand(count, channels, size, size)
    while True:
        peak = peak_of(lambda: step.rehearse(lq, gt), model.device, [*tensors_of(*networks(model).values()), lq, gt])
        plan: StepPlan = step.plan
        total = total_bytes(peak)
        get_root_logger().info(f'Automatic plan: {", ".join(chosen.options)}. Predicted {chosen.total_bytes / 1e9:.2f} GB, '
                               f'one real step took {total / 1e9:.2f} GB at micro-batch {plan.micro.generator}; there are '
                               f'{budget_bytes / 1e9:.2f} GB.')
        if total <= budget_bytes:
            step.plan = plan  # what did not fit now will not fit later
            return plan
        if not step.trial.memory.shrink_something():
            raise OptionError([f'one real step took {total / 1e9:.2f} GB, and there are {budget_bytes / 1e9:.2f} GB '
                               '(train.memory_budget_gb): see what tools/plan.py proposes'])
