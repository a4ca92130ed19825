"""Does a step as often as it takes, and then commits it: snapshots, retries, votes."""
from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from sr_bigbatch.step.distributed import worst
from sr_bigbatch.step.finite import bad_samples, read
from sr_bigbatch.step.memory_guard import MemoryGuard
from sr_bigbatch.step.observer import NoObserver, Observer
from sr_bigbatch.step.out_of_memory import OutOfMemory, is_out_of_memory
from sr_bigbatch.step.overflow_guard import OverflowGuard, refuse_poisoned
from sr_bigbatch.step.plan import PARTS, StepPlan
from sr_bigbatch.step.replay import Snapshot
from sr_bigbatch.step.report import Event
from sr_bigbatch.step.update import SafeUpdate, Verdict
from sr_bigbatch.step.weight_copies import weights_cast_once

_FINE, _AGAIN, _OUT_OF_MEMORY = 0, 1, 2  # what processes tell each other; the index of a part is added to the last


class _HasVerdicts(Protocol):
    verdicts: dict[str, Verdict]


Work = TypeVar('Work', bound=_HasVerdicts)


@dataclass(frozen=True)
class Accumulated:
    """The gradient that a step has accumulated for one network.

    Attributes:
        name: of the network, ``'g'`` or ``'d'``.
        net: the network, for the names of its parameters.
        update: owns its optimizer.
        parts: of the step, whose dtype matters to this gradient.
        again: accumulates it anew.
    """

    name: str
    net: nn.Module
    update: SafeUpdate
    parts: Collection[str]
    again: Callable[[], None]


class Restart(Exception):
    """What was done so far is dropped, and the same batch begins again."""


