"""How a BasicSR training goes over to larger crops."""
from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from basicsr.utils import get_root_logger
from torch import Tensor

from sr_bigbatch.nets.rrdb import POLICIES, CheckpointedRRDBNet
from sr_bigbatch.nets.vgg_discriminator import GrowableVGGDiscriminator
from sr_bigbatch.nets.vgg_growth import grow, shape_of
from sr_bigbatch.step.plan import WHOLE, MicroBatchSizes, StepPlan, in_words

if TYPE_CHECKING:
    from sr_bigbatch.hosts.basicsr.model.accumulating import Accumulating


def plan_for(model: Accumulating, gt_size: int) -> StepPlan:
    """How the batch is cut in the stage of a crop size; the effective batch is always the same."""
    first = model.first_plan
    micro, kept = first.micro.for_crop(model.settings.first_size or gt_size, gt_size), first.kept_graphs
    chosen = model.stage_plans.get(gt_size) if model.automatic is not None else None
    if chosen is not None:
        kept = model.settings.batch_size if chosen.kept else 0
        if model.chooses_micro:
            micro = MicroBatchSizes(chosen.micro, chosen.micro, chosen.micro)
        if isinstance(model.net_g, CheckpointedRRDBNet) and chosen.memory in POLICIES:
            model.net_g.recompute = POLICIES[chosen.memory]
    micro = replace(micro, **dict.fromkeys(model.step.uncuttable_parts, WHOLE))
    return replace(first, micro=micro, kept_graphs=kept)


def replan(model: Accumulating, gt_size: int, effective_batch: int) -> None:
    """Cut the batch as the stage of this crop size needs it."""
    plan = plan_for(model, gt_size)
    model.step.plan = plan
    get_root_logger().info(f'Crops of {gt_size} px, effective batch {effective_batch}. Samples at a time: generator '
                           f'{in_words(plan.micro.generator)}, losses {in_words(plan.micro.perceptual)}, discriminator '
                           f'{in_words(plan.micro.discriminator)}. Generator graphs kept: {in_words(plan.kept_graphs)}.')


def recall_plan(model: Accumulating) -> None:
    """In the first stage that a resumed run enters: what memory had made smaller stays so, until it grows back."""
    if model.saved_plan:
        model.step.trial.memory.plan.load_state_dict(model.saved_plan)
        model.saved_plan = None


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
