"""One update of a generator and a discriminator from an effective batch of any size.

The order of work is *generate, judge, grade, learn, commit*. Neither network changes before its own commit, so every
logit of a step comes from one generator and one discriminator, and the whole computation can be cut at the generated
images and at the logits without changing its result. Cutting at a representation and caching its gradient is the idea
of GradCache (Gao et al. 2021, https://arxiv.org/abs/2101.06983).

Shapes: B effective batch of this process, M micro-batch, lq (B, C, h, w), gt and generated images (B, C, H, W) with
H = scale * h, logits (B, ...).
"""
from __future__ import annotations

from dataclasses import InitVar, dataclass, field

import torch
from torch import Tensor, nn

from sr_bigbatch.step.batch import Batch, Draft, Judged
from sr_bigbatch.step.distributed import gather_batch, rank, sum_in_place, world_size
from sr_bigbatch.step.finite import spoil_unless_finite
from sr_bigbatch.step.gan_loss import GanLoss, Grades, grade
from sr_bigbatch.step.plan import StepPlan, length, micro_slices
from sr_bigbatch.step.precision import autocast, widen
from sr_bigbatch.step.replay import RngState, batch_norms, frozen_running_statistics, one_power_iteration
from sr_bigbatch.step.report import Event, StepReport
from sr_bigbatch.step.sample_losses import LossSums, SampleLosses
from sr_bigbatch.step.trial import Recovery
from sr_bigbatch.step.update import SafeUpdate, Verdict


