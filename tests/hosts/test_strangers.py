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


@LOSS_REGISTRY.register()
class StrangersPerceptualLoss(nn.Module):
    """A perceptual loss without BasicSR's VGG: its features are its own, or arranged in another way."""

    def __init__(self, features=None, pair=False):
        super().__init__()
        self.features, self.pair = features, pair
        body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).requires_grad_(False)
        if features is None:
            self.body = body
        else:
            self.vgg = Arranged(body, features)

    def forward(self, output, gt):
        mine, theirs = (self.body(x) if self.features is None else self.vgg(x) for x in (output, gt))
        if not isinstance(mine, torch.Tensor):
            mine, theirs = (next(iter(found.values())) if isinstance(found, dict) else found[0] for found in (mine, theirs))
        assert mine.dtype in (torch.float32, torch.float64)
        loss = (mine - theirs).abs().mean()
        return (loss, None) if self.pair else loss


class Arranged(nn.Module):
    def __init__(self, body, way):
        super().__init__()
        self.body, self.way = body, way

    def forward(self, x):
        features = self.body(x)
        return {'tensor': features, 'list': [features], 'tuple': (features, None), 'dict': {'a': features}}[self.way]


@pytest.mark.parametrize('pair', [False, True])
@pytest.mark.parametrize('features', [None, 'tensor', 'list', 'tuple', 'dict'])
def test_a_perceptual_loss_that_is_not_basicsrs_is_exact(opt, built, features, pair):
    opt['train']['perceptual_opt'] = {'type': 'StrangersPerceptualLoss', 'features': features, 'pair': pair}
    opt['train']['optim_g']['eps'] = 1e-4
    models, batch = [], None
    for micro in (4, 3):
        opt['train']['micro_batch_size'] = micro
        models.append(in_float64(built(copy.deepcopy(opt))))
        models[-1].cri_perceptual.double()
        start = copy.deepcopy(models[-1].net_g)
        batch = batch or _batch(models[-1].opt, wide=True)
        models[-1].feed_data(batch)
        models[-1].optimize_parameters(1)
        assert models[-1].log_dict['l_g_percep'] > 0
    assert difference(models[1].net_g, models[0].net_g, start) <= 1e-9


def test_features_of_a_strangers_extractor_are_computed_in_the_dtype_of_the_step(opt, built):
    opt['train'].update(perceptual_opt={'type': 'StrangersPerceptualLoss', 'features': 'list'})
    opt['train']['optim_wrapper']['dtype'] = 'bfloat16'
    model, seen = built(), []
    model.cri_perceptual.vgg.extractor.body[1].register_forward_hook(lambda *arguments: seen.append(arguments[-1].dtype))
    model.feed_data(_batch(model.opt))
    model.optimize_parameters(1)
    assert torch.bfloat16 in seen


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
    ({'network_d': {'type': 'StrangersDiscriminator', 'spread': True}}, 'discriminator: .*other samples'),
    ({'pixel_opt': {'type': 'StrangersLoss', 'root': True}}, 'l_g_pix: not a mean over samples'),
    ({'pixel_opt': {'type': 'L1Loss', 'reduction': 'sum'}}, 'l_g_pix: not a mean over samples')])
def test_what_does_not_split_is_refused_by_name_unless_told_otherwise(opt, built, changes, named):
    if 'network_d' in changes:
        opt['network_d'] = changes['network_d']
        opt['train']['micro_batch_size'] = {'generator': 2, 'perceptual': 2, 'discriminator': 3}
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
