"""Chooses what ``auto`` stands for in the options of a BasicSR training, from the memory there is."""
from __future__ import annotations

import itertools

from basicsr.utils import get_root_logger

from sr_bigbatch.hosts.basicsr.plan.prediction import CannotPredict, model_of
from sr_bigbatch.hosts.basicsr.settings import TrainingSettings
from sr_bigbatch.memory.predict import AS_IT_IS, MICRO_BATCHES, Plan, choose, plans
from sr_bigbatch.memory.target import Target
from sr_bigbatch.nets.rrdb import POLICIES
from sr_bigbatch.options import OptionError
from sr_bigbatch.step.plan import WHOLE, MicroBatchSizes


def choose_plan(settings: TrainingSettings, gt_size: int, budget_bytes: float, target: Target) -> Plan:
    """The plan with the least work that is predicted to fit; what the options give as a value stays as it is.

    Args:
        settings: of the training.
        gt_size: of the crops, in pixels.
        budget_bytes: what the process may use.
        target: the device on which it will run.

    Raises:
        OptionError: if none fits, or a network does not run on fake tensors.
    """
    policies = POLICIES if settings.activation_memory == 'auto' else (settings.activation_memory,)
    keeping = (True, False) if settings.kept_graphs is None and settings.network_d else (settings.kept_graphs == WHOLE,)
    try:
        models = {(AS_IT_IS if memory is None else str(memory), keep): model_of(settings, gt_size, memory, keep, target.kind)
                  for memory, keep in itertools.product(policies, keeping)}
    except CannotPredict as error:
        raise OptionError([f'{error}: give train.micro_batch_size and network_g.activation_memory as values']) from error
    found = plans(models, min(model.flops_per_sample for model in models.values()), target, _micro_batches(settings))
    best = choose(found, budget_bytes)
    if best is None:
        least = min(found, key=lambda plan: plan.total_bytes)
        raise OptionError([f'even one sample of {gt_size} px at a time is predicted to take '
                           f'{least.total_bytes / 1e9:.2f} GB, and there are {budget_bytes / 1e9:.2f} GB '
                           '(train.micro_batch_size, '
                           'network_g.activation_memory): see what tools/plan.py proposes'])
    return best


def _micro_batches(settings: TrainingSettings) -> tuple[int, ...]:
    """What may be chosen from."""
    sizes = settings.micro_batch_size
    if sizes is None:
        return MICRO_BATCHES
    return (min(settings.batch_size, max(vars(sizes).values()) if isinstance(sizes, MicroBatchSizes) else sizes),)


def plan_later_stages(settings: TrainingSettings, budget_bytes: float, target: Target) -> dict[int, Plan]:
    """Predict what the later stages take, before the first iteration is made; returns the plan of each by crop size.

    Args:
        settings: of the training, with ``auto`` in them.
        budget_bytes: what the process may use.
        target: the device on which it will run.

    Raises:
        OptionError: if a stage does not fit.
    """
    found = {}
    for size in [stage.gt_size for stage in settings.stages[1:]] if settings.data is not None else []:
        try:
            found[size] = choose_plan(settings.for_crop(size), size, budget_bytes, target)
        except OptionError as error:
            if isinstance(error.__cause__, CannotPredict) and not settings.is_automatic:
                get_root_logger().warning(f'The memory of the stage of {size} px could not be predicted. {error}')
                continue
            raise OptionError([f'the stage of {size} px would fail in mid-run: {finding}' for finding in error.findings]
                              ) from error
    return found