@dataclass
class AdversarialStep:
    """One update of generator and discriminator.

    A discriminator whose micro-batch is the whole batch keeps its graph from *judge* to *grade*: BatchNorm layers then
    see the batch once and as a whole. Otherwise it runs without graph in *judge* and again in *grade*, where one
    forward pass on generated images serves both halves of the game.

    A step that runs out of memory or overflows begins again, with the same batch and the same random numbers, until both
    gradients are fit to be applied (see :class:`sr_bigbatch.step.trial.Recovery`).

    Attributes:
        net_g: the generator, not wrapped for data parallelism.
        net_d: the discriminator, likewise.
        update_g: owns the generator's optimizer.
        update_d: owns the discriminator's optimizer.
        losses: the sample losses; called under autocast to the dtype of the step.
        gan_loss: the host's GAN loss.
        plan: how the batch is cut; from then on it is ``recovery.plan``.
        relativistic: see :func:`sr_bigbatch.step.gan_loss.grade`.
        dtype: of autocast, or None.
        recovery: what it remembers about trouble.
    """

    net_g: nn.Module
    net_d: nn.Module
    update_g: SafeUpdate
    update_d: SafeUpdate
    losses: SampleLosses
    gan_loss: GanLoss
    plan: InitVar[StepPlan]
    relativistic: bool = True
    dtype: torch.dtype | None = None
    recovery: Recovery = field(init=False)

    def __post_init__(self, plan: StepPlan) -> None:
        self.recovery = Recovery(plan, self.dtype, next(self.net_g.parameters()).device)

    def __call__(self, lq: Tensor, gt: Tensor, *, update_g: bool = True) -> StepReport:
        """Make one update from ``lq`` (B, C, h, w) and ``gt`` (B, C, H, W); without ``update_g`` of D alone.

        Raises:
            OutOfMemory: if memory ran out and no micro-batch can be made smaller; nothing has changed.
            PoisonedWeights: if a network is not finite; nothing has changed.
        """
        recovery = self.recovery
        recovery.begin(gt.shape[0], self.whole())
        if recovery.bad_input(lq, gt):
            return StepReport({}, None, {}, recovery.end())
        with one_power_iteration(self.net_g), one_power_iteration(self.net_d):
            batch = recovery.until_done(lambda: self._attempt(lq, gt, update_g), self._nets, self._updates)
            recovery.commit(batch, self._updates)
        sum_in_place(list(batch.sums.values.values()))
        return StepReport(batch.losses(update_g), batch.fake, batch.verdicts, recovery.end())

    def rehearse(self, lq: Tensor, gt: Tensor) -> list[Event]:
        """Do everything of a step but change weights, to see whether it fits; returns what was made smaller."""
        self.recovery.begin(gt.shape[0], self.whole())
        self.recovery.rehearse(lambda: self._attempt(lq, gt, True), self._nets, self._updates)
        return self.recovery.end()

    @property
    def _nets(self) -> dict[str, nn.Module]:
        return {'g': self.net_g, 'd': self.net_d}

    @property
    def _updates(self) -> dict[str, SafeUpdate]:
        return {'g': self.update_g, 'd': self.update_d}

    def whole(self) -> set[str]:
        """The parts that must see the whole batch at once, so that no shortage of memory may cut them."""
        nets = {'generator': self.net_g, 'discriminator': self.net_d}
        return {part for part, net in nets.items() if self.recovery.plan.now.exact and batch_norms(net)}

    def _attempt(self, lq: Tensor, gt: Tensor, update_g: bool) -> Batch | None:
        """Everything before the weights change. None: trouble was met and answered, begin again."""
        recovery, batch = self.recovery, Batch(lq, gt, self.recovery.device)
        with recovery:
            self._generate(batch, update_g)
            self._judge(batch)
            recovery.widen_overflowed()
        if recovery.must_restart():
            return None
        batch.grades = self._grade(batch.judged)
        with recovery:
            self._differentiate(batch, for_g=update_g, for_d=True)
            if update_g:
                self._learn(batch)
            self.update_g.reserve()
            self.update_d.reserve()
        if recovery.must_restart():
            return None
        return batch if self._settle(batch, update_g) else None

    def _settle(self, batch: Batch, update_g: bool) -> bool:
        """Bring both gradients to be applied, or refused; False: begin again."""
        settle = self.recovery.settle
        if update_g:
            batch.verdicts['g'] = settle(self.update_g, self.net_g, ('generator', 'perceptual'), batch.everything,
                                         lambda: self._repeat_g(batch))
        if batch.verdicts.get('g') is not Verdict.REPEAT:
            batch.verdicts['d'] = settle(self.update_d, self.net_d, ('discriminator',), batch.everything,
                                         lambda: self._repeat_d(batch))
        return Verdict.REPEAT not in batch.verdicts.values()

    def _generate(self, batch: Batch, update_g: bool) -> None:
        self.recovery.part, plan = 'generator', self.recovery.plan.now
        for index, samples in enumerate(micro_slices(len(batch), plan.micro.generator)):
            keep = update_g and index < plan.kept_graphs
            rng = RngState.capture(batch.device)
            with torch.set_grad_enabled(keep):
                generated = self._images(batch, samples)
            self.recovery.look_at('generator', samples, generated)
            batch.fake[samples] = generated.detach()
            batch.drafts.append(Draft(samples, rng, generated if keep else None))

    def _images(self, batch: Batch, samples: slice) -> Tensor:
        with autocast(batch.device, self.recovery.precision.of('generator', samples)):
            images: Tensor = self.net_g(batch.lq_at(samples))
        return images

    def _judge(self, batch: Batch) -> None:
        self.recovery.part, size = 'discriminator', self.recovery.plan.now.micro.discriminator
        keep = size >= len(batch)
        for samples in micro_slices(len(batch), size):
            rng = RngState.capture(batch.device)
            images = batch.fake[samples].requires_grad_(keep)
            with torch.set_grad_enabled(keep):
                real_logits, fake_logits = self._logits(batch.gt_at(samples), samples), self._logits(images, samples)
            real, fake = widen(real_logits.detach()), widen(fake_logits.detach())
            self.recovery.look_at('discriminator', samples, torch.cat([real, fake]))
            batch.judged.append(Judged(samples, rng, real, fake, (real_logits, images, fake_logits) if keep else None))

    def _logits(self, images: Tensor, samples: slice) -> Tensor:
        with autocast(images.device, self.recovery.precision.of('discriminator', samples)):
            logits: Tensor = self.net_d(images)
        return logits

    def _grade(self, judged: list[Judged]) -> Grades:
        """Gradients at the logits of this process, for losses that are means over the batch of all processes."""
        if not self.recovery.plan.now.exact:
            total = sum(length(part.samples) for part in judged) * world_size()
            return Grades.weighted([(length(part.samples) / total,
                                     grade(self.gan_loss, part.real, part.fake, relativistic=self.relativistic))
                                    for part in judged])
        real, fake = (torch.cat(logits) for logits in zip(*((part.real, part.fake) for part in judged), strict=True))
        grades = grade(self.gan_loss, gather_batch(real), gather_batch(fake), relativistic=self.relativistic)
        mine = slice(rank() * real.shape[0], (rank() + 1) * real.shape[0])
        return Grades(grades.g_loss, grades.d_real_loss, grades.d_fake_loss,
                      grades.g_fake[mine], grades.d_real[mine], grades.d_fake[mine])

    def _differentiate(self, batch: Batch, *, for_g: bool, for_d: bool) -> None:
        """Accumulate D's gradient, and find the scaled gradient at the generated images."""
        if for_g:
            batch.image_gradient = torch.zeros_like(batch.fake)
            self._differentiate_losses(batch)
        self.recovery.part = 'discriminator'
        for part in batch.judged:
            for_d = for_d and not (self._may_repeat(part.samples) and self.update_d.is_doomed())
            if for_g or for_d:
                self._differentiate_d(part, batch, for_g, for_d)

    def _differentiate_losses(self, batch: Batch) -> None:
        self.recovery.part, batch.sums, total = 'perceptual', LossSums(), len(batch) * world_size()
        for samples in micro_slices(len(batch), self.recovery.plan.now.micro.perceptual):
            images = batch.fake[samples].requires_grad_()
            with autocast(batch.device, self.recovery.precision.of('perceptual', samples)):
                losses = self.losses(images, batch.gt_at(samples), batch.lq_at(samples))
            loss = batch.sums.add(losses, length(samples) / total)
            self.recovery.look_at('perceptual', samples, loss)
            factor = spoil_unless_finite(self.update_g.scale, loss)
            batch.image_gradient[samples] = torch.autograd.grad(loss, images, factor.to(loss.dtype))[0]

    def _differentiate_d(self, part: Judged, batch: Batch, for_g: bool, for_d: bool) -> None:
        samples, parameters = part.samples, [p for p in self.net_d.parameters() if p.requires_grad]
        graphs, part.graphs = part.graphs, None
        with part.rng.replayed(batch.device), frozen_running_statistics(self.net_d):
            real_logits = graphs[0] if graphs else self._logits(batch.gt_at(samples), samples)
            if for_d:
                self._backward_d(real_logits, batch.grades.d_real[samples], parameters)
            del real_logits
            images = graphs[1] if graphs else batch.fake[samples].requires_grad_(for_g)
            fake_logits = graphs[2] if graphs else self._logits(images, samples)
        if for_g:
            cotangent = (batch.grades.g_fake[samples] * self.update_g.scale).to(fake_logits.dtype)
            batch.image_gradient[samples] += torch.autograd.grad(fake_logits, images, cotangent, retain_graph=for_d)[0]
        if for_d:
            self._backward_d(fake_logits, batch.grades.d_fake[samples], parameters)
            self.update_d.note_part(length(samples), len(batch) * world_size())

    def _backward_d(self, logits: Tensor, gradient: Tensor, parameters: list[nn.Parameter]) -> None:
        cotangent = (gradient * self.update_d.scale).to(logits.dtype)
        torch.autograd.backward([logits], [cotangent], inputs=parameters)

    def _learn(self, batch: Batch) -> None:
        self.recovery.part, doomed = 'generator', False
        for draft in batch.drafts:
            generated, draft.graph = draft.graph, None
            if doomed:
                continue
            if generated is None:
                with draft.rng.replayed(batch.device), frozen_running_statistics(self.net_g):
                    generated = self._images(batch, draft.samples)
            generated.backward(batch.image_gradient[draft.samples].to(generated.dtype))
            self.update_g.note_part(length(draft.samples), len(batch) * world_size())
            doomed = self._may_repeat(draft.samples) and self.update_g.is_doomed()

    def _may_repeat(self, samples: slice) -> bool:
        """Whether an overflow would be repeated, so that it is worth a look before the last micro-batch."""
        return self.recovery.precision.can_widen('generator', samples)

    def _repeat_g(self, batch: Batch) -> None:
        self._differentiate(batch, for_g=True, for_d=False)
        self._learn(batch)

    def _repeat_d(self, batch: Batch) -> None:
        self._differentiate(batch, for_g=False, for_d=True)
