"""A discriminator and a loss that we have never seen are handled: exact, or refused by name."""
import copy

import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY
from torch import nn

from sr_bigbatch.options import OptionError
from tests.hosts.test_basicsr_models import _batch, in_float64
from tests.reference import difference


@ARCH_REGISTRY.register()
class StrangersDiscriminator(nn.Module):
    def __init__(self, spread=False):
        super().__init__()
        self.spread = spread
        self.body = nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1), nn.LeakyReLU(0.2), nn.Dropout(0.0), nn.Conv2d(8, 1, 4, 2, 1))

    def forward(self, x):
        logits = self.body(x)
        return logits + logits.std(0, unbiased=False) if self.spread else logits


@LOSS_REGISTRY.register()
class StrangersLoss(nn.Module):
    def __init__(self, root):
        super().__init__()
        self.root = root

    def forward(self, output, gt):
        loss = (output - gt).square().mean()
        return loss.sqrt() if self.root else loss


def test_a_strangers_parts_that_split_are_exact(opt, built):
    opt['network_d'] = {'type': 'StrangersDiscriminator'}
    opt['train'].update(pixel_opt={'type': 'StrangersLoss', 'root': False})
    opt['train']['optim_g']['eps'] = 1e-4
    models, batch = [], None
    for micro in (4, {'generator': 3, 'perceptual': 1, 'discriminator': 3}):
        opt['train']['micro_batch_size'] = micro
        models.append(in_float64(built(copy.deepcopy(opt))))
        start = copy.deepcopy(models[-1].net_g)
        batch = batch or _batch(models[-1].opt, wide=True)
        models[-1].feed_data(batch)
        models[-1].optimize_parameters(1)
    assert difference(models[1].net_g, models[0].net_g, start) <= 1e-9


@pytest.mark.parametrize(('changes', 'named'), [
    ({'network_d': {'type': 'StrangersDiscriminator', 'spread': True}}, 'network_d: couples samples'),
    ({'pixel_opt': {'type': 'StrangersLoss', 'root': True}}, 'l_g_pix: no mean over samples'),
    ({'pixel_opt': {'type': 'L1Loss', 'reduction': 'sum'}}, 'l_g_pix: no mean over samples')])
def test_what_does_not_split_is_refused_by_name_unless_told_otherwise(opt, built, changes, named):
    if 'network_d' in changes:
        opt['network_d'] = changes['network_d']
    else:
        opt['train'].update(changes)
    with pytest.raises(OptionError, match=named):
        built(copy.deepcopy(opt))
    opt['train']['accumulation'] = 'plain'
    model = built(opt)
    model.feed_data(_batch(model.opt))
    model.optimize_parameters(1)


def test_a_coupling_discriminator_is_exact_on_the_whole_batch(opt, built):
    opt['network_d'] = {'type': 'StrangersDiscriminator', 'spread': True}
    opt['train']['micro_batch_size'] = {'generator': 2, 'perceptual': 2, 'discriminator': 4}
    model = built(opt)
    model.feed_data(_batch(model.opt))
    model.optimize_parameters(1)
    assert torch.isfinite(torch.as_tensor(list(model.get_current_log().values()))).all()
