"""Decides what gets smaller when memory runs out."""
from __future__ import annotations

from collections.abc import Collection

import torch

from sr_bigbatch.step.elastic_plan import ElasticPlan
from sr_bigbatch.step.out_of_memory import OutOfMemory, release
from sr_bigbatch.step.plan import PARTS, StepPlan


class MemoryGuard:
    """Keeps the plan in force, and makes it smaller when a part of the step has run out of memory.

    Args:
        plan: as configured.
        device: where the networks are.

    Attributes:
        plan: with its way back.
        uncuttable: parts that must see the whole batch at once, because the audit has found that cutting them would
            change the update.
    """

    def __init__(self, plan: StepPlan, device: torch.device) -> None:
        self.plan, self.device, self.uncuttable = ElasticPlan(plan), device, frozenset[str]()
        self._reason, self._batch_size, self._short, self._last_resort = '', 0, False, False

    def begin(self, batch_size: int, uncuttable: Collection[str]) -> None:
        """Start a step of ``batch_size`` samples of this process."""
        self._batch_size, self.uncuttable, self._last_resort = batch_size, frozenset(uncuttable), False

    def note(self, error: BaseException) -> None:
        """Remember why memory ran out here, for the message."""
        self._reason = str(error).strip().split('\n')[0]

    def shrink(self, part: str) -> str:
        """Make ``part`` smaller, since memory ran out in it here or in another process; returns what was done, in words.

        Raises:
            OutOfMemory: if nothing can be made smaller.
        """
        change, self._short = self.plan.shrink(part, self._batch_size, self.uncuttable), True
        reason, self._reason = self._reason or 'in another process', ''
        if change is None and not self._last_resort:
            self._last_resort, change = True, 'nothing is left to be made smaller; all unused memory was released'
        if change is None:
            why = 'it must see the whole batch: cutting it would change the update' if part in self.uncuttable else 'it is 1'
            raise OutOfMemory(
                f'out of memory in the {part}, and its micro-batch cannot be made smaller: {why}. '
                'The weights are those of the last iteration. A smaller network_g.activation_memory or gt_size helps, and '
                f'so does network_d.norm: group for a discriminator; tools/plan.py shows what fits. ({reason})')
        return f'{change}; the same batch again. ({reason})'

    def shrink_something(self) -> bool:
        """Make every part smaller that can be; False if none can."""
        return any([self.plan.shrink(part, self._batch_size, self.uncuttable) is not None for part in PARTS])

    def make_room(self) -> None:
        """After a lack of memory, give back what is unused. Call it where no frame of the failed attempt is alive."""
        if self._short:
            release(self.device)
            self._short = False

    def end(self, *, trouble: bool) -> str | None:
        """End a step; returns what was given back after a quiet time, in words."""
        return None if trouble else self.plan.grow_back(self._batch_size)
