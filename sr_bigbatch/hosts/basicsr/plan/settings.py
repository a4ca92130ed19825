"""Reads how a BasicSR training wants its batch cut, and finds out whether the update stays that of the batch."""
from __future__ import annotations

from typing import Any

import torch
from basicsr.utils import get_root_logger
from torch import nn

from sr_bigbatch.hosts.basicsr.model.saved_state import networks
from sr_bigbatch.memory.live_bytes import peak_of, tensors_of
from sr_bigbatch.memory.predict import Plan, total_bytes
from sr_bigbatch.options import OptionError
from sr_bigbatch.step.audit import Finding, audit_losses, audit_network
from sr_bigbatch.step.distributed import world_size
from sr_bigbatch.step.elastic_plan import ElasticPlan
from sr_bigbatch.step.plan import PARTS, MicroBatchSizes, StepPlan
from sr_bigbatch.step.replay import batch_norms


def read_plan(opt: dict[str, Any], net_d: nn.Module | None) -> StepPlan:
    """The plan of ``train.micro_batch_size``, ``train.kept_graphs`` and ``train.accumulation``; ``auto`` is the whole batch.

    Args:
        opt: checked options.
        net_d: the discriminator. One with BatchNorm gets the whole batch where one number is given for all parts, because
            only that is exact.
    """
    train, batch_size = opt['train'], int(opt['datasets']['train']['batch_size_per_gpu'])
    setting = train.get('micro_batch_size', batch_size)
    if isinstance(setting, dict):
        sizes = MicroBatchSizes(**{part: min(int(size), batch_size) for part, size in setting.items()})
    else:
        size = batch_size if setting == 'auto' else min(int(setting), batch_size)
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


_TOY_SIZE = 32  # pixels; enough for every layer of VGG19 up to conv5_4


def audit(model: Any, plan: StepPlan) -> list[Finding]:
    """Try networks and losses of a BasicSR model on toy batches.

    Args:
        model: one of our models, with networks and losses built.
        plan: how its batch is cut.
    """
    data, device, scale = model.opt['datasets']['train'], model.device, model.opt['scale']
    channels, alone = model.opt['network_g'].get('num_in_ch', 3), world_size() == 1

    def toy(count: int, size: int) -> torch.Tensor:
        contrast = torch.logspace(-1, 0, count).view(-1, 1, 1, 1)  # among samples alike, every loss looks like a mean
        images = torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(0))
        return (images * contrast).to(device)

    batch_size, size = int(data['batch_size_per_gpu']), max(_TOY_SIZE, 2 * scale)
    findings = audit_network('network_g', model.net_g, toy(3, size // scale),
                             sees_whole_batch=alone and plan.micro.generator >= batch_size)
    if hasattr(model, 'net_d'):
        judged = getattr(model.net_d, 'input_size', int(data['gt_size']))  # that of a resumed, grown one
        findings += audit_network('network_d', model.net_d, toy(3, judged),
                                  sees_whole_batch=alone and plan.micro.discriminator >= batch_size)
        findings.append(Finding('l_g_gan, l_d_real, l_d_fake', plan.exact, 'taken from the logits of the whole batch'
                                if plan.exact else 'taken from the logits of each micro-batch (accumulation: plain)'))
    return findings + audit_losses(model.losses, toy(4, size).flip(0), toy(4, size), toy(4, size // scale))


def rehearse(model: Any, chosen: Plan, budget_bytes: int) -> StepPlan:
    """Check an automatic plan with one real step that changes nothing; returns the plan that fits.

    Args:
        model: one of our models, with its step.
        chosen: what was predicted.
        budget_bytes: what the process may use.

    Raises:
        OptionError: if not even the smallest micro-batch stays within the budget.
    """
    data, scale, recovery = model.opt['datasets']['train'], model.opt['scale'], model.step.recovery
    count, size, channels = int(data['batch_size_per_gpu']), int(data['gt_size']), model.opt['network_g'].get('num_in_ch', 3)
    lq, gt = torch.rand(count, channels, size // scale, size // scale), torch.rand(count, channels, size, size)
    while True:
        peak = peak_of(lambda: model.step.rehearse(lq, gt), model.device, [*tensors_of(*networks(model).values()), lq, gt])
        plan: StepPlan = recovery.plan.now
        total = total_bytes(peak)
        get_root_logger().info(f'Automatic plan: {", ".join(chosen.options)}. Predicted {chosen.total_bytes / 1e9:.2f} GB, '
                               f'one real step took {total / 1e9:.2f} GB at micro-batch {plan.micro.generator}; there are '
                               f'{budget_bytes / 1e9:.2f} GB.')
        if total <= budget_bytes:
            recovery.plan = ElasticPlan(plan)
            return plan
        if not any([recovery.plan.shrink(part, model.step.whole()) for part in PARTS]):
            raise OptionError([f'one real step took {total / 1e9:.2f} GB, and there are {budget_bytes / 1e9:.2f} GB '
                               '(train.memory_budget_gb): see what tools/plan.py proposes'])
