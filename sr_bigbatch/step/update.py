"""One optimizer's side of a step: sum over processes, unscale, verdict, clip, commit."""
from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import torch
from torch import Tensor

from sr_bigbatch.step.distributed import sum_gradients
from sr_bigbatch.step.finite import LateFlag, flag
from sr_bigbatch.step.loss_scale import LossScale
from sr_bigbatch.step.noise_scale import NoiseScale
from sr_bigbatch.step.out_of_memory import OutOfMemory, is_out_of_memory


class Verdict(Enum):
    """What became of the accumulated gradient."""

    USABLE = 'fit to be applied'
    COMMITTED = 'committed'
    REPEAT = 'repeat'
    REFUSED = 'refused'


class SafeUpdate:
    """Owns an optimizer and its loss scale. :meth:`apply` is the only place of a step that changes weights.

    Args:
        optimizer: the optimizer of one network.
        loss_scale: multiplies what is differentiated; :meth:`finalize_gradient` divides it out of the gradients.
        clip: called once per commit, after unscaling and only with finite gradients; clips ``.grad`` in place.
        values: whether gradients have values to look at; those of fake tensors have none.

    Attributes:
        noise: scale of the gradient noise, where batches are worked through in parts.
        first_nonfinite: after a gradient that was not finite: the parameter concerned, the worst of them.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, loss_scale: LossScale | None = None,
                 clip: Callable[[], None] | None = None, *, values: bool = True) -> None:
        self.optimizer, self.clip, self._values = optimizer, clip, values
        self.loss_scale = loss_scale or LossScale.constant()
        self.first_nonfinite: Tensor | None = None
        self.noise = NoiseScale()
        self._part: tuple[Tensor, int, int] | None = None
        self._squared_norm: Tensor | None = None
        self._norms: tuple[list[Tensor], Tensor] | None = None
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

    def reserve(self) -> None:
        """Make sure that :meth:`finalize_gradient` and :meth:`apply` find the memory that they need: an optimizer that is
        interrupted half-way can be neither finished nor undone. The first commit also makes the optimizer's state.
        """
        weights = sum(parameter.numel() * parameter.element_size() for parameter in self.parameters)
        torch.empty(3 * weights + self.bytes_of_missing_state, dtype=torch.uint8, device=self.parameters[0].device)

    @property
    def bytes_of_missing_state(self) -> int:
        """What the optimizer's state will take that its first step makes: two moments, as of Adam."""
        return 2 * sum(parameter.numel() * parameter.element_size() for parameter in self.parameters
                       if parameter not in self.optimizer.state)

    def record_partial_norm(self, part: int, whole: int) -> None:
        """Keep the gradient norm after the first ``part`` of ``whole`` samples; later calls of a step do nothing."""
        if self._part is None and part < whole and self._values:
            gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
            if not gradients:
                return
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            self._part = (norm * whole / part / self.scale)**2, part, whole

    def is_doomed(self) -> bool:
        """Whether the gradient accumulated so far is known to be lost. On a GPU known late, and without waiting for it.

        Looks at the parameter that gradients reach last: an overflow in a backward pass reaches it, too. Looks only while
        the scale can be lowered; where it cannot, an overflow is too rare to look for it before the end.
        """
        if self.scale <= self.loss_scale.floor or not self._values:
            return False
        last = self.optimizer.param_groups[0]['params'][0].grad
        return last is not None and self._late.is_false(flag(last))

    def finalize_gradient(self) -> bool:
        """Sum the accumulated gradient over all processes and divide the scale out. Call it once per accumulation.

        Returns:
            Whether it is finite and may be applied; one that is not is forgotten. This waits for the device.
        """
        finite = self.total_gradient()
        return self.decide(finite is None or bool(finite))

    def total_gradient(self) -> Tensor | None:
        """The first half of :meth:`finalize_gradient`, without waiting: a flag on the device, whether all is finite.

        None where there is nothing to look at, which counts as finite.
        """
        sum_gradients(self.parameters)
        parameters = [parameter for parameter in self.parameters if parameter.grad is not None]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.scale != 1:
            torch._foreach_div_(gradients, self.scale)
        if not gradients or not self._values:
            return None
        # The norm, not isfinite: one finite gradient of 1e30 sets Adam's second moment to inf for ever, and its square
        # overflows here.
        norms = torch.stack(torch._foreach_norm(gradients))
        norm = torch.linalg.vector_norm(norms)
        self._squared_norm, self._norms = norm**2, (parameters, norms)
        return torch.isfinite(norm)

    def decide(self, finite: bool) -> bool:
        """The second half: keep a finite gradient, and forget another one; returns ``finite``."""
        if not finite and self._norms is not None:
            parameters, norms = self._norms
            self.first_nonfinite = parameters[int(norms.nan_to_num(float('inf')).argmax())]
            self.reset()
        self._norms = None
        return finite

    def apply(self) -> Verdict:
        """Step the optimizer with a gradient that :meth:`finalize_gradient` has approved, and forget the gradient.

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
        if self.finalize_gradient():
            return self.apply()
        return Verdict.REPEAT if self.loss_scale.overflow() else Verdict.REFUSED
