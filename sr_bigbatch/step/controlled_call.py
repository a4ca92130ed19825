"""Calls to a copy of a network or loss under equal conditions, and the comparison of their results."""
from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sr_bigbatch.step.arithmetic import reproducible
from sr_bigbatch.step.in_float64 import InFloat64
from sr_bigbatch.step.memory_of_calls import Memory
from sr_bigbatch.step.sample_noise import Draws, Generators, SampleNoise
from sr_bigbatch.step.value_gates import GateWatch

# Of the largest value: sums in another order differ by less than 1e-13. A hundred times stricter than what we promise,
# because coupling that is weak at these weights may be stronger at others.
_OWN, _OF_ALL = 1e-12, 1e-13
# The same in float32, of the lengths of the tensors.
_OWN_FLOAT32, _OF_ALL_FLOAT32 = 3e-5, 1e-5
MOST_WORK = 2e9  # floating-point operations that a batch of the length of the training's may cost


class TrialError(Exception):
    """A network or loss cannot be tried in this way; the message says why."""


def first_line(error: Exception) -> str:
    """What an exception says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class ControlledCall:
    """Calls a function so that equal samples meet equal random numbers.

    Args:
        function: a network or loss.
        dtype: float64 or float32.

    Attributes:
        draws: the random numbers of torch that it has drawn.
        shared: name of a generator whose numbers it drew for all samples at once.
        changes_input: whether it wrote to its input.
    """

    def __init__(self, function: Callable[..., Any], dtype: torch.dtype) -> None:
        self.draws = Draws()
        self.shared: str | None = None
        self.changes_input = False
        self._function, self._wide = function, dtype is torch.float64
        self._start = Generators.capture()
        self._private: dict[int, tuple[torch.Generator, Tensor]] = {}

    def __call__(self, samples: Sequence[int], inputs: Sequence[Tensor], watch: GateWatch | None = None,
                 then: Callable[[Any, Sequence[int]], None] | None = None) -> Any:
        """The function's result.

        Args:
            samples: numbers of the samples that ``inputs`` hold.
            inputs: its arguments, of which each has one row for each sample.
            watch: records gates.
            then: called with the result and ``samples`` under the same conditions, because a backward pass may draw again.
        """
        before, widening = [rows.detach().clone() for rows in inputs], InFloat64()
        self._start.restore()
        with ExitStack() as modes:
            if self._wide:
                modes.enter_context(widening)
            modes.enter_context(SampleNoise(samples, self.draws, self._keep))
            if watch is not None:
                watch.follow(inputs)
                modes.enter_context(watch)
            result = self._function(*inputs)
            if then is not None:
                then(result, samples)
        self._wide = widening.has_acted  # what is written for float64 needs no help, and runs faster without
        self.shared = self.shared or self._start.moved()
        with torch.no_grad():
            self.changes_input |= not all(map(torch.equal, before, inputs))
        return result

    def shares_noise(self) -> str | None:
        """Which random numbers are shared by all samples of a call; None: none."""
        return "torch's" if any(self.draws.shared.values()) else self.shared

    def restore_private_generators(self) -> None:
        """Bring generators that the function keeps for itself back to where they were."""
        for generator, state in self._private.values():
            generator.set_state(state)

    def _keep(self, generator: torch.Generator) -> None:
        if id(generator) not in self._private:
            self._private[id(generator)] = generator, generator.get_state()


@contextmanager
def undisturbed(root: Any) -> Iterator[None]:
    """Try things on copies of ``root`` inside; afterwards it and all random numbers are as before.

    Inside, results are reproducible: no autocast, no TF32, deterministic algorithms of cuDNN.
    """
    generators, memory = Generators.capture(), Memory(root)
    parameters = list(root.parameters()) if isinstance(root, nn.Module) else []
    gradients = [parameter.grad for parameter in parameters]
    with ExitStack() as conditions:
        conditions.enter_context(warnings.catch_warnings())
        warnings.simplefilter('ignore')
        conditions.enter_context(torch.inference_mode(False))
        conditions.enter_context(torch.enable_grad())
        for device in ('cpu', 'cuda'):
            conditions.enter_context(torch.autocast(device, enabled=False))
        conditions.enter_context(reproducible())
        for parameter in parameters:
            parameter.grad = None
        try:
            yield
        finally:
            generators.restore()
            with torch.no_grad():
                memory.restore()
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient


def same_result(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two calls gave the same: bit by bit on the CPU; some algorithms of CUDA add in any order."""
    if one is None or other is None:
        return one is other
    return agree(one, other) if one.is_cuda else torch.equal(one, other)


def size_of(tensors: Sequence[Tensor]) -> float:
    """The largest value of all tensors in float64, their length in float32."""
    filled = [tensor for tensor in tensors if tensor.numel()]
    if not filled:
        return 0.0
    if filled[0].dtype in (torch.float64, torch.complex128):
        return max(float(tensor.abs().max()) for tensor in filled)
    return float(torch.stack([torch.linalg.vector_norm(tensor).float() for tensor in filled]).norm())


def agree(ours: Tensor, expected: Tensor, scale: float = 0.0) -> bool:
    """Whether two tensors are equal but for rounding.

    Args:
        ours: a tensor.
        expected: another.
        scale: size of all tensors that belong to ``expected``, as :func:`size_of` has it: what is far smaller may consist of
            rounding errors.
    """
    if ours.shape != expected.shape or not torch.equal(ours.isnan(), expected.isnan()):
        return False
    gap = (ours - expected).nan_to_num(0.0) if expected.isnan().any() else ours - expected
    wide = expected.dtype in (torch.float64, torch.complex128)
    own, of_all = (_OWN, _OF_ALL) if wide else (_OWN_FLOAT32, _OF_ALL_FLOAT32)
    return size_of([gap]) <= own * size_of([expected.nan_to_num()]) + of_all * scale
