"""Copies of networks and losses in another floating-point type, to try things on."""
from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar('Module', bound=nn.Module)


def copy_in(net: Module, dtype: torch.dtype) -> Module:
    """A copy of ``net`` whose floating-point parameters, buffers and plain tensors have ``dtype``; hooks on parameters are
    not copied.

    Args:
        net: may hold tensors with a graph, as the old ``weight_norm`` leaves them, which ``deepcopy`` refuses.
        dtype: float32 or float64; complex tensors get the complex type of the same precision.
    """
    with _detached(net):
        twin = copy.deepcopy(net)
    for module in twin.modules():
        for name, value in list(vars(module).items()):
            vars(module)[name] = _cast_all(value, dtype)
    # Not Module.to: it would take the imaginary part of complex parameters away.
    twin._apply(lambda tensor: _cast(tensor, dtype))  # type: ignore[no-untyped-call]
    return twin


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.is_complex():
        return tensor.to(torch.complex128 if dtype is torch.float64 else torch.complex64)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _cast_all(value: Any, dtype: torch.dtype) -> Any:
    """The tensor, or the list or tuple of tensors, in ``dtype``; anything else as it is."""
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        return _cast(value, dtype)
    if type(value) in (list, tuple) and any(isinstance(item, Tensor) for item in value):
        return type(value)(_cast_all(item, dtype) for item in value)
    return value


@contextmanager
def _detached(net: nn.Module) -> Iterator[None]:
    with_graph = [(module, name, value) for module in net.modules() for name, value in vars(module).items()
                  if _has_graph(value)]
    for module, name, value in with_graph:
        vars(module)[name] = _detach(value)
    try:
        yield
    finally:
        for module, name, value in with_graph:
            vars(module)[name] = value


def _has_graph(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_has_graph, value))
    if type(value) is dict:
        return any(map(_has_graph, value.values()))
    return isinstance(value, Tensor) and value.grad_fn is not None


def _detach(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_detach(item) for item in value] if isinstance(value, list) else tuple(map(_detach, value))
    if type(value) is dict:
        return {name: _detach(item) for name, item in value.items()}
    return value.detach() if _has_graph(value) else value


def copy_losses(losses: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
    """A copy of a loss in ``dtype``, as far as it is made of modules; a plain function is returned as it is.

    Args:
        losses: an ``nn.Module``, a dataclass that holds modules, or any other callable.
        dtype: float32 or float64.
    """
    if isinstance(losses, nn.Module):
        return copy_in(losses, dtype)
    if dataclasses.is_dataclass(losses) and not isinstance(losses, type):
        fields = {field.name: getattr(losses, field.name) for field in dataclasses.fields(losses) if field.init}
        copies: Callable[..., Any] = dataclasses.replace(losses, **{  # type: ignore[assignment]
            name: copy_in(value, dtype) if isinstance(value, nn.Module) else value for name, value in fields.items()})
        return copies
    return losses
