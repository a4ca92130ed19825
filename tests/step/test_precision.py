"""The dtype of each part and sample."""
import pytest
import torch

from sr_bigbatch.step.precision import Precision, autocast, autocast_dtype, has_bfloat16, widen

LADDERS = {torch.float16: [torch.float16, torch.bfloat16, torch.float32], torch.bfloat16: [torch.bfloat16, torch.float32],
           torch.float32: [torch.float32], torch.float64: [torch.float64], None: [None]}


@pytest.mark.parametrize('dtype', LADDERS, ids=str)
def test_samples_climb_the_ladder_of_their_dtype(dtype):
    precision, samples, steps = Precision(dtype, torch.device('cpu')), slice(1, 2), [dtype]
    precision.begin(3)
    while precision.widen('generator', samples):
        steps.append(precision.of('generator', samples))
    assert steps == LADDERS[dtype] and not precision.can_widen('generator', samples)
    assert precision.of('generator', slice(0, 1)) is dtype and precision.of('generator', slice(0, 3)) is steps[-1]
    precision.begin(3)
    assert precision.of('generator', samples) is dtype


@pytest.mark.parametrize(('capability', 'emulated'), [((7, 0), True), ((7, 5), True), ((8, 0), False), ((8, 9), False),
                                                      ((9, 0), False), ((12, 0), False)], ids=str)
@pytest.mark.parametrize('dtype', LADDERS, ids=str)
def test_nothing_climbs_to_a_bfloat16_that_the_gpu_only_emulates(monkeypatch, dtype, capability, emulated):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda *_, **__: True)  # what torch says of all of these
    cuda, everything = torch.device('cuda'), slice(0, 1)
    assert has_bfloat16(cuda) is not emulated and has_bfloat16(torch.device('cpu'))
    precision, steps = Precision(dtype, cuda), [dtype]
    precision.begin(1)
    while precision.widen('generator', everything):
        steps.append(precision.of('generator', everything))
    assert steps == [rung for rung in LADDERS[dtype] if rung is dtype or rung is not torch.bfloat16 or not emulated]


def test_a_gpu_that_is_planned_for_elsewhere_has_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert has_bfloat16(torch.device('cuda'))


def test_a_level_saved_on_a_gpu_with_bfloat16_is_float32_on_one_without(monkeypatch):
    saved = Precision(torch.float16, torch.device('cpu')).state_dict()
    saved['base']['generator'], saved['rest']['generator'] = 2, 10
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device=None: (7, 5))
    resumed = Precision(torch.float16, torch.device('cuda'))
    resumed.load_state_dict(saved)
    resumed.begin(1)
    assert resumed.of('generator', slice(0, 1)) is torch.float32


def test_a_part_that_often_overflows_stays_wider_for_a_while_also_after_a_resume():
    precision = Precision(torch.float16, torch.device('cpu'))
    staying = []
    for _ in range(3):
        precision.begin(1)
        precision.widen('generator', slice(0, 1))
        staying += precision.end()
    assert staying == ['generator']
    resumed = Precision(torch.float16, torch.device('cpu'))
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
