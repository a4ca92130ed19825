"""What gets wider, or is scaled down, when numbers overflow."""
import pytest
import torch
from torch import nn

from sr_bigbatch.step.loss_scale import LossScale
from sr_bigbatch.step.overflow_guard import OverflowGuard, PoisonedWeights, refuse_poisoned
from sr_bigbatch.step.update import SafeUpdate

INFINITE = torch.tensor(float('inf'))


def test_samples_that_overflow_get_a_wider_dtype_and_later_parts_are_not_blamed():
    guard = OverflowGuard(torch.float16, torch.device('cpu'))
    guard.begin(4)
    guard.look_at('generator', slice(0, 2), torch.ones(2))
    guard.look_at('generator', slice(2, 4), INFINITE)
    guard.look_at('discriminator', slice(2, 4), INFINITE)
    (part, text), = guard.widen_overflowed()
    assert part == 'generator' and 'samples 2..3' in text and 'bfloat16' in text
    assert guard.precision.of('generator', slice(0, 2)) is torch.float16
    assert guard.precision.of('discriminator', slice(2, 4)) is torch.float16
    assert list(guard.widen_overflowed()) == []


def test_a_gradient_overflow_is_answered_by_a_lower_scale_then_by_a_wider_dtype_then_by_nothing():
    update = SafeUpdate(torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1), LossScale(2.0))
    guard = OverflowGuard(torch.float16, torch.device('cpu'))
    guard.begin(2)
    answers = [guard.answer(update, ('generator',), slice(0, 2)) for _ in range(4)]
    assert answers == ['repeated at scale 1', 'repeated in bfloat16', 'repeated in float32', None]


def test_float32_is_not_looked_at():
    guard = OverflowGuard(None, torch.device('cpu'))
    guard.begin(2)
    guard.look_at('generator', slice(0, 2), INFINITE)
    assert list(guard.widen_overflowed()) == [] and guard.end() == []


def test_a_network_that_is_not_finite_is_the_reason():
    net = nn.Linear(2, 1)
    refuse_poisoned(net)
    with torch.no_grad():
        net.bias[0] = float('nan')
    with pytest.raises(PoisonedWeights, match=r'1 parameters of Linear.*bias'):
        refuse_poisoned(net)
