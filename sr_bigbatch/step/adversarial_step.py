"""One update of a generator and a discriminator from an effective batch of any size.

The order of work is *generate, judge, grade, learn, commit*. Neither network changes before its own commit, so every
logit of a step comes from one generator and one discriminator, and the whole computation can be cut at the generated
images and at the logits without changing its result. Cutting at a representation and caching its gradient is the idea
of GradCache (Gao et al. 2021, https://arxiv.org/abs/2101.06983).

Shapes: B effective batch of this process, M micro-batch, lq (B, C, h, w), gt and generated images (B, C, H, W) with
H = scale * h, logits (B, ...).
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sr_bigbatch.step import undivided
from sr_bigbatch.step.base import Step
from sr_bigbatch.step.batch import Batch, Draft, Images, Judged
from sr_bigbatch.step.copies import copy_in, copy_losses
from sr_bigbatch.step.distributed import gather_batch, sum_in_place
from sr_bigbatch.step.finite import nan_unless_finite
from sr_bigbatch.step.gan_loss import GanLoss, Grades, grade
from sr_bigbatch.step.observer import Observer
from sr_bigbatch.step.plan import StepPlan, length, micro_slices
from sr_bigbatch.step.precision import autocast, widen
from sr_bigbatch.step.replay import Snapshot
from sr_bigbatch.step.report import StepReport
from sr_bigbatch.step.sample_losses import LossSums, SampleLosses
from sr_bigbatch.step.trial import Accumulated
from sr_bigbatch.step.update import SafeUpdate


class AdversarialStep(Step):
    """One update of generator and discriminator: exactly that of the undivided batch, or refused by name.

    A discriminator whose micro-batch is the whole batch keeps its graph from *judge* to *grade*: BatchNorm layers then
    see the batch once and as a whole. Otherwise it runs without graph in *judge* and again in *grade*, where one
    forward pass on generated images serves both halves of the game.

    A step that runs out of memory or overflows begins again, with the same batch and the same random numbers, until both
    gradients are fit to be applied (see :class:`sr_bigbatch.step.trial.Trial`).

    Args:
        net_g: the generator, not wrapped for data parallelism.
        net_d: the discriminator, likewise.
        opt_g: the generator's optimizer, or a :class:`sr_bigbatch.step.update.SafeUpdate` that owns it.
        opt_d: the discriminator's, likewise.
        losses: the sample losses; called under autocast to the dtype of the step. None for none.
        gan_loss: ``gan_loss(logits, target_is_real, is_disc=...) -> scalar``, as BasicSR's ``GANLoss``.
        micro_batch_size: samples worked on at a time; or a number each for ``generator``, ``perceptual`` and
            ``discriminator``; or ``'auto'``: the whole batch, cut where memory runs out; None for the whole batch.
        kept_graphs: how many of the generator's micro-batches keep their graph; the others run forward twice.
        exact: False for plain accumulation: relativistic means over micro-batches, and nothing is refused.
        plan: in place of the three arguments before.
        relativistic: see :func:`sr_bigbatch.step.gan_loss.grade`; False for the plain GAN of SRGAN.
        real_images: makes of ground truth (M, C, H, W) the images (M, C, H, W) that the discriminator is to take for real,
            such as sharpened ones; called on micro-batches, not under autocast. None: the ground truth itself. What the
            sample losses compare with is their own affair.
        dtype: of autocast: ``torch.bfloat16`` or ``torch.float16`` (with a loss scale); None for none.
        verify_every: every so many steps, compare with the undivided batch (:meth:`verify`); 0: a few samples of the first
            step only; None: never.
        observer: is told what the step is about to do.
        values: False for fake tensors, which have no values to look at.
    """

    def __init__(self, net_g: nn.Module, net_d: nn.Module, opt_g: torch.optim.Optimizer | SafeUpdate,
                 opt_d: torch.optim.Optimizer | SafeUpdate, losses: SampleLosses | None, gan_loss: GanLoss, *,
                 micro_batch_size: int | Mapping[str, int] | str | None = None, kept_graphs: int = 0, exact: bool = True,
                 plan: StepPlan | None = None, relativistic: bool = True, dtype: torch.dtype | None = None,
                 verify_every: int | None = 0, observer: Observer | None = None, values: bool = True,
                 real_images: nn.Module | None = None) -> None:
        super().__init__({'g': net_g, 'd': net_d}, {'g': opt_g, 'd': opt_d}, losses, micro_batch_size=micro_batch_size,
                         kept_graphs=kept_graphs, exact=exact, plan=plan, dtype=dtype, verify_every=verify_every,
                         observer=observer, values=values, real_images=real_images)
        self.net_g, self.net_d, self.gan_loss, self.relativistic = net_g, net_d, gan_loss, relativistic
        self.real_images = real_images
        self.update_g, self.update_d = self.updates['g'], self.updates['d']

    def __call__(self, lq: Tensor, gt: Tensor, *, update_g: bool = True) -> StepReport:
        """Make one update from ``lq`` (B, C, h, w) and ``gt`` (B, C, H, W); without ``update_g`` of D alone.

        Raises:
            NotExact: if the update would not be that of the whole batch; nothing has changed.
            OutOfMemory: if memory ran out and no micro-batch can be made smaller; nothing has changed.
            PoisonedWeights: if a network is not finite; nothing has changed.
        """
        batch = self._make(lq, gt, lambda images, sizes: self._gradients(images, sizes, update_g))
        if batch is None:
            return StepReport({}, None, {}, self.trial.end())
        sum_in_place(list(batch.sums.values.values()))
        return self._report(StepReport(batch.losses(update_g), batch.fake, batch.verdicts, self.trial.end()))

    def _gradients(self, images: Images, sizes: list[int], update_g: bool = True) -> Batch:
        batch, trial = self._graded(images, sizes, update_g), self.trial
        with trial.section():
            self._differentiate(batch, for_g=update_g, for_d=True)
            if update_g:
                self._learn(batch)
            self._reserve()
        of_g = Accumulated('g', self.net_g, self.update_g, ('generator', 'perceptual'), lambda: self._repeat_g(batch))
        of_d = Accumulated('d', self.net_d, self.update_d, ('discriminator',),
                           lambda: self._differentiate(batch, for_g=False, for_d=True))
        batch.verdicts = trial.make_usable([of_g, of_d] if update_g else [of_d], batch.everything)
        return batch

    def _graded(self, images: Images, sizes: list[int], update_g: bool) -> Batch:
        with self.trial.section(look=True):
            batch = Batch(*images.on_device(), sizes)  # takes memory for all its images
            self._generate(batch, update_g)
            self._judge(batch)
        batch.grades = self._grade(batch)  # outside of sections: it communicates
        return batch

    def _reserve(self) -> None:
        self.trial.observer.on_phase('commit')
        self.update_g.reserve()
        self.update_d.reserve()

    def _generate(self, batch: Batch, update_g: bool) -> None:
        self.trial.observer.on_phase('generate')
        for index, samples in enumerate(micro_slices(len(batch), self.plan.micro.generator)):
            keep, before = update_g and index < self.plan.kept_graphs, self._snapshot('generator', self.net_g)
            with torch.set_grad_enabled(keep):
                generated = self._images(batch, samples)
            self.trial.overflow.look_at('generator', samples, generated)
            batch.fake[samples] = generated.detach()
            batch.drafts.append(Draft(samples, before, generated if keep else None))

    def _images(self, batch: Batch, samples: slice) -> Tensor:
        self.trial.at_work('generator', samples)
        with autocast(batch.device, self.trial.overflow.precision.of('generator', samples)):
            images: Tensor = self.net_g(batch.lq[samples])
        return images

    def _judge(self, batch: Batch) -> None:
        self.trial.observer.on_phase('judge')
        size = self.plan.micro.discriminator
        keep = size >= len(batch)
        for samples in micro_slices(len(batch), size):
            before = self._snapshot('discriminator', self.net_d)
            images = batch.fake[samples].requires_grad_(keep)
            with torch.set_grad_enabled(keep):
                real_logits, fake_logits = self._logits(self._real(batch, samples), samples), self._logits(images, samples)
            real, fake = widen(real_logits.detach()), widen(fake_logits.detach())
            self.trial.overflow.look_at('discriminator', samples, torch.cat([real.flatten(), fake.flatten()]))
            batch.judged.append(Judged(samples, before, real, fake, (real_logits, images, fake_logits) if keep else None))

    def _real(self, batch: Batch, samples: slice) -> Tensor:
        """What the discriminator is to take for real."""
        if self.real_images is None:
            return batch.gt[samples]
        self.trial.at_work('discriminator', samples)
        with torch.no_grad():
            images: Tensor = self.real_images(batch.gt[samples])
        return images

    def _logits(self, images: Tensor, samples: slice) -> Tensor:
        self.trial.at_work('discriminator', samples)
        with autocast(images.device, self.trial.overflow.precision.of('discriminator', samples)):
            logits: Tensor = self.net_d(images)
        return logits

    def _grade(self, batch: Batch) -> list[Grades]:
        """Gradients at the logits of each part, for losses that are means over the batch of all processes."""
        if not self.plan.exact:
            return Grades.weighted([(length(part.samples) / batch.total,
                                     grade(self.gan_loss, part.real, part.fake, relativistic=self.relativistic))
                                    for part in batch.judged])
        if len(batch.judged) == 1 and len(batch.sizes) == 1:  # whatever the shape of the logits
            return [grade(self.gan_loss, batch.judged[0].real, batch.judged[0].fake, relativistic=self.relativistic)]
        real, fake = (torch.cat(logits) for logits in zip(*((part.real, part.fake) for part in batch.judged), strict=True))
        grades = grade(self.gan_loss, gather_batch(real, batch.sizes), gather_batch(fake, batch.sizes),
                       relativistic=self.relativistic)
        mine = grades.at(batch.mine)
        return [mine.at(part.samples) for part in batch.judged]

    def _differentiate(self, batch: Batch, *, for_g: bool, for_d: bool) -> None:
        """Accumulate D's gradient, and find the scaled gradient at the generated images."""
        self.trial.observer.on_phase('grade')
        if for_g:
            batch.image_gradient = torch.zeros_like(batch.fake)
            self._differentiate_losses(batch)
        for part, grades in zip(batch.judged, batch.grades, strict=True):
            for_d = for_d and not (self._may_repeat(part.samples) and self.update_d.is_doomed())
            if for_g or for_d:
                self._differentiate_d(part, grades, batch, for_g, for_d)

    def _differentiate_losses(self, batch: Batch) -> None:
        batch.sums, precision = LossSums(), self.trial.overflow.precision
        for samples in micro_slices(len(batch), self.plan.micro.perceptual):
            self.trial.at_work('perceptual', samples)
            images = batch.fake[samples].requires_grad_()
            with autocast(batch.device, precision.of('perceptual', samples)):
                losses = self.losses(images, batch.gt[samples], batch.lq[samples])
            loss = batch.sums.add(losses, length(samples) / batch.total)
            if loss is None:
                return
            self.trial.overflow.look_at('perceptual', samples, loss)
            factor = nan_unless_finite(self.update_g.scale, loss)
            batch.image_gradient[samples] = torch.autograd.grad(loss, images, factor.to(loss.dtype))[0]

    def _differentiate_d(self, part: Judged, grades: Grades, batch: Batch, for_g: bool, for_d: bool) -> None:
        samples = part.samples
        parameters = [parameter for parameter in self.net_d.parameters() if parameter.requires_grad]
        graphs, part.graphs = part.graphs, None
        self.trial.at_work('discriminator', samples)  # a kept graph comes without the call that says so
        with _replayed(part.before, self.net_d):
            real_logits = graphs[0] if graphs else self._logits(self._real(batch, samples), samples)
            if for_d:
                self._backward_d(real_logits, grades.d_real, parameters)
            del real_logits
            images = graphs[1] if graphs else batch.fake[samples].requires_grad_(for_g)
            fake_logits = graphs[2] if graphs else self._logits(images, samples)
            if for_g:
                cotangent = (grades.g_fake * self.update_g.scale).to(fake_logits.dtype)
                batch.image_gradient[samples] += torch.autograd.grad(fake_logits, images, cotangent, retain_graph=for_d)[0]
            if for_d:
                self._backward_d(fake_logits, grades.d_fake, parameters)
                self.update_d.record_partial_norm(length(samples), batch.total)

    def _backward_d(self, logits: Tensor, gradient: Tensor, parameters: list[nn.Parameter]) -> None:
        cotangent = (gradient * self.update_d.scale).to(logits.dtype)
        torch.autograd.backward([logits], [cotangent], inputs=parameters)

    def _learn(self, batch: Batch) -> None:
        self.trial.observer.on_phase('learn')
        doomed = False
        for draft in batch.drafts:
            generated, draft.graph = draft.graph, None
            if doomed:
                continue
            gradient = batch.image_gradient[draft.samples]
            if generated is not None:
                self.trial.at_work('generator', draft.samples)
                generated.backward(gradient.to(generated.dtype))
            else:
                with _replayed(draft.before, self.net_g):
                    generated = self._images(batch, draft.samples)
                    generated.backward(gradient.to(generated.dtype))
            self.update_g.record_partial_norm(length(draft.samples), batch.total)
            doomed = self._may_repeat(draft.samples) and self.update_g.is_doomed()

    def _may_repeat(self, samples: slice) -> bool:
        """Whether an overflow would be repeated, so that it is worth a look before the last micro-batch."""
        return self.trial.overflow.precision.can_widen('generator', samples)

    def _repeat_g(self, batch: Batch) -> None:
        self._differentiate(batch, for_g=True, for_d=False)
        self._learn(batch)

    def twin(self, nets: dict[str, nn.Module], losses: SampleLosses, plan: StepPlan) -> AdversarialStep:
        """The same step over copies of the networks, for :meth:`verify`."""
        opt_g, opt_d = (torch.optim.SGD(net.parameters(), 1.0) for net in nets.values())
        dtype = next(nets['g'].parameters()).dtype
        real_images = None if self.real_images is None else copy_in(self.real_images, dtype)
        return AdversarialStep(nets['g'], nets['d'], opt_g, opt_d, losses, copy_losses(self.gan_loss, dtype), plan=plan,
                               relativistic=self.relativistic, verify_every=None, real_images=real_images)

    def undivided_gradients(self, lq: Tensor, gt: Tensor) -> undivided.Gradients:
        """The gradients of the undivided batch, by network."""
        return undivided.adversarial_gradients(self.net_g, self.net_d, self.losses, self.gan_loss, lq, gt,
                                               relativistic=self.relativistic, real_images=self.real_images)


@contextmanager
def _replayed(before: Snapshot | None, net: nn.Module) -> Iterator[None]:
    """A pass of ``net`` as it was at ``before``; fake tensors have nothing to return to."""
    if before is None:
        yield
        return
    with before.replayed(net):
        yield
