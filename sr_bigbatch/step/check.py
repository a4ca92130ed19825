"""Asks of networks, losses and plan together: is the update that of the whole batch?"""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from sr_bigbatch.step.audit import (
    Behaviour,
    Finding,
    judge_losses,
    judge_network,
    parameters_reached,
    study_losses,
    study_network,
    toy_batches,
    toy_sizes,
)
from sr_bigbatch.step.distributed import world_size
from sr_bigbatch.step.plan import WHOLE, StepPlan
from sr_bigbatch.step.sample_losses import SampleLosses
from sr_bigbatch.step.update import SafeUpdate
from sr_bigbatch.step.wiring import wiring_findings

_PARTS = {'g': 'generator', 'd': 'discriminator'}
_REAL = 'real images'
_JUDGES = {_REAL: 'discriminator'}  # the part of a plan that says how they are cut


class NotExact(ValueError):
    """The update would not be that of the whole batch.

    Attributes:
        findings: every reason.
    """

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = list(findings)
        reasons = '\n'.join(f'- {finding.part}: {finding.because}' for finding in findings)
        super().__init__(f'The update would not be that of the whole batch:\n{reasons}\nChange what is named, or let it see '
                         'the whole batch in one process (micro_batch_size), or accept the difference '
                         '(accumulation: plain).')


