"""One optimizer's side of a step: sum over processes, unscale, verdict, clip, commit."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from .distributed import sum_in_place
from .loss_scale import LossScale


class Verdict(Enum):
    """What became of the accumulated gradient."""

    COMMITTED = 'committed'
    REPEAT = 'repeat'
    REFUSED = 'refused'


@dataclass(frozen=True)
class StepReport:
    """What a step did.

    Attributes:
        losses: scalars without graph, over the whole batch of all processes.
        output: the generated images (B, C, H, W), without graph.
        verdicts: by network, ``'g'`` and ``'d'``; a network that was not to be updated is absent.
    """

    losses: dict[str, Tensor]
    output: Tensor
    verdicts: dict[str, Verdict]


class SafeUpdate:
    """Owns an optimizer and its loss scale. :meth:`commit` is the only place of a step that changes weights.

    Args:
        optimizer: the optimizer of one network.
        loss_scale: multiplies what is differentiated; :meth:`commit` divides it out of the gradients.
        clip: called once per commit, after unscaling and only with finite gradients; clips ``.grad`` in place.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, loss_scale: LossScale | None = None,
                 clip: Callable[[], None] | None = None) -> None:
        self.optimizer, self.clip = optimizer, clip
        self.loss_scale = loss_scale or LossScale.constant()

    @property
    def scale(self) -> float:
        """The factor that the caller puts on its loss or cotangent."""
        return self.loss_scale.value

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters of all groups, in the optimizer's order."""
        return [parameter for group in self.optimizer.param_groups for parameter in group['params']]

    def reset(self) -> None:
        """Forget the accumulated gradient."""
        self.optimizer.zero_grad(set_to_none=True)

    def commit(self) -> Verdict:
        """Step the optimizer with the accumulated gradient, if it is finite; forget the gradient in any case.

        Returns:
            COMMITTED: the weights have moved. REPEAT: the gradient overflowed and the scale was lowered; accumulate
            again. REFUSED: it overflowed at the floor of the scale, where a repetition would overflow again; nothing
            but ``.grad`` has changed.
        """
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        sum_in_place(gradients)
        if self.scale != 1:
            torch._foreach_div_(gradients, self.scale)
        if not self._is_finite(gradients):
            self.reset()
            return Verdict.REPEAT if self.loss_scale.overflow() else Verdict.REFUSED
        if self.clip is not None:
            self.clip()
        self.optimizer.step()
        self.reset()
        self.loss_scale.success()
        return Verdict.COMMITTED

    def commit_or_repeat(self, again: Callable[[], None]) -> Verdict:
        """Commit; while the gradient overflows and the scale can still be lowered, call ``again`` and retry.

        Args:
            again: accumulates the gradient of the same batch anew, at the present :attr:`scale`.
        """
        while (verdict := self.commit()) is Verdict.REPEAT:
            again()
        return verdict

    @staticmethod
    def _is_finite(gradients: list[Tensor]) -> bool:
        # The norm, not isfinite: one finite gradient of 1e30 sets Adam's second moment to inf for ever, and its square
        # overflows here. One synchronisation per network and step.
        if not gradients:
            return True
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        return bool(torch.isfinite(norm))
