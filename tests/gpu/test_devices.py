"""Everything that a step combines is on the GPU, whatever the networks and the plan."""
import copy

import pytest
import torch

from sr_bigbatch.step.update import Verdict
from tests.gpu.conftest import DTYPES, MARKS, tensors, with_dtype
from tests.hosts.test_basicsr_models import _batch

pytestmark = MARKS
dtypes = pytest.mark.parametrize('dtype', DTYPES)


def _stepped(model, steps=2):
    batch = _batch(model.opt)
    for iteration in range(1, steps + 1):
        model.feed_data(batch)
        model.optimize_parameters(iteration)
    return model


def _nets(model):
    return [getattr(model, name) for name in ('net_g', 'net_d', 'net_g_ema') if hasattr(model, name)]


def _all_on_the_gpu(model):
    held = [tensor for net in _nets(model) for tensor in (*net.parameters(), *net.buffers())]
    moments = [tensor for optimizer in model.optimizers for tensor in tensors(list(optimizer.state.values())) if tensor.ndim]
    return held and moments and all(tensor.is_cuda for tensor in [*held, *moments])


@dtypes
@pytest.mark.parametrize('norm', ['none', 'group', 'spectral', 'batch'])
def test_every_discriminator_learns_on_the_gpu(opt, built, norm, dtype):
    opt['network_d']['norm'] = norm
    model = _stepped(built(with_dtype(opt, dtype)))
    assert _all_on_the_gpu(model)
    assert {Verdict.COMMITTED} == set(model.report.verdicts.values())


@dtypes
@pytest.mark.parametrize('memory', ['lean', 'compact', 'minimal', {'features': 2, 'blocks': 1}], ids=str)
@pytest.mark.parametrize('kept', ['all', 0])
def test_every_memory_policy_of_the_generator_learns_on_the_gpu(opt, built, memory, kept, dtype):
    opt['network_g']['activation_memory'], opt['train']['kept_graphs'] = memory, kept
    assert _all_on_the_gpu(_stepped(built(with_dtype(opt, dtype))))


@pytest.mark.parametrize('networks', [
    {'network_g': {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'num_grow_ch': 8}},
    {'network_g': {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'upscale': 4}},
    {'network_g': {'type': 'SRVGGNetCompact', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_conv': 2, 'upscale': 4}},
    {'network_d': {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 8}}],
    ids=lambda networks: next(iter(networks.values()))['type'])
def test_networks_of_basicsr_learn_on_the_gpu(opt, built, networks):
    opt.update(networks)
    assert _all_on_the_gpu(_stepped(built(opt)))


@pytest.mark.parametrize('kind', ['vanilla', 'lsgan', 'wgan', 'hinge'])
def test_every_gan_loss_is_taken_on_the_gpu(opt, built, kind):
    opt['train']['gan_opt']['gan_type'] = kind
    opt['train']['relativistic_gan'] = kind == 'vanilla'
    assert _all_on_the_gpu(_stepped(built(opt)))


def test_the_averaged_generator_stays_on_the_gpu_through_a_save(opt, built, tmp_path):
    model = built(opt)
    for folder in ('models', 'training_states'):
        model.opt['path'][folder] = str(tmp_path / folder)
        (tmp_path / folder).mkdir()
    _stepped(model)
    model.save(0, 2)
    saved = torch.load(tmp_path / 'models' / 'net_g_2.pth', weights_only=True)
    assert all(tensor.device.type == 'cpu' for tensor in tensors(saved))  # BasicSR's way: a file for every machine
    assert _all_on_the_gpu(_stepped(model))


def test_batches_may_lie_on_the_gpu_or_in_pinned_or_pageable_memory(opt, built):
    model, batch = built(opt), _batch(opt)
    for place in (lambda images: images, lambda images: images.pin_memory(), lambda images: images.cuda()):
        model.feed_data({name: place(images) if isinstance(images, torch.Tensor) else images
                         for name, images in batch.items()})
        model.optimize_parameters(1)
        assert _all_on_the_gpu(model)


def test_one_save_of_each_kind_of_bad_tensor_is_noticed(opt, built, values):
    from sr_bigbatch.hosts.basicsr.model.saved_state import not_finite
    model = _stepped(built(opt))
    assert not_finite(model) == []
    next(model.net_g.parameters()).data[0, 0, 0, 0] = float('nan')
    assert 'net_g' in not_finite(model)[0]


def test_a_step_on_the_gpu_is_that_on_the_cpu(opt, built, values):
    opt['train'].update(optim_g={'type': 'Adam', 'lr': 1e-3, 'eps': 1.0}, optim_d={'type': 'Adam', 'lr': 1e-3, 'eps': 1.0})
    batch, models = _batch(opt), {}
    for gpus in (0, 1):
        model = built({**copy.deepcopy(opt), 'num_gpu': gpus})
        for net in _nets(model):
            net.double()
        model.feed_data({name: images.double() if isinstance(images, torch.Tensor) else images
                         for name, images in batch.items()})
        model.optimize_parameters(1)
        models[gpus] = [tensor.detach().cpu() for net in _nets(model) for tensor in net.parameters()]
    for ours, theirs in zip(models[1], models[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
