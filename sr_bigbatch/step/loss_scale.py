"""The loss scale of 16-bit training, with a floor."""
from __future__ import annotations

from typing import Any


class LossScale:
    """A factor on the loss that keeps small float16 gradients above the smallest number of the format.

    It is lowered when a gradient overflows and raised after ``growth_interval`` updates in a row. Unlike torch's
    ``GradScaler`` it never leaves ``[floor, ceiling]``: a scale of 0 would write NaN into the weights at the next
    healthy step. With factors that are powers of two a repeated step is bitwise the undisturbed one.

    Args:
        init_scale: the first value.
        growth_factor: multiplies the scale after ``growth_interval`` updates, > 1.
        backoff_factor: multiplies the scale after an overflow, in (0, 1).
        growth_interval: number of updates in a row after which the scale grows, in optimizer steps.
        floor: smallest value; 1 or more for float16.
        ceiling: largest value.

    Attributes:
        value: the scale.
        overflows: how often it was lowered or was at its floor already.

    Raises:
        ValueError: for a range that is empty or factors that do not shrink or grow.
    """

    def __init__(self, init_scale: float = 2.0**16, growth_factor: float = 2.0, backoff_factor: float = 0.5,
                 growth_interval: int = 2000, floor: float = 1.0, ceiling: float = 2.0**24) -> None:
        if not 0 < floor <= init_scale <= ceiling:
            raise ValueError(f'loss scale needs 0 < floor <= init_scale <= ceiling, got {floor}, {init_scale}, {ceiling}')
        if not (growth_factor >= 1 and 0 < backoff_factor < 1 and growth_interval >= 1):
            raise ValueError('loss scale needs growth_factor >= 1, 0 < backoff_factor < 1 and growth_interval >= 1, '
                             f'got {growth_factor}, {backoff_factor}, {growth_interval}')
        self.value, self.floor, self.ceiling = float(init_scale), floor, ceiling
        self.growth_factor, self.backoff_factor, self.growth_interval = growth_factor, backoff_factor, growth_interval
        self.successes = self.overflows = 0

    @classmethod
    def constant(cls) -> LossScale:
        """The scale 1, for dtypes that need none: float32 and bfloat16."""
        return cls(init_scale=1.0, floor=1.0, ceiling=1.0)

    def overflow(self) -> bool:
        """Lower the scale; False if it was at its floor already, so that repeating the step is futile."""
        lowered = self.value > self.floor
        self.overflows += 1
        self.value, self.successes = max(self.value * self.backoff_factor, self.floor), 0
        return lowered

    def success(self) -> None:
        """Count an update, and raise the scale when ``growth_interval`` of them came in a row."""
        self.successes += 1
        if self.successes >= self.growth_interval:
            self.value, self.successes = min(self.value * self.growth_factor, self.ceiling), 0

    def state_dict(self) -> dict[str, Any]:
        """The state under the keys of torch's ``GradScaler``, and the number of overflows so far."""
        return {'scale': self.value, 'growth_factor': self.growth_factor, 'backoff_factor': self.backoff_factor,
                'growth_interval': self.growth_interval, '_growth_tracker': self.successes, 'overflows': self.overflows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state of this class or of ``GradScaler``; a scale outside the range is moved to its border.

        Raises:
            ValueError: if the saved scale is not a positive finite number.
        """
        if not state:  # a disabled GradScaler saves an empty dict
            return
        scale = float(state['scale'])
        if not 0 < scale < float('inf'):
            raise ValueError(f'the saved loss scale is {scale}: the run that wrote this file had lost its scale')
        self.value = min(max(scale, self.floor), self.ceiling)
        self.successes, self.overflows = int(state['_growth_tracker']), int(state.get('overflows', 0))
