"""One update of a generator without discriminator, from an effective batch of any size.

Shapes: B effective batch of this process, lq (B, C, h, w), gt and generated images (B, C, H, W) with H = scale * h.
"""
from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sr_bigbatch.step import undivided
from sr_bigbatch.step.base import Step
from sr_bigbatch.step.batch import Batch, Images
from sr_bigbatch.step.distributed import sum_in_place
from sr_bigbatch.step.finite import nan_unless_finite
from sr_bigbatch.step.observer import Observer
from sr_bigbatch.step.plan import StepPlan, length, micro_slices
from sr_bigbatch.step.precision import autocast, widen
from sr_bigbatch.step.replay import Snapshot
from sr_bigbatch.step.report import StepReport
from sr_bigbatch.step.sample_losses import LossSums, SampleLosses
from sr_bigbatch.step.trial import Accumulated
from sr_bigbatch.step.update import SafeUpdate


class SupervisedStep(Step):
    """One update of a generator by losses that are means over samples (the PSNR-oriented stage).

    Exactly the update of the undivided batch, or refused by name. A step that runs out of memory or overflows begins again,
    as in :class:`sr_bigbatch.step.adversarial_step.AdversarialStep`, where the arguments are explained.

    Args:
        net_g: the generator, not wrapped for data parallelism.
        opt_g: its optimizer, or a :class:`sr_bigbatch.step.update.SafeUpdate` that owns it.
        losses: the sample losses; called under autocast to the dtype of the step.
        micro_batch_size: as there; only the size for the generator counts.
        exact: as there.
        plan: as there.
        dtype: as there.
        verify_every: as there.
        observer: as there.
        values: as there.
    """

    def __init__(self, net_g: nn.Module, opt_g: torch.optim.Optimizer | SafeUpdate, losses: SampleLosses, *,
                 micro_batch_size: int | Mapping[str, int] | str | None = None, exact: bool = True,
                 plan: StepPlan | None = None, dtype: torch.dtype | None = None, verify_every: int | None = 0,
                 observer: Observer | None = None, values: bool = True) -> None:
        super().__init__({'g': net_g}, {'g': opt_g}, losses, micro_batch_size=micro_batch_size, kept_graphs=0, exact=exact,
                         plan=plan, dtype=dtype, verify_every=verify_every, observer=observer, values=values)
        self.net_g, self.update_g = net_g, self.updates['g']

    def __call__(self, lq: Tensor, gt: Tensor) -> StepReport:
        """Make one update from ``lq`` (B, C, h, w) and ``gt`` (B, C, H, W).

        Raises:
            NotExact: if the update would not be that of the whole batch; nothing has changed.
            OutOfMemory: if memory ran out and no micro-batch can be made smaller; nothing has changed.
            PoisonedWeights: if the network is not finite; nothing has changed.
        """
        batch = self._make(lq, gt, self._gradients)
        if batch is None:
            return StepReport({}, None, {}, self.trial.end())
        sum_in_place(list(batch.sums.values.values()))
        return self._report(StepReport(batch.sums.values, batch.fake, batch.verdicts, self.trial.end()))

    def _gradients(self, images: Images, sizes: list[int]) -> Batch:
        trial = self.trial
        before = Snapshot.take(trial.device, self.net_g) if self._values else None
        with trial.section():
            batch = Batch(*images.on_device(), sizes)  # takes memory for all its images
            self._accumulate(batch)
            trial.observer.on_phase('commit')
            self.update_g.reserve()

        def again() -> None:
            if before is not None:
                before.restore()
            self._accumulate(batch)

        accumulated = Accumulated('g', self.net_g, self.update_g, ('generator',), again)
        batch.verdicts = trial.make_usable([accumulated], batch.everything)
        return batch

    def _accumulate(self, batch: Batch) -> None:
        self.trial.observer.on_phase('learn')
        precision, batch.sums = self.trial.overflow.precision, LossSums()
        for samples in micro_slices(len(batch), self.plan.micro.generator):
            self.trial.at_work('generator', samples)
            with autocast(batch.device, precision.of('generator', samples)):
                generated = widen(self.net_g(batch.lq[samples]))
                batch.fake[samples] = generated.detach()
                losses = self.losses(generated, batch.gt[samples], batch.lq[samples])
            loss = batch.sums.add(losses, length(samples) / batch.total)
            if loss is None:
                raise ValueError('a supervised step needs at least one loss')
            self.trial.overflow.look_at('generator', samples, loss)
            loss.backward(nan_unless_finite(self.update_g.scale, loss).to(loss.dtype))
            self.update_g.record_partial_norm(length(samples), batch.total)
            if precision.can_widen('generator', samples) and self.update_g.is_doomed():
                return

    def twin(self, nets: dict[str, nn.Module], losses: SampleLosses, plan: StepPlan) -> SupervisedStep:
        """The same step over a copy of the network, for :meth:`verify`."""
        return SupervisedStep(nets['g'], torch.optim.SGD(nets['g'].parameters(), 1.0), losses, plan=plan, verify_every=None)

    def undivided_gradients(self, lq: Tensor, gt: Tensor) -> undivided.Gradients:
        """The gradients of the undivided batch."""
        return undivided.supervised_gradients(self.net_g, self.losses, lq, gt)
