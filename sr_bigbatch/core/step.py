"""One update of a generator and a discriminator from an effective batch of any size.

The order of work is *generate, judge, grade, learn, commit*. Neither network changes before its own commit, so every
logit of a step comes from one generator and one discriminator, and the whole computation can be cut at the generated
images and at the logits without changing its result. Cutting at a representation and caching its gradient is the idea
of GradCache (Gao et al. 2021, https://arxiv.org/abs/2101.06983).

Shapes: B effective batch of this process, M micro-batch, lq (B, C, h, w), gt and generated images (B, C, H, W) with
H = scale * h, logits (B, ...).
"""
from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .adversarial import GanLoss, Grades, grade
from .batch import StepPlan, length, micro_slices
from .distributed import gather_batch, rank, sum_in_place, world_size
from .losses import LossSums, SampleLosses
from .precision import autocast, widen
from .replay import RngState, frozen_running_statistics, one_power_iteration
from .update import SafeUpdate, StepReport


@dataclass
class _Draft:
    """One micro-batch of generated images; ``graph`` is None where the forward pass will be replayed."""

    samples: slice
    rng: RngState
    graph: Tensor | None


@dataclass
class _Judged:
    """One micro-batch seen by the discriminator; the graphs are None where the forward passes will be replayed."""

    samples: slice
    rng: RngState
    real: Tensor
    fake: Tensor
    graphs: tuple[Tensor, Tensor, Tensor] | None = None  # real logits, generated images (leaf), their logits


