"""Predicts the memory and the work of a step, and chooses how to cut the batch for a given memory.

A step is run on fake tensors, which have shapes and no data, so no GPU and hardly any memory is needed. The peak of each
phase grows linearly with the batch and with the micro-batch, so three small runs tell the peak of any cut.
"""
from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch

from sr_bigbatch.memory.live_bytes import LiveBytes
from sr_bigbatch.step.adversarial_step import AdversarialStep
from sr_bigbatch.step.precision import autocast
from sr_bigbatch.step.replay import RngState
from sr_bigbatch.step.supervised_step import SupervisedStep
from sr_bigbatch.step.trial import Recovery
from sr_bigbatch.step.update import SafeUpdate

CONTEXT_BYTES = 600 * 10**6  # CUDA context and library handles
FRAGMENTATION = 1.04  # what the allocator holds over what lives
MICRO_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Run:
    """What one run on fake tensors showed: peak bytes by phase, and floating-point operations."""

    peak: dict[str, int]
    flops: int


@dataclass(frozen=True)
class Model:
    """Peak of each phase as ``fixed + per_sample * B + per_micro * M`` bytes, and operations per sample.

    ``whole`` is a run of the undivided batch, for which this does not hold: the discriminator's graph is kept then.
    """

    coefficients: dict[str, tuple[float, float, float]]
    flops_per_sample: float
    batch: int
    whole: Run

    def peak(self, micro: int) -> dict[str, float]:
        """Bytes by phase for a micro-batch."""
        if micro >= self.batch:
            return {phase: float(peak) for phase, peak in self.whole.peak.items()}
        return {phase: fixed + per_sample * self.batch + per_micro * micro
                for phase, (fixed, per_sample, per_micro) in self.coefficients.items()}

    def flops(self, micro: int) -> float:
        """Operations per sample for a micro-batch."""
        return self.whole.flops / self.batch if micro >= self.batch else self.flops_per_sample


@dataclass(frozen=True)
class Plan:
    """A way to make the step, and what it takes.

    Attributes:
        memory: the generator's ``activation_memory``.
        micro: micro-batch of all parts.
        kept: whether all of the generator's graphs are kept.
        peak: live bytes by phase.
        flops: operations of a step over those of the undivided one.
        work: floating-point operations per sample.
    """

    memory: str
    micro: int
    kept: bool
    peak: dict[str, float]
    flops: float
    work: float

    @property
    def options(self) -> list[str]:
        """The plan as ``--force_yml`` entries."""
        return [f'network_g:activation_memory={self.memory}', f'train:micro_batch_size={self.micro}',
                f'train:kept_graphs={"all" if self.kept else 0}']

    @property
    def total_bytes(self) -> float:
        """What a GPU must have: live tensors at their highest, fragmentation and context."""
        return total_bytes(max(self.peak.values()))


def total_bytes(live: float) -> float:
    """What a GPU must have for ``live`` bytes of tensors: fragmentation and context come on top."""
    return live * FRAGMENTATION + CONTEXT_BYTES


def fit(run: Callable[[int, int], Run], batch: int) -> Model:
    """The model of an effective batch behind ``run(batch, micro)``, from three small runs and an undivided one."""
    small, longer, wider = run(3, 1), run(4, 1), run(4, 2)
    coefficients = {}
    for phase, peak in small.peak.items():
        per_sample, per_micro = longer.peak[phase] - peak, wider.peak[phase] - longer.peak[phase]
        coefficients[phase] = float(peak - 3 * per_sample - per_micro), float(per_sample), float(per_micro)
    return Model(coefficients, float(longer.flops - small.flops), batch, run(batch, batch))


def plans(models: dict[tuple[str, bool], Model], baseline_flops: float,
          micro_batches: Sequence[int] = MICRO_BATCHES) -> list[Plan]:
    """Every plan for an effective batch, from models by (``activation_memory``, graphs kept).

    Args:
        models: of one effective batch.
        baseline_flops: operations per sample that count as 1.
        micro_batches: to choose from; those above the batch are left out, the batch itself is always among them.
    """
    return [Plan(memory, micro, kept, model.peak(micro), model.flops(micro) / baseline_flops,
                 model.flops(micro))
            for (memory, kept), model in models.items()
            for micro in sorted({*(size for size in micro_batches if size < model.batch), model.batch})]


def choose(candidates: Sequence[Plan], budget_bytes: float) -> Plan | None:
    """The plan with the least work that fits; among equals the one with the largest micro-batch. None if none fits."""
    fitting = [plan for plan in candidates if plan.total_bytes <= budget_bytes]
    return min(fitting, key=lambda plan: (round(plan.flops, 3), -plan.micro), default=None)


def sustained_flops(device: torch.device, dtype: torch.dtype | None, seconds: float = 1.0) -> float:
    """Operations per second in convolutions like those of a generator, measured here in about ``seconds``."""
    image, weight = torch.rand(4, 64, 64, 64, device=device), torch.rand(64, 64, 3, 3, device=device)
    operations, repeats = 2 * image.numel() * weight[0].numel(), 1

    def run() -> float:
        """Seconds that ``repeats`` convolutions take."""
        started = time.perf_counter()
        with torch.no_grad(), autocast(device, dtype):
            for _ in range(repeats):
                result = torch.nn.functional.conv2d(image, weight, padding=1)
        result.sum().item()
        return time.perf_counter() - started

    run()
    while (took := run()) < seconds / 2:
        repeats *= 2
    return operations * repeats / took


class _FakeUpdate(SafeUpdate):
    """An update whose gradients have no values to look at."""

    def is_finite(self) -> bool:
        return True

    def is_doomed(self) -> bool:
        return False


def fake_update(optimizer: torch.optim.Optimizer) -> SafeUpdate:
    """An update for a step on fake tensors; the optimizer gets its state at once, as in a training."""
    update = _FakeUpdate(optimizer)
    update.allocate()
    return update


@contextmanager
def without_values() -> Iterator[None]:
    """Inside this context a step neither keeps random numbers nor looks at values: fake tensors have none."""
    nothing = RngState(torch.empty(0), None)
    with (mock.patch.object(RngState, 'capture', lambda device: nothing),
          mock.patch.object(RngState, 'restore', lambda self, device: None),
          mock.patch.object(Recovery, 'bad_input', lambda self, *images: False),
          mock.patch.object(Recovery, 'widen_overflowed', lambda self: None)):
        yield


def watch(step: AdversarialStep | SupervisedStep, live: LiveBytes) -> None:
    """Have ``live`` count the phases of ``step`` apart."""
    names = {'_generate': 'generate', '_judge': 'judge', '_differentiate': 'grade', '_learn': 'learn',
             '_accumulate': 'learn'}
    for method, phase in names.items():
        if hasattr(step, method):
            setattr(step, method, _announced(getattr(step, method), phase, live))
    for update in {id(update): update for update in vars(step).values() if isinstance(update, SafeUpdate)}.values():
        for method in ('reserve', 'apply'):
            setattr(update, method, _announced(getattr(update, method), 'commit', live))


def _announced(function: Callable[..., object], phase: str, live: LiveBytes) -> Callable[..., object]:
    def announced(*args: object, **kwargs: object) -> object:
        live.phase(phase)
        return function(*args, **kwargs)

    return announced
