"""Reads how a BasicSR training wants its batch cut."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from sr_bigbatch.core.batch import MicroBatchSizes, StepPlan
from sr_bigbatch.core.distributed import world_size
from sr_bigbatch.core.replay import batch_norms


def read_plan(opt: dict[str, Any], net_d: nn.Module | None, measure: Callable[[int], int]) -> StepPlan:
    """The plan of ``train.micro_batch_size``, ``train.kept_graphs`` and ``train.accumulation``.

    Args:
        opt: checked options.
        net_d: the discriminator. One with BatchNorm gets the whole batch where one number is given for all parts, because
            only that is exact.
        measure: for ``micro_batch_size: auto``: the micro-batch for a given batch size.
    """
    train, batch_size = opt['train'], int(opt['datasets']['train']['batch_size_per_gpu'])
    setting = train.get('micro_batch_size', batch_size)
    if isinstance(setting, dict):
        sizes = MicroBatchSizes(**{part: min(int(size), batch_size) for part, size in setting.items()})
    else:
        size = measure(batch_size) if setting == 'auto' else min(int(setting), batch_size)
        whole = net_d is not None and bool(batch_norms(net_d))
        sizes = MicroBatchSizes(size, size, batch_size if whole else size)
    kept = train.get('kept_graphs', 0)
    return StepPlan(sizes, batch_size if kept == 'all' else int(kept), train.get('accumulation', 'exact') == 'exact')


def inexact(plan: StepPlan, batch_size: int, net_g: nn.Module, net_d: nn.Module | None) -> list[str]:
    """A finding for each network whose update would not be that of the whole batch, although it is to be exact."""
    findings = []
    for name, net, size in (('network_g', net_g, plan.micro.generator), ('network_d', net_d, plan.micro.discriminator)):
        if net is not None and plan.exact and batch_norms(net) and (size < batch_size or world_size() > 1):
            findings.append(
                f'{name} normalises over the batch (BatchNorm) but sees {size} of {batch_size * world_size()} samples at a '
                'time, so its update would not be that of the batch. Either let it see the whole batch in one process '
                '(train.micro_batch_size), or choose a norm without batch statistics (network_d.norm: group), or accept '
                'the difference (train.accumulation: plain)')
    return findings
