"""Every row (tests/rows/cases.py) in the real mmagic, compared with its own ESRGAN; ``make slow`` runs it."""
import copy
import importlib.util
from dataclasses import replace

import pytest
import torch
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import DefaultScope

from sr_bigbatch.hosts.mmengine.optim_wrapper import OverflowSafeOptimWrapper
from tests.rows.cases import BORDER, ROWS, SHORT_OF_MEMORY
from tests.rows.reference import Undivided, judge, short_of_memory

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings('ignore'),
              pytest.mark.skipif(importlib.util.find_spec('mmagic') is None, reason='mmagic is not installed (make slow)')]

OURS = {name: replace(row, refused=row.refused and row.refused.replace('l_g_', 'loss_')) for name, row in ROWS.items()}


class AsTheyAre(BaseDataPreprocessor):
    """Leaves float64 images as they are; mmagic's own makes them float32."""

    def forward(self, data, training=False):
        return data


def _batch(lq, gt):
    from mmagic.structures import DataSample
    return {'inputs': lq, 'data_samples': DataSample(gt_img=gt)}


def _build(kind, net_g, net_d, losses, **settings):
    """mmagic's or our model with the networks and losses of a row."""
    from tests.mmagic.importable import import_mmagic
    import_mmagic()
    importlib.import_module('sr_bigbatch.hosts.mmengine.mmagic')
    from mmagic.registry import MODELS
    small = {'generator': {'type': 'CheckpointedRRDBNet', 'in_channels': 3, 'out_channels': 3, 'mid_channels': 4,
                           'num_blocks': 1, 'growth_channels': 4},
             'discriminator': {'type': 'GrowableVGGDiscriminator', 'in_channels': 3, 'mid_channels': 4, 'input_size': 32},
             'gan_loss': {'type': 'GANLoss', 'gan_type': 'vanilla'}, 'pixel_loss': {'type': 'L1Loss'}}
    with DefaultScope.overwrite_default_scope('mmagic'), torch.random.fork_rng([]):  # of weights that nobody looks at
        model = MODELS.build({'type': kind, **small, **settings})
    model.generator, model.discriminator, model.data_preprocessor = net_g, net_d, AsTheyAre()
    model.pixel_loss, model.perceptual_loss, model.gan_loss = losses
    return model.train()


class MMagicUndivided(Undivided):
    """Updated by mmagic's own ``ESRGAN``."""

    def by_host(self, net_d, lq, gt):
        from mmengine.optim import OptimWrapper, OptimWrapperDict
        model = _build('ESRGAN', self.net_g, net_d, (self.pixel, self.perceptual, self.gan_loss))
        model.train_step(_batch(lq, gt), OptimWrapperDict(**{
            name: OptimWrapper(optimizer)
            for name, optimizer in zip(('generator', 'discriminator'), self.optimizers, strict=True)}))


def _ours(row):
    """Our model and its wrappers."""
    from mmengine.optim import OptimWrapperDict
    net_g, net_d = row.network('g'), row.network('d')
    if row.wire:
        row.wire(net_g, net_d)
    losses = row.loss('pixel'), row.loss('perceptual'), row.gan_loss()
    model = _build('AccumulatingMMagicESRGAN', net_g, net_d, losses, micro_batch_size=copy.deepcopy(row.micro))
    return model, OptimWrapperDict(**{name: OverflowSafeOptimWrapper(
        dtype='float32', optimizer=row.optimizer(net.parameters()), clip_grad=row.clip)
        for name, net in (('generator', net_g), ('discriminator', net_d))})


def _judge(row, make, model):
    return judge(row, make, {'g': model.generator, 'd': model.discriminator}, reference=MMagicUndivided(row))


@pytest.mark.parametrize('name', OURS)
def test_row(name):
    model, wrappers = _ours(OURS[name])
    print(_judge(OURS[name], lambda lq, gt: model.train_step(_batch(lq, gt), wrappers), model))


@pytest.mark.parametrize('name', BORDER)
def test_a_part_that_couples_is_not_cut_where_crops_grow(name):
    row = BORDER[name]
    model, wrappers = _ours(row)

    def make(lq, gt):
        if gt.shape[-1] > row.size:
            model.replan(row.size, gt.shape[-1])  # as ProgressiveResolutionHook does
        model.train_step(_batch(lq, gt), wrappers)

    print(_judge(row, make, model))
    assert model.step.plan.micro.perceptual == 1


@pytest.mark.parametrize('backward', [False, True], ids=['forward', 'backward'])
@pytest.mark.parametrize('name', SHORT_OF_MEMORY)
def test_a_part_that_couples_is_not_cut_when_memory_runs_out(name, backward):
    model, wrappers = _ours(SHORT_OF_MEMORY[name])
    model.accumulating = model._build(wrappers)

    def make(lq, gt):
        short_of_memory(name, model.step, lq, gt, lambda: model.train_step(_batch(lq, gt), wrappers), backward=backward)

    print(_judge(SHORT_OF_MEMORY[name], make, model))
