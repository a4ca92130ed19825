"""What the adversarial and the supervised step share: the plan, the check, the trial, the state."""
from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sr_bigbatch.step.audit import Finding
from sr_bigbatch.step.batch import Batch, Images
from sr_bigbatch.step.check import Check, NotExact
from sr_bigbatch.step.distributed import batch_sizes, world_size, worst
from sr_bigbatch.step.elastic_plan import ElasticPlan
from sr_bigbatch.step.loss_scale import LossScale
from sr_bigbatch.step.observer import Observer
from sr_bigbatch.step.plan import StepPlan
from sr_bigbatch.step.replay import Snapshot, one_power_iteration
from sr_bigbatch.step.report import Event, StepReport
from sr_bigbatch.step.sample_losses import SampleLosses, no_losses
from sr_bigbatch.step.shared_batch_norm import batch_norms_over_processes
from sr_bigbatch.step.trial import Trial
from sr_bigbatch.step.undivided import Gradients
from sr_bigbatch.step.update import SafeUpdate
from sr_bigbatch.step.verification import verify

_VERSION = 1  # of the state


class Step:
    """One update from an effective batch. See :class:`sr_bigbatch.step.adversarial_step.AdversarialStep` for the arguments.

    Attributes:
        nets: by name, ``'g'`` and ``'d'``.
        updates: the owners of their optimizers, by the same names.
        losses: the sample losses.
        trial: what a step remembers about trouble.
        steps: how many were made, those before a resume included.
        last_verification: by network, the difference that was found last; see :meth:`verify`.
        findings: of the last check.
    """

    def __init__(self, nets: dict[str, nn.Module], optimizers: dict[str, torch.optim.Optimizer | SafeUpdate],
                 losses: SampleLosses | None, *, micro_batch_size: int | Mapping[str, int] | str | None, kept_graphs: int,
                 exact: bool, plan: StepPlan | None, dtype: torch.dtype | None, verify_every: int | None,
                 observer: Observer | None, values: bool,
                 real_images: nn.Module | None = None) -> None:
        self.nets, self.losses, self._values = nets, losses or no_losses, values
        self.updates = {name: optimizer if isinstance(optimizer, SafeUpdate) else
                        SafeUpdate(optimizer, LossScale() if dtype is torch.float16 else None, values=values)
                        for name, optimizer in optimizers.items()}
        if plan is None:
            plan = StepPlan.of(micro_batch_size, kept_graphs, exact=exact)
        device = next(nets['g'].parameters()).device
        refuse_device(device)
        self.trial = Trial(plan, dtype, device, observer, values=values)
        self._check = Check(nets, self.updates, self.losses, real_images)
        self.verify_every, self.steps, self._verified = verify_every, 0, False
        self.last_verification: dict[str, float] = {}
        self.findings: list[Finding] = []
        self._last_report: Callable[[], StepReport | None] = lambda: None

    @property
    def plan(self) -> StepPlan:
        """How the next batch will be cut. A plan that is set here is checked before the next update."""
        return self.trial.memory.plan.now

    @plan.setter
    def plan(self, plan: StepPlan) -> None:
        if plan != self.trial.memory.plan.wanted:
            self.trial.memory.plan = ElasticPlan(plan)

    @property
    def uncuttable_parts(self) -> frozenset[str]:
        """The parts that must see the whole batch at once, as the last check has found."""
        return self._check.uncuttable if self.plan.exact else frozenset()

    @property
    def draws_noise(self) -> bool:
        """Whether a network or a loss draws random numbers, as the last check has found."""
        return self._check.draws_noise

    def check(self, lq: Tensor, gt: Tensor, batch_size: int | None = None) -> list[Finding]:
        """Try networks and losses on toy batches: is a divided update that of the whole batch?

        It is called by itself before the first update, and again when the plan, the crop, the batch or a network changes.
        Nothing changes but the plan, where one micro-batch size was given for all parts: a discriminator that couples
        samples then gets the whole batch.

        Args:
            lq: some low-resolution images (M, C, h, w), for their shape.
            gt: the ground truth (M, C, H, W), likewise.
            batch_size: of this process, in samples; that of ``gt`` if it is not given.

        Returns:
            What was found, exact or not.

        Raises:
            NotExact: with every reason why the update would differ, unless the plan is not ``exact``.
        """
        sizes = batch_sizes(gt.shape[0] if batch_size is None else batch_size)
        if 0 in sizes:
            raise ValueError(f'each process needs at least one sample, they have {sizes}')
        plan, self.findings = self._check(self.plan, lq.shape[1:], gt.shape[1:], sizes)
        if plan != self.plan:
            self.trial.memory.plan.correct(plan)
        wrong = [finding for finding in self.findings if not finding.exact]
        if wrong and self.plan.exact:
            raise NotExact(wrong)
        return self.findings

    def verify(self, lq: Tensor, gt: Tensor, dtype: torch.dtype = torch.float64) -> dict[str, float]:
        """Compare the gradients of a real batch, cut as planned, with those of the undivided batch.

        The undivided batch is differentiated by a few plain lines of autograd, on copies of the networks: nothing changes.
        If it does not fit, the first half of the batch is compared, and so on. Each process looks at its own batch.

        Args:
            lq: (B, C, h, w).
            gt: (B, C, H, W).
            dtype: float64 or float32, without TF32; what does not run in float64 runs in float32.

        Returns:
            By network, the length of the difference over the length of the undivided gradient; about 1e-15 in float64. Empty
            where networks draw random numbers, because a divided pass draws others, or for a single sample.
        """
        return verify(self, lq, gt, dtype).differences

    def twin(self, nets: dict[str, nn.Module], losses: SampleLosses, plan: StepPlan) -> Step:
        """The same step over copies of the networks, for :meth:`verify`."""
        raise NotImplementedError

    def undivided_gradients(self, lq: Tensor, gt: Tensor) -> Gradients:
        """The gradients of the undivided batch, by network; see :mod:`sr_bigbatch.step.undivided`."""
        raise NotImplementedError

    def divided_gradients(self, lq: Tensor, gt: Tensor) -> Gradients:
        """The gradients of the batch, cut as planned, by network; no weight changes."""
        sizes = batch_sizes(gt.shape[0])
        self.trial.begin(gt.shape[0], ())
        images = Images(lq, gt, self.trial.device)
        self.trial.run(lambda: self._gradients(images, sizes), self.nets, self.updates)
        gradients: Gradients = {name: [parameter.grad for parameter in net.parameters() if parameter.requires_grad]
                                for name, net in self.nets.items()}
        for update in self.updates.values():
            update.reset()
        return gradients

    def rehearse(self, lq: Tensor, gt: Tensor) -> list[Event]:
        """Do everything of a step but change weights, to see whether it fits; returns what was made smaller."""
        self._let_go()
        sizes = batch_sizes(gt.shape[0])
        self._ensure_checked(lq, gt, sizes)
        self.trial.begin(gt.shape[0], self.uncuttable_parts)
        before = [Snapshot.take(self.trial.device, net) for net in self.nets.values()]
        images = Images(lq, gt, self.trial.device)
        with self._networks_of_a_step():
            self.trial.rehearse(lambda: self._gradients(images, sizes), self.nets, self.updates)
        for snapshot in before:  # of before the power iteration
            snapshot.restore()
        return self.trial.end()

    def _gradients(self, images: Images, sizes: list[int]) -> Batch:
        """Everything before the weights change."""
        raise NotImplementedError

    def _make(self, lq: Tensor, gt: Tensor, attempt: Callable[[Images, list[int]], Batch]) -> Batch | None:
        """Check, attempt and commit; None if the batch was not finite and the step is left out."""
        self._let_go()
        trial, sizes = self.trial, batch_sizes(gt.shape[0])
        self._ensure_checked(lq, gt, sizes)
        trial.begin(gt.shape[0], self.uncuttable_parts)
        if trial.reject_bad_input(lq, gt):
            return None
        self._verify_if_due(lq, gt)
        images = Images(lq, gt, trial.device)
        with self._networks_of_a_step():
            batch = trial.run(lambda: attempt(images, sizes), self.nets, self.updates)
            trial.commit(batch, self.updates)
        self.steps += 1
        return batch

    def _report(self, report: StepReport) -> StepReport:
        """``report``, whose images are let go when the next step begins, whoever has kept it."""
        self._last_report = weakref.ref(report)
        return report

    def _let_go(self) -> None:
        report = self._last_report()
        if report is not None:
            report.output = None

    def _ensure_checked(self, lq: Tensor, gt: Tensor, sizes: list[int]) -> None:
        if not self._values:
            return
        due = self._check.is_due(self.plan, lq.shape[1:], gt.shape[1:], sizes)
        if worst(int(due), self.trial.device):  # the check communicates: all processes make it, or none does
            self._verified = False
            self.check(lq, gt)

    def _verify_if_due(self, lq: Tensor, gt: Tensor) -> None:
        if self.verify_every is None or not self._values:
            return
        due = self.verify_every > 0 and (self.steps + 1) % self.verify_every == 0
        if due or not self._verified:
            samples = len(gt) if due else min(3, len(gt))  # at the start, a few samples tell
            found = verify(self, lq[:samples], gt[:samples], torch.float64)
            self._verified = not worst(int(not found.complete), self.trial.device)  # another batch may tell more
            self.last_verification, texts = found.differences, found.breaches()
            if worst(int(bool(texts)), self.trial.device) and not texts:  # all processes end, or none does
                texts = ['the gradient in another process differs from that of its undivided batch']
            for text in texts:
                self.trial.tell('inexact', 'all', text)
            if texts and self.plan.exact:
                raise NotExact([Finding('update', False, text) for text in texts])

    @contextmanager
    def _networks_of_a_step(self) -> Iterator[None]:
        """One power iteration for the whole step, and batch statistics over all processes where they must be."""
        shared = [self.nets[name] for name in self._check.shares_statistics] if self.plan.exact and world_size() > 1 else []
        self.trial.collective = bool(shared)
        with one_power_iteration(*self.nets.values()), ExitStack() as stack:
            for net in shared:
                stack.enter_context(batch_norms_over_processes(net))
            yield

    def _snapshot(self, part: str, net: nn.Module) -> Snapshot | None:
        """What a replay of a pass of ``net`` needs; None where there are no values to replay."""
        with_buffers = part in self._check.changes_buffers
        return Snapshot.take(self.trial.device, net, with_buffers=with_buffers) if self._values else None

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run has to know beside networks and optimizers: plain numbers, texts and lists."""
        return {'version': _VERSION, 'steps': self.steps, 'plan': self.trial.memory.plan.state_dict(),
                'precision': self.trial.overflow.precision.state_dict(),
                'loss_scales': {name: update.loss_scale.state_dict() for name, update in self.updates.items()},
                'noise': {name: update.noise.state_dict() for name, update in self.updates.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`. A plan larger than the present one is cut to it.

        Raises:
            ValueError: for a state of a later version, or a loss scale that is lost.
        """
        if state['version'] > _VERSION:
            raise ValueError(f'this state of a step has version {state["version"]}; known here: up to {_VERSION}')
        self.steps = int(state['steps'])
        self.trial.overflow.precision.load_state_dict(state['precision'])
        for name, update in self.updates.items():
            update.loss_scale.load_state_dict(state['loss_scales'].get(name, {}))
            if name in state['noise']:
                update.noise.load_state_dict(state['noise'][name])
        if state['plan'] is not None:
            self.trial.memory.plan.load_state_dict(state['plan'])


def refuse_device(device: torch.device) -> None:
    """Refuse a device on which a step cannot be checked.

    Raises:
        ValueError: for mps, which has no float64.
    """
    if device.type == 'mps':
        raise ValueError('mps has no float64, in which a step is checked: move the networks to the CPU or a GPU with CUDA')
