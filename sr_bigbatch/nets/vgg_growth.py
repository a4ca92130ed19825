"""How a VGG-style discriminator grows for images of twice the size, without forgetting what it has learned.

``append`` is BasicSR's way: a stage behind the others, before the linear layers. ``prepend`` is that of progressive growing
(Karras et al. 2018, https://arxiv.org/abs/1710.10196): a stage before the others, faded in; unlike there the path of the
smaller image stays, and the new stage adds to it.
"""
from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_bigbatch.progressive.stages import add_to_optimizer, cut, measure
from sr_bigbatch.step.distributed import batch_sizes, gather_batch, same_everywhere, world_size

from .lean_ops import layout
from .vgg_discriminator import SLOPE, GrowableVGGDiscriminator, check_size

WAYS = ('append', 'prepend')
_TINY = 1e-12
_LOOKED_AT = 8  # real and as many generated images, by which a growth is measured


def grow(net: GrowableVGGDiscriminator, way: str = 'append', images: Tensor | None = None) -> list[nn.Parameter]:
    """Make ``net`` judge images of twice the size.

    Args:
        net: the discriminator, changed in place.
        way: ``append`` or ``prepend``. With ``append`` the new stage passes on averages of 2x2 features. With ``prepend``
            nothing changes at first but that the image is halved: the new stage starts with a share of 0, see
            ``set_fade``.
        images: (M, C, 2S, 2S), for ``append`` with a norm: what the new stage passes on is fitted to them.

    Returns:
        The new parameters, which no optimizer knows yet.

    Raises:
        ValueError: at the largest size, for another way, or where an appended stage would need other linear layers.
    """
    check_size(net.input_size * 2)
    if way not in WAYS:
        raise ValueError(f'growth must be one of {", ".join(WAYS)}, got {way!r}')
    channels_last = any(layout(parameter) is torch.channels_last for parameter in net.parameters())
    if way == 'append':
        check_can_append(net.stages, net.input_size)
        added = net.add_stage(net.stages)
    else:
        added = net.add_entry()
        net.set_fade(0.0)
    for module in added:
        module.to(net.linear1.weight)
        if channels_last:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        module.train(net.training)
    if way == 'append':
        _pass_on(net, images)
        net.stages += 1
    net.input_size *= 2
    return [parameter for module in added for parameter in module.parameters()]


def check_can_append(stages: int, input_size: int) -> None:
    """Raise ValueError where an appended stage would have more features than the last, which the linear layers know."""
    if stages < 4:
        raise ValueError(f'a discriminator for {input_size} px cannot grow by append, because its linear layers would not '
                         'fit: start at 64 px or more, or use growth: prepend')


@torch.no_grad()
def _pass_on(net: GrowableVGGDiscriminator, images: Tensor | None) -> None:
    """Make the stage behind the others pass on averages of 2x2 features."""
    training = net.training
    features = None if images is None else net.eval().features(images)
    net.train(training)
    for part in range(2):
        conv: Any = net.get_submodule(f'conv{net.stages}_{part}')
        kernel = torch.zeros_like(conv.weight)
        channel = torch.arange(kernel.shape[0], device=kernel.device)
        # Under a spectral norm only a single tap leaves values as they are: that stage picks one feature of four.
        averages = part == 1 and net.norm != 'spectral'
        taps = slice(1, 3 if averages else 2)
        kernel[channel, channel, taps, taps] = 0.25 if averages else 1.0
        raw = conv.parametrizations.weight.original if net.norm == 'spectral' else conv.weight
        raw.data.copy_(kernel)
        if conv.bias is not None:
            conv.bias.data.zero_()
        if features is not None:
            target = F.avg_pool2d(features, 2) if part else features
            features = _fit(net, f'{net.stages}_{part}', F.conv2d(features, kernel, None, 1 + part, 1), target)


def _fit(net: GrowableVGGDiscriminator, name: str, values: Tensor, target: Tensor) -> Tensor:
    """Choose the affine part of a layer by least squares, channel by channel, so that its output is near ``target``."""
    axes, kind = (0, 2, 3), {'batch': 'bn', 'group': 'gn'}.get(net.norm)
    norm: Any = net.get_submodule(kind + name) if kind else None
    if isinstance(norm, nn.BatchNorm2d):
        norm.running_mean, norm.running_var = values.mean(axes), values.var(axes)
    if norm is not None:
        values = norm.eval()(values)
        norm.train(net.training)
    target = torch.where(target < 0, target / SLOPE, target)  # before the activation
    mean, wanted = values.mean(axes, keepdim=True), target.mean(axes, keepdim=True)
    slope = ((values - mean) * (target - wanted)).mean(axes) / (values - mean).square().mean(axes).clamp_min(_TINY)
    conv: Any = net.get_submodule(f'conv{name}')
    if net.norm == 'spectral':  # has no free scale
        slope = torch.ones_like(slope)
    offset = (wanted - mean * slope.view_as(mean)).flatten()
    if norm is not None:
        norm.weight.copy_(slope)
        norm.bias.copy_(offset)
    else:
        conv.bias.copy_(offset)
        if net.norm == 'none':
            conv.weight.mul_(slope.view(-1, 1, 1, 1))
    return F.leaky_relu(values * slope.view_as(mean) + offset.view_as(mean), SLOPE)


