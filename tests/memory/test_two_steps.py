"""A step finds the memory that the one before it has found: nothing of the size of a batch is left behind."""
import gc

import pytest
import torch
from mmengine.registry import MODELS, OPTIM_WRAPPERS

from sr_bigbatch.memory.live_bytes import LiveBytes, tensors_of
from tests.step.small import adversarial, batch, supervised

COUNT, SIZE = 4, 32


def _peaks(step, nets, optimizers=()):
    """Peak bytes of two steps in a row; before the first one, nothing is left of an earlier one."""
    gc.collect()
    moments = [value for optimizer in optimizers for state in optimizer.state.values() for value in state.values()]
    with LiveBytes([*tensors_of(*nets), *moments]) as live:
        for name in ('first', 'second'):
            live.phase(name)
            step()
    return live.peak['first'], live.peak['second']


@pytest.mark.parametrize('make', [supervised, adversarial])
def test_a_step_does_not_hold_the_images_of_the_last_one_even_if_its_report_is_kept(make):
    step, (lq, gt), reports = make(verify_every=None), batch(64), []
    step(lq, gt)
    first, second = _peaks(lambda: reports.append(step(lq, gt)), step.nets.values())
    assert second - first < gt.nbytes / 4
    assert reports[-1].output.shape == gt.shape and reports[0].output is None


def test_whoever_keeps_the_images_has_them():
    step, (lq, gt) = adversarial(), batch(2)
    images = step(lq, gt).output
    copy = images.clone()
    step(lq, gt)
    assert torch.equal(images, copy)


@pytest.mark.parametrize('kind', ['AccumulatingESRGANModel', 'AccumulatingSRModel'])
def test_basicsrs_models_do_not_hold_the_images_of_the_last_iteration(opt, built, kind):
    opt['model_type'] = kind
    if kind == 'AccumulatingSRModel':
        opt.pop('network_d')
        for key in ('gan_opt', 'optim_d', 'kept_graphs'):
            opt['train'].pop(key)
    model = built()
    size, low = SIZE, SIZE // opt['scale']
    data = {'gt': torch.rand(COUNT, 3, size, size), 'lq': torch.rand(COUNT, 3, low, low)}

    def step():
        model.feed_data(data)
        model.optimize_parameters(1)

    step()
    model.report = model.output = None
    nets = [model.net_g, getattr(model, 'net_d', None), getattr(model, 'net_g_ema', None)]
    first, second = _peaks(step, nets, model.optimizers)
    assert second - first < data['gt'].nbytes / 4
    assert model.output.shape == data['gt'].shape


def test_mmengines_model_does_not_hold_the_images_of_the_last_iteration():
    model = MODELS.build({'type': 'AccumulatingESRGAN', 'micro_batch_size': 2,
                          'net_g': {'type': 'CheckpointedRRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8,
                                    'num_block': 1, 'num_grow_ch': 8},
                          'net_d': {'type': 'GrowableVGGDiscriminator', 'num_in_ch': 3, 'num_feat': 8,
                                    'input_size': SIZE, 'norm': 'group'},
                          'pixel_loss': {'type': 'L1Loss'}, 'gan_loss': {'type': 'GANLoss', 'gan_type': 'vanilla'}})
    wrappers = {f'net_{name}': OPTIM_WRAPPERS.build({
        'type': 'OverflowSafeOptimWrapper', 'optimizer': torch.optim.SGD(getattr(model, f'net_{name}').parameters(), 0.1)})
        for name in 'gd'}
    data = {'gt': torch.rand(COUNT, 3, SIZE, SIZE), 'lq': torch.rand(COUNT, 3, SIZE // 4, SIZE // 4)}
    model.train_step(data, wrappers)
    model.report = None
    first, second = _peaks(lambda: model.train_step(data, wrappers), [model])
    assert second - first < data['gt'].nbytes / 4
