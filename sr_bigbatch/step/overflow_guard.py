"""Decides what gets wider, or is scaled down, when numbers overflow."""
from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn

from sr_bigbatch.step.finite import flag, poisoned, read
from sr_bigbatch.step.precision import Precision
from sr_bigbatch.step.update import SafeUpdate

_FLAGGED = {'generator': 'the generated images', 'perceptual': 'a pixel or perceptual loss', 'discriminator': 'the logits'}


class PoisonedWeights(RuntimeError):
    """A parameter is not finite, so that no step can succeed any more."""


class OverflowGuard:
    """Looks at what the parts of a step compute, and answers overflows: a wider dtype, or a lower loss scale.

    Args:
        dtype: of autocast, or None.
        device: where the networks are.
        values: whether there are values to look at; fake tensors have none.
    """

    def __init__(self, dtype: torch.dtype | None, device: torch.device, *, values: bool = True) -> None:
        self.precision, self._values = Precision(dtype, device), values
        self._flags: list[tuple[str, slice, Tensor]] = []

    def begin(self, batch_size: int) -> None:
        """Start a step."""
        self._flags = []
        self.precision.begin(batch_size)

    def look_at(self, part: str, samples: slice, values: Tensor) -> None:
        """Remember whether ``values``, which ``part`` has computed, are finite. This does not wait for the device."""
        if self._values and self.precision.can_widen(part, samples):
            self._flags.append((part, samples, flag(values)))

    def widen_overflowed(self) -> Iterable[tuple[str, str]]:
        """Give the samples whose flag is false a wider dtype for the rest of the step; waits for the device once.

        Yields:
            The part and a sentence, for each group of samples. The step has to be done again if there is one.
        """
        flags, self._flags = self._flags, []
        finite = read([good for _, _, good in flags])
        bad = [(part, samples) for (part, samples, _), good in zip(flags, finite, strict=True) if not good]
        for part, samples in bad:
            if part == bad[0][0] and self.precision.widen(part, samples):  # later parts only suffer from the first
                yield part, (f'{_FLAGGED[part]} of samples {samples.start}..{samples.stop - 1} are not finite; '
                             f'they are computed in {_name(self.precision.of(part, samples))}')

    def answer(self, update: SafeUpdate, parts: Collection[str], everything: slice) -> str | None:
        """Answer a gradient that is not finite: a lower scale, then wider dtypes; in words. None: nothing is left.

        Args:
            update: of the network concerned.
            parts: of the step, whose dtype matters to this gradient.
            everything: the slice of all samples.
        """
        if update.loss_scale.overflow():
            return f'repeated at scale {update.scale:g}'
        if any([self.precision.widen(part, everything) for part in parts]):
            return f'repeated in {_name(self.precision.of(next(iter(parts)), everything))}'
        return None

    def end(self) -> list[str]:
        """End a step; returns the parts that stay on a wider dtype for a while."""
        return self.precision.end()


def refuse_poisoned(net: nn.Module) -> None:
    """Look whether a network itself is the reason why its gradient is not finite.

    Raises:
        PoisonedWeights: if one of its parameters is not finite. Buffers may hold traces of a failed attempt.
    """
    parameters = dict(net.named_parameters())
    lost = [name for name in poisoned(net) if name in parameters]
    if lost:
        raise PoisonedWeights(f'{len(lost)} parameters of {type(net).__name__} are not finite, {lost[0]} first')


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix('torch.')
