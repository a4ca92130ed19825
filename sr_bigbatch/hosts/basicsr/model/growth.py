"""How a BasicSR training goes over to larger crops."""
from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from basicsr.utils import get_root_logger
from torch import Tensor

from sr_bigbatch.hosts.basicsr.plan.automatic import choose_plan, is_automatic
from sr_bigbatch.hosts.basicsr.plan.prediction import CannotPredict
from sr_bigbatch.memory.predict import Plan
from sr_bigbatch.nets.rrdb import POLICIES, CheckpointedRRDBNet
from sr_bigbatch.nets.vgg_discriminator import GrowableVGGDiscriminator
from sr_bigbatch.nets.vgg_growth import grow, shape_of
from sr_bigbatch.options import OptionError
from sr_bigbatch.progressive.stages import Stage, parse_stages, stage_at
from sr_bigbatch.step.distributed import world_size
from sr_bigbatch.step.elastic_plan import ElasticPlan
from sr_bigbatch.step.plan import MicroBatchSizes, StepPlan
from sr_bigbatch.step.replay import batch_norms


def stages_of(opt: dict[str, Any]) -> tuple[Stage, ...]:
    """The stages of a progressive run; of another run there are none."""
    batch_size = int(opt['datasets']['train']['batch_size_per_gpu']) * world_size()
    hooks = [hook for hook in opt.get('custom_hooks') or [] if hook['type'] == 'ProgressiveResolutionHook']
    return tuple(stage for hook in hooks[:1] for stage in parse_stages(hook['stages'], batch_size))


def crop_sizes(opt: dict[str, Any]) -> Callable[[int], int] | None:
    """The crop size of an iteration, as a function; None if it never changes."""
    stages = stages_of(opt)
    return (lambda iteration: stage_at(stages, iteration).gt_size) if stages else None


def plan_later_stages(opt: dict[str, Any], budget_bytes: float) -> dict[int, Plan]:
    """Predict what the later stages take, before the first iteration is made; returns the plan of each by crop size.

    Args:
        opt: checked options, before ``auto`` is filled in.
        budget_bytes: what the process may use.

    Raises:
        OptionError: if a stage does not fit.
    """
    plans, first = {}, int(opt['datasets']['train']['gt_size'])
    for size in [stage.gt_size for stage in stages_of(opt)[1:]]:
        settings = copy.deepcopy(opt)
        micro = opt['train'].get('micro_batch_size')
        if isinstance(micro, int):
            settings['train']['micro_batch_size'] = max(1, micro * first**2 // size**2)
        try:
            plans[size] = choose_plan(settings, size, budget_bytes)
        except OptionError as error:
            if isinstance(error.__cause__, CannotPredict) and not is_automatic(opt):
                get_root_logger().warning(f'The memory of the stage of {size} px could not be predicted. {error}')
                continue
            raise OptionError([f'the stage of {size} px would fail in mid-run: {finding}' for finding in error.findings]
                              ) from error
    return plans


def plan_for(model: Any, gt_size: int) -> StepPlan:
    """How the batch is cut in the stage of a crop size; the effective batch is always the same."""
    first, data = model.first_plan, model.opt['datasets']['train']
    micro, kept = first.micro.for_crop(int(data['gt_size']), gt_size), first.kept_graphs
    chosen = model.stage_plans.get(gt_size) if model.automatic is not None else None
    if chosen is not None:
        kept = int(data['batch_size_per_gpu']) if chosen.kept else 0
        if model.chooses_micro:
            micro = MicroBatchSizes(chosen.micro, chosen.micro, chosen.micro)
        if isinstance(model.net_g, CheckpointedRRDBNet) and chosen.memory in POLICIES:
            model.net_g.recompute = POLICIES[chosen.memory]
    if hasattr(model, 'net_d') and batch_norms(model.net_d):
        micro = replace(micro, discriminator=first.micro.discriminator)
    plan: StepPlan = replace(first, micro=micro, kept_graphs=kept)
    return plan


def replan(model: Any, gt_size: int, effective_batch: int) -> None:
    """Cut the batch as the stage of this crop size needs it."""
    plan = plan_for(model, gt_size)
    if plan != model.step.recovery.plan.wanted:
        model.step.recovery.plan = ElasticPlan(plan)
        if model.saved_plan:  # the first stage of a resumed run
            model.step.recovery.plan.load_state_dict(model.saved_plan)
            model.saved_plan = None
    get_root_logger().info(f'Crops of {gt_size} px, effective batch {effective_batch}. Samples at a time: generator '
                           f'{plan.micro.generator}, losses {plan.micro.perceptual}, discriminator '
                           f'{plan.micro.discriminator}. Generator graphs kept: {plan.kept_graphs}.')


def enlarged(net: GrowableVGGDiscriminator, state: dict[str, Tensor]) -> GrowableVGGDiscriminator | None:
    """A discriminator with saved weights of a smaller one, grown to the size of ``net``; None if they are not smaller.

    Args:
        net: what the weights are for.
        state: with or without the ``module.`` of DistributedDataParallel.
    """
    stages, prepended = shape_of(state)
    if not 0 < stages < net.stages or prepended or net.prepended:
        return None
    small = GrowableVGGDiscriminator(net.num_in_ch, net.num_feat, net.input_size >> (net.stages - stages), net.norm)
    small.load_state_dict({name.removeprefix('module.'): value for name, value in state.items()})
    while small.stages < net.stages:
        grow(small)
    get_root_logger().info(f'The weights of the discriminator are those for smaller images: it has grown to '
                           f'{small.input_size} px.')
    return small


def grow_to_match(net: GrowableVGGDiscriminator, state: dict[str, Tensor]) -> None:
    """Let ``net`` grow until it has the stages of a saved one."""
    stages, prepended = shape_of(state)
    while net.stages < stages:
        grow(net, 'append')
    while net.prepended < prepended:
        grow(net, 'prepend')