@dataclass
class AdversarialStep:
    """One update of generator and discriminator.

    A discriminator whose micro-batch is the whole batch keeps its graph from *judge* to *grade*: BatchNorm layers then
    see the batch once and as a whole. Otherwise it runs without graph in *judge* and again in *grade*, where one
    forward pass on generated images serves both halves of the game.

    Attributes:
        net_g: the generator, not wrapped for data parallelism.
        net_d: the discriminator, likewise.
        update_g: owns the generator's optimizer.
        update_d: owns the discriminator's optimizer.
        losses: the sample losses.
        gan_loss: the host's GAN loss.
        plan: how the batch is cut.
        relativistic: see :func:`sr_bigbatch.core.adversarial.grade`.
        dtype: of autocast, or None.
    """

    net_g: nn.Module
    net_d: nn.Module
    update_g: SafeUpdate
    update_d: SafeUpdate
    losses: SampleLosses
    gan_loss: GanLoss
    plan: StepPlan
    relativistic: bool = True
    dtype: torch.dtype | None = None
    _d_parameters: list[Tensor] = field(init=False, repr=False, default_factory=list)

    def __call__(self, lq: Tensor, gt: Tensor, *, update_g: bool = True) -> StepReport:
        """Make one update from ``lq`` (B, C, h, w) and ``gt`` (B, C, H, W); without ``update_g`` of D alone."""
        for update in (self.update_g, self.update_d):
            update.reset()  # an interrupted step may have left a part of a gradient
        self._d_parameters = [parameter for parameter in self.net_d.parameters() if parameter.requires_grad]
        with one_power_iteration(self.net_g), one_power_iteration(self.net_d):
            drafts, fake = self._generate(lq, gt, update_g)
            judged = self._judge(gt, fake)
            grades = self._grade(judged)
            batch = _Batch(lq, gt, fake, judged, grades)
            sums, image_gradient = self._differentiate(batch, for_g=update_g, for_d=True)
            verdicts = {}
            if update_g:
                self._learn(drafts, lq, image_gradient)
                verdicts['g'] = self.update_g.commit_or_repeat(lambda: self._repeat_g(drafts, batch))
            verdicts['d'] = self.update_d.commit_or_repeat(lambda: self._repeat_d(batch))
        sum_in_place(list(sums.values.values()))
        return StepReport(self._report(sums, grades, judged, update_g), fake, verdicts)

    def _generate(self, lq: Tensor, gt: Tensor, update_g: bool) -> tuple[list[_Draft], Tensor]:
        drafts, fake = [], torch.empty_like(gt)
        for index, samples in enumerate(micro_slices(gt.shape[0], self.plan.micro.generator)):
            keep = update_g and index < self.plan.kept_graphs
            rng = RngState.capture(lq.device)
            with torch.set_grad_enabled(keep), autocast(lq.device, self.dtype):
                generated = self.net_g(lq[samples])
            fake[samples] = generated.detach()
            drafts.append(_Draft(samples, rng, generated if keep else None))
        return drafts, fake

    def _judge(self, gt: Tensor, fake: Tensor) -> list[_Judged]:
        judged = []
        keep = self.plan.micro.discriminator >= gt.shape[0]
        for samples in micro_slices(gt.shape[0], self.plan.micro.discriminator):
            rng = RngState.capture(gt.device)
            images = fake[samples].requires_grad_(keep)
            with torch.set_grad_enabled(keep):
                real_logits, fake_logits = self._logits(gt[samples]), self._logits(images)
            judged.append(_Judged(samples, rng, widen(real_logits.detach()), widen(fake_logits.detach()),
                                  (real_logits, images, fake_logits) if keep else None))
        return judged

    def _logits(self, images: Tensor) -> Tensor:
        with autocast(images.device, self.dtype):
            logits: Tensor = self.net_d(images)
        return logits

    def _grade(self, judged: list[_Judged]) -> Grades:
        """Gradients at the logits of this process, for losses that are means over the batch of all processes."""
        if not self.plan.exact:
            total = sum(length(part.samples) for part in judged) * world_size()
            return Grades.weighted([(length(part.samples) / total,
                                     grade(self.gan_loss, part.real, part.fake, relativistic=self.relativistic))
                                    for part in judged])
        real, fake = (torch.cat(logits) for logits in zip(*((part.real, part.fake) for part in judged), strict=True))
        grades = grade(self.gan_loss, gather_batch(real), gather_batch(fake), relativistic=self.relativistic)
        mine = slice(rank() * real.shape[0], (rank() + 1) * real.shape[0])
        return Grades(grades.g_loss, grades.d_real_loss, grades.d_fake_loss,
                      grades.g_fake[mine], grades.d_real[mine], grades.d_fake[mine])

    def _differentiate(self, batch: _Batch, *, for_g: bool, for_d: bool) -> tuple[LossSums, Tensor]:
        """Accumulate D's gradient and return the sample losses and the scaled gradient at the generated images."""
        sums, image_gradient = LossSums(), torch.zeros_like(batch.fake)
        if for_g:
            total = batch.gt.shape[0] * world_size()
            for samples in micro_slices(batch.gt.shape[0], self.plan.micro.perceptual):
                images = batch.fake[samples].requires_grad_()
                loss = sums.add(self.losses(images, batch.gt[samples], batch.lq[samples]), length(samples) / total)
                image_gradient[samples] = torch.autograd.grad(loss * self.update_g.scale, images)[0]
        for part in batch.judged:
            gradient = self._differentiate_d(part, batch, for_g, for_d)
            if gradient is not None:
                image_gradient[part.samples] += gradient
        return sums, image_gradient

    def _differentiate_d(self, part: _Judged, batch: _Batch, for_g: bool, for_d: bool) -> Tensor | None:
        samples, gradient = part.samples, None
        graphs, part.graphs = part.graphs, None
        with part.rng.replayed(batch.gt.device), frozen_running_statistics(self.net_d):
            real_logits = graphs[0] if graphs else self._logits(batch.gt[samples])
            if for_d:
                self._backward_d(real_logits, batch.grades.d_real[samples])
            del real_logits
            images = graphs[1] if graphs else batch.fake[samples].requires_grad_(for_g)
            fake_logits = graphs[2] if graphs else self._logits(images)
        if for_g:
            cotangent = (batch.grades.g_fake[samples] * self.update_g.scale).to(fake_logits.dtype)
            gradient = torch.autograd.grad(fake_logits, images, cotangent, retain_graph=for_d)[0]
        if for_d:
            self._backward_d(fake_logits, batch.grades.d_fake[samples])
        return gradient

    def _backward_d(self, logits: Tensor, gradient: Tensor) -> None:
        cotangent = (gradient * self.update_d.scale).to(logits.dtype)
        torch.autograd.backward([logits], [cotangent], inputs=self._d_parameters)

    def _learn(self, drafts: list[_Draft], lq: Tensor, image_gradient: Tensor) -> None:
        for draft in drafts:
            generated, draft.graph = draft.graph, None
            if generated is None:
                with (draft.rng.replayed(lq.device), frozen_running_statistics(self.net_g),
                      autocast(lq.device, self.dtype)):
                    generated = self.net_g(lq[draft.samples])
            generated.backward(image_gradient[draft.samples].to(generated.dtype))

    def _repeat_g(self, drafts: list[_Draft], batch: _Batch) -> None:
        _, image_gradient = self._differentiate(batch, for_g=True, for_d=False)
        self._learn(drafts, batch.lq, image_gradient)

    def _repeat_d(self, batch: _Batch) -> None:
        self._differentiate(batch, for_g=False, for_d=True)

    def _report(self, sums: LossSums, grades: Grades, judged: list[_Judged], update_g: bool) -> dict[str, Tensor]:
        losses = dict(sums.values)
        if update_g:
            losses['l_g_gan'] = grades.g_loss
        losses['l_d_real'], losses['l_d_fake'] = grades.d_real_loss, grades.d_fake_loss
        for name, logits in (('out_d_real', [part.real for part in judged]), ('out_d_fake', [part.fake for part in judged])):
            mean = torch.cat(logits).mean() / world_size()
            sum_in_place([mean])
            losses[name] = mean
        return losses


@dataclass(frozen=True)
class _Batch:
    """Everything a step knows about its batch after *grade*."""

    lq: Tensor
    gt: Tensor
    fake: Tensor
    judged: list[_Judged]
    grades: Grades