def shape_of(state: Iterable[str]) -> tuple[int, int]:
    """Numbers of stages and of prepended stages of a saved discriminator, given the keys of its state dict."""
    found = [re.match(r'(?:module\.)?(conv|pre)(\d+)_', key) for key in state]
    stages = [int(match[2]) + 1 for match in found if match and match[1] == 'conv']
    return max(stages, default=0), max((int(match[2]) for match in found if match and match[1] == 'pre'), default=0)


def grown_parameters(net: GrowableVGGDiscriminator, history: Iterable[str]) -> list[list[nn.Parameter]]:
    """The parameters that each of some growths had added.

    Args:
        net: as it is after them.
        history: the ways in which it grew, the oldest first.
    """
    history, groups = list(history), []
    stage, level = net.stages - history.count('append'), net.prepended - history.count('prepend')
    for way in history:
        if way == 'append':
            pattern, stage = rf'(?:conv|bn|gn){stage}_', stage + 1
        else:
            level += 1
            pattern = f'pre{level}_'
        groups.append([parameter for name, parameter in net.named_parameters() if re.match(pattern, name)])
    return groups


def grow_to(net_g: nn.Module, net_d: GrowableVGGDiscriminator, optimizer: torch.optim.Optimizer, schedulers: Sequence[Any],
            batch: dict[str, Tensor], gt_size: int, way: str, lr_factor: float) -> Iterator[str]:
    """Let a discriminator grow until it judges crops of a size, in all processes alike; a line for the log for each growth.

    Args:
        net_g: the generator, which makes images to measure by.
        net_d: the discriminator.
        optimizer: of the discriminator; new parameters get a group of their own.
        schedulers: that must know of them.
        batch: ``lq`` (B, C, h, w) and ``gt`` (B, C, H, W), on any device.
        gt_size: of the crops, in pixels.
        way: ``append`` or ``prepend``.
        lr_factor: learning rate of new parameters over that of the others.
    """
    def change(images: Tensor) -> None:
        add_to_optimizer(optimizer, schedulers, grow(net_d, way, images), lr_factor)
        same_everywhere(net_d)  # each process has drawn the new layers from random numbers of its own

    while net_d.input_size < gt_size:
        growth = measure(net_d, change, *_examples(net_g, batch, 2 * net_d.input_size), way)
        yield f'The discriminator has grown to {net_d.input_size} px ({way}): {growth}.'


@torch.no_grad()
def _examples(net_g: nn.Module, batch: dict[str, Tensor], size: int) -> tuple[Tensor, Tensor]:
    """The first images of the batch of all processes, and what the generator makes of them."""
    device = next(net_g.parameters()).device
    mine = [images[:_LOOKED_AT].to(device) for images in cut(batch['lq'], batch['gt'], size)]
    sizes = batch_sizes(len(mine[0]))
    lq, gt = (gather_batch(images, sizes)[:_LOOKED_AT] for images in mine)
    examples = torch.stack([gt, torch.cat([net_g(image[None]) for image in lq])]).contiguous()
    if world_size() > 1:
        torch.distributed.broadcast(examples, 0)
    return examples[0], examples[1]


def regroup(net_d: nn.Module, optimizer: torch.optim.Optimizer, schedulers: Sequence[Any], history: Sequence[str]) -> None:
    """Give the parameters of past growths groups of their own, as they had in the optimizer that was saved.

    Args:
        net_d: as it was saved.
        optimizer: made for all of its parameters.
        schedulers: that must know of the groups.
        history: the ways in which it grew, the oldest first.
    """
    if not isinstance(net_d, GrowableVGGDiscriminator):
        return
    groups, first = grown_parameters(net_d, history), optimizer.param_groups[0]
    late = {id(parameter) for group in groups for parameter in group}
    first['params'] = [parameter for parameter in first['params'] if id(parameter) not in late]
    for group in groups:
        add_to_optimizer(optimizer, schedulers, group)
