"""inf and NaN are found, wherever they stand."""
import pytest
import torch
from torch import nn

from sr_bigbatch.step.finite import LateFlag, bad_samples, flag, nan_unless_finite, poisoned, read

BAD = [float('nan'), float('inf'), -float('inf')]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize('bad', BAD)
def test_flags_tell_finite_from_other_values(dtype, bad):
    values = torch.full((3, 1000), 300.0, dtype=dtype)  # their sum is beyond float16
    assert read([flag(values)]) == [True] and bad_samples(values) == []
    values[1, 7] = bad
    assert read([flag(torch.ones(2)), flag(values)]) == [True, False] and bad_samples(values) == [1]
    assert nan_unless_finite(2.0, torch.ones(2)).item() == 2.0
    assert nan_unless_finite(2.0, torch.ones(2), values).isnan()


def test_poisoned_parameters_and_buffers_are_named():
    net = nn.BatchNorm2d(2)
    assert poisoned(net) == []
    net.running_mean[0] = float('nan')
    with torch.no_grad():
        net.weight[1] = float('inf')
    assert poisoned(net) == ['weight', 'running_mean']


def test_on_the_cpu_a_flag_is_known_at_once():
    late = LateFlag()
    assert not late.is_false(torch.tensor(True)) and late.is_false(torch.tensor(False))
