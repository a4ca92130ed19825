"""Looks at how networks, optimizers and hooks hang together, where a divided update would silently differ."""
from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from sr_bigbatch.step.update import SafeUpdate
from sr_bigbatch.step.words import count

_NAMES = {'g': 'generator', 'd': 'discriminator'}


def wiring_findings(nets: Mapping[str, nn.Module], updates: Mapping[str, SafeUpdate]) -> Iterator[tuple[str, str]]:
    """The part and a clause for each connection that a step cannot treat exactly.

    Args:
        nets: by name, ``'g'`` and ``'d'``.
        updates: the owners of their optimizers, by the same names.
    """
    owners: dict[int, str] = {}
    for name, net in nets.items():
        part = _NAMES[name]
        if isinstance(net, DataParallel | DistributedDataParallel):
            yield part, (f'is wrapped in {type(net).__name__}, which sums gradients once for each part: give the network '
                         'itself (its .module); the step sums gradients over processes')
        for parameter_name, parameter in net.named_parameters():
            if parameter._backward_hooks or getattr(parameter, '_post_accumulate_grad_hooks', None):
                yield part, f'{parameter_name} has a gradient hook, which would be called for each part of the batch'
            if owners.setdefault(id(parameter), name) != name and parameter.requires_grad:
                yield part, (f'{parameter_name} belongs to the {_NAMES[owners[id(parameter)]]}, too: each network must have '
                             'parameters of its own')
        yield from ((part, reason) for reason in _of_optimizer(updates[name].optimizer, net, part))


def _of_optimizer(optimizer: torch.optim.Optimizer, net: nn.Module, part: str) -> Iterator[str]:
    if isinstance(optimizer, torch.optim.LBFGS):
        yield 'LBFGS evaluates the loss several times in an update, which a step does not do'
    own = {id(parameter) for parameter in net.parameters()}
    strangers = sum(id(parameter) not in own for group in optimizer.param_groups for parameter in group['params'])
    if strangers:
        yield (f'its optimizer also has {count(strangers, "parameter")} outside the {part}, which would get no '
               'gradient from a step')
