"""What is combined although a GPU's training has it on two devices, and what is done on both."""
from pathlib import Path

import pytest
import torch
from torch import nn

from sr_bigbatch.hosts.basicsr.model.saved_state import not_finite
from sr_bigbatch.hosts.basicsr.options.check import check
from sr_bigbatch.hosts.basicsr.settings import LoopSettings
from sr_bigbatch.hosts.basicsr.training.loader import BatchOrder, Requested, training_loader
from sr_bigbatch.hosts.basicsr.training.run import Run
from sr_bigbatch.hosts.mmengine.optim_wrapper import OverflowSafeOptimWrapper
from sr_bigbatch.hosts.signals import StopRequest
from sr_bigbatch.options import OptionError, load
from sr_bigbatch.step.finite import poisoned, read
from tests.conftest import ROOT
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


class _Drawing:
    """A model on a GPU that draws: ``gpu`` stands in for the generator of the GPU."""

    def __init__(self, gpu):
        self.device, self.gpu, self.drawn = torch.device('cuda'), gpu, []

    def update_learning_rate(self, iteration, warmup_iter):
        pass

    def feed_data(self, batch):
        self.lq = batch['lq']

    def optimize_parameters(self, iteration):
        self.drawn.append((torch.rand(()).item(), torch.rand((), generator=self.gpu).item()))


def _drawn(monkeypatch, opt, iterations):
    model = _Drawing(torch.Generator())
    model.gpu.seed()  # as in a new process
    monkeypatch.setattr(torch.cuda, 'manual_seed', model.gpu.manual_seed)
    settings = LoopSettings(Path('never'), 5, 1000, -1, 1000, 1000, None, False, False, None)
    run = Run(opt, settings, model, [], None, iterations[0] - 1, StopRequest())
    for iteration in iterations:
        run.one(0, iteration, {'lq': torch.zeros(1)}, 0.0)
    return model.drawn


def test_a_resumed_run_draws_the_numbers_of_an_undisturbed_one_on_the_gpu_too(monkeypatch, opt):
    undisturbed, resumed = _drawn(monkeypatch, opt, range(1, 6)), _drawn(monkeypatch, opt, range(3, 6))
    assert resumed == undisturbed[2:] and len(set(undisturbed)) == 5


@pytest.mark.parametrize('workers', [0, 2])
def test_loading_leaves_the_gpu_alone(monkeypatch, workers):
    def touched(*_):
        raise AssertionError('the GPU was seeded')

    for name in ('manual_seed', '_lazy_init'):  # torch seeds its workers by manual_seed_all, which is put off
        monkeypatch.setattr(torch.cuda, name, touched)
    images = [{'gt': number} for number in range(10)]
    batches = iter(training_loader(images, {'num_worker_per_gpu': workers}, BatchOrder(10, 2, 0), pin_memory=False))
    assert [len(next(batches)['gt']) for _ in range(3)] == [2, 2, 2]
    assert Requested(images)[next(iter(BatchOrder(10, 1, 0)))[0]]['gt'] in range(10)


SHIPPED = ['esrgan_128_bs128', 'esrgan_256_bs128', 'esrgan_progressive_128to256_bs128', 'rrdb_psnr_128_bs128']


@pytest.mark.parametrize(('capability', 'dtype', 'gpus', 'refused'), [
    ((7, 5), None, 1, True), ((7, 0), None, 'auto', True), ((7, 5), 'float16', 1, False), ((7, 5), None, 0, False),
    ((8, 0), None, 1, False), ((9, 0), None, 1, False)], ids=str)
@pytest.mark.parametrize('name', SHIPPED)
def test_shipped_files_say_what_to_do_where_bfloat16_is_emulated(monkeypatch, name, capability, dtype, gpus, refused):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda *_, **__: True)  # what torch says of a T4
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device=None: capability)
    opt = load(ROOT / 'options' / f'{name}.yml')
    opt['num_gpu'] = gpus
    if dtype:
        opt['train']['optim_wrapper']['dtype'] = dtype
    if refused:
        with pytest.raises(OptionError, match=r'train\.optim_wrapper\.dtype: .*only emulates bfloat16.*use float16'):
            check(opt, data=False, weights=False)
    else:
        check(opt, data=False, weights=False)


@pytest.mark.parametrize('kind', [torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RMSprop])
def test_a_checkpoint_that_was_read_onto_the_gpu_leaves_the_count_of_steps_on_the_cpu(kind):
    wrapper = OverflowSafeOptimWrapper(optimizer=kind([nn.Parameter(torch.ones(3))]))
    wrapper.optimizer.param_groups[0]['params'][0].grad = torch.ones(3)
    wrapper.optimizer.step()
    saved = wrapper.state_dict()
    saved['state'] = {index: {name: FarTensor(entry) if torch.is_tensor(entry) else entry for name, entry in entries.items()
                              if name == 'step'} | {name: entry for name, entry in entries.items() if name != 'step'}
                      for index, entries in saved['state'].items()}
    wrapper.load_state_dict(saved)
    for entries in wrapper.optimizer.state.values():
        assert not isinstance(entries['step'], FarTensor) and entries['step'] == 1
