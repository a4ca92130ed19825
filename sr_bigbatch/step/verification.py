"""Compares the gradients of a divided batch with those of the undivided one, during a training."""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sr_bigbatch.step.arithmetic import reproducible
from sr_bigbatch.step.copies import copy_in, copy_losses
from sr_bigbatch.step.distributed import alone
from sr_bigbatch.step.memory_of_calls import Memory
from sr_bigbatch.step.out_of_memory import is_out_of_memory, release
from sr_bigbatch.step.plan import PARTS, MicroBatchSizes, StepPlan
from sr_bigbatch.step.replay import Snapshot, one_power_iteration

if TYPE_CHECKING:
    from sr_bigbatch.step.base import Step

# Of float32 without TF32, sums in another order; where terms cancel, their rounding stays and the gradient does not.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}


class DoesNotRun(Exception):
    """The copies do not run in this floating-point type."""


@dataclass(frozen=True)
class Verification:
    """How far the gradients of a divided batch are from those of the undivided one.

    Attributes:
        differences: by network, the length of the difference over the length of the undivided gradient; a network whose
            undivided gradient is not finite is left out.
        dtype: in which it was computed.
        complete: whether no network was left out.
    """

    differences: dict[str, float]
    dtype: torch.dtype
    complete: bool = True

    def breaches(self) -> list[str]:
        """A sentence for each network whose gradient is not that of the undivided batch."""
        return [f"the {'generator' if name == 'g' else 'discriminator'}'s gradient of a real batch differs from that of the "
                f'undivided batch by {difference:.2g} of its length'
                for name, difference in self.differences.items() if not difference <= _TOLERANCE[self.dtype]]


def verify(step: Step, lq: Tensor, gt: Tensor, dtype: torch.dtype) -> Verification:
    """See :meth:`sr_bigbatch.step.base.Step.verify`."""
    count = len(gt)
    while count > 1 and not step.draws_noise:
        try:
            differences = _compared(step, lq[:count], gt[:count], dtype)
            return Verification(differences, dtype, complete=set(differences) == set(step.nets))
        except DoesNotRun:
            dtype = torch.float32
            continue
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        release(step.trial.device)  # outside of `except`, whose traceback keeps tensors alive
        count //= 2
    return Verification({}, dtype)


def _compared(step: Step, lq: Tensor, gt: Tensor, dtype: torch.dtype) -> dict[str, float]:
    device = step.trial.device
    lq, gt = lq.to(device, dtype), gt.to(device, dtype)
    rng = Snapshot.take(device, torch.nn.Identity()).rng
    forked = torch.random.fork_rng([device] if device.type == 'cuda' else [])
    with alone(), reproducible(), forked, rng.replayed(device):
        nets = {name: copy_in(net, dtype) for name, net in step.nets.items()}
        twin = step.twin(nets, copy_losses(step.losses, dtype), _cut(step, len(gt)))
        # A function is not copied, and the loss of the GAN may keep a mean of logits.
        of_losses = Memory([twin.losses, getattr(twin, 'gan_loss', None)])
        with one_power_iteration(*nets.values()):
            before = [Snapshot.take(device, net) for net in nets.values()]
            try:
                reference = twin.undivided_gradients(lq, gt)
            except (RuntimeError, TypeError) as error:
                if dtype is torch.float32 or is_out_of_memory(error):
                    raise
                raise DoesNotRun from error
            finally:
                of_losses.restore()
            for snapshot in before:
                snapshot.restore()
            try:
                divided = twin.divided_gradients(lq, gt)
            finally:
                of_losses.restore()
    return {name: _difference(divided[name], gradients) for name, gradients in reference.items()
            if all(gradient is None or gradient.isfinite().all() for gradient in gradients)}


def _cut(step: Step, count: int) -> StepPlan:
    """The plan of the step, cut for a few samples in such a way that every part which may be cut is."""
    sizes = {part: size if part in step.uncuttable_parts else min(size, count - 1)
             for part, size in zip(PARTS, vars(step.plan.micro).values(), strict=True)}
    return replace(step.plan, micro=MicroBatchSizes(**sizes))


def _difference(divided: list[Tensor | None], reference: list[Tensor | None]) -> float:
    """|divided - reference| / |reference| over all parameters; a gradient that is None counts as zeros."""
    error = length = 0.0
    for ours, expected in zip(divided, reference, strict=True):
        gap = expected if ours is None else ours if expected is None else ours - expected
        error += 0.0 if gap is None else float(gap.abs().double().square().sum())
        length += 0.0 if expected is None else float(expected.abs().double().square().sum())
    if not error > 0:  # NaN, too
        return error
    return (error / length)**0.5 if length > 0 else float('inf')
