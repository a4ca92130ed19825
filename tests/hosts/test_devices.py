"""What is combined although a GPU's training has it on two devices."""
import pytest
import torch
from torch import nn

from sr_bigbatch.hosts.basicsr.model.saved_state import not_finite
from sr_bigbatch.step.finite import poisoned, read
from tests.far_device import FarTensor
from tests.hosts.test_basicsr_models import _batch


def _as_on_a_gpu(optimizer):
    """Adam keeps its moments with the parameters and, unless it is fused or capturable, its ``step`` on the CPU."""
    for state in optimizer.state.values():
        for name, entry in state.items():
            if entry.ndim:
                state[name] = FarTensor(entry)


@pytest.mark.parametrize('broken', [None, 0, 1])
def test_a_save_looks_at_the_optimizer_on_a_gpu_and_at_its_steps_on_the_cpu(built, broken):
    model = built()
    model.feed_data(_batch(model.opt))
    model.optimize_parameters(1)  # makes Adam's state
    for index, optimizer in enumerate(model.optimizers):
        moment = next(iter(optimizer.state.values()))['exp_avg_sq']
        if index == broken:
            moment[(0,) * moment.ndim] = float('inf')
        _as_on_a_gpu(optimizer)
    assert not_finite(model) == ([] if broken is None else [f'optimizers[{broken}]'])


@pytest.mark.parametrize('far', [{'weight'}, {'weight', 'other'}, {'count'}])
@pytest.mark.parametrize('broken', [[], ['weight'], ['count'], ['weight', 'count', 'other']])
def test_a_network_on_two_devices_is_looked_at(far, broken):
    net = nn.Module()
    for name in ('weight', 'count', 'other'):
        value = torch.full((2, 3), float('nan') if name in broken else 1.0)
        net.register_buffer(name, FarTensor(value) if name in far else value)
    assert poisoned(net) == broken


def test_flags_are_told_in_their_order_whatever_their_devices():
    flags = [torch.tensor(value) for value in (True, False, True, False, True)]
    assert read([FarTensor(flag) if index % 2 else flag for index, flag in enumerate(flags)]) == list(map(bool, flags))
    assert read([]) == []
