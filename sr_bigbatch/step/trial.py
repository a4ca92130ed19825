"""What a step does about exhausted memory and overflows: make it smaller or wider, and do the same batch again."""
from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from types import TracebackType
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from sr_bigbatch.step.distributed import worst
from sr_bigbatch.step.elastic_plan import ElasticPlan
from sr_bigbatch.step.finite import bad_samples, flag, poisoned, read
from sr_bigbatch.step.out_of_memory import OutOfMemory, is_out_of_memory, release
from sr_bigbatch.step.plan import PARTS, StepPlan
from sr_bigbatch.step.precision import Precision
from sr_bigbatch.step.replay import Traces
from sr_bigbatch.step.report import Event
from sr_bigbatch.step.update import SafeUpdate, Verdict

_FINE, _AGAIN, _OUT_OF_MEMORY = 0, 1, 2  # what processes tell each other; the index of a part is added to the last
_FLAGGED = {'generator': 'the generated images', 'perceptual': 'a pixel or perceptual loss', 'discriminator': 'the logits'}


class _HasVerdicts(Protocol):
    verdicts: dict[str, Verdict]


Work = TypeVar('Work', bound=_HasVerdicts)


class PoisonedWeights(RuntimeError):
    """A parameter is not finite, so that no step can succeed any more."""


