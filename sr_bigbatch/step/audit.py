"""Finds what makes a divided update differ from that of the whole batch, before training.

Copies of networks and losses are tried on toy batches, whatever their code, and the plan is judged by what was found. What
could not be tried is never called exact.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sr_bigbatch.step.behaviour import Behaviour
from sr_bigbatch.step.controlled_call import TrialError, undisturbed
from sr_bigbatch.step.loss_study import LossStudy
from sr_bigbatch.step.network_study import NetworkStudy, PartError
from sr_bigbatch.step.toy_images import toy_batches, toy_losses_input, toy_sizes

__all__ = ['Behaviour', 'Finding', 'judge_losses', 'judge_network', 'parameters_reached', 'study_losses', 'study_network',
           'table', 'toy_batches', 'toy_sizes']

_TYPES = (torch.float64, torch.float32)  # the second for code with constants of its own
_SMALLEST_LOSS_INPUT = 16  # px


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


def study_network(net: nn.Module, toys: Sequence[Tensor], batch: int = 0) -> Behaviour:
    """Try a network.

    Args:
        net: in the mode in which it trains; it is copied, not changed.
        toys: batches (4, C, H, W) of growing size on its device, see :func:`toy_batches`; the first on which it runs counts.
        batch: samples of a batch of the training; 0 if it is not known.
    """
    reason = 'there is no toy batch'
    with undisturbed(net):
        for toy in toys:
            for dtype in _TYPES:
                try:
                    return NetworkStudy(net, toy, dtype, batch).behaviour()
                except (TrialError, PartError) as error:
                    reason = str(error)
    return Behaviour(untried=reason)


def study_losses(losses: Callable[..., Any], lq_shape: Sequence[int], gt_shape: Sequence[int],
                 device: torch.device, batch: int = 0) -> dict[str, Behaviour]:
    """Try losses; returns what each does, by name; ``'losses'`` stands for all if they do not run.

    Args:
        losses: ``losses(output, gt, lq) -> {name: scalar}``; copied as far as it consists of modules.
        lq_shape: of one image in training, (c, h, w); the toy images are smaller if the losses run on such.
        gt_shape: likewise, (C, H, W).
        device: of the toy images.
        batch: samples of a batch of the training; 0 if it is not known.
    """
    reason = ''
    with undisturbed(losses):
        for gt, lq in _loss_shapes(gt_shape, lq_shape):
            for dtype in _TYPES:
                try:
                    return LossStudy(losses, toy_losses_input(gt, lq, device, dtype), dtype, batch).behaviours()
                except TrialError as error:
                    reason = str(error)
    return {'losses': Behaviour(untried=reason)}


def parameters_reached(losses: Callable[..., Any], lq_shape: Sequence[int], gt_shape: Sequence[int], device: torch.device,
                       dtype: torch.dtype) -> dict[str, set[int]]:
    """The ids of the tensors, by loss, at which each loss itself has a gradient; empty if the losses do not run.

    Args:
        losses: as for :func:`study_losses`; called as they are, not copied, because identity counts.
        lq_shape: of one image in training, (c, h, w).
        gt_shape: likewise, (C, H, W).
        device: of the toy images.
        dtype: of the toy images: that of the training.
    """
    with undisturbed(losses):
        for gt, lq in _loss_shapes(gt_shape, lq_shape):
            output, target, small = toy_losses_input(gt, lq, device, dtype)[0]
            try:
                values = losses(output.requires_grad_(), target, small)
                return {name: _leaves(value) - {id(output)} for name, value in values.items()}
            except Exception:  # whatever a user's loss raises; study_losses reports it
                continue
    return {}


def _leaves(value: Tensor) -> set[int]:
    """The ids of the tensors to whose ``.grad`` a backward pass from ``value`` would add."""
    leaves, nodes, seen = set[int](), [value.grad_fn], set[Any]()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, 'variable'):
            leaves.add(id(node.variable))
        nodes.extend(following for following, _ in node.next_functions)
    return leaves


def _loss_shapes(gt_shape: Sequence[int], lq_shape: Sequence[int]) -> list[tuple[Sequence[int], Sequence[int]]]:
    """Shapes of gt and lq to try, growing up to those of training."""
    scale = max(1, gt_shape[-1] // lq_shape[-1])
    sides = [side for side in toy_sizes(min(gt_shape[-2:]))[:-1] if side >= _SMALLEST_LOSS_INPUT and side % scale == 0]
    small = [((gt_shape[0], side, side), (lq_shape[0], side // scale, side // scale)) for side in sides]
    return [*small, (gt_shape, lq_shape)]


def judge_network(part: str, behaviour: Behaviour, *, sees_whole: bool, processes: int) -> list[Finding]:
    """Judge the share of a network in an update.

    Args:
        part: name for the findings.
        behaviour: what :func:`study_network` has found.
        sees_whole: whether it gets the whole batch of its process in one piece.
        processes: how many processes share the batch.
    """
    if behaviour.untried is not None:
        return [Finding(part, False, f'could not be tried on a toy batch: {behaviour.untried}')]
    findings = []
    if behaviour.state is not None:
        findings.append(Finding(part, False, behaviour.state))
    if behaviour.couples is not None:
        findings.append(_coupling(part, behaviour, sees_whole, processes))
    shared = {f'draws random numbers that all samples of a call share ({behaviour.shares_noise})': behaviour.shares_noise,
              f'changes buffers in each pass ({", ".join(behaviour.buffers)})': behaviour.buffers}
    for what, applies in shared.items():
        if applies:
            findings.append(Finding(part, *_if_alone(what, sees_whole, processes)))
    if behaviour.draws_noise:
        findings.append(Finding(part, True, 'random numbers of its own for each sample; a replay draws the same again'))
    if all(finding.exact for finding in findings) and behaviour.couples is None:
        findings.append(Finding(part, True, 'each sample by itself, whatever its neighbours'))
    return findings


def _coupling(part: str, behaviour: Behaviour, sees_whole: bool, processes: int) -> Finding:
    what = f'couples samples ({behaviour.couples})'
    if sees_whole and processes > 1 and behaviour.only_batch_norm:
        return Finding(part, True, f'{what}, but its statistics are those of the whole batch of all processes')
    return Finding(part, *_if_alone(what, sees_whole, processes))


def _if_alone(what: str, sees_whole: bool, processes: int) -> tuple[bool, str]:
    """Judge something that is right only in one call for the whole batch."""
    if not sees_whole:
        return False, f'{what} and sees a part of the batch'
    if processes > 1:
        return False, f'{what} and each process sees its own samples only'
    return True, f'{what}, but sees the whole batch'


def judge_losses(behaviours: Mapping[str, Behaviour]) -> list[Finding]:
    """Judge losses, which are always computed in parts.

    Args:
        behaviours: what :func:`study_losses` has found.
    """
    findings = []
    for name, found in behaviours.items():
        reason = f'could not be tried on a toy batch: {found.untried}' if found.untried else None
        reason = reason or found.state or (f'not a mean over samples: {found.couples}' if found.couples else None)
        if reason is None and found.shares_noise:
            reason = f'draws random numbers that all samples of a call share ({found.shares_noise})'
        findings.append(Finding(name, reason is None, reason or 'a mean over samples'))
    return findings


def table(findings: Sequence[Finding]) -> str:
    """The findings as lines of text, the inexact ones first."""
    ordered = sorted(findings, key=lambda finding: finding.exact)
    width = max(len(finding.part) for finding in ordered)
    return '\n'.join(f'  {"exact" if finding.exact else "NOT EXACT":9}  {finding.part:{width}}  {finding.because}'
                     for finding in ordered)
