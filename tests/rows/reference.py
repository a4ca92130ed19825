"""The undivided update of a row, made by BasicSR's own code, and the judgement on what a host has made of it."""
from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy
import torch
from basicsr.models.esrgan_model import ESRGANModel
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from sr_bigbatch.options import OptionError
from sr_bigbatch.step.adversarial_step import AdversarialStep
from sr_bigbatch.step.check import NotExact
from tests.reference import checked
from tests.rows.cases import Row, says

State = tuple[Any, ...]


def seed() -> None:
    """The random numbers at the start of an update."""
    torch.manual_seed(5)
    random.seed(5)
    numpy.random.seed(5)


def _random_state() -> State:
    return torch.get_rng_state(), random.getstate(), numpy.random.get_state()


def _set_random_state(state: State) -> None:
    torch.set_rng_state(state[0])
    random.setstate(state[1])
    numpy.random.set_state(state[2])


class _OncePerKind(nn.Module):
    """A discriminator that judges each kind of images once in an update, however often it is asked.

    BasicSR's model asks twice. Then noise is drawn anew, and running statistics move twice; here they do not.
    """

    def __init__(self, net_d: nn.Module, gt: Tensor) -> None:
        super().__init__()
        self.net_d, self._gt = net_d, gt
        self._states: dict[bool, State] = {}

    def forward(self, images: Tensor) -> Tensor:
        real = images is self._gt
        if real not in self._states:
            self._states[real] = _random_state()
            return self.net_d(images.contiguous())
        state, buffers = _random_state(), [buffer.clone() for buffer in self.net_d.buffers()]
        _set_random_state(self._states[real])
        logits = self.net_d(images.contiguous())
        _set_random_state(state)
        with torch.no_grad():
            for buffer, before in zip(self.net_d.buffers(), buffers, strict=True):
                buffer.data = before  # not in place: the graph may hold the buffer
        return logits


def _advance_power_iterations(net: nn.Module, images: Tensor) -> list[tuple[Any, int]]:
    """One power iteration for the update; returns what is to be set back to go on after it."""
    owners = [hook for module in net.modules() for hook in module._forward_pre_hooks.values()
              if isinstance(hook, SpectralNorm)] + [module for module in net.modules() if isinstance(module, _SpectralNorm)]
    if not owners:
        return []
    state, buffers = _random_state(), {name: buffer.clone() for name, buffer in net.named_buffers()}
    with torch.no_grad():
        net(images)
        for name, buffer in net.named_buffers():
            if not name.endswith(('_u', '_v')):
                buffer.copy_(buffers[name])
    _set_random_state(state)
    settings = [(owner, owner.n_power_iterations) for owner in owners]
    for owner in owners:
        owner.n_power_iterations = 0
    return settings


class Undivided:
    """The networks of a row, updated by BasicSR's ``ESRGANModel`` on whole batches.

    Args:
        row: the training.
    """

    def __init__(self, row: Row) -> None:
        self.row = row
        self.net_g, self.net_d = row.network('g').train(), row.network('d').train()
        if row.wire:
            row.wire(self.net_g, self.net_d)
        self.start = {name: _values(net) for name, net in self.networks.items()}
        self.pixel, self.perceptual, self.gan_loss = row.loss('pixel'), row.loss('perceptual'), row.gan_loss()
        if row.host_pixel:
            self.pixel = row.host_pixel().to(row.dtype)
        self.optimizers = [row.optimizer(net.parameters()) for net in (self.net_g, self.net_d)]
        if row.clip:
            for optimizer in self.optimizers:
                optimizer.register_step_pre_hook(_clipping(row.clip))

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {'g': self.net_g, 'd': self.net_d}

    def update(self, lq: Tensor, gt: Tensor) -> None:
        """One update."""
        seed()
        frozen = _advance_power_iterations(self.net_g, lq[:1]) + _advance_power_iterations(self.net_d, gt[:1])
        self.by_host(_OncePerKind(self.net_d, gt), lq, gt)
        for owner, iterations in frozen:
            owner.n_power_iterations = iterations

    def by_host(self, net_d: nn.Module, lq: Tensor, gt: Tensor) -> None:
        """What the host does; ``net_d`` stands for the discriminator."""
        host = SimpleNamespace(
            net_g=self.net_g, net_d=net_d, optimizer_g=self.optimizers[0], optimizer_d=self.optimizers[1], lq=lq, gt=gt,
            cri_pix=self.pixel, cri_perceptual=self.perceptual, cri_gan=self.gan_loss, net_d_iters=1, net_d_init_iters=0,
            ema_decay=0, reduce_loss_dict=lambda losses: losses)
        ESRGANModel.optimize_parameters(host, 1)


