"""Tries a copy of a network: does what it does to one sample depend on other samples, or on earlier calls?"""
from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sr_bigbatch.step.behaviour import Behaviour
from sr_bigbatch.step.controlled_call import MOST_WORK, ControlledCall, TrialError, agree, first_line, same_result, size_of
from sr_bigbatch.step.copies import copy_in
from sr_bigbatch.step.memory_of_calls import Memory
from sr_bigbatch.step.replay import batch_norms, frozen_running_statistics, one_power_iteration
from sr_bigbatch.step.sample_noise import Draws
from sr_bigbatch.step.toy_images import ALL, PARTITIONS, SAMPLES, UNEVEN
from sr_bigbatch.step.value_gates import GateWatch, of_the_batch, one_decides

_HEAVY = 2e7  # floating-point operations a sample; a heavier network is tried in fewer ways
_STRENGTHS = (0.15, 0.002)  # of a change of weights; the second where the first leads to numbers that are not finite

_LAYOUTS = ((0, True), (0, False), (1, True))  # of noise: the dimension of samples, and see Draws
_COUPLED = '{} depends on the other samples (found by trying)'
_FAILS = 'it fails on a part of the batch: {}'


class PartError(Exception):
    """The network runs on the whole toy batch, but not on a part of it."""


class NetworkStudy:
    """One study, on a copy.

    Args:
        net: in the mode in which it trains.
        toy: images (4, C, H, W).
        dtype: float64 or float32.
        batch: samples of a batch of the training; tried at this length, too, where that is cheap.

    Raises:
        TrialError: if no copy can be made.
    """

    def __init__(self, net: nn.Module, toy: Tensor, dtype: torch.dtype, batch: int = 0) -> None:
        try:
            self._net = copy_in(net, dtype)
        except Exception as error:  # whatever a user's class raises
            raise TrialError(f'it cannot be copied: {first_line(error)}') from error
        self._call = ControlledCall(self._net, dtype)
        toy = toy.to(dtype)
        # The second batch has other signs and another order of means.
        self._toys = [toy, 0.7 - 2 * toy.flip(0, -1)]
        self._flops, self._batch = 0.0, batch

    def behaviour(self) -> Behaviour:
        """What the network does.

        Raises:
            TrialError: if it does not run, or gives numbers that are not finite.
        """
        try:
            with one_power_iteration(self._net), frozen_running_statistics(self._net):
                return self._behaviour()
        finally:
            self._call.restore_private_generators()

    def _behaviour(self) -> Behaviour:
        norms = batch_norms(self._net)
        normalises = bool(norms) and self._couples_through_norms()
        for norm in norms:
            _fix_statistics(norm, self._toys[0])
        found = self._with_fixed_statistics()
        if not normalises:
            return found
        names = ', '.join(sorted({type(norm).__name__ for norm in norms}))
        return replace(found, couples=' and '.join(filter(None, (names, found.couples))), only_batch_norm=not found.couples)

    def _with_fixed_statistics(self) -> Behaviour:
        """The behaviour apart from BatchNorm."""
        first, fresh = None, Memory(self._net)
        for axis, sample_major in _LAYOUTS:
            self._call.draws = Draws(axis, sample_major)
            couples, state, buffers = self._calls(fresh, *self._whole())
            fresh.restore()
            if couples is None and state is None:
                couples = self._gradients(fresh)
            found = Behaviour(couples=couples, shares_noise=self._call.shares_noise(), draws_noise=self._call.draws.own,
                              buffers=buffers, state=state)
            first = first or found
            # Noise that is ascribed to the wrong samples looks like coupling.
            if couples is None or not (found.draws_noise or found.shares_noise):
                return found
            fresh.restore()
        return first or found

    def _output(self, samples: Sequence[int], images: Tensor, watch: GateWatch | None = None,
                then: Callable[[Any, Sequence[int]], None] | None = None) -> Tensor:
        """The network's output for some samples; ``images`` has one row for each."""
        try:
            output = self._call(samples, [images], watch, then)
        except Exception as error:  # whatever a user's class raises
            raise (PartError if len(samples) < SAMPLES else TrialError)(first_line(error)) from error
        if not isinstance(output, Tensor):
            raise TrialError(f'it returns a {type(output).__name__}; it must return one tensor')
        if output.shape[:1] != (len(samples),) and len(samples) < SAMPLES:
            raise PartError(_shape(output, samples))
        return output

    @torch.no_grad()
    def _couples_through_norms(self) -> bool:
        images = self._toys[0]
        try:
            return not agree(self._output([0], images[:1].clone()), self._output(ALL, images.clone())[:1])
        except (TrialError, PartError):
            return True  # as BatchNorm does without enough values in a sample, or without the processes it waits for

    @torch.no_grad()
    def _whole(self) -> tuple[GateWatch, Tensor]:
        """Gates and output of the whole toy batch."""
        for last in (False, True):
            watch = GateWatch(statistics=True)
            output = self._output(ALL, self._toys[0].clone(), watch)
            if output.isfinite().all():
                self._flops = watch.flops / SAMPLES
                return watch, output
            if not last:  # perhaps it takes images in [0, 1] only
                self._toys = [toy.clamp(0.02, 1) for toy in self._toys]
        raise TrialError('it gives numbers that are not finite')

    @torch.no_grad()
    def _calls(self, fresh: Memory, watch: GateWatch, whole: Tensor) -> tuple[str | None, str | None, tuple[str, ...]]:
        """Coupling seen without gradients; state; buffers that change."""
        images, memories, parts, watches = self._toys[0], [], [], []
        couples, single = None, ALL
        if whole.shape[:1] != (SAMPLES,):
            couples = _shape(whole, ALL)
        try:
            for samples in UNEVEN:
                watches.append(GateWatch(statistics=True))
                parts.append(self._output(samples, images[samples], watches[-1]))
            single, memories = UNEVEN[0], [Memory(self._net)]
            if couples is None and not agree(_joined(parts), whole):
                couples = _COUPLED.format('its output')
        except PartError as error:
            couples, parts = couples or _FAILS.format(error), [whole]
        results = [parts[0]]
        for fresh_again in (False, False, True):
            if fresh_again:
                fresh.restore()
            results.append(self._output(single, images[single]))
            memories.append(Memory(self._net))
        state, buffers = self._state(results, memories)
        state = state or self._changed_parameter(single, images[single])
        if couples is None and state is None and self._gate_decides(watch, watches, whole):
            couples = 'it takes another way depending on a value of the whole batch'
        if couples is None and state is None:
            couples = self._length_decides(whole)
        return couples, state, buffers

    def _state(self, results: Sequence[Tensor], memories: Sequence[Memory]) -> tuple[str | None, tuple[str, ...]]:
        buffers = {name for name, _ in self._net.named_buffers()}
        changed = {name for memory in memories for name in memories[-1].changes(memory)}
        moved = [name for name in memories[-3].changes(memories[-2]) if name not in buffers]
        state = None
        if self._call.changes_input:
            state = 'it changes its input in place'
        elif not all(same_result(result, results[0]) for result in results[1:]):
            state = 'its result changes from call to call with the same input and the same random numbers'
        elif moved:
            state = f'its attribute {moved[0]} changes from call to call'
        return state, tuple(sorted(changed & buffers))

    def _changed_parameter(self, samples: Sequence[int], images: Tensor) -> str | None:
        """A parameter that each pass changes: statistics are kept in frozen ones, too."""
        before = {name: parameter.detach().clone() for name, parameter in self._net.named_parameters()}
        self._output(samples, images)
        changed = [name for name, parameter in self._net.named_parameters() if not torch.equal(parameter, before[name])]
        return f'its parameter {changed[0]} changes from call to call' if changed else None

    def _gate_decides(self, watch: GateWatch, parts: Sequence[GateWatch], whole: Tensor) -> bool:
        def changes(number: int, answer: float) -> bool:
            try:
                turned = GateWatch(number, answer, statistics=True)
                return not agree(self._output(ALL, self._toys[0].clone(), turned), whole)
            except (TrialError, PartError):
                return False

        numbers = of_the_batch(watch.gates, [part.gates for part in parts])
        return one_decides(numbers, watch.gates, changes)

    def _length_decides(self, whole: Tensor) -> str | None:
        """Coupling in a batch as long as those of the training, made of the same samples again and again."""
        if self._batch <= SAMPLES or self._flops * self._batch > MOST_WORK:
            return None
        samples = [index % SAMPLES for index in range(self._batch)]
        try:
            long = self._output(samples, self._toys[0][samples])
        except (TrialError, PartError) as error:
            return f'it does not run on a batch of {self._batch}: {error}'
        return None if agree(long, whole[samples]) else f'its output depends on the length of the batch ({self._batch})'

    def _gradients(self, fresh: Memory) -> str | None:
        """Coupling seen in outputs and gradients at several weights, inputs and partitions."""
        if self._flops > _HEAVY:
            return self._coupling_near(+1, self._toys[0], [[1], [2]], fresh)
        for sign in (0, +1, -1):
            for toy, partition in zip(self._toys, PARTITIONS, strict=True):
                couples = self._coupling_near(sign, toy, partition, fresh)
                if couples is not None:
                    return couples
        return None

    def _coupling_near(self, sign: int, toy: Tensor, partition: Sequence[list[int]], fresh: Memory) -> str | None:
        """Coupling at weights that differ from the initial ones by noise with this sign.

        The whole batch and its parts are each the first that the network meets, because it may keep something of the first.
        """
        problem = 'it gives numbers that are not finite at slightly different weights'
        loudness = 1e6 if sign < 0 else 1.0  # perhaps gradients are clipped
        for strength in _STRENGTHS if sign else (0.0,):
            try:
                whole = self._pass_near(sign * strength, toy, [sorted(itertools.chain(*partition))], loudness, fresh)
                if all(tensor.isfinite().all() for tensor in whole[:2]) or not sign:
                    return _difference(self._pass_near(sign * strength, toy, partition, loudness, fresh), whole)
            except PartError as error:
                return _FAILS.format(error)
            except TrialError as error:
                problem = str(error)
        raise TrialError(problem)

    def _pass_near(self, strength: float, toy: Tensor, partition: Sequence[list[int]], loudness: float,
                   fresh: Memory) -> list[Tensor]:
        fresh.restore()
        with _changed_weights(self._net, strength):
            return self._pass(toy, partition, loudness)

    def _pass(self, toy: Tensor, partition: Sequence[list[int]], loudness: float) -> list[Tensor]:
        """Output, gradient at the input and gradients at the parameters of a batch in these parts."""
        parameters = [parameter for parameter in self._net.parameters() if parameter.requires_grad]
        outputs, inputs = [], []
        for samples in partition:
            images = toy[samples].requires_grad_()
            output = self._output(samples, images.clone(), then=_backward(loudness))
            outputs.append(output.detach())
            inputs.append(torch.zeros_like(toy[samples]) if images.grad is None else images.grad)
        gradients = [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        return [_joined(outputs), torch.cat(inputs), *gradients]


def _backward(loudness: float) -> Callable[[Any, Sequence[int]], None]:
    """Backpropagates a sum in which the output of each sample has weights of its own, the same in every call."""
    def backward(output: Any, samples: Sequence[int]) -> None:
        if not (isinstance(output, Tensor) and output.requires_grad and len(output) == len(samples)):
            return
        values = torch.view_as_real(output) if output.is_complex() else output
        generator = torch.Generator().manual_seed(5)
        weights = torch.randn(SAMPLES, *values.shape[1:], dtype=torch.float64, generator=generator)
        (values * (loudness * weights[list(samples)]).to(values)).sum().backward()

    return backward


def _joined(parts: Sequence[Tensor]) -> Tensor:
    shapes = sorted({tuple(part.shape[1:]) for part in parts})
    if len(shapes) > 1:
        raise PartError(f'the outputs of samples have different shapes: {shapes[0]} and {shapes[1]}')
    return torch.cat(list(parts))


def _shape(output: Tensor, samples: Sequence[int]) -> str:
    return f'its output has the shape {tuple(output.shape)} for a batch of {len(samples)}'


def _difference(parts: Sequence[Tensor], whole: Sequence[Tensor]) -> str | None:
    if not agree(parts[0], whole[0]):
        return _COUPLED.format('its output')
    if not agree(parts[1], whole[1]):
        return _COUPLED.format('its gradient')
    scale = size_of(whole[2:])
    if not all(agree(ours, expected, scale) for ours, expected in zip(parts[2:], whole[2:], strict=True)):
        return _COUPLED.format('its gradient')
    return None


def _fix_statistics(norm: Any, like: Tensor) -> None:
    """Make a BatchNorm layer normalise with fixed statistics, of the type and on the device of ``like``."""
    norm.eval()
    if norm.running_mean is None:
        norm.running_mean, norm.running_var = like.new_zeros(norm.num_features), like.new_ones(norm.num_features)


@contextmanager
def _changed_weights(net: nn.Module, strength: float) -> Iterator[None]:
    """Add noise to parameters, and to numbers that are buffers, because they may be gates.

    Each is changed in proportion to its own size. Where that is zero, the noise has an absolute size, and single numbers may
    change their signs, so that gates open.
    """
    tensors: list[Tensor] = [tensor for tensor in net.parameters() if tensor.is_floating_point()]
    tensors += [buffer for buffer in net.buffers() if buffer.is_floating_point() and buffer.numel() == 1]
    saved = [tensor.detach().clone() for tensor in tensors]
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for tensor in tensors if strength else ():
            size = float(tensor.square().mean().sqrt()) or 1.0
            noise = torch.randn(tensor.shape, dtype=torch.float64, generator=generator)
            if tensor.numel() == 1:
                noise, size = torch.ones_like(noise), 10 * size + 0.5
            tensor.add_(strength * size * noise.to(tensor))
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, saved, strict=True):
                tensor.copy_(value)
