"""One update of a generator without discriminator, from an effective batch of any size.

Shapes: B effective batch of this process, lq (B, C, h, w), gt and generated images (B, C, H, W) with H = scale * h.
"""
from __future__ import annotations

from dataclasses import InitVar, dataclass, field

import torch
from torch import Tensor, nn

from sr_bigbatch.step.batch import Batch
from sr_bigbatch.step.distributed import sum_in_place, world_size
from sr_bigbatch.step.finite import spoil_unless_finite
from sr_bigbatch.step.plan import StepPlan, length, micro_slices
from sr_bigbatch.step.precision import autocast, widen
from sr_bigbatch.step.replay import RngState, batch_norms, frozen_running_statistics, one_power_iteration
from sr_bigbatch.step.report import Event, StepReport
from sr_bigbatch.step.sample_losses import LossSums, SampleLosses
from sr_bigbatch.step.trial import Recovery
from sr_bigbatch.step.update import SafeUpdate, Verdict


@dataclass
class SupervisedStep:
    """One update of a generator by losses that are means over samples (the PSNR-oriented stage).

    A step that runs out of memory or overflows begins again, as in
    :class:`sr_bigbatch.step.adversarial_step.AdversarialStep`.

    Attributes:
        net_g: the generator, not wrapped for data parallelism.
        update_g: owns the generator's optimizer.
        losses: the sample losses; called under autocast to the dtype of the step.
        plan: how the batch is cut; ``kept_graphs`` has no meaning here.
        dtype: of autocast, or None.
        recovery: what it remembers about trouble.
    """

    net_g: nn.Module
    update_g: SafeUpdate
    losses: SampleLosses
    plan: InitVar[StepPlan]
    dtype: torch.dtype | None = None
    recovery: Recovery = field(init=False)

    def __post_init__(self, plan: StepPlan) -> None:
        self.recovery = Recovery(plan, self.dtype, next(self.net_g.parameters()).device)

    def __call__(self, lq: Tensor, gt: Tensor) -> StepReport:
        """Make one update from ``lq`` (B, C, h, w) and ``gt`` (B, C, H, W).

        Raises:
            OutOfMemory: if memory ran out and no micro-batch can be made smaller; nothing has changed.
            PoisonedWeights: if the network is not finite; nothing has changed.
        """
        recovery = self.recovery
        recovery.begin(gt.shape[0], self.whole())
        if recovery.bad_input(lq, gt):
            return StepReport({}, None, {}, recovery.end())
        with one_power_iteration(self.net_g):
            batch = recovery.until_done(lambda: self._attempt(lq, gt), {'g': self.net_g}, {'g': self.update_g})
            recovery.commit(batch, {'g': self.update_g})
        sum_in_place(list(batch.sums.values.values()))
        return StepReport(batch.sums.values, batch.fake, batch.verdicts, recovery.end())

    def rehearse(self, lq: Tensor, gt: Tensor) -> list[Event]:
        """Do everything of a step but change weights, to see whether it fits; returns what was made smaller."""
        self.recovery.begin(gt.shape[0], self.whole())
        self.recovery.rehearse(lambda: self._attempt(lq, gt), {'g': self.net_g}, {'g': self.update_g})
        return self.recovery.end()

    def whole(self) -> set[str]:
        """The parts that must see the whole batch at once, so that no shortage of memory may cut them."""
        return {'generator'} if self.recovery.plan.now.exact and batch_norms(self.net_g) else set()

    def _attempt(self, lq: Tensor, gt: Tensor) -> Batch | None:
        """Everything before the weights change. None: trouble was met and answered, begin again."""
        recovery, batch = self.recovery, Batch(lq, gt, self.recovery.device)
        rng = RngState.capture(batch.device)
        with recovery:
            self._accumulate(batch)
            self.update_g.reserve()
        if recovery.must_restart():
            return None

        def again() -> None:
            with rng.replayed(batch.device), frozen_running_statistics(self.net_g):
                self._accumulate(batch)

        batch.verdicts['g'] = recovery.settle(self.update_g, self.net_g, ('generator',), batch.everything, again)
        return None if batch.verdicts['g'] is Verdict.REPEAT else batch

    def _accumulate(self, batch: Batch) -> None:
        recovery, total, batch.sums = self.recovery, len(batch) * world_size(), LossSums()
        recovery.part = 'generator'
        for samples in micro_slices(len(batch), recovery.plan.now.micro.generator):
            dtype = recovery.precision.of('generator', samples)
            with autocast(batch.device, dtype):
                generated = widen(self.net_g(batch.lq_at(samples)))
                batch.fake[samples] = generated.detach()
                losses = self.losses(generated, batch.gt_at(samples), batch.lq_at(samples))
            loss = batch.sums.add(losses, length(samples) / total)
            recovery.look_at('generator', samples, loss)
            loss.backward(spoil_unless_finite(self.update_g.scale, loss).to(loss.dtype))
            self.update_g.note_part(length(samples), total)
            if recovery.precision.can_widen('generator', samples) and self.update_g.is_doomed():
                return
