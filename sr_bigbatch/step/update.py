"""One optimizer's side of a step: sum over processes, unscale, verdict, clip, commit."""
from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import torch
from torch import Tensor

from sr_bigbatch.step.distributed import sum_in_place
from sr_bigbatch.step.finite import LateFlag, flag
from sr_bigbatch.step.loss_scale import LossScale
from sr_bigbatch.step.noise_scale import NoiseScale
from sr_bigbatch.step.out_of_memory import OutOfMemory, is_out_of_memory

_ZERO_STATE = (torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam)


class Verdict(Enum):
    """What became of the accumulated gradient."""

    COMMITTED = 'committed'
    REPEAT = 'repeat'
    REFUSED = 'refused'


class SafeUpdate:
    """Owns an optimizer and its loss scale. :meth:`apply` is the only place of a step that changes weights.

    Args:
        optimizer: the optimizer of one network.
        loss_scale: multiplies what is differentiated; :meth:`is_finite` divides it out of the gradients.
        clip: called once per commit, after unscaling and only with finite gradients; clips ``.grad`` in place.

    Attributes:
        noise: scale of the gradient noise, where batches are worked through in parts.
        suspect: after a gradient that was not finite: the first parameter concerned.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, loss_scale: LossScale | None = None,
                 clip: Callable[[], None] | None = None) -> None:
        self.optimizer, self.clip = optimizer, clip
        self.loss_scale = loss_scale or LossScale.constant()
        self.suspect: Tensor | None = None
        self.noise = NoiseScale()
        self._part: tuple[Tensor, int, int] | None = None
        self._squared_norm: Tensor | None = None
        self._late = LateFlag()

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
        self._late.reset()
        self._part = None

    def allocate(self) -> None:
        """Make the state of an optimizer of the Adam family now, so that its memory is not missing at the first commit.

        Nothing is computed: every entry is zero, as the optimizer itself would begin.
        """
        state = self.optimizer.state
        new = [parameter for parameter in self.parameters if parameter.requires_grad and parameter not in state]
        if not isinstance(self.optimizer, _ZERO_STATE) or not new:
            return
        kept = [(parameter, parameter.detach().clone()) for parameter in new]
        for parameter in new:
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        with torch.no_grad():
            for parameter, value in kept:
                parameter.copy_(value)
                for name, entry in state[parameter].items():
                    entry.fill_(1) if name == 'mu_product' else entry.zero_()
        self.reset()

    def reserve(self) -> None:
        """Make sure that :meth:`is_finite` and :meth:`apply` find the memory that they need: an optimizer that is
        interrupted half-way can be neither finished nor undone.
        """
        size = sum(parameter.numel() * parameter.element_size() for parameter in self.parameters)
        torch.empty(3 * size, dtype=torch.uint8, device=self.parameters[0].device)

    def note_part(self, part: int, whole: int) -> None:
        """Remember how long the gradient is that the first ``part`` of ``whole`` samples have made; the later calls of a
        step do nothing.
        """
        if self._part is None and part < whole:
            gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            self._part = (norm * whole / part / self.scale)**2, part, whole

    def is_doomed(self) -> bool:
        """Whether the gradient accumulated so far is known to be lost. On a GPU known late, and without waiting for it.

        Looks at the parameter that gradients reach last: an overflow in a backward pass reaches it, too. Looks only while
        the scale can be lowered; where it cannot, an overflow is too rare to look for it before the end.
        """
        if self.scale <= self.loss_scale.floor:
            return False
        last = self.optimizer.param_groups[0]['params'][0].grad
        return last is not None and self._late.is_false(flag(last))

    def is_finite(self) -> bool:
        """Sum the accumulated gradient over all processes and divide the scale out, once; whether it may be applied."""
        parameters = [parameter for parameter in self.parameters if parameter.grad is not None]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        sum_in_place(gradients)
        if self.scale != 1:
            torch._foreach_div_(gradients, self.scale)
        if not gradients:
            return True
        # The norm, not isfinite: one finite gradient of 1e30 sets Adam's second moment to inf for ever, and its square
        # overflows here. One synchronisation per network and step.
        norms = torch.stack(torch._foreach_norm(gradients))
        norm = torch.linalg.vector_norm(norms)
        if bool(torch.isfinite(norm)):
            self._squared_norm = norm**2
            return True
        self.suspect = parameters[int(norms.nan_to_num(float('inf')).argmax())]
        self.reset()
        return False

    def apply(self) -> Verdict:
        """Step the optimizer with a gradient that :meth:`is_finite` has approved, and forget the gradient.

        Raises:
            OutOfMemory: if memory ran out while weights were being changed.
        """
        if self.clip is not None:
            self.clip()
        try:
            self.optimizer.step()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory('memory ran out while the optimizer was changing weights, which cannot be undone: go on from '
                              'the last saved state (--auto_resume)') from error
        if self._part is not None and self._squared_norm is not None:
            squared, part, whole = self._part
            self.noise.add(squared, part, self._squared_norm, whole)
        self.reset()
        self.loss_scale.success()
        return Verdict.COMMITTED

    def commit(self) -> Verdict:
        """Apply the accumulated gradient, if it is finite; forget it in any case.

        Returns:
            COMMITTED: the weights have moved. REPEAT: the gradient overflowed and the scale was lowered; accumulate
            again. REFUSED: it overflowed at the floor of the scale, where a repetition would overflow again; nothing
            but ``.grad`` has changed.
        """
        if self.is_finite():
            return self.apply()
        return Verdict.REPEAT if self.loss_scale.overflow() else Verdict.REFUSED
