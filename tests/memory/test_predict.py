"""Memory and work of a step are predicted from small runs."""
import torch
from torch import nn

from sr_bigbatch.memory.live_bytes import LiveBytes
from sr_bigbatch.memory.predict import (
    MemoryModel,
    PhasePeaks,
    Run,
    choose,
    fit,
    plans,
    probe_shape,
    sustained_flops,
    with_state,
)
from sr_bigbatch.memory.target import CUDA


def _run(batch, micro):
    return Run({'learn': 1000 + 10 * batch + 100 * micro}, 7 * batch)


def test_a_linear_model_is_found_and_the_undivided_batch_is_its_own_run():
    model = fit(_run, 32)
    assert model.peak(4) == {'learn': 1000 + 320 + 400} and model.flops(4) == 7
    assert model.peak(32) == {'learn': float(_run(32, 32).peak['learn'])}


def test_a_phase_that_is_highest_elsewhere_for_large_micro_batches_is_not_underestimated():
    def run(batch, micro):
        return Run({'grade': 10 * batch + max(1000 + 20 * micro, 70 * micro)}, batch)

    model = fit(run, 128)
    for micro in (1, 2, 4, 8, 16, 32, 64):
        real = run(128, micro).peak['grade']
        assert real <= model.peak(micro)['grade'] <= 1.2 * real
    for micro in (1, 4, 16, 64):
        assert model.peak(micro)['grade'] == run(128, micro).peak['grade']


def test_the_plan_with_the_least_work_that_fits_is_chosen():
    fast, slow = (MemoryModel({'learn': 0.0}, {1: {'learn': size}, 2: {'learn': 2 * size}}, flops, 8,
                              Run({'learn': int(8 * size)}, int(8 * flops))) for size, flops in ((2e9, 10.0), (1e9, 13.0)))
    made = plans({('standard', True): fast, ('lean', False): slow}, 10.0, CUDA, (1, 2, 4, 128))
    assert {plan.micro for plan in made} == {1, 2, 4, 8}
    chosen = choose(made, CUDA.total_bytes(4e9))
    assert (chosen.memory, chosen.micro, chosen.flops) == ('standard', 2, 1.0)
    assert choose(made, CUDA.total_bytes(1e9)).memory == 'lean' and choose(made, 1e6) is None
    assert chosen.options[1] == 'train:micro_batch_size=2'


def test_an_optimizer_gets_the_state_of_its_first_step():
    optimizer = with_state(torch.optim.Adam(nn.Linear(2, 1).parameters()))
    assert all(optimizer.state[parameter] for group in optimizer.param_groups for parameter in group['params'])


def test_phases_of_a_step_are_told_apart():
    with LiveBytes() as live:
        watch = PhasePeaks(live)
        watch.on_phase('generate')
        tensor = torch.zeros(1024)
        watch.on_part('generator', slice(0, 1))
    assert live.peak['generate'] == tensor.nbytes


def test_the_speed_of_this_machine_is_measured():
    for dtype in (None, torch.bfloat16):
        assert sustained_flops(torch.device('cpu'), dtype, seconds=0.02) > 1e6


def test_the_speed_of_a_gpu_is_measured_by_work_beside_which_a_launch_is_nothing():
    samples, channels, height, width = probe_shape(torch.device('cuda'))
    launch, fastest_gpu = 10e-6, 1e15  # seconds, operations a second
    assert 2 * samples * channels**2 * 9 * height * width / fastest_gpu > 5 * launch
