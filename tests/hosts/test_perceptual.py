"""The perceptual loss through BasicSR's real VGG path, with random weights in the place of ImageNet's."""
import copy

import numpy as np
import pytest
import torch
import torchvision
from basicsr.archs.vgg_arch import VGG_PRETRAIN_PATH
from basicsr.losses import build_loss
from basicsr.metrics import calculate_metric
from basicsr.utils import img2tensor

from sr_bigbatch.hosts.basicsr.options.check import check
from sr_bigbatch.options import OptionError
from tests.hosts.test_basicsr_models import _batch
from tests.reference import difference

PERCEPTUAL = {'type': 'PerceptualLoss', 'layer_weights': {'conv1_2': 0.5, 'conv2_2': 1.0}, 'vgg_type': 'vgg19',
              'use_input_norm': True, 'range_norm': False, 'perceptual_weight': 1.0, 'style_weight': 10.0,
              'criterion': 'l1'}


@pytest.fixture(scope='module')
def vgg_file(tmp_path_factory):
    path = tmp_path_factory.mktemp('vgg') / 'vgg19.pth'
    with torch.device('meta'):
        shapes = {key: value.shape for key, value in torchvision.models.vgg19().state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    # The classifier is not used: one number, expanded, stands for its weights.
    torch.save({key: torch.zeros(1).expand(shape) if key.startswith('classifier')
                else torch.randn(shape, generator=generator) * 0.05 for key, shape in shapes.items()}, path)
    return path


@pytest.fixture
def in_place(vgg_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / VGG_PRETRAIN_PATH).parent.mkdir(parents=True)
    (tmp_path / VGG_PRETRAIN_PATH).symlink_to(vgg_file)


@pytest.mark.filterwarnings('ignore:The parameter .pretrained. is deprecated', 'ignore:Arguments other than a weight enum')
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_perceptual_and_style_loss_in_micro_batches_equal_the_whole_batch(opt, built, in_place, dtype):
    opt['train']['perceptual_opt'] = PERCEPTUAL
    opt['train']['optim_wrapper']['dtype'] = dtype
    opt['train']['optim_g']['eps'] = 1e-4
    models, batch = {}, None
    for micro in (4, {'generator': 3, 'perceptual': 1, 'discriminator': 2}):
        opt['train']['micro_batch_size'] = micro
        model = models[len(models)] = built(copy.deepcopy(opt))
        start = copy.deepcopy(model.net_g)
        batch = batch or _batch(model.opt)
        model.feed_data(batch)
        model.optimize_parameters(1)
        assert model.get_current_log()['l_g_percep'] > 0 and model.get_current_log()['l_g_style'] > 0
    assert difference(models[1].net_g, models[0].net_g, start) <= (1e-3 if dtype == 'float32' else 0.2)


@pytest.mark.filterwarnings('ignore:The parameter .pretrained. is deprecated', 'ignore:Arguments other than a weight enum')
def test_the_perceptual_distance_is_the_perceptual_loss_of_an_image(opt, built, in_place):
    truth, image = (np.random.default_rng(seed).integers(0, 255, (48, 40, 3)).astype(np.uint8) for seed in (0, 1))
    settings = {'type': 'calculate_perceptual_distance', 'crop_border': 4, 'better': 'lower'}
    distance = calculate_metric({'img': image, 'img2': truth}, settings)
    loss = build_loss({**PERCEPTUAL, 'layer_weights': {'conv5_4': 1.0}, 'style_weight': 0})
    pairs = [img2tensor(each[4:-4, 4:-4].astype(np.float32) / 255)[None] for each in (image, truth)]
    assert distance == pytest.approx(float(loss(*pairs)[0]), rel=1e-6) and distance > 0
    assert calculate_metric({'img': truth, 'img2': truth}, settings) == 0
    opt['val']['metrics']['distance'] = settings
    check(opt)


def test_missing_vgg_weights_are_one_clear_error(opt, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'hub'))
    opt['train']['perceptual_opt'] = PERCEPTUAL
    opt['datasets']['train']['dataroot_gt'] = str(tmp_path)  # empty: must not be looked into for images first
    with pytest.raises(OptionError) as caught:
        check(opt)
    message = caught.value.findings[0]
    for part in ('vgg19-dcbb9e9d.pth', str(tmp_path / VGG_PRETRAIN_PATH), 'train:perceptual_opt=~'):
        assert part in message
    del opt['train']['perceptual_opt']
    opt['val']['metrics']['distance'] = {'type': 'calculate_perceptual_distance', 'crop_border': 4}
    with pytest.raises(OptionError, match=r'val\.metrics\.distance needs the ImageNet weights'):
        check(opt)
