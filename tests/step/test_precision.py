"""The dtype of each part and sample."""
import pytest
import torch

from sr_bigbatch.step.precision import Precision, autocast, autocast_dtype, widen

LADDERS = {torch.float16: [torch.float16, torch.bfloat16, torch.float32], torch.bfloat16: [torch.bfloat16, torch.float32],
           torch.float32: [torch.float32], torch.float64: [torch.float64], None: [None]}


@pytest.mark.parametrize('dtype', LADDERS, ids=str)
def test_samples_climb_the_ladder_of_their_dtype(dtype):
    precision, samples, steps = Precision(dtype), slice(1, 2), [dtype]
    precision.begin(3)
    while precision.widen('generator', samples):
        steps.append(precision.of('generator', samples))
    assert steps == LADDERS[dtype] and not precision.can_widen('generator', samples)
    assert precision.of('generator', slice(0, 1)) is dtype and precision.of('generator', slice(0, 3)) is steps[-1]
    precision.begin(3)
    assert precision.of('generator', samples) is dtype


def test_a_part_that_often_overflows_stays_wider_for_a_while_also_after_a_resume():
    precision = Precision(torch.float16)
    staying = []
    for _ in range(3):
        precision.begin(1)
        precision.widen('generator', slice(0, 1))
        staying += precision.end()
    assert staying == ['generator']
    resumed = Precision(torch.float16)
    resumed.load_state_dict(precision.state_dict())
    for each in (precision, resumed):
        each.begin(1)
        assert each.of('generator', slice(0, 1)) is torch.bfloat16
        for _ in range(500):
            each.end()
        each.begin(1)
        assert each.of('generator', slice(0, 1)) is torch.float16


def test_autocast_is_on_for_16_bits_only():
    cpu = torch.device('cpu')
    for dtype in (torch.bfloat16, torch.float32, None):
        with autocast(cpu, dtype):
            assert autocast_dtype(cpu) is (torch.bfloat16 if dtype is torch.bfloat16 else None)
    assert widen(torch.ones(1).half()).dtype is torch.float32 and widen(torch.ones(1).double()).dtype is torch.float64