def _clipping(settings: dict[str, Any]) -> Callable[..., None]:
    def clip(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        nn.utils.clip_grad_value_([each for group in optimizer.param_groups for each in group['params']],
                                  settings['clip_value'])
    return clip


def _values(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in (*net.named_parameters(), *net.named_buffers())}


def _distance(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    return float(sum((ours[name] - value).abs().square().sum() for name, value in expected.items()
                     if value.is_floating_point() or value.is_complex()))**0.5


def judge(row: Row, make: Callable[[Tensor, Tensor], Any], nets: dict[str, nn.Module],
          make_ready: Callable[[], None] = lambda: None, reference: Undivided | None = None) -> str:
    """Run a row in a host and compare; returns the outcome in words.

    Args:
        row: the training.
        make: makes one update of ``nets`` from ``lq`` and ``gt``.
        nets: ``g`` and ``d`` of the host, as they are changed by it.
        make_ready: what a host does before its first update, and may refuse; it may fill ``nets``.
        reference: what to compare with.
    """
    reference, last = reference or Undivided(row), len(row.batches) - 1
    before: dict[str, dict[str, Tensor]] = {}
    for number in range(len(row.batches)):
        lq, gt = row.batch(number)
        try:
            if number == 0:
                make_ready()
                assert all(_distance(_values(net), reference.start[name]) == 0 for name, net in nets.items())
            before = {name: _values(net) for name, net in nets.items()}
            seed()
            make(lq, gt)
        except (NotExact, OptionError) as error:
            text = str(error)
            assert number == last and says(row, text), text
            assert all(torch.equal(value, before[name][key]) for name, net in nets.items()
                       for key, value in _values(net).items()), 'refused, but something has changed'
            assert all(parameter.grad is None for net in nets.values() for parameter in net.parameters())
            return text
        reference.update(lq, gt)
    assert row.refused is None, 'not refused'
    return compare(row, reference, nets)


def compare(row: Row, reference: Undivided, nets: dict[str, nn.Module]) -> str:
    """Compare what a host has made of a row with the reference; returns the differences in words."""
    figures = {name: _compared(net, reference.networks[name], reference.start[name]) for name, net in nets.items()}
    assert all(figure <= row.tolerance for figure in figures.values()), figures
    return ', '.join(f'{name} {figure:.1e}' for name, figure in figures.items())


def _compared(net: nn.Module, reference: nn.Module, start: dict[str, Tensor]) -> float:
    """Distance of all parameters and buffers to those of the reference, relative to the length of its update."""
    expected = _values(reference)
    moved = _distance(start, expected)
    assert moved > 1e-6, 'an update that moves nothing tells nothing'
    return _distance(_values(net), expected) / moved


class FailsOnce:
    """Lets memory run out once, in a network that has been checked.

    Args:
        net: the network.
        backward: whether in its backward pass, not in its forward pass.
    """

    def __init__(self, net: nn.Module, *, backward: bool) -> None:
        self.left = 1
        if backward:
            next(net.parameters()).register_hook(lambda gradient: self._fail())
        else:
            net.register_forward_hook(lambda *_: self._fail())

    def _fail(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')


def short_of_memory(name: str, step: AdversarialStep, lq: Tensor, gt: Tensor, make: Callable[[], Any], *,
                    backward: bool) -> None:
    """One update in which memory runs out once in the part that the row's name ends with; it is not made smaller.

    Args:
        name: of the row.
        step: the host's.
        lq: of the batch.
        gt: likewise.
        make: has the host make the update.
        backward: whether memory runs out in the backward pass.
    """
    part = 'g' if name.endswith('in G') else 'd'
    checked(step, lq, gt)
    sizes, fault = dict(vars(step.plan.micro)), FailsOnce(step.nets[part], backward=backward)
    make()
    assert fault.left < 1, 'memory has not run out'
    uncut = {'g': 'generator', 'd': 'discriminator'}[part]
    assert getattr(step.plan.micro, uncut) == sizes[uncut] and uncut in step.uncuttable_parts
