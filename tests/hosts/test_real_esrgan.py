"""Real-ESRGAN's models as BasicSR builds and drives them."""
import copy
import itertools

import pytest
import torch
from basicsr.utils.img_process_util import filter2D
from torch import nn

from sr_bigbatch.hosts.basicsr.options.check import check
from sr_bigbatch.hosts.basicsr.plan.prediction import predict
from sr_bigbatch.hosts.basicsr.settings import TrainingSettings
from sr_bigbatch.options import OptionError
from sr_bigbatch.step.plan import MicroBatchSizes, StepPlan
from sr_bigbatch.step.replay import one_power_iteration
from sr_bigbatch.step.update import Verdict
from tests.conftest import run_train
from tests.hosts.realesrgan import BLUR, GAN, HALVES, NET
from tests.reference import difference

USM = list(itertools.product([True, False], repeat=3))  # of pixel, perceptual and adversarial loss
CUTS = {'one': (1, 1, 1), 'uneven': (2, 3, 2), 'whole': (5, 5, 5)}
TARGETS = ('l1_gt_usm', 'percep_gt_usm', 'gan_gt_usm')


class TinyFeatures(nn.Module):
    """Stands in for VGG, whose weights are not part of BasicSR."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.layer = nn.Conv2d(3, 4, 3, bias=False)

    def forward(self, images):
        return self.layer(images).relu()


class TinyPerceptual(nn.Module):
    """The distance of features; no style loss."""

    def __init__(self):
        super().__init__()
        self.features = TinyFeatures()

    def forward(self, output, gt):
        return (self.features(output) - self.features(gt.detach())).abs().mean(), None


def _pairs(opt, usm, ldl, model=GAN):
    """Ready-made pairs, a small network, plain SGD-like Adam."""
    opt = copy.deepcopy(opt)
    opt.update(model_type=model, high_order_degradation=False, **dict(zip(TARGETS, usm, strict=True)))
    opt['network_d'] = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 4}
    opt['network_g'] = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'num_grow_ch': 4}
    opt['datasets']['train']['batch_size_per_gpu'] = 5
    opt['train'].update(perceptual_opt=None, ema_decay=0.9, ldl_opt={'type': 'L1Loss', 'loss_weight': 1.0} if ldl else None)
    for name in ('optim_g', 'optim_d'):
        opt['train'][name].update(eps=1.0, lr=1.0)
    if model == NET:
        for name in ('network_d', *TARGETS):
            opt.pop(name)
        for name in ('optim_d', 'gan_opt', 'ldl_opt'):
            opt['train'].pop(name, None)
    return opt


def _theirs(opt, built, monkeypatch):
    """BasicSR's own model, whose ``.cuda()`` does nothing."""
    monkeypatch.setattr(nn.Module, 'cuda', lambda module, *_: module)
    opt = copy.deepcopy(opt)
    opt['model_type'] = opt['model_type'].removeprefix('Accumulating')
    for key in ('micro_batch_size', 'kept_graphs', 'accumulation', 'optim_wrapper'):
        opt['train'].pop(key, None)
    return built(opt)


def _filled(model, dtype):
    """The model in ``dtype`` with a batch of images that are flat in places and sharp in others."""
    for name in ('net_g', 'net_d', 'net_g_ema', 'cri_pix', 'cri_gan', 'cri_ldl', 'cri_perceptual', 'usm_sharpener'):
        if getattr(model, name, None) is not None:
            getattr(model, name).to(dtype)
    generator = torch.Generator().manual_seed(4)
    coarse = torch.rand(5, 3, 4, 4, generator=generator, dtype=torch.float64)
    gt = nn.functional.interpolate(coarse, size=(32, 32), mode='nearest').to(dtype)
    model.gt, model.lq = gt, nn.functional.interpolate(gt, scale_factor=0.25, mode='area')
    return model


def _perceptual(model):
    model.cri_perceptual = TinyPerceptual()
    if hasattr(model, 'losses'):
        model.losses.perceptual = model.cri_perceptual
    return model


def _sharpened(images, sharpener):
    """In float64, too, where BasicSR's mask is not."""
    kernel = sharpener.kernel.to(images.dtype)
    residual = images - filter2D(images, kernel)
    soft_mask = filter2D(((residual.abs() * 255) > 10).to(images.dtype), kernel)
    return soft_mask * torch.clip(images + 0.5 * residual, 0, 1) + (1 - soft_mask) * images


