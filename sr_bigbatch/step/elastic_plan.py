"""A plan that gives way when memory runs out, and comes back."""
from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from sr_bigbatch.step.plan import StepPlan, in_words

_LONGEST_QUIET = 10_000


class ElasticPlan:
    """The plan of a step, with micro-batches that are halved when memory runs out and doubled after a quiet time.

    Args:
        wanted: the plan as configured; it is never exceeded.
        quiet: number of steps without trouble after which one step back towards it is tried. An attempt that fails
            within as many steps doubles the number.

    Attributes:
        now: the plan in force.
    """

    def __init__(self, wanted: StepPlan, quiet: int = 200) -> None:
        self.wanted = self.now = wanted
        self.quiet = quiet
        self._calm, self._grown = 0, False

    def correct(self, plan: StepPlan) -> None:
        """Put another plan in force, and want of it what is another; what memory has made smaller still grows back."""
        others = {part: size for part, size in vars(plan.micro).items() if size != getattr(self.now.micro, part)}
        self.now, self.wanted = plan, replace(self.wanted, micro=replace(self.wanted.micro, **others))

    def state_dict(self) -> dict[str, Any]:
        """What is in force, what was wanted, and when the next step back is due: a resumed run grows again when it would
        have grown.
        """
        return {**_sizes(self.now), 'wanted': _sizes(self.wanted), 'quiet': self.quiet, 'calm': self._calm,
                'grown': self._grown}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what memory had made smaller, as far as it is smaller than what is wanted now.

        States of version 0.1.0 do not tell what was wanted: all that they hold counts as made smaller.
        """
        before, wanted = state.get('wanted'), _sizes(self.wanted)
        sizes = {part: size if before is not None and int(state[part]) >= int(before[part]) else min(int(state[part]), size)
                 for part, size in wanted.items()}
        kept = sizes.pop('kept_graphs')
        self.now = replace(self.wanted, micro=replace(self.wanted.micro, **sizes), kept_graphs=kept)
        self.quiet, self._calm = int(state.get('quiet', self.quiet)), int(state.get('calm', 0))
        self._grown = bool(state.get('grown', False))

    def shrink(self, part: str, batch_size: int, uncuttable: Collection[str] = ()) -> str | None:
        """Make ``part`` take less memory.

        Args:
            part: a field of :class:`sr_bigbatch.step.plan.MicroBatchSizes`.
            batch_size: of this process, in samples.
            uncuttable: the parts that must see the whole batch at once.

        Returns:
            What was changed, in words; None if nothing is left to change.
        """
        if self._grown:
            self.quiet = min(2 * self.quiet, _LONGEST_QUIET)
        self._calm, self._grown = 0, False
        size = min(getattr(self.now.micro, part), batch_size)
        if size > 1 and part not in uncuttable:
            smaller = (size + 1) // 2
            self.now = replace(self.now, micro=replace(self.now.micro, **{part: smaller}))
            return f'micro-batch of the {part} {size} -> {smaller}'
        if self.now.kept_graphs:
            kept, self.now = self.now.kept_graphs, replace(self.now, kept_graphs=0)
            return f"the generator's graphs are replayed, no longer kept (kept_graphs {in_words(kept)} -> 0)"
        return None

    def grow_back(self, batch_size: int) -> str | None:
        """Count a step of ``batch_size`` samples without trouble; returns what was given back, in words, or None."""
        if self.now == self.wanted:
            return None
        self._calm += 1
        if self._calm < self.quiet:
            self._grown = self._grown and self._calm < self.quiet
            return None
        sizes = {}
        for part, size in vars(self.now.micro).items():
            wanted = getattr(self.wanted.micro, part)
            sizes[part] = wanted if 2 * size >= min(wanted, batch_size) else 2 * size
        if self.now.micro == self.wanted.micro:
            self.now = self.wanted
        else:
            self.now = replace(self.now, micro=replace(self.now.micro, **sizes))
        self._calm, self._grown = 0, True
        changes = ', '.join(f'{part} {in_words(size)}' for part, size in sizes.items())
        return f'{changes}, kept graphs {in_words(self.now.kept_graphs)}'


def _sizes(plan: StepPlan) -> dict[str, int]:
    return {**vars(plan.micro), 'kept_graphs': plan.kept_graphs}
