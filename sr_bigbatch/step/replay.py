"""What a forward pass leaves behind: random numbers, batch statistics, power iterations.

A step runs a network many times, in micro-batches and again for graphs that were not kept. It must leave the traces of
one run.
"""
from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm


@dataclass(frozen=True)
class RngState:
    """The state of the random number generators that a network may draw from: torch's, Python's and numpy's."""

    cpu: Tensor
    cuda: Tensor | None
    python: tuple[Any, ...]
    numpy: dict[str, Any] | tuple[Any, ...] | None

    @staticmethod
    def capture(device: torch.device) -> RngState:
        """The state as it is now, on the CPU and on ``device``."""
        numpy = sys.modules.get('numpy')  # a network that draws from it has imported it
        return RngState(torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == 'cuda' else None,
                        random.getstate(), numpy.random.get_state() if numpy else None)

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
        random.setstate(self.python)
        if self.numpy is not None:
            sys.modules['numpy'].random.set_state(self.numpy)


@dataclass(frozen=True)
class Snapshot:
    """The random numbers and the buffers of a network at a moment, to return to."""

    rng: RngState
    device: torch.device
    buffers: tuple[tuple[Tensor, Tensor], ...]

    @staticmethod
    def take(device: torch.device, net: nn.Module, *, with_buffers: bool = True) -> Snapshot:
        """The present state; ``with_buffers`` for running statistics, power iterations and whatever a pass may change."""
        buffers = tuple((buffer, buffer.detach().clone()) for buffer in net.buffers()) if with_buffers else ()
        return Snapshot(RngState.capture(device), device, buffers)

    def restore(self) -> None:
        """Return to this state."""
        self.rng.restore(self.device)
        self.restore_buffers()

    def restore_buffers(self) -> None:
        """Return to these buffers; the random numbers go on."""
        with torch.no_grad():
            for buffer, saved in self.buffers:
                buffer.copy_(saved)

    @contextmanager
    def replayed(self, net: nn.Module) -> Iterator[None]:
        """Run a pass of ``net`` again as it ran at this moment, and leave no trace of it."""
        after = [(buffer, buffer.detach().clone()) for buffer, _ in self.buffers]
        with self.rng.replayed(self.device), frozen_running_statistics(net):
            self.restore_buffers()
            try:
                yield
            finally:
                with torch.no_grad():
                    for buffer, value in after:
                        buffer.copy_(value)


@contextmanager
def _with_attribute(objects: list[Any], name: str, value: object) -> Iterator[None]:
    saved = [getattr(each, name) for each in objects]
    for each in objects:
        setattr(each, name, value)
    try:
        yield
    finally:
        for each, old in zip(objects, saved, strict=True):
            setattr(each, name, old)


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


def _power_iterations(net: nn.Module) -> Iterator[tuple[nn.Module, str, SpectralNorm | _SpectralNorm]]:
    """Module, name of the weight and owner of the power iteration, under both APIs of torch, where one is due."""
    for module in net.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm) and module.training:
                yield module, hook.name, hook
        for name, chain in getattr(module, 'parametrizations', {}).items():
            for part in chain:
                if isinstance(part, _SpectralNorm) and part.training:
                    yield module, name, part


@contextmanager
def one_power_iteration(*nets: nn.Module) -> Iterator[None]:
    """Advance every spectral norm of networks in training mode once, then freeze it inside the context.

    All passes of a step then see one network, whatever their number. ``torch.nn.utils.spectral_norm`` and
    ``torch.nn.utils.parametrizations.spectral_norm`` are both known. Only the power iteration is frozen: the ``training``
    flags stay as they are, because a module may read its own. After an exception the vectors are those of before: no step
    was made.
    """
    due = [found for net in nets for found in _power_iterations(net)]
    owners = [module if isinstance(owner, SpectralNorm) else owner for module, _, owner in due]
    before = [(vector, vector.detach().clone()) for owner in owners for vector in owner.buffers(recurse=False)]
    with torch.no_grad():
        for module, _, owner in due:
            if isinstance(owner, SpectralNorm):
                owner.compute_weight(module, do_power_iteration=True)
        for module, name in dict.fromkeys((module, name) for module, name, owner in due if isinstance(owner, _SpectralNorm)):
            getattr(module, name)  # evaluating a parametrized tensor runs its power iterations
    with ExitStack() as frozen:
        frozen.enter_context(_with_attribute([owner for _, _, owner in due], 'n_power_iterations', 0))
        try:
            yield
        except BaseException:
            with torch.no_grad():
                for vector, value in before:
                    vector.copy_(value)
            raise