def _start_alike(ours, theirs):
    for name in ('net_g', 'net_d', 'net_g_ema'):
        if hasattr(theirs, name):
            getattr(ours, name).load_state_dict(getattr(theirs, name).state_dict())
            if name == 'net_g_ema':  # an average of other weights, or its images would be those of net_g
                for net in (ours.net_g_ema, theirs.net_g_ema):
                    net.conv_last.bias.data.add_(0.05)


def _compare(opt, built, monkeypatch, micro, dtype, tolerance):
    theirs = _filled(_perceptual(_theirs(opt, built, monkeypatch)), dtype)
    ours = _filled(_perceptual(built(copy.deepcopy(opt))), dtype)
    ours.step.verify_every, ours.step._check.is_due = None, lambda *_: False  # checked below, once
    _start_alike(ours, theirs)
    start = {name: copy.deepcopy(getattr(theirs, name)) for name in ('net_g', 'net_d', 'net_g_ema') if hasattr(theirs, name)}
    if 'net_d' in start:
        theirs.gt_usm = _sharpened(theirs.gt, theirs.usm_sharpener)
        ours.step.plan = StepPlan(MicroBatchSizes(*micro))
    with one_power_iteration(*(getattr(theirs, name) for name in start)):
        theirs.optimize_parameters(1)
    ours.optimize_parameters(1)
    assert set(ours.report.verdicts.values()) == {Verdict.COMMITTED}
    for name, before in start.items():
        assert difference(getattr(ours, name), getattr(theirs, name), before) <= tolerance, name
    for name, value in theirs.get_current_log().items():
        assert ours.get_current_log()[name] == pytest.approx(value, rel=max(10 * tolerance, 1e-6), abs=1e-7), name


@pytest.mark.parametrize('cut', CUTS)
@pytest.mark.parametrize('usm', USM)
@pytest.mark.parametrize('ldl', [False, True], ids=['', 'ldl'])
def test_an_update_is_that_of_basicsr_in_float64(usm, ldl, cut, opt, built, monkeypatch):
    _compare(_pairs(opt, usm, ldl), built, monkeypatch, CUTS[cut], torch.float64, 1e-10)


def test_the_audit_and_the_first_verification_find_nothing_wrong(opt, built):
    model = _filled(_perceptual(built(_pairs(opt, (True, False, True), True))), torch.float64)
    model.optimize_parameters(1)
    assert all(finding.exact for finding in model.step.findings)
    assert {'real images', 'l_g_pix', 'l_g_ldl'} <= {finding.part for finding in model.step.findings}
    assert max(model.step.last_verification.values()) < 1e-10
    assert max(model.step.verify(model.lq, model.gt).values()) < 1e-10


@pytest.fixture(scope='module')
def photos(data, tmp_path_factory):
    """Photographs for RealESRGANDataset, smaller than the 400 px that it pads to."""
    listing = tmp_path_factory.mktemp('listing') / 'meta_info.txt'
    listing.write_text('\n'.join(sorted(file.name for file in (data / 'train_gt').iterdir() if file.suffix == '.png')))
    return {'type': 'RealESRGANDataset', 'dataroot_gt': str(data / 'train_gt'), 'meta_info': str(listing), **BLUR}


def _made(opt, photos, model):
    """A training whose low-resolution images are made."""
    opt = _pairs(opt, (True, True, False), False, model)
    opt.update(high_order_degradation=True, gt_size=32, degradation_group=2, queue_size=6, **HALVES)
    if model == NET:
        opt['gt_usm'] = True
    train_set = opt['datasets']['train']
    for key in ('dataroot_lq', 'filename_tmpl', 'meta_info_file'):
        train_set.pop(key, None)
    train_set.update(photos, batch_size_per_gpu=4, io_backend={'type': 'disk'})
    for name in ('optim_g', 'optim_d'):
        if name in opt['train']:
            opt['train'][name].update(eps=1e-8, lr=1e-4)
    return opt


