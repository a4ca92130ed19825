"""What a network or a loss does to a batch."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Behaviour:
    """What one network or loss does to a batch, whatever the plan. Each reason is a clause for a person; None: it does not.

    Attributes:
        couples: how the result or a gradient of one sample depends on other samples; for a loss: how it differs from a mean
            over samples.
        only_batch_norm: the coupling goes away when its BatchNorm layers normalise with fixed statistics.
        shares_noise: which random numbers are shared by all samples of a call.
        draws_noise: draws random numbers of its own for each sample.
        buffers: names of buffers that a pass changes, other than BatchNorm statistics and vectors of spectral norms.
        state: how it changes from call to call with equal input and equal random numbers.
        untried: why it could not be tried.
    """

    couples: str | None = None
    only_batch_norm: bool = False
    shares_noise: str | None = None
    draws_noise: bool = False
    buffers: tuple[str, ...] = ()
    state: str | None = None
    untried: str | None = None
