"""Looks for inf and NaN, and waits for the device as seldom as it can."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sr_bigbatch.step.precision import widen


def flag(values: Tensor) -> Tensor:
    """A scalar on the device of ``values``: whether all of them are finite. This does not wait for the device."""
    # The sum is one pass over the memory; only in float16 could a sum overflow whose terms are in the range of images.
    return torch.isfinite(values.detach().sum(dtype=torch.float32 if values.dtype is torch.float16 else values.dtype))


def nan_unless_finite(factor: float, *values: Tensor) -> Tensor:
    """``factor`` as a scalar tensor, or NaN if one of ``values`` is not finite.

    An infinite loss or logit can have finite gradients, because a sigmoid saturates. As a factor on a gradient this has
    such a gradient found at the commit, without anyone waiting here.
    """
    return torch.where(torch.stack([flag(value) for value in values]).all(), factor, float('nan'))


def read(flags: Sequence[Tensor]) -> list[bool]:
    """The values of scalars, on one device or on several; waits once for each."""
    values = dict[int, bool]()
    for device in {value.device for value in flags}:
        here = [index for index, value in enumerate(flags) if value.device == device]
        values.update(zip(here, map(bool, torch.stack([flags[index] for index in here]).tolist()), strict=True))
    return [values[index] for index in range(len(flags))]


def bad_samples(*batches: Tensor) -> list[int]:
    """Indices of the samples that are not finite in one of ``batches`` (B, ...); waits for a device once."""
    finite = [torch.isfinite(widen(images.detach()).sum(tuple(range(1, images.ndim)))) for images in batches]
    together = torch.stack([flags.to(finite[0].device, non_blocking=True) for flags in finite]).all(0)
    return [index for index, good in enumerate(together.tolist()) if not good]


def poisoned(net: nn.Module) -> list[str]:
    """Names of the parameters and buffers of ``net`` that are not finite; waits once for each device."""
    named = [(name, tensor) for name, tensor in (*net.named_parameters(), *net.named_buffers())
             if tensor.is_floating_point()]
    finite = read([torch.isfinite(tensor.detach()).all() for _, tensor in named])
    return [name for (name, _), good in zip(named, finite, strict=True) if not good]


class LateFlag:
    """Learns about flags of a GPU without waiting for it: those that have arrived by now are looked at."""

    def __init__(self) -> None:
        self._pending: list[tuple[Tensor, torch.cuda.Event]] = []

    def reset(self) -> None:
        """Forget the flags of an earlier step."""
        self._pending = []

    def is_false(self, new: Tensor) -> bool:
        """Add a flag; returns whether one of those known by now is False. On the CPU every flag is known at once."""
        if new.device.type != 'cuda':
            return not bool(new)
        arrived = torch.empty((), dtype=torch.bool, pin_memory=True)
        arrived.copy_(new, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(new.device))
        self._pending.append((arrived, event))
        return any(ready.query() and not bool(value) for value, ready in self._pending)