class Trial:
    """The attempts of a step. Weights change in :meth:`commit` only.

    The step says with :meth:`at_work` what it is working on, and does its work inside sections. At the end of a section all
    processes vote; if one of them is in trouble, all of them begin again.

    Args:
        plan: as configured.
        dtype: of autocast, or None.
        device: where the networks are.
        observer: is told phases and parts.
        values: whether there are values to look at; fake tensors have none.

    Attributes:
        memory: decides what gets smaller.
        overflow: decides what gets wider.
        events: of the present step.
        collective: whether a part communicates inside a section. A process that runs out of memory there cannot begin
            again, because the others wait for it.
    """

    def __init__(self, plan: StepPlan, dtype: torch.dtype | None, device: torch.device, observer: Observer | None = None, *,
                 values: bool = True) -> None:
        self.memory, self.overflow = MemoryGuard(plan, device), OverflowGuard(dtype, device, values=values)
        self.observer: Observer = observer or NoObserver()
        self.device, self.values, self.collective = device, values, False
        self.events: list[Event] = []
        self._part, self._trouble = PARTS[0], _FINE

    def begin(self, batch_size: int, uncuttable: Collection[str]) -> None:
        """Start a step of ``batch_size`` samples of this process."""
        self.events, self._trouble, self._part = [], _FINE, PARTS[0]
        self.memory.begin(batch_size, uncuttable)
        self.overflow.begin(batch_size)

    def reject_bad_input(self, *images: Tensor) -> bool:
        """Whether a sample of a batch is not finite, on any process; such a step is left out."""
        bad = bad_samples(*images) if self.values else []
        if not worst(int(bool(bad)), self.device):
            return False
        text = f'samples {bad} are' if bad else 'samples of another process are'
        self.tell('bad input', 'batch', f'{text} not finite; the step was left out', bad)
        return True

    def at_work(self, part: str, samples: slice) -> None:
        """``part`` begins to work on ``samples``: the part that has to get smaller if memory runs out now."""
        self._part = part
        self.observer.on_part(part, samples)

    @contextmanager
    def section(self, *, look: bool = False) -> Iterator[None]:
        """A piece of work that may run out of memory. It ends in the vote of all processes.

        Args:
            look: whether to look for overflows, too; on a GPU this waits for it.

        Raises:
            Restart: if the step has to begin again.
            OutOfMemory: if memory ran out and nothing can be made smaller, or other processes wait for this one.
        """
        try:
            yield
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if self.collective:
                raise OutOfMemory(f'out of memory in the {self._part}, which shares its batch statistics with the other '
                                  'processes and cannot begin again alone: give it less to do '
                                  f'(train.micro_batch_size, network_d.norm). ({error})') from error
            self.memory.note(error)
            self._trouble = _OUT_OF_MEMORY + PARTS.index(self._part)
        # Outside of `except`: a traceback would keep the tensors of the failed attempt alive.
        for part, text in self.overflow.widen_overflowed() if look and self._trouble == _FINE else ():
            self.tell('forward overflow', part, text)
            self._trouble = _AGAIN
        self._vote()

    def _vote(self) -> None:
        trouble, self._trouble = worst(self._trouble, self.device), _FINE
        if trouble >= _OUT_OF_MEMORY:
            part = PARTS[trouble - _OUT_OF_MEMORY]
            self.tell('out of memory', part, self.memory.shrink(part))
        if trouble != _FINE:
            raise Restart

    def run(self, attempt: Callable[[], Work], nets: Mapping[str, nn.Module], updates: Mapping[str, SafeUpdate]) -> Work:
        """Attempt a step until it succeeds, each time from the same random numbers and buffers.

        Args:
            attempt: does everything but change weights.
            nets: by name; the buffers of one whose gradient is refused are as before.
            updates: of the networks, by the same names.
        """
        before = {name: Snapshot.take(self.device, net) for name, net in nets.items()} if self.values else {}
        with weights_cast_once(*nets.values()):
            while (work := self._try(attempt, before, updates)) is None:
                self.memory.make_room()
        for name, verdict in work.verdicts.items():
            if verdict is Verdict.REFUSED and name in before:
                before[name].restore_buffers()
        return work

    @staticmethod
    def _try(attempt: Callable[[], Work], before: Mapping[str, Snapshot], updates: Mapping[str, SafeUpdate]) -> Work | None:
        for update in updates.values():
            update.reset()  # an attempt may have left a part of a gradient
        work = None
        try:
            work = attempt()
        except Restart:
            pass
        finally:
            if work is None:
                for update in updates.values():
                    update.reset()  # whoever goes on after an exception must not find a part of a gradient
                for snapshot in before.values():
                    snapshot.restore()
        return work

    def commit(self, work: _HasVerdicts, updates: Mapping[str, SafeUpdate]) -> None:
        """Change the weights of the networks whose gradient is fit to be applied."""
        self.observer.on_phase('commit')
        for name, verdict in work.verdicts.items():
            if verdict is Verdict.USABLE:
                work.verdicts[name] = updates[name].apply()

    def rehearse(self, attempt: Callable[[], Work], nets: Mapping[str, nn.Module],
                 updates: Mapping[str, SafeUpdate]) -> None:
        """Do everything of a step but change weights, and leave no trace but a plan that may have shrunk."""
        before = [Snapshot.take(self.device, net) for net in nets.values()]
        self.run(attempt, nets, updates)
        for snapshot in before:
            snapshot.restore()
        for update in updates.values():
            update.reset()

    def make_usable(self, accumulated: Sequence[Accumulated], everything: slice) -> dict[str, Verdict]:
        """Bring accumulated gradients to be applied: repeat them at lower scales and then in wider dtypes.

        A GPU is waited for once, whatever the number of gradients, as long as all of them are finite.

        Args:
            accumulated: the gradients, each of another network.
            everything: the slice of all samples.

        Returns:
            USABLE or REFUSED, by network.

        Raises:
            Restart: if the whole step has to begin again.
            PoisonedWeights: if a parameter is not finite.
        """
        flags = [each.update.total_gradient() for each in accumulated]
        known = iter(read([flag for flag in flags if flag is not None]))
        finite = [flag is None or next(known) for flag in flags]
        return {each.name: self._make_usable(each, everything, good)
                for each, good in zip(accumulated, finite, strict=True)}

    def _make_usable(self, each: Accumulated, everything: slice, finite: bool) -> Verdict:
        usable = each.update.decide(finite)
        while not usable:
            with self.section(look=True):
                pass  # a forward overflow that was noticed meanwhile explains the gradient: it comes first
            name = next((name for name, parameter in each.net.named_parameters()
                         if parameter is each.update.first_nonfinite), 'a parameter')
            action = self.overflow.answer(each.update, each.parts, everything)
            if action is None:
                refuse_poisoned(each.net)
                self.tell('refused', name, f'the gradient of {name} is not finite or beyond float32, and neither a lower '
                          'scale nor a wider dtype is left; this network was not changed')
                return Verdict.REFUSED
            self.tell('gradient overflow', name, f'the gradient of {name} is not finite; {action}')
            with self.section():
                each.again()
            usable = each.update.finalize_gradient()
        return Verdict.USABLE

    def end(self) -> list[Event]:
        """End a step; returns its events."""
        for part in self.overflow.end():
            self.tell('wider dtype', part, 'overflows often; it stays on a wider dtype for a while')
        change = self.memory.end(trouble=any(event.kind == 'out of memory' for event in self.events))
        if change:
            self.tell('memory back', 'plan', f'no trouble for a while, micro-batches: {change}')
        return self.events

    def tell(self, kind: str, part: str, text: str, samples: Sequence[int] = ()) -> None:
        """Add an event to the report of the step."""
        self.events.append(Event(kind, part, text, tuple(samples)))
