"""One update of a generator without discriminator, from an effective batch of any size.

Shapes: B effective batch of this process, lq (B, C, h, w), gt and generated images (B, C, H, W) with H = scale * h.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .batch import StepPlan, length, micro_slices
from .distributed import sum_in_place, world_size
from .losses import LossSums, SampleLosses
from .precision import autocast, widen
from .replay import RngState, frozen_running_statistics, one_power_iteration
from .update import SafeUpdate, StepReport


@dataclass
class SupervisedStep:
    """One update of a generator by losses that are means over samples (the PSNR-oriented stage).

    Attributes:
        net_g: the generator, not wrapped for data parallelism.
        update_g: owns the generator's optimizer.
        losses: the sample losses.
        plan: how the batch is cut; ``kept_graphs`` has no meaning here.
        dtype: of autocast, or None.
    """

    net_g: nn.Module
    update_g: SafeUpdate
    losses: SampleLosses
    plan: StepPlan
    dtype: torch.dtype | None = None

    def __call__(self, lq: Tensor, gt: Tensor) -> StepReport:
        """Make one update from ``lq`` (B, C, h, w) and ``gt`` (B, C, H, W)."""
        output = torch.empty_like(gt)
        self.update_g.reset()  # an interrupted step may have left a part of a gradient
        with one_power_iteration(self.net_g):
            rng = RngState.capture(lq.device)
            sums = self._accumulate(lq, gt, output)

            def again() -> None:
                with rng.replayed(lq.device), frozen_running_statistics(self.net_g):
                    self._accumulate(lq, gt, output)

            verdict = self.update_g.commit_or_repeat(again)
        sum_in_place(list(sums.values.values()))
        return StepReport(sums.values, output, {'g': verdict})

    def _accumulate(self, lq: Tensor, gt: Tensor, output: Tensor) -> LossSums:
        sums, total = LossSums(), gt.shape[0] * world_size()
        for samples in micro_slices(gt.shape[0], self.plan.micro.generator):
            with autocast(lq.device, self.dtype):
                generated = widen(self.net_g(lq[samples]))
            output[samples] = generated.detach()
            loss = sums.add(self.losses(generated, gt[samples], lq[samples]), length(samples) / total)
            (loss * self.update_g.scale).backward()
        return sums
