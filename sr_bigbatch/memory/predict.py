"""Predicts the memory and the work of a step, and chooses how to cut the batch for a given memory.

A step is run on fake tensors, which have shapes and no data, so no GPU and hardly any memory is needed. The peak of each
phase grows linearly with the batch. With the micro-batch it grows in straight pieces, because a phase is at its highest in
another place for a large one: a few runs of two micro-batches tell the peak of any cut.
"""
from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from sr_bigbatch.memory.live_bytes import LiveBytes
from sr_bigbatch.memory.target import CUDA, Target
from sr_bigbatch.step.precision import autocast, autocast_dtype

AS_IT_IS = 'as it is'
"""The ``memory`` of a plan where the generator has no option ``activation_memory``."""
MICRO_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
_TRIED = (1, 4, 16, 64)


@dataclass(frozen=True)
class Run:
    """What one run on fake tensors showed: peak bytes by phase, and floating-point operations."""

    peak: dict[str, int]
    flops: int


@dataclass(frozen=True)
class MemoryModel:
    """Peak of each phase by batch and micro-batch, and operations per sample.

    Attributes:
        per_sample: bytes by phase for each sample of the batch.
        per_micro: by micro-batch, in rising order, the other bytes by phase; between two of them a straight line is drawn.
        flops_per_sample: operations.
        batch: the effective batch.
        whole: a run of the undivided batch, for which this does not hold: the discriminator's graph is kept then.
    """

    per_sample: dict[str, float]
    per_micro: dict[int, dict[str, float]]
    flops_per_sample: float
    batch: int
    whole: Run

    def peak(self, micro: int) -> dict[str, float]:
        """Bytes by phase for a micro-batch."""
        if micro >= self.batch:
            return {phase: float(peak) for phase, peak in self.whole.peak.items()}
        sizes = list(self.per_micro)
        right = min(max(1, bisect.bisect_left(sizes, micro)), len(sizes) - 1)
        low, high = sizes[right - 1], sizes[right]
        share = (micro - low) / (high - low)
        return {phase: each * self.batch + (1 - share) * self.per_micro[low][phase] + share * self.per_micro[high][phase]
                for phase, each in self.per_sample.items()}

    def flops(self, micro: int) -> float:
        """Operations per sample for a micro-batch."""
        return self.whole.flops / self.batch if micro >= self.batch else self.flops_per_sample


@dataclass(frozen=True)
class Plan:
    """A way to make the step, and what it takes.

    Attributes:
        memory: the generator's ``activation_memory``, or :data:`AS_IT_IS`.
        micro: micro-batch of all parts.
        kept: whether all of the generator's graphs are kept.
        peak: live bytes by phase.
        flops: operations of a step over those of the undivided one.
        work: floating-point operations per sample.
        target: the device for which it is.
    """

    memory: str
    micro: int
    kept: bool
    peak: dict[str, float]
    flops: float
    work: float
    target: Target = CUDA

    @property
    def options(self) -> list[str]:
        """The plan as ``--force_yml`` entries."""
        memory = [] if self.memory == AS_IT_IS else [f'network_g:activation_memory={self.memory}']
        return [*memory, f'train:micro_batch_size={self.micro}', f'train:kept_graphs={"all" if self.kept else 0}']

    @property
    def total_bytes(self) -> float:
        """What a GPU must have: live tensors at their highest, workspaces, fragmentation and context."""
        return self.target.total_bytes(max(self.peak.values()))


def fit(run: Callable[[int, int], Run], batch: int) -> MemoryModel:
    """The model of an effective batch behind ``run(batch, micro)``, from runs of few micro-batches and an undivided one."""
    small, longer = run(3, 1), run(4, 1)
    each = {phase: float(longer.peak[phase] - peak) for phase, peak in small.peak.items()}
    runs = {1: (4, longer), **{micro: (2 * micro, run(2 * micro, micro)) for micro in _TRIED[1:]}}
    per_micro = {micro: {phase: found.peak[phase] - count * bytes_each for phase, bytes_each in each.items()}
                 for micro, (count, found) in runs.items()}
    return MemoryModel(each, per_micro, float(longer.flops - small.flops), batch, run(batch, batch))


def plans(models: dict[tuple[str, bool], MemoryModel], baseline_flops: float, target: Target = CUDA,
          micro_batches: Sequence[int] = MICRO_BATCHES) -> list[Plan]:
    """Every plan for an effective batch, from models by (``activation_memory``, graphs kept).

    Args:
        models: of one effective batch.
        baseline_flops: operations per sample that count as 1.
        target: the device for which the models are.
        micro_batches: to choose from; those above the batch are left out, the batch itself is always among them.
    """
    return [Plan(memory, micro, kept, model.peak(micro), model.flops(micro) / baseline_flops,
                 model.flops(micro), target)
            for (memory, kept), model in models.items()
            for micro in sorted({*(size for size in micro_batches if size < model.batch), model.batch})]


def choose(candidates: Sequence[Plan], budget_bytes: float) -> Plan | None:
    """The plan with the least work that fits; among equals the one with the largest micro-batch. None if none fits."""
    fitting = [plan for plan in candidates if plan.total_bytes <= budget_bytes]
    return min(fitting, key=lambda plan: (round(plan.flops, 3), -plan.micro), default=None)


def probe_shape(device: torch.device) -> tuple[int, int, int, int]:
    """Of the features by which :func:`sustained_flops` measures: on a GPU so many that launching a kernel costs next to
    nothing beside its work.
    """
    return (16, 64, 256, 256) if device.type == 'cuda' else (4, 64, 64, 64)


def sustained_flops(device: torch.device, dtype: torch.dtype | None, seconds: float = 1.0) -> float:
    """Operations per second in convolutions like those of a generator, measured here in about ``seconds``."""
    image, weight = torch.rand(probe_shape(device), device=device), torch.rand(64, 64, 3, 3, device=device)
    operations, repeats = 2 * image.numel() * weight[0].numel(), 1
    with autocast(device, dtype):
        working = autocast_dtype(device) or image.dtype  # casts are not what is to be measured
    image, weight = (part.to(working, memory_format=torch.channels_last) for part in (image, weight))

    def run() -> float:
        """Seconds that ``repeats`` convolutions take."""
        started = time.perf_counter()
        with torch.no_grad():
            for _ in range(repeats):
                result = torch.nn.functional.conv2d(image, weight, padding=1)
        result[0, 0, 0].tolist()  # waits
        return time.perf_counter() - started

    run()  # warms up: the first one also chooses an algorithm
    while (took := run()) < seconds / 2:
        repeats *= 2
    return operations * repeats / took


class PhasePeaks:
    """Has ``live`` count the phases of a step apart; an observer of the step.

    Args:
        live: counts the bytes.
    """

    def __init__(self, live: LiveBytes) -> None:
        self._live = live

    def on_phase(self, name: str) -> None:
        """Count what follows under ``name``."""
        self._live.phase(name)

    def on_part(self, part: str, samples: slice) -> None:
        """Nothing: phases are what is told apart."""


def with_state(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """``optimizer`` with the state that it has after its first step, as in the course of a training; for fake tensors."""
    for group in optimizer.param_groups:
        for parameter in group['params']:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer
