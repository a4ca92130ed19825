"""Tries a copy of the losses: is each the mean of the losses of its samples, and the same at every call?"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sr_bigbatch.step.behaviour import Behaviour
from sr_bigbatch.step.controlled_call import MOST_WORK, ControlledCall, TrialError, agree, first_line, same_result
from sr_bigbatch.step.copies import copy_losses
from sr_bigbatch.step.memory_of_calls import Memory
from sr_bigbatch.step.toy_images import ALL, PARTITIONS, SAMPLES, UNEVEN
from sr_bigbatch.step.value_gates import GateWatch, of_the_batch, one_decides

Kind = tuple[Tensor, Tensor, Tensor]
_HEAVY = 2e7  # floating-point operations a sample; gradients of heavier losses are compared for the first kinds only
_FIRST = 2


class LossStudy:
    """One study, on a copy as far as one can be made.

    Args:
        losses: ``losses(output, gt, lq) -> {name: scalar}``.
        kinds: toy batches (output, gt, lq) of several kinds, natural images first.
        dtype: float64 or float32.
        batch: samples of a batch of the training; tried at this length, too, where that is cheap.

    Raises:
        TrialError: if no copy can be made.
    """

    def __init__(self, losses: Callable[..., Any], kinds: Sequence[Kind], dtype: torch.dtype, batch: int = 0) -> None:
        try:
            self._losses = copy_losses(losses, dtype)
        except Exception as error:  # whatever a user's class raises
            raise TrialError(f'it cannot be copied: {first_line(error)}') from error
        self._call = ControlledCall(self._losses, dtype)
        self._kinds = [(output.to(dtype), gt.to(dtype), lq.to(dtype)) for output, gt, lq in kinds]
        self._found: dict[str, str] = {}
        self._batch = -(-batch // SAMPLES) * SAMPLES

    def behaviours(self) -> dict[str, Behaviour]:
        """What each loss does, by its name.

        Raises:
            TrialError: if the losses do not run.
        """
        try:
            return self._behaviours()
        finally:
            self._call.restore_private_generators()

    def _behaviours(self) -> dict[str, Behaviour]:
        fresh, watch = Memory(self._losses), GateWatch()
        whole = self._values(ALL, self._kinds[0], watch)
        untried = {name: reason for name, reason in ((name, _unfit(value)) for name, value in whole.items()) if reason}
        names = [name for name in whole if name not in untried]
        state, of_all = self._calls(names, whole, watch, fresh)
        fresh.restore()
        if names and not (of_all or state):
            self._compare_length(names, whole, watch.flops / SAMPLES)
            self._compare(names, heavy=watch.flops / SAMPLES > _HEAVY)
        shared, own = self._call.shares_noise(), self._call.draws.own
        return {name: Behaviour(couples=self._found.get(name), state=of_all or state.get(name), shares_noise=shared,
                                draws_noise=own, untried=untried.get(name)) for name in whole}

    def _values(self, samples: Sequence[int], kind: Kind, watch: GateWatch | None = None,
                then: Callable[[Any, Sequence[int]], None] | None = None) -> dict[str, Tensor]:
        """The losses of some samples of a kind."""
        try:
            values = self._call(samples, [tensor[list(samples)] for tensor in kind], watch, then)
        except Exception as error:  # whatever a user's class raises
            raise TrialError(first_line(error)) from error
        if not isinstance(values, dict):
            raise TrialError(f'it returns a {type(values).__name__}; it must return a dict of scalars')
        return values

    @torch.no_grad()
    def _calls(self, names: Sequence[str], whole: dict[str, Tensor], watch: GateWatch,
               fresh: Memory) -> tuple[dict[str, str], str | None]:
        """State by name, and state of the losses as a whole; notes gates."""
        kind, watches, results, memories = self._kinds[0], [], [], []
        try:
            for samples in UNEVEN:
                watches.append(GateWatch())
                results.append(self._values(samples, kind, watches[-1]))
        except TrialError as error:
            self._found.update(dict.fromkeys(names, f'it fails on a part of the batch: {error}'))
            return {}, None
        single = UNEVEN[0]
        for fresh_again in (False, False, True):
            if fresh_again:
                fresh.restore()
            results.append(self._values(single, kind))
            memories.append(Memory(self._losses))
        del results[1]  # of the other samples
        state = {name: 'its value changes from call to call with the same input and the same random numbers'
                 for name in names if not all(same_result(result.get(name), results[0].get(name)) for result in results[1:])}
        moved = memories[0].changes(memories[1])
        of_all = f'{moved[0]} changes from call to call' if moved else None
        if self._call.changes_input:
            of_all = 'it changes its input in place'
        if not (state or of_all):
            self._note_gates(names, whole, watch, watches)
        return state, of_all

    def _note_gates(self, names: Sequence[str], whole: dict[str, Tensor], watch: GateWatch,
                    parts: Sequence[GateWatch]) -> None:
        def changes(number: int, answer: float) -> bool:
            try:
                turned = self._values(ALL, self._kinds[0], GateWatch(number, answer))
            except TrialError:
                return False
            other = [name for name in names if name not in turned or not agree(turned[name], whole[name])]
            for name in other:
                self._found[name] = 'it takes another way depending on a value of the whole batch'
            return bool(other)

        one_decides(of_the_batch(watch.gates, [part.gates for part in parts]), watch.gates, changes)

    @torch.no_grad()
    def _compare_length(self, names: Sequence[str], whole: dict[str, Tensor], flops: float) -> None:
        """Compare with a batch as long as those of the training, made of the same samples again and again."""
        if self._batch <= SAMPLES or flops * self._batch > MOST_WORK:
            return
        long = self._values(ALL * (self._batch // SAMPLES), self._kinds[0])
        for name in names:
            if name not in long or not agree(long[name].reshape(()), whole[name].reshape(()), float(whole[name].abs())):
                self._found[name] = f'its value depends on the length of the batch ({self._batch})'

    def _compare(self, names: Sequence[str], *, heavy: bool) -> None:
        """Compare values and gradients of the whole batch with those of its parts, for each kind of images."""
        for number, kind in enumerate(self._kinds):
            with_gradients = number < _FIRST or not heavy
            try:
                whole = self._parts(names, kind, [ALL], with_gradients)
            except TrialError:
                if number == 0:
                    raise
                continue  # images of this kind are not for it
            try:
                parts = self._parts(names, kind, PARTITIONS[number % 2], with_gradients)
            except TrialError as error:
                self._found.update(dict.fromkeys(names, f'it fails on a part of the batch: {error}'))
                return
            for name in names:
                reason = _difference(parts.get(name), whole.get(name))
                if reason:
                    self._found.setdefault(name, reason)

    def _parts(self, names: Sequence[str], kind: Kind, partition: Sequence[list[int]],
               with_gradients: bool) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """By name: the mean over samples of the losses of parts, the gradient at the output, the largest value of a part."""
        found: dict[str, list[tuple[Tensor, Tensor]]] = {}
        output = kind[0].detach().requires_grad_(with_gradients)

        def note(values: Any, samples: Sequence[int]) -> None:
            share = len(samples) / SAMPLES
            for name in names:
                if name in values:
                    gradient = _gradient(values[name], output)[list(samples)] * share
                    found.setdefault(name, []).append((values[name].detach().reshape(()) * share, gradient))

        for samples in partition:
            self._values(samples, (output, *kind[1:]), then=note)
        return {name: (torch.stack([value for value, _ in parts]).sum(), torch.cat([gradient for _, gradient in parts]),
                       torch.stack([value.abs() for value, _ in parts]).max())
                for name, parts in found.items() if len(parts) == len(partition)}


def _unfit(value: object) -> str | None:
    """Why a loss cannot be studied."""
    if not isinstance(value, Tensor):
        return f'it is a {type(value).__name__}, not a tensor'
    if value.numel() != 1:
        return f'it is not a scalar, its shape is {tuple(value.shape)}'
    return None if value.isfinite().all() else 'it is not finite'


def _gradient(value: Tensor, output: Tensor) -> Tensor:
    if not (output.requires_grad and value.requires_grad):
        return torch.zeros_like(output)
    gradient = torch.autograd.grad(value.sum(), output, retain_graph=True, allow_unused=True)[0]
    return torch.zeros_like(output) if gradient is None else gradient


def _difference(parts: tuple[Tensor, Tensor, Tensor] | None, whole: tuple[Tensor, Tensor, Tensor] | None) -> str | None:
    if parts is None and whole is None:
        return None
    if parts is None or whole is None:
        return 'it is not computed for every batch'
    if not agree(parts[0], whole[0], scale=float(parts[2])):
        off = float((parts[0] - whole[0]).abs() / whole[0].abs().clamp_min(1e-12))
        return f'on a toy batch its parts differ from the whole by {off:.2g}'
    return None if agree(parts[1], whole[1]) else 'its gradient on a toy batch differs from that of its parts'
