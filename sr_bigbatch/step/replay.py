"""What a forward pass leaves behind: random numbers, batch statistics, power iterations.

A step runs a network many times, in micro-batches and again for graphs that were not kept. It must leave the traces of
one run.
"""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.spectral_norm import SpectralNorm


@dataclass(frozen=True)
class RngState:
    """The state of the random number generators of the CPU and of one CUDA device."""

    cpu: Tensor
    cuda: Tensor | None

    @staticmethod
    def capture(device: torch.device) -> RngState:
        """The state as it is now."""
        return RngState(torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == 'cuda' else None)

    @contextmanager
    def replayed(self, device: torch.device) -> Iterator[None]:
        """Draw the same numbers as after :meth:`capture`; afterwards go on as if nothing had been drawn."""
        now = RngState.capture(device)
        self.restore(device)
        try:
            yield
        finally:
            now.restore(device)

    def restore(self, device: torch.device) -> None:
        """Draw the same numbers from now on as after :meth:`capture`."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, device)


class Traces:
    """The random numbers and the buffers of networks as they are now, to return to.

    Args:
        device: whose random numbers.
        *nets: whose buffers: running statistics, power iterations.
    """

    def __init__(self, device: torch.device, *nets: nn.Module) -> None:
        self._rng = RngState.capture(device)
        self._device = device
        self._buffers = [(buffer, buffer.detach().clone()) for net in nets for buffer in net.buffers()]

    def restore(self) -> None:
        """Return to the captured state."""
        self._rng.restore(self._device)
        self.restore_buffers()

    def restore_buffers(self) -> None:
        """Return to the captured buffers; the random numbers go on."""
        with torch.no_grad():
            for buffer, saved in self._buffers:
                buffer.copy_(saved)


@contextmanager
def _with_attribute(modules: list[nn.Module], name: str, value: object) -> Iterator[None]:
    saved = [getattr(module, name) for module in modules]
    for module in modules:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, old in zip(modules, saved, strict=True):
            setattr(module, name, old)


def batch_norms(net: nn.Module) -> list[nn.Module]:
    """The layers of ``net`` that normalise with the statistics of the batch in their present mode."""
    return [module for module in net.modules() if isinstance(module, _BatchNorm)
            and (module.training or not module.track_running_stats)]


@contextmanager
def frozen_running_statistics(net: nn.Module) -> Iterator[None]:
    """Normalise as in training but leave running mean, variance and count of BatchNorm layers alone."""
    tracking = [module for module in batch_norms(net) if module.track_running_stats]
    with _with_attribute(tracking, 'track_running_stats', False):
        yield


def _spectral_norms(net: nn.Module) -> list[nn.Module]:
    """Modules whose ``training`` flag decides on a power iteration, under both torch APIs."""
    hooked = [module for module in net.modules()
              if any(isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values())]
    parametrized = [module for module in net.modules() if type(module).__name__ == '_SpectralNorm']
    return hooked + parametrized


@contextmanager
def one_power_iteration(net: nn.Module) -> Iterator[None]:
    """Advance every spectral norm of a network in training mode once, then freeze it inside the context.

    All passes of a step then see one network, whatever their number. ``torch.nn.utils.spectral_norm`` and
    ``torch.nn.utils.parametrizations.spectral_norm`` are both known.
    """
    active = [module for module in _spectral_norms(net) if module.training]
    with torch.no_grad():
        for module in net.modules():
            for hook in module._forward_pre_hooks.values():
                if isinstance(hook, SpectralNorm) and module.training:
                    hook.compute_weight(module, do_power_iteration=True)
            for name, parametrization in getattr(module, 'parametrizations', {}).items():
                if any(part in active for part in parametrization):
                    getattr(module, name)  # evaluating a parametrized tensor runs its power iteration
    with _with_attribute(active, 'training', False):
        yield
