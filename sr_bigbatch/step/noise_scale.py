"""Is the batch large enough? The gradient noise scale (McCandlish et al. 2018, https://arxiv.org/abs/1812.06162).

Of a batch much smaller than the noise scale the gradient is mostly noise, and twice the batch needs about half the updates.
Of one much larger it is mostly signal, and twice the batch costs twice the work for little.
"""
from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sr_bigbatch.step.words import count

_MEMORY = 0.99  # of the running means, per update
_SETTLED = 50  # updates before it is told
_TOO_SMALL, _WASTEFUL = 0.5, 4.0  # batch over noise scale


class NoiseScale:
    """The simple noise scale of a gradient, from its squared norm over a part and over the whole of each batch.

    Both unbiased estimates, of the squared norm of the true gradient and of the variance of a sample's, are averaged over
    updates before they are divided. Only :attr:`value` waits for the device.
    """

    def __init__(self) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64)
        self._weight, self._updates = 0.0, 0

    def add(self, part: Tensor, part_size: int, whole: Tensor, whole_size: int) -> None:
        """Take the squared norms of the mean gradients over a part of a batch and over all of it; sizes in samples."""
        part, whole = part.double(), whole.double()
        signal = (whole_size * whole - part_size * part) / (whole_size - part_size)
        noise = (part - whole) / (1 / part_size - 1 / whole_size)
        self._sums = _MEMORY * self._sums.to(part.device) + (1 - _MEMORY) * torch.stack([signal, noise])
        self._weight = _MEMORY * self._weight + 1 - _MEMORY
        self._updates += 1

    @property
    def value(self) -> float | None:
        """In samples; None while it is not known."""
        if self._updates < _SETTLED:
            return None
        signal, noise = (self._sums / self._weight).tolist()
        return noise / signal if signal > 0 and noise > 0 else None

    def state_dict(self) -> dict[str, float]:
        """What a resumed run has to know."""
        signal, noise = self._sums.tolist()
        return {'signal': signal, 'noise': noise, 'weight': self._weight, 'updates': self._updates}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take over a state."""
        self._sums = torch.tensor([state['signal'], state['noise']], dtype=torch.float64)
        self._weight, self._updates = float(state['weight']), int(state['updates'])


def batch_size_advice(scales: Mapping[str, float], batch: int) -> str:
    """One conclusion on a batch, from the noise scales of the gradients of all networks that learn from it.

    Args:
        scales: the noise scale of each network, in samples, by its name for the sentence; at least one.
        batch: the effective batch, in samples.
    """
    small = [name for name, value in scales.items() if batch < _TOO_SMALL * value]
    large = [name for name, value in scales.items() if batch > _WASTEFUL * value]
    known = ' and '.join(f'{count(value, "image")} for the {name}' for name, value in scales.items())
    told = f'The effective batch of {batch}'
    if len(small) == len(scales):
        conclusion = f'{told} is too small: twice of it would need {_updates(scales, batch, 2):.2f} times the updates'
    elif len(large) == len(scales):
        conclusion = f'{told} is wasteful: half of it would need only {_updates(scales, batch, 0.5):.2f} times the updates'
    elif small:
        conclusion = (f'{told} is a compromise: the {" and ".join(small)} would gain from a larger one, the '
                      f'{" and ".join(name for name in scales if name not in small)} would not')
    else:
        conclusion = f'{told} is enough, and not wasteful'
    return f'{conclusion}. The noise scale of the gradient is {known}.'


def _updates(scales: Mapping[str, float], batch: int, factor: float) -> float:
    """Updates with ``factor`` times the batch over those with the batch, for the network to which that brings least."""
    return max((1 + value / (factor * batch)) / (1 + value / batch) for value in scales.values())
