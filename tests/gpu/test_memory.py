"""Memory that runs out on a GPU: the batch is cut smaller, and a training goes on. The size of the GPU may be anything."""
import copy

import pytest
import torch

from sr_bigbatch.memory.device import peak_bytes, usable_bytes
from sr_bigbatch.memory.target import CONTEXT_BYTES
from sr_bigbatch.step.out_of_memory import is_device_full, is_out_of_memory, release
from tests.gpu.conftest import DTYPES, MARKS, room_for, train, with_dtype
from tests.hosts.test_basicsr_models import _batch

pytestmark = MARKS
MIB = 2**20


def _wide(opt, dtype='float32', **train_settings):
    """A batch of 16 at once, whose activations take far more than the networks and the allocator's segments of 20 MiB."""
    opt = copy.deepcopy(opt)
    opt['datasets']['train'].update(batch_size_per_gpu=16, gt_size=128)
    opt['network_d'].update(input_size=128, num_feat=16)
    opt['network_g'].update(num_feat=64, num_grow_ch=32)
    opt['train'].update({'micro_batch_size': 16, **train_settings})
    return with_dtype(opt, dtype)


def _events(model):
    return [event.kind for event in model.report.events]


def _peak_of_a_step(model, batch):
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model.feed_data(batch)
    model.optimize_parameters(1)
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('share', [0.8, 0.4, 0.25])
def test_a_step_that_does_not_fit_is_made_in_smaller_micro_batches(opt, built, dtype, share):
    model = built(_wide(opt, dtype))
    batch = _batch(model.opt, 16)
    peak = _peak_of_a_step(model, batch)
    model.step.plan = model.first_plan
    room_for(int(share * peak))
    model.feed_data(batch)
    model.optimize_parameters(2)
    assert 'out of memory' in _events(model)
    plan = model.step.plan
    assert min(vars(plan.micro).values()) < 16
    model.optimize_parameters(3)
    assert 'out of memory' not in _events(model)  # the smaller plan is kept


def test_what_no_plan_makes_fit_ends_with_one_message_and_the_weights_as_they_were(opt, built):
    from sr_bigbatch.step.out_of_memory import OutOfMemory
    model = built(_wide(opt))
    batch = _batch(model.opt, 16)
    _peak_of_a_step(model, batch)
    room_for(0)
    model.feed_data(batch)
    with pytest.raises(OutOfMemory, match='cannot be made smaller'):
        model.optimize_parameters(2)
    room_for(2**40)
    model.optimize_parameters(3)
    assert model.report.losses


def test_a_whole_training_on_too_little_memory_saves_and_ends(opt, tmp_path, monkeypatch, built):
    model = built(_wide(opt))
    peak = _peak_of_a_step(model, _batch(model.opt, 16))
    del model
    room_for(int(0.6 * peak))
    folder = train(_wide(opt), tmp_path, monkeypatch)
    assert (folder / 'training_states' / '4.state').is_file()
    assert '"n_out_of_memory"' in (folder / 'train_log.jsonl').read_text()


def test_a_validation_image_that_does_not_fit_is_made_on_the_cpu(opt, built, tmp_path):
    model = built(opt)
    _peak_of_a_step(model, _batch(opt))
    model.feed_data({'lq': torch.rand(1, 3, 256, 256), 'gt': torch.rand(1, 3, 1024, 1024)})
    room_for(8 * MIB)
    model.test()
    assert model.output.shape == (1, 3, 1024, 1024) and next(model.net_g.parameters()).is_cuda


def test_the_allocators_own_error_is_recognised_and_its_memory_comes_back():
    held = torch.empty(64 * MIB, dtype=torch.uint8, device='cuda')
    room_for(16 * MIB)
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**40, dtype=torch.uint8, device='cuda')
    assert is_out_of_memory(caught.value)
    caught = None
    del held
    reserved = torch.cuda.memory_reserved()
    release(torch.device('cuda'))
    assert torch.cuda.memory_reserved() < reserved


def test_other_errors_of_a_gpu_are_no_lack_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2, device='cuda') + torch.ones(2)
    assert not is_out_of_memory(caught.value) and not is_device_full()


def test_what_is_usable_is_what_is_free_and_what_the_process_holds():
    device, before = torch.device('cuda'), usable_bytes(torch.device('cuda'))
    held = torch.empty(256 * MIB, dtype=torch.uint8, device=device)
    assert usable_bytes(device) == pytest.approx(before, abs=64 * MIB)
    assert peak_bytes(device) >= held.nbytes and before <= torch.cuda.get_device_properties(0).total_memory


def test_every_step_of_a_plan_takes_the_same_memory(opt, built):
    model = built(opt)
    batch, peaks = _batch(model.opt), []
    for iteration in range(1, 6):
        torch.cuda.reset_peak_memory_stats()
        model.feed_data(batch)
        model.optimize_parameters(iteration)
        peaks.append(torch.cuda.max_memory_allocated())
    assert len(set(peaks[2:])) == 1


def test_a_smaller_micro_batch_takes_less_memory(opt, built):
    peaks = []
    for micro in (16, 8, 4, 2, 1):
        model = built(_wide(opt, micro_batch_size=micro, kept_graphs=0))
        peaks.append(_peak_of_a_step(model, _batch(model.opt, 16)))
    assert peaks == sorted(peaks, reverse=True) and peaks[-1] < 0.5 * peaks[0]


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_auto_takes_a_plan_that_this_gpu_holds(opt, built, dtype):
    model = built(_wide(opt, dtype, micro_batch_size='auto'))
    peak = _peak_of_a_step(model, _batch(model.opt, 16))
    assert _events(model) == [] and peak < usable_bytes(torch.device('cuda'))


def test_auto_keeps_a_budget(opt, built):
    model = built(_wide(opt))
    whole = _peak_of_a_step(model, _batch(model.opt, 16))
    budget = (CONTEXT_BYTES + 0.6 * whole) / 1e9
    model = built(_wide(opt, micro_batch_size='auto', memory_budget_gb=budget))
    assert model.first_plan.micro.generator < 16 and _peak_of_a_step(model, _batch(model.opt, 16)) < 0.9 * whole
