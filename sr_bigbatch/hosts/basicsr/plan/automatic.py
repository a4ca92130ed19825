"""Chooses what ``auto`` stands for in the options of a BasicSR training, from the memory there is."""
from __future__ import annotations

import itertools
from typing import Any

from sr_bigbatch.hosts.basicsr.plan.prediction import CannotPredict, model_of
from sr_bigbatch.memory.predict import MICRO_BATCHES, Plan, choose, plans
from sr_bigbatch.nets.rrdb import POLICIES
from sr_bigbatch.options import OptionError


def is_automatic(opt: dict[str, Any]) -> bool:
    """Whether a part of the plan is left to the program."""
    return 'auto' in (opt['train'].get('micro_batch_size'), opt['network_g'].get('activation_memory'))


def choose_plan(opt: dict[str, Any], gt_size: int, budget_bytes: float) -> Plan:
    """The plan with the least work that is predicted to fit; what the options give as a value stays as it is.

    Args:
        opt: checked options.
        gt_size: of the crops, in pixels.
        budget_bytes: what the process may use.

    Raises:
        OptionError: if none fits, or a network does not run on fake tensors.
    """
    policy, micro = opt['network_g'].get('activation_memory'), opt['train'].get('micro_batch_size')
    kept = opt['train'].get('kept_graphs', 'auto' if policy == 'auto' else 0)
    batch_size = int(opt['datasets']['train']['batch_size_per_gpu'])
    policies = POLICIES if policy == 'auto' else (policy,)
    keeping = (True, False) if kept == 'auto' and opt.get('network_d') else (kept == 'all',)
    try:
        models = {(str(memory), keep): model_of(opt, gt_size, memory, keep)
                  for memory, keep in itertools.product(policies, keeping)}
    except CannotPredict as error:
        raise OptionError([f'{error}: give train.micro_batch_size and network_g.activation_memory as values']) from error
    size = batch_size if micro is None else max(micro.values()) if isinstance(micro, dict) else micro
    found = plans(models, min(model.flops_per_sample for model in models.values()),
                  MICRO_BATCHES if micro == 'auto' else (min(batch_size, int(size)),))
    best = choose(found, budget_bytes)
    if best is None:
        least = min(found, key=lambda plan: plan.total_bytes)
        raise OptionError([f'even one sample of {gt_size} px at a time is predicted to take '
                           f'{least.total_bytes / 1e9:.2f} GB, and there are {budget_bytes / 1e9:.2f} GB '
                           '(train.micro_batch_size, '
                           'network_g.activation_memory): see what tools/plan.py proposes'])
    return best


def fill_in(opt: dict[str, Any], plan: Plan) -> None:
    """Put the values of a plan where the options say ``auto``."""
    if opt['network_g'].get('activation_memory') == 'auto':
        opt['network_g']['activation_memory'] = plan.memory
        opt['train'].setdefault('kept_graphs', 'all' if plan.kept else 0)
    if opt['train'].get('micro_batch_size') == 'auto':
        opt['train']['micro_batch_size'] = plan.micro