@pytest.mark.parametrize('model', [GAN, NET])
def test_a_training_that_is_resumed_makes_the_weights_of_one_that_was_not(model, opt, photos, tmp_path, monkeypatch):
    opt = _made(opt, photos, model)
    opt['val']['val_freq'] = 4
    folders = [tmp_path / name for name in ('whole', 'parts')]
    for folder in folders:
        folder.mkdir()
        opt['path']['experiments_root'] = str(folder / 'experiments')
        if folder == folders[0]:
            assert run_train(opt, folder, monkeypatch) == 0
        else:
            assert run_train({**opt, 'train': {**opt['train'], 'total_iter': 2}}, folder, monkeypatch) == 0
            assert run_train(opt, folder, monkeypatch, '--auto_resume') == 0
    whole, parts = (torch.load(next(folder.rglob('4.state')), weights_only=True) for folder in folders)
    for name in ('filled', 'order', 'lq', 'gt'):
        assert torch.equal(torch.as_tensor(whole['sr_bigbatch']['data'][name]),
                           torch.as_tensor(parts['sr_bigbatch']['data'][name]))
    weights = [torch.load(next(folder.rglob('net_g_4.pth')), weights_only=True)['params'] for folder in folders]
    for name, value in weights[0].items():
        assert torch.equal(weights[1][name], value), name


def test_a_validation_takes_its_pairs_as_they_are(opt, photos, built):
    model = built(_made(opt, photos, GAN))
    pair = {'lq': torch.rand(1, 3, 8, 8), 'gt': torch.rand(1, 3, 32, 32)}
    model.feed_data(pair)
    assert torch.equal(model.lq, pair['lq']) and model.iteration_made == 0


WRONG = {
    'a misspelt key': (lambda opt: opt.update(jpeg_rnge=opt.pop('jpeg_range')), 'did you mean jpeg_range'),
    'a key of another model': (lambda opt: opt.update(model_type='AccumulatingESRGANModel'), 'not a known option'),
    'half a range': (lambda opt: opt.update(noise_range=[1]), r'noise_range must be \[lowest, highest\]'),
    'no share': (lambda opt: opt.update(second_blur_prob=80), 'second_blur_prob must be a share'),
    'two shares of three': (lambda opt: opt.update(resize_prob2=[0.5, 0.5]), 'three shares'),
    'two sizes': (lambda opt: opt.update(gt_size=64), 'make them equal'),
    'a size beyond the photograph': (lambda opt: (opt.update(gt_size=512), opt['datasets']['train'].update(gt_size=512)),
                                     'must not be larger'),
    'a small pool': (lambda opt: opt.update(queue_size=3), 'queue_size is 3 but a batch'),
    'a missing key': (lambda opt: opt.pop('jpeg_range2'), 'jpeg_range2 is missing'),
    'a missing key of the data set': (lambda opt: opt['datasets']['train'].pop('blur_sigma'), 'blur_sigma is missing'),
    'a misspelt key of the data set': (lambda opt: opt['datasets']['train'].update(sinc_probability=0.1), 'did you mean'),
    'pairs without kernels': (lambda opt: opt['datasets']['train'].update(type='RealESRGANPairedDataset'),
                              'no blur kernels'),
    'photographs without pairs': (lambda opt: opt.update(high_order_degradation=False), 'use RealESRGANPairedDataset'),
    'no list of photographs': (lambda opt: opt['datasets']['train'].pop('meta_info'), 'meta_info is missing'),
    'no group': (lambda opt: opt.update(degradation_group=0), 'degradation_group must be a positive whole number'),
}


@pytest.mark.parametrize('wrong', WRONG)
def test_wrong_options_are_named(wrong, opt, photos):
    opt = _made(opt, photos, GAN)
    WRONG[wrong][0](opt)
    with pytest.raises(OptionError, match=WRONG[wrong][1]):
        check(opt)


def test_photographs_without_blur_kernels_are_refused(opt, built):
    with pytest.raises(OptionError, match='RealESRGANDataset'):
        built(_pairs(opt, (True, True, True), False)).feed_data({'gt': torch.rand(1, 3, 32, 32)})


def test_the_memory_of_sharpening_is_predicted(opt, photos):
    sharpened, plain = (predict(TrainingSettings.from_options(_pairs(opt, usm, False)), 32, 4, 2, False)
                        for usm in ((True, True, True), (False, False, False)))
    assert sharpened.flops > plain.flops
