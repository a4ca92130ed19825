"""Finds, before training, what would make a divided update another one than that of the whole batch.

Networks and losses are tried on a toy batch, whatever their code: does a sample's result depend on its neighbours, and is
a loss the mean of the losses of its parts? Shapes: toy images (3, C, H, W) and (4, C, H, W).
"""
from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from sr_bigbatch.step.replay import RngState, batch_norms, frozen_running_statistics, one_power_iteration
from sr_bigbatch.step.sample_losses import SampleLosses

_PARTS = (1, 3)  # an uneven partition of four samples tells a mean from a sum and from a mean of means


@dataclass(frozen=True)
class Finding:
    """What the audit found out about one part of the step.

    Attributes:
        part: its name in the options or in the log.
        exact: whether its contribution to the update is that of the whole batch.
        because: the reason, for a person.
    """

    part: str
    exact: bool
    because: str


def audit_network(part: str, net: nn.Module, images: Tensor, *, sees_whole_batch: bool) -> list[Finding]:
    """Look for coupling between samples and for randomness in ``net``.

    Args:
        part: name for the findings.
        net: a network in its training mode; it is copied, not changed.
        images: a toy batch (3, C, H, W) of inputs that it takes.
        sees_whole_batch: whether it works on the whole batch of all processes in one piece.
    """
    findings = []
    norms = sorted({type(module).__name__ for module in batch_norms(net)})
    try:
        random, coupled = _behaviour(net, images)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        return [Finding(part, sees_whole_batch, f'could not be tried on a toy batch: {str(error).splitlines()[0]}')]
    if random:
        findings.append(Finding(part, True, 'draws random numbers; a replayed forward pass draws the same again'))
    how = ', '.join(norms) or 'tried'
    if not (coupled or norms):
        findings.append(Finding(part, True, 'each sample by itself, whatever its neighbours'))
    elif sees_whole_batch:
        findings.append(Finding(part, True, f'couples samples ({how}), but sees the whole batch'))
    else:
        findings.append(Finding(part, False, f'couples samples ({how}) and sees a part of the batch'))
    return findings


def _behaviour(net: nn.Module, images: Tensor) -> tuple[bool, bool]:
    """Whether the output is random, and whether a sample's output depends on the other samples."""
    net, images = copy.deepcopy(net).double(), images.double()
    device = images.device
    with torch.no_grad(), frozen_running_statistics(net), one_power_iteration(net):
        rng = RngState.capture(device)
        with rng.replayed(device):
            first, second = net(images), net(images)
            random = not torch.equal(first, second)
        for module in net.modules():
            if isinstance(module, _DropoutNd):
                module.eval()
        with rng.replayed(device):
            whole = net(images)
        with rng.replayed(device):
            again = net(images)
        if not torch.equal(whole, again):
            raise RuntimeError('its output changes from call to call with the same random numbers')
        with rng.replayed(device):
            torch.rand(1)
            if not torch.equal(net(images), whole):
                return True, False  # noise of its own: neighbours cannot be told from chance
        alone = torch.cat([net(image[None]) for image in images])
    return random, not _close(alone, whole)


def _close(value: Tensor, expected: Tensor) -> bool:
    return bool((value - expected).abs().max() <= 1e-9 * (1 + expected.abs().max()))


def audit_losses(losses: SampleLosses, output: Tensor, gt: Tensor, lq: Tensor) -> list[Finding]:
    """Is each loss the mean of the losses of its parts?

    Args:
        losses: the sample losses, in float32 or float64.
        output: toy images (4, C, H, W).
        gt: others of the same shape.
        lq: low-resolution ones (4, C, h, w).
    """
    with torch.no_grad():
        whole = losses(output, gt, lq)
        parts = [losses(*images) for images in zip(*(batch.split(_PARTS) for batch in (output, gt, lq)), strict=True)]
    findings = []
    for name, value in whole.items():
        mean = sum(part[name] * count for part, count in zip(parts, _PARTS, strict=True)) / sum(_PARTS)
        off = float((mean - value).abs() / value.abs().clamp_min(1e-12))
        exact = off <= 1e-4  # float32 sums; a loss that is no mean is off by its own size
        findings.append(Finding(name, exact, 'a mean over samples' if exact else
                                f'no mean over samples: on a toy batch its parts differ from the whole by {off:.2g}'))
    return findings


def table(findings: Sequence[Finding]) -> str:
    """The findings as lines of text, the inexact ones first."""
    ordered = sorted(findings, key=lambda finding: finding.exact)
    width = max(len(finding.part) for finding in ordered)
    return '\n'.join(f'  {"exact" if finding.exact else "NOT EXACT":9}  {finding.part:{width}}  {finding.because}'
                     for finding in ordered)
