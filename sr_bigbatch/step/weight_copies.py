"""One 16-bit copy of each weight for all passes of a step.

Autocast casts a weight each time a layer uses it, so that a step of many micro-batches would cast each of them hundreds of
times. Its own cache does not help: it lives as long as one autocast context, and a cast made in a pass without graph has
no graph in the pass that needs one. Weights change at the end of a step only, so one copy serves all of its passes.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sr_bigbatch.step.precision import autocast_dtype

_CAST_BY_AUTOCAST = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

# By id and dtype: the parameter, its version and its copy. None outside of a step. Backward passes run in other threads.
_copies: dict[tuple[int, torch.dtype], tuple[Tensor, int, Tensor]] | None = None


@contextmanager
def weights_cast_once(*nets: nn.Module) -> Iterator[None]:
    """Cast each parameter once inside, for all passes; afterwards the copies are gone.

    Values and gradients are those of autocast, bit for bit.

    Args:
        nets: whose convolutions and linear layers take part. Layers that call :func:`cast` do so by themselves.
    """
    global _copies
    before, _copies = _copies, {}
    layers = dict.fromkeys(layer for net in nets for layer in net.modules()
                           if type(layer) in _CAST_BY_AUTOCAST and 'forward' not in vars(layer))
    for layer in layers:
        vars(layer)['forward'] = _ForwardWithCopies(layer)
    try:
        yield
    finally:
        _copies = before
        for layer in layers:
            del vars(layer)['forward']


def cast(weights: Sequence[Tensor], dtype: torch.dtype | None) -> list[Tensor]:
    """Working copies in ``dtype``, for passes written by hand; the weights themselves for None.

    Inside :func:`weights_cast_once` all copies of a parameter are one tensor. Call it without graph.
    """
    return [weight if dtype is None else _copy(weight, dtype) for weight in weights]


def _copy(weight: Tensor, dtype: torch.dtype) -> Tensor:
    if _copies is None or weight.dtype is dtype or not isinstance(weight, nn.Parameter) or weight.is_inference():
        return weight.to(dtype)
    key, version = (id(weight), dtype), weight._version
    found = _copies.get(key)
    if found is None or found[1] != version:  # a pass of a strange network may have changed it
        found = _copies[key] = weight, version, weight.detach().to(dtype)
    return found[2]


class _Cast(torch.autograd.Function):
    """Casts a parameter as ``Tensor.to`` does, but for a copy that may be made already.

    One cast for each use, as under autocast: gradients of several uses are then added in the dtype of the parameter.
    """

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = parameter.dtype
        copy = _copy(parameter, dtype)
        return copy.view_as(copy)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient in the dtype of the parameter."""
        return gradient.to(ctx.dtype), None


class _ForwardWithCopies:
    """Takes the place of the ``forward`` of a layer, which sees copies of its parameters where autocast would cast them.

    Args:
        layer: whose parameters nobody else sees replaced.
    """

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What the layer makes of ``x``."""
        layer, dtype = self._layer, autocast_dtype(x.device)
        copies = {} if dtype is None else {
            name: _with_graph(parameter, dtype) for name, parameter in layer._parameters.items()
            if parameter is not None and parameter.dtype is torch.float32}
        vars(layer).update(copies)
        try:
            output: Tensor = type(layer).forward(layer, x, *args, **kwargs)
        finally:
            for name in copies:
                del vars(layer)[name]
        return output


def _with_graph(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    if torch.is_grad_enabled() and parameter.requires_grad:
        copy: Tensor = _Cast.apply(parameter, dtype)  # type: ignore[no-untyped-call]
        return copy
    return _copy(parameter, dtype)