class Check:
    """Studies networks and losses when they change, and judges a plan by what it has found.

    Args:
        nets: by name, ``'g'`` and ``'d'``.
        updates: the owners of their optimizers, by the same names.
        losses: the sample losses.
        real_images: see :class:`sr_bigbatch.step.adversarial_step.AdversarialStep`.
    """

    def __init__(self, nets: Mapping[str, nn.Module], updates: Mapping[str, SafeUpdate], losses: SampleLosses,
                 real_images: nn.Module | None = None) -> None:
        self._nets, self._updates, self._losses, self._real_images = nets, updates, losses, real_images
        self._behaviours: dict[str, Behaviour] = {}
        self._of_losses: dict[str, Behaviour] = {}
        self._studied: dict[str, object] = {}
        self._last: object = None

    @property
    def uncuttable(self) -> frozenset[str]:
        """Parts that must see the whole batch of their process at once."""
        return frozenset(_JUDGES.get(part, part) for part, found in self._behaviours.items()
                         if found.couples or found.shares_noise or found.buffers or found.state or found.untried)

    @property
    def shares_statistics(self) -> list[str]:
        """Names of the networks whose batch statistics must be those of all processes."""
        return [name for name in self._nets if self._behaviours.get(_PARTS[name], Behaviour()).only_batch_norm]

    @property
    def changes_buffers(self) -> frozenset[str]:
        """Parts of which a pass changes buffers that only a copy of them can bring back."""
        return frozenset(part for part, found in self._behaviours.items() if found.buffers)

    @property
    def draws_noise(self) -> bool:
        """Whether a network or a loss draws random numbers."""
        found = (*self._behaviours.values(), *self._of_losses.values())
        return any(behaviour.draws_noise or behaviour.shares_noise for behaviour in found)

    def is_due(self, plan: StepPlan, lq_shape: Sequence[int], gt_shape: Sequence[int], sizes: Sequence[int]) -> bool:
        """Whether plan, crop, batch or a network is another than at the last check."""
        return self._last != self._state(plan, lq_shape, gt_shape, sizes)

    def __call__(self, plan: StepPlan, lq_shape: Sequence[int], gt_shape: Sequence[int],
                 sizes: Sequence[int]) -> tuple[StepPlan, list[Finding]]:
        """Judge a plan.

        Args:
            plan: how the batch is to be cut.
            lq_shape: of one image, (C, h, w).
            gt_shape: (C, H, W).
            sizes: samples of each process.

        Returns:
            The plan, with the whole batch for a discriminator that couples samples where one size was given for all
            parts; and what was found.
        """
        self._study(lq_shape, gt_shape, max(sizes))
        cut = plan.micro.discriminator < max(sizes)
        if plan.adapts and plan.exact and cut and 'discriminator' in self.uncuttable:
            plan = replace(plan, micro=replace(plan.micro, discriminator=WHOLE))
        findings = [Finding(part, False, reason) for part, reason in wiring_findings(self._nets, self._updates)]
        for name in self._nets:
            part = _PARTS[name]
            sees_whole = getattr(plan.micro, part) >= max(sizes)
            findings += judge_network(part, self._behaviours[part], sees_whole=sees_whole, processes=len(sizes))
        if _REAL in self._behaviours:
            findings += judge_network(_REAL, self._behaviours[_REAL], sees_whole=plan.micro.discriminator >= max(sizes),
                                      processes=len(sizes))
        if 'd' in self._nets:
            findings.append(Finding('GAN loss', plan.exact, 'taken from the logits of the whole batch' if plan.exact else
                                    'taken from the logits of each micro-batch (accumulation: plain)'))
        elif not self._of_losses:
            findings.append(Finding('losses', False, 'there is none, and no discriminator either: nothing would be learned'))
        findings += judge_losses(self._of_losses)
        if 'd' in self._nets:
            findings += self._beside_the_images(lq_shape, gt_shape)
        self._last = self._state(plan, lq_shape, gt_shape, sizes)
        return plan, findings

    def _study(self, lq_shape: Sequence[int], gt_shape: Sequence[int], batch: int) -> None:
        device = next(self._nets['g'].parameters()).device
        for name, net in self._nets.items():
            key = (tuple(lq_shape), tuple(gt_shape), batch, *_signature(net))
            if self._studied.get(name) != key:
                # A discriminator may take one size only.
                channels, sizes = (lq_shape[0], toy_sizes(lq_shape[-1])) if name == 'g' else (gt_shape[0], [gt_shape[-1]])
                self._behaviours[_PARTS[name]] = study_network(net, toy_batches(channels, sizes, device), batch)
                self._studied[name] = key
        self._study_real_images(gt_shape, batch, device)
        key = (tuple(lq_shape), tuple(gt_shape), batch)
        if self._studied.get('losses') != key:
            self._of_losses = study_losses(self._losses, lq_shape, gt_shape, device, batch)
            self._studied['losses'] = key

    def _study_real_images(self, gt_shape: Sequence[int], batch: int, device: torch.device) -> None:
        made = self._real_images
        key = None if made is None else (tuple(gt_shape), batch, *_signature(made))
        if made is None or self._studied.get(_REAL) == key:
            return
        toys = toy_batches(gt_shape[0], toy_sizes(gt_shape[-1]), device)
        found = study_network(made, toys, batch)
        state = found.state or (f'it changes buffers ({", ".join(found.buffers)})' if found.buffers else None)
        # It stands outside of the networks whose batch statistics are shared between processes and brought back by a replay.
        self._behaviours[_REAL] = replace(found, state=state, buffers=(), only_batch_norm=False)
        self._studied[_REAL] = key

    def _beside_the_images(self, lq_shape: Sequence[int], gt_shape: Sequence[int]) -> Iterator[Finding]:
        """Losses that reach the generator's weights themselves: an adversarial step cuts the graph at the images."""
        net = self._nets['g']
        first = next(net.parameters())
        names = {id(parameter): name for name, parameter in net.named_parameters() if parameter.requires_grad}
        for loss, reached in parameters_reached(self._losses, lq_shape, gt_shape, first.device, first.dtype).items():
            found = [name for number, name in names.items() if number in reached]
            if found:
                yield Finding(loss, False, f"reaches the generator's {found[0]} in another way than through the generated "
                              'images; its gradient there would be lost')

    def _state(self, plan: StepPlan, lq_shape: Sequence[int], gt_shape: Sequence[int], sizes: Sequence[int]) -> object:
        return (plan, tuple(lq_shape), tuple(gt_shape), tuple(sizes), world_size(),
                *(item for net in (*self._nets.values(), self._real_images) if net is not None for item in _signature(net)))


def _signature(net: nn.Module) -> Iterator[object]:
    """What tells a network from itself after a change of its structure, its mode or its hooks."""
    for module in net.modules():
        hooks = module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks
        yield id(module), type(module), module.training, *map(tuple, hooks)  # their keys are never used twice
    for parameter in net.parameters():
        of_gradients = parameter._backward_hooks, getattr(parameter, '_post_accumulate_grad_hooks', None)
        yield id(parameter), parameter.requires_grad, *map(bool, of_gradients)
