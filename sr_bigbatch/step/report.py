"""What a step says about itself."""
from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from sr_bigbatch.step.update import Verdict


@dataclass(frozen=True)
class Event:
    """Something that happened in a step and that a person may want to know.

    Attributes:
        kind: one of ``KINDS``.
        part: the network or the part of the step concerned.
        text: a sentence.
        samples: indices in the batch of this process, where the event concerns some only.
    """

    kind: str
    part: str
    text: str
    samples: tuple[int, ...] = ()


KINDS = ('gradient overflow', 'forward overflow', 'wider dtype', 'bad input', 'refused', 'out of memory', 'memory back',
         'weights restored', 'inexact')


@dataclass
class StepReport:
    """What a step did.

    Attributes:
        losses: scalars without graph, over the whole batch of all processes; none if the step was left out.
        output: the generated images (B, C, H, W), without graph; None if the step was left out, and as soon as the next step
            begins, which needs their memory. Whoever keeps the tensor itself has it for longer.
        verdicts: by network, ``'g'`` and ``'d'``; a network that was not to be updated is absent.
        events: what went wrong, and what was done about it.
    """

    losses: dict[str, Tensor]
    output: Tensor | None
    verdicts: dict[str, Verdict]
    events: list[Event] = field(default_factory=list)

    @property
    def committed(self) -> frozenset[str]:
        """The networks that have moved: ``'g'``, ``'d'``, both or none."""
        return frozenset(name for name, verdict in self.verdicts.items() if verdict is Verdict.COMMITTED)
