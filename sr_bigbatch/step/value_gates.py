"""Finds code that takes another way depending on a value of the whole batch, as in ``if x.mean() > 0.3``.

A trial finds such a gate only if it opens. So what depends on the input and is true or false, is read by Python, or has no
row for each sample, is recorded; what does not grow with the batch is changed, to see whether the result changes.
"""
from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

_FINITE_TESTS = ('isnan', 'isinf', 'isfinite')
_SHAPES_ONLY = ('_like',)  # suffix of operations whose result does not depend on values
_FAR = (-1e12, 1e12)  # beyond any threshold
_SHIFTS = (-1e3, 1e3)  # of a statistic, beyond thresholds that a training reaches
_TORCH = str(Path(torch.__file__).parent)
_MOST_TURNS = 16  # gates tried in one function


@dataclass(frozen=True)
class Gate:
    """Something that depends on the input and decides.

    Attributes:
        site: where in the code it is, as file and instruction.
        shape: of a tensor; None: a number or truth value read by Python.
        value: what Python read.
        is_statistic: whether it is a tensor of numbers.
    """

    site: tuple[str, int]
    shape: tuple[int, ...] | None
    value: float | bool | None = None
    is_statistic: bool = False


class GateWatch(TorchDispatchMode):
    """Records gates, and counts floating-point operations.

    Args:
        turn: number of a gate that is to give another answer.
        answer: for a number that Python reads, what it reads instead; for a statistic, what is added to it.
        statistics: whether tensors of numbers are recorded, too.

    Attributes:
        gates: in the order of execution.
        flops: of convolutions and matrix products.
    """

    def __init__(self, turn: int | None = None, answer: float = 0.0, *, statistics: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._statistics = statistics
        self.gates: list[Gate] = []
        self.flops = 0
        self._turn, self._answer = turn, answer
        self._alive: list[Any] = []  # storages that are freed would give their addresses to others
        self._addresses: set[int] = set()

    def follow(self, inputs: Sequence[Tensor]) -> None:
        """Look at what depends on these tensors."""
        for tensor in inputs:
            self._mark(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        """Run an operation and look at what it gives."""
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=result)
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not any(self._is_marked(tensor) for tensor in tensors) or _ignores_values(name, args):
            return result
        return tree_map(self._look_at, result)

    def _look_at(self, leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            self._mark(leaf)
            if leaf.dtype is not torch.bool and not (self._statistics and leaf.is_floating_point() and leaf.numel()):
                return leaf
            self.gates.append(Gate(_site(), tuple(leaf.shape), is_statistic=leaf.dtype is not torch.bool))
        elif isinstance(leaf, (bool, int, float)):
            self.gates.append(Gate(_site(), None, leaf))
        else:
            return leaf
        return self._turned(leaf) if self._turn == len(self.gates) - 1 else leaf

    def _turned(self, leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            turned = ~leaf if leaf.dtype is torch.bool else leaf + self._answer
            self._mark(turned)
            return turned
        return not leaf if isinstance(leaf, bool) else type(leaf)(self._answer)

    def _mark(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._alive.append(storage)
        self._addresses.add(storage.data_ptr())

    def _is_marked(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._addresses


def _site() -> tuple[str, int]:
    """Where the code is that runs now, outside of torch and of this module."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith((_TORCH, __file__)):
        frame = frame.f_back
    return (frame.f_code.co_filename, frame.f_lasti) if frame is not None else ('', 0)


def _ignores_values(name: str, args: tuple[Any, ...]) -> bool:
    """Whether the result is known from shapes alone, or says whether numbers are finite, as they are in a sound training."""
    if name.startswith('new_') or name.endswith(_SHAPES_ONLY) or name in _FINITE_TESTS:
        return True
    if name not in ('eq', 'ne') or len(args) < 2:
        return False
    return args[0] is args[1] or (isinstance(args[1], float) and math.isinf(args[1]))


def _place(gate: Gate) -> tuple[object, ...]:
    """What gates of the same code have in common."""
    return gate.site, gate.is_statistic, gate.shape is None


def of_the_batch(whole: Sequence[Gate], parts: Sequence[Sequence[Gate]]) -> list[int]:
    """Numbers of the gates in ``whole`` that do not belong to one sample each.

    Args:
        whole: gates of a call with the whole batch.
        parts: gates of calls with its parts; the last part has several samples.
    """
    numbers = []
    for place in dict.fromkeys(map(_place, whole)):
        here = [number for number, gate in enumerate(whole) if _place(gate) == place]
        there = [[gate for gate in part if _place(gate) == place] for part in parts]
        if whole[here[0]].is_statistic and any(len(here) != len(part) for part in there):
            continue  # a loop over samples
        if len(here) == len(there[-1]):
            numbers += [number for number, other in zip(here, there[-1], strict=True)
                        if whole[number].shape is None or whole[number].shape == other.shape]
        elif len(here) != sum(map(len, there)):  # it is not a loop over samples
            numbers += [number for number in here if math.prod(whole[number].shape or ()) == 1]
    return sorted(numbers)


def one_decides(numbers: Sequence[int], gates: Sequence[Gate], changes: Callable[[int, float], bool]) -> bool:
    """Whether one of these gates changes the result.

    Args:
        numbers: of the gates to try.
        gates: all gates of the call.
        changes: ``changes(number, answer)``: whether the result is another one if this gate gives another answer; False if
            the call then raises, because a check that raises is not a gate.
    """
    for number in numbers[:_MOST_TURNS]:
        value = gates[number].value
        if gates[number].is_statistic:
            if any(changes(number, shift) for shift in _SHIFTS):
                return True
            continue
        answers = [0.0] if value is None or isinstance(value, bool) else [-value, value + 1, *_FAR]
        if any(changes(number, answer) for answer in answers):
            return True
    return False
