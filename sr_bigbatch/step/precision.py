"""In which dtype each part of a step runs."""
from __future__ import annotations

from typing import Any

import torch

from sr_bigbatch.step.plan import PARTS

_SIXTEEN_BIT = (torch.float16, torch.bfloat16)
_LADDERS = {torch.float16: (torch.float16, torch.bfloat16, torch.float32), torch.bfloat16: (torch.bfloat16, torch.float32)}
_TENSOR_CORES_FOR_BFLOAT16 = (8, 0)  # compute capability: Ampere
NO_BFLOAT16 = 'this GPU only emulates bfloat16, slowly (its compute capability is below 8.0): use float16'
_OFTEN, _WINDOW, _REST = 3, 100, 500  # steps


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Autocast to ``dtype`` (float16 or bfloat16); disabled for None and wider dtypes.

    The cache of cast weights is off: a pass without graph would leave casts without graph for the pass that needs one.
    """
    enabled = dtype in _SIXTEEN_BIT
    return torch.autocast(device.type, dtype=dtype if enabled else torch.bfloat16, enabled=enabled, cache_enabled=False)


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 itself. GPUs before Ampere (T4, RTX 20, V100) only emulate it, slowly.

    ``torch.cuda.is_bf16_supported()`` is true for these, too. A GPU that is not there is taken for a newer one.
    """
    if device.type != 'cuda' or not torch.cuda.is_available():
        return True
    return torch.cuda.get_device_capability(device) >= _TENSOR_CORES_FOR_BFLOAT16


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype to which autocast would cast here, or None."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def widen(values: torch.Tensor) -> torch.Tensor:
    """Float32 for 16-bit values; float32 and float64 as they are."""
    return values.float() if values.dtype in _SIXTEEN_BIT else values


class Precision:
    """The autocast dtype of each part of a step, for each sample of its batch.

    An overflow in the forward pass does not go away at a lower loss scale. The samples concerned climb a ladder instead:
    float16, bfloat16, float32, without bfloat16 where the device only emulates it. A part that needed this in 3 of 100
    steps stays on the wider dtype for 500 steps.

    Args:
        dtype: where every part starts; None, float32 and float64 are the top of their ladder.
        device: where the parts run.
    """

    def __init__(self, dtype: torch.dtype | None, device: torch.device) -> None:
        ladder: tuple[torch.dtype | None, ...] = _LADDERS.get(dtype, (dtype,)) if dtype else (None,)
        self._ladder = [rung for rung in ladder if rung is dtype or rung is not torch.bfloat16 or has_bfloat16(device)]
        self._base = dict.fromkeys(PARTS, 0)
        self._rest = dict.fromkeys(PARTS, 0)
        self._recent: dict[str, list[int]] = {part: [] for part in PARTS}
        self._steps = 0
        self.begin(0)

    def begin(self, batch_size: int) -> None:
        """Start a step: every sample at the present dtype of each part."""
        self._levels = {part: [self._base[part]] * batch_size for part in PARTS}

    def of(self, part: str, samples: slice) -> torch.dtype | None:
        """The dtype in which ``part`` runs on ``samples``."""
        return self._ladder[max(self._levels[part][samples])]

    def can_widen(self, part: str, samples: slice) -> bool:
        """Whether there is a wider dtype for them."""
        return max(self._levels[part][samples]) < len(self._ladder) - 1

    def widen(self, part: str, samples: slice) -> bool:
        """Run ``part`` on ``samples`` one dtype wider for the rest of the step; False if there is none."""
        if not self.can_widen(part, samples):
            return False
        levels = self._levels[part]
        levels[samples] = [max(levels[samples]) + 1] * len(levels[samples])
        return True

    def end(self) -> list[str]:
        """End a step; returns the parts that stay on a wider dtype from now on."""
        self._steps += 1
        staying = []
        for part, levels in self._levels.items():
            self._rest[part] = max(0, self._rest[part] - 1)
            if not self._rest[part]:
                self._base[part] = 0
            if levels and max(levels) > self._base[part]:
                self._recent[part] = [step for step in self._recent[part] if step > self._steps - _WINDOW] + [self._steps]
                if len(self._recent[part]) >= _OFTEN:
                    self._base[part], self._rest[part], self._recent[part] = max(levels), _REST, []
                    staying.append(part)
        return staying

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run has to know."""
        return {'base': dict(self._base), 'rest': dict(self._rest), 'steps': self._steps,
                'recent': {part: list(steps) for part, steps in self._recent.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state; levels beyond this ladder (the dtype was changed) become its top."""
        self._steps = int(state['steps'])
        for part in PARTS:
            self._base[part] = min(int(state['base'][part]), len(self._ladder) - 1)
            self._rest[part] = int(state['rest'][part])
            self._recent[part] = [int(step) for step in state['recent'][part]]
