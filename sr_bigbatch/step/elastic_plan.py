"""A plan that gives way when memory runs out, and comes back."""
from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from sr_bigbatch.step.plan import StepPlan

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

    def state_dict(self) -> dict[str, int]:
        """What is in force: a micro-batch for each part, and the kept graphs."""
        return {**vars(self.now.micro), 'kept_graphs': self.now.kept_graphs}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take over what was in force, as far as it is smaller than what is wanted."""
        sizes = {part: min(int(state[part]), size) for part, size in vars(self.wanted.micro).items()}
        self.now = replace(self.wanted, micro=replace(self.wanted.micro, **sizes),
                           kept_graphs=min(int(state['kept_graphs']), self.wanted.kept_graphs))

    def shrink(self, part: str, whole: Collection[str] = ()) -> str | None:
        """Make ``part`` take less memory.

        Args:
            part: a field of :class:`sr_bigbatch.step.plan.MicroBatchSizes`.
            whole: the parts that must see the whole batch at once.

        Returns:
            What was changed, in words; None if nothing is left to change.
        """
        if self._grown:
            self.quiet = min(2 * self.quiet, _LONGEST_QUIET)
        self._calm, self._grown = 0, False
        size = getattr(self.now.micro, part)
        if size > 1 and part not in whole:
            smaller = (size + 1) // 2
            self.now = replace(self.now, micro=replace(self.now.micro, **{part: smaller}))
            return f'micro-batch of the {part} {size} -> {smaller}'
        if self.now.kept_graphs:
            kept, self.now = self.now.kept_graphs, replace(self.now, kept_graphs=0)
            return f"the generator's graphs are replayed, no longer kept (kept_graphs {kept} -> 0)"
        return None

    def calm(self) -> str | None:
        """Count a step without trouble; returns what was given back, in words, or None."""
        if self.now == self.wanted:
            return None
        self._calm += 1
        if self._calm < self.quiet:
            self._grown = self._grown and self._calm < self.quiet
            return None
        sizes = {part: min(2 * size, getattr(self.wanted.micro, part)) for part, size in vars(self.now.micro).items()}
        if self.now.micro == self.wanted.micro:
            self.now = self.wanted
        else:
            self.now = replace(self.now, micro=replace(self.now.micro, **sizes))
        self._calm, self._grown = 0, True
        return ', '.join(f'{part} {size}' for part, size in sizes.items()) + f', kept graphs {self.now.kept_graphs}'
