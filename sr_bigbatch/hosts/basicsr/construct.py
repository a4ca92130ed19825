"""Builds what BasicSR's registries hold, also without memory or values, as checks and predictions need it."""
from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY, Registry
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.nn.modules.module import register_module_parameter_registration_hook

from sr_bigbatch.hosts.basicsr.settings import Options

_MOST_PARAMETERS = 30_000


class Endless(ValueError):
    """A network that would be built for ever."""


def names_of(registry: Registry) -> dict[str, Callable[..., Any]]:
    """What may be named: BasicSR also finds ``NAME_basicsr`` by ``NAME``."""
    names = dict(iter(registry))
    return {**{name.removesuffix('_basicsr'): thing for name, thing in names.items()}, **names}


def construct(registry: Registry, settings: Options) -> nn.Module:
    """What ``settings`` name, on the default device of torch."""
    # Which memory policy `auto` stands for is decided when the device is known.
    arguments = {key: value for key, value in settings.items()
                 if key != 'type' and (key, value) != ('activation_memory', 'auto')}
    with _not_endless():
        module: nn.Module = names_of(registry)[settings['type']](**arguments)
    return module


@contextmanager
def _not_endless() -> Iterator[None]:
    """Refuse to build a network without end, as one of 10^12 blocks would be."""
    registered = 0

    def count(*_: object) -> None:
        nonlocal registered
        registered += 1
        if registered > _MOST_PARAMETERS:
            raise Endless(f'it would have more than {_MOST_PARAMETERS} weight tensors: is a number of blocks too large?')

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def network_to_inspect(settings: Options) -> nn.Module:
    """The network of ``network_g`` or ``network_d``, without memory if its constructor allows it.

    torch's random numbers are afterwards those that they were.

    Raises:
        Exception: whatever its constructor raises.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device('meta'):
                return construct(ARCH_REGISTRY, settings)
        except Endless:
            raise
        except Exception:  # it reads values, or makes tensors on a device that it names
            return construct(ARCH_REGISTRY, settings)


def fake_network(settings: Options, mode: FakeTensorMode) -> nn.Module:
    """The network of ``network_g`` or ``network_d`` on fake tensors; to be called inside ``mode``.

    Raises:
        Exception: whatever its constructor raises.
    """
    try:
        return construct(ARCH_REGISTRY, settings)
    except Exception:  # as above
        with unset_fake_temporarily(), torch.random.fork_rng(devices=[]):
            net = construct(ARCH_REGISTRY, settings)
    for module in net.modules():
        own: tuple[Options, ...] = (module._parameters, module._buffers, vars(module))  # SwinIR's mean is neither
        for attributes in own:
            for name, value in attributes.items():
                if isinstance(value, torch.Tensor):
                    attributes[name] = mode.from_tensor(value)
    return net


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch from printing a traceback of its own where an operation fails on fake tensors; the exception remains."""
    log = logging.getLogger('torch._subclasses.fake_tensor')
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def reason(error: Exception) -> str:
    """What an error says, in one line; with its kind where the text alone says little."""
    text = str(error).strip().split('\n')[0]
    spoken = isinstance(error, TypeError | ValueError | RuntimeError | AssertionError)
    return text if text and spoken else f'{type(error).__name__} {text}'.strip()