class Recovery:
    """Everything that a step remembers about trouble. As a context manager it catches exhausted memory.

    The step says in :attr:`part` what it is working on. After each guarded section it asks :meth:`must_restart`, which
    brings all processes to the same answer.

    Args:
        plan: as configured.
        dtype: of autocast, or None.
        device: where the networks are.

    Attributes:
        part: the part of the step that is at work.
        whole: parts that must see the whole batch at once.
        events: of the present step.
    """

    def __init__(self, plan: StepPlan, dtype: torch.dtype | None, device: torch.device) -> None:
        self.plan, self.precision, self.device = ElasticPlan(plan), Precision(dtype), device
        self.part, self.whole = PARTS[0], set[str]()
        self.events: list[Event] = []
        self._code, self._reason, self._last_resort, self._short_of_memory = _FINE, '', False, False
        self._flags: list[tuple[str, slice, Tensor]] = []

    def begin(self, batch_size: int, whole: Collection[str]) -> None:
        """Start a step."""
        self.events, self.whole, self._flags, self._last_resort = [], set(whole), [], False
        self.precision.begin(batch_size)

    def bad_input(self, *images: Tensor) -> bool:
        """Whether a sample of a batch is not finite, on any process."""
        bad = sorted({index for batch in images for index in bad_samples(batch)})
        if not worst(int(bool(bad)), self.device):
            return False
        text = f'samples {bad} are' if bad else 'samples of another process are'
        self._tell('bad input', 'batch', f'{text} not finite; the step was left out', bad)
        return True

    def look_at(self, part: str, samples: slice, values: Tensor) -> None:
        """Remember whether ``values``, which ``part`` has computed, are finite; nobody waits for the answer."""
        if self.precision.can_widen(part, samples):
            self._flags.append((part, samples, flag(values)))

    def widen_overflowed(self) -> None:
        """Look at the flags. If one is false, the step has to be done again with these samples in a wider dtype."""
        flags, self._flags = self._flags, []
        finite = read([good for _, _, good in flags])
        bad = [(part, samples) for (part, samples, _), good in zip(flags, finite, strict=True) if not good]
        for part, samples in bad:
            if part == bad[0][0] and self.precision.widen(part, samples):  # later parts only suffer from the first
                self._tell('forward overflow', part, f'{_FLAGGED[part]} of samples {samples.start}..{samples.stop - 1} '
                           f'are not finite; they are computed in {_name(self.precision.of(part, samples))}')
                self._code = _AGAIN

    def __enter__(self) -> None:
        """Begin a guarded section."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if error is None or not is_out_of_memory(error):
            return False
        self._code, self._reason = _OUT_OF_MEMORY + PARTS.index(self.part), str(error).strip().split('\n')[0]
        return True

    def must_restart(self) -> bool:
        """Whether the step has to begin again, because of what happened here or in another process.

        Raises:
            OutOfMemory: if memory ran out and nothing can be made smaller.
        """
        code, self._code = worst(self._code, self.device), _FINE
        if code >= _OUT_OF_MEMORY:
            self._shrink(PARTS[code - _OUT_OF_MEMORY])
            self._short_of_memory = True
        return code != _FINE

    def _shrink(self, part: str) -> None:
        change = self.plan.shrink(part, self.whole)
        reason = self._reason or 'in another process'
        if change is None and not self._last_resort:
            self._last_resort, change = True, 'nothing is left to be made smaller; all unused memory was released'
        if change is None:
            raise OutOfMemory(
                f'out of memory in the {part}, and its micro-batch cannot be made smaller: '
                f'{"it must see the whole batch (BatchNorm; see network_d.norm)" if part in self.whole else "it is 1"}. '
                'The weights are those of the last iteration. A smaller network_g.activation_memory or gt_size helps; '
                f'tools/plan.py shows what fits. ({reason})')
        self._tell('out of memory', part, f'{change}; the same batch again. ({reason})')

    def until_done(self, attempt: Callable[[], Work | None], nets: dict[str, nn.Module],
                   updates: dict[str, SafeUpdate]) -> Work:
        """Attempt a step until it succeeds, each time from the same random numbers and buffers.

        Args:
            attempt: does everything but change weights; None if the step has to begin again.
            nets: by name; the buffers of one whose verdict is not COMMITTED are as before.
            updates: of the networks, by the same names.
        """
        before = {name: Traces(self.device, net) for name, net in nets.items()}
        for update in updates.values():
            update.allocate()
        while (work := self._try(attempt, before, updates)) is None:
            if self._short_of_memory:
                release(self.device)  # only now that no frame of the attempt is alive
                self._short_of_memory = False
        for name, verdict in work.verdicts.items():
            if verdict is not Verdict.COMMITTED:
                before[name].restore_buffers()
        return work

    @staticmethod
    def _try(attempt: Callable[[], Work | None], before: dict[str, Traces], updates: dict[str, SafeUpdate]) -> Work | None:
        for update in updates.values():
            update.reset()  # an attempt may have left a part of a gradient
        work = None
        try:
            work = attempt()
        finally:
            if work is None:
                for traces in before.values():
                    traces.restore()
        return work

    @staticmethod
    def commit(work: _HasVerdicts, updates: dict[str, SafeUpdate]) -> None:
        """Change the weights of the networks whose verdict is COMMITTED."""
        for name, verdict in work.verdicts.items():
            if verdict is Verdict.COMMITTED:
                updates[name].apply()

    def rehearse(self, attempt: Callable[[], Work | None], nets: dict[str, nn.Module],
                 updates: dict[str, SafeUpdate]) -> None:
        """Do everything of a step but change weights, and leave no trace but a plan that may have shrunk."""
        before = [Traces(self.device, net) for net in nets.values()]
        self.until_done(attempt, nets, updates)
        for traces, update in zip(before, updates.values(), strict=True):
            traces.restore()
            update.reset()

    def settle(self, update: SafeUpdate, net: nn.Module, parts: Collection[str], everything: slice,
               again: Callable[[], None]) -> Verdict:
        """Bring an accumulated gradient to be applied: repeat it at lower scales and then in wider dtypes.

        Args:
            update: of the network.
            net: the network, for the names of its parameters.
            parts: of the step, whose dtype matters to this gradient.
            everything: the slice of all samples.
            again: accumulates the gradient anew.

        Returns:
            COMMITTED: it is fit to be applied. REFUSED: it is lost. REPEAT: the whole step has to begin again.
        """
        while not update.is_finite():
            with self:
                self.widen_overflowed()
            if self.must_restart():
                return Verdict.REPEAT
            name = next((name for name, parameter in net.named_parameters() if parameter is update.suspect), 'a parameter')
            if update.loss_scale.overflow():
                action = f'repeated at scale {update.scale:g}'
            elif any([self.precision.widen(part, everything) for part in parts]):
                action = f'repeated in {_name(self.precision.of(next(iter(parts)), everything))}'
            else:
                self._refuse(net, name)
                return Verdict.REFUSED
            self._tell('gradient overflow', name, f'the gradient of {name} is not finite; {action}')
            with self:
                again()
            if self.must_restart():
                return Verdict.REPEAT
        return Verdict.COMMITTED

    def _refuse(self, net: nn.Module, name: str) -> None:
        parameters = dict(net.named_parameters())
        lost = [name for name in poisoned(net) if name in parameters]  # buffers still hold traces of this attempt
        if lost:
            raise PoisonedWeights(f'{len(lost)} parameters of {type(net).__name__} are not finite, {lost[0]} first')
        self._tell('refused', name, f'the gradient of {name} is not finite or beyond float32, and neither a lower scale nor '
                   'a wider dtype is left; this network was not changed')

    def end(self) -> list[Event]:
        """End a step; returns its events."""
        for part in self.precision.end():
            self._tell('wider dtype', part, 'overflows often; it stays on a wider dtype for a while')
        if not any(event.kind == 'out of memory' for event in self.events):
            change = self.plan.calm()
            if change:
                self._tell('memory back', 'plan', f'no trouble for a while, micro-batches: {change}')
        return self.events

    def _tell(self, kind: str, part: str, text: str, samples: Sequence[int] = ()) -> None:
        self.events.append(Event(kind, part, text, tuple(samples)))


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix('torch.')
