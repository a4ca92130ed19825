"""What would fail in the first iterations is one sentence before the training."""
import shutil
from pathlib import Path

import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY
from PIL import Image
from torch import nn

from sr_bigbatch.hosts.basicsr.construct import Endless, network_to_inspect
from sr_bigbatch.hosts.basicsr.options.check import check, complete
from sr_bigbatch.hosts.basicsr.options.schema import with_whole_numbers
from sr_bigbatch.options import OptionError, override
from tests.conftest import run_train

NOT_NUMBERS = ['.nan', '.inf', '-.inf', 'text', '[1]', '{a: 1}', '~']
SENTENCES = {
    'datasets:train:io_backend=disk': 'datasets.train.io_backend',
    'datasets:val:io_backend=~': 'datasets.val.io_backend',
    'datasets:train:use_hflip="no"': 'datasets.train.use_hflip must be true or false',
    'datasets:train:num_worker_per_gpu=-1': 'num_worker_per_gpu must be a whole number from 0 to 1024',
    'datasets:train:num_worker_per_gpu=many': 'num_worker_per_gpu must be',
    'datasets:train:dataset_enlarge_ratio=1e308': 'dataset_enlarge_ratio must be a number above 0',
    'datasets:train:dataset_enlarge_ratio=1e9': 'at most 100000000',
    'datasets:train:dataset_enlarge_ratio=-1': 'dataset_enlarge_ratio must be a number above 0',
    'datasets:train:meta_info_file=/nowhere.txt': 'there is no file /nowhere.txt',
    'datasets:train:mean=[0.5, 0.5, 0.5]': 'its first image gives no sample',
    'datasets:train:color=y': 'its images have 1 channel(s), and network_g takes 3',
    'datasets:val:filename_tmpl="{}x4"': 'datasets.val',
    'datasets:val:dataroot_gt={}': 'datasets.val.dataroot_gt must be a path',
    'datasets:3={}': 'a data set is named train, val or val_...',
    'train:optim_g:betas=[]': 'train.optim_g.betas must be two numbers from 0 to 1',
    'train:optim_g:betas=[0.9]': 'train.optim_g.betas must be two numbers',
    'train:optim_d:betas=[0.9, 1.0]': 'train.optim_d.betas[1]',
    'train:optim_g:betas=0.9': 'train.optim_g.betas must be two numbers',
    'train:optim_g:type=""': 'train.optim_g.type',
    'train:optim_g:type=LBFGS': 'train.optim_g',
    'train:optim_g:lr="fast"': 'train.optim_g.lr must be a number, 0 or more',
    'train:optim_g:lr=-1e-4': 'train.optim_g.lr must be a number, 0 or more',
    'train:optim_d:eps=-1': 'train.optim_d: Invalid epsilon value',
    'train:optim_d:weight_decay=~': 'train.optim_d.weight_decay must be a number',
    'train:net_d_iters=~': 'train.net_d_iters must be a positive whole number, got None',
    'train:net_d_iters=0': 'train.net_d_iters must be a positive whole number',
    'train:net_d_init_iters=-1': 'train.net_d_init_iters must be a whole number of iterations, 0 or more',
    'train:warmup_iter=~': 'train.warmup_iter must be a whole number of iterations, or -1',
    'train:ema_decay=~': 'train.ema_decay must be in [0, 1)',
    'train:ema_decay=.nan': 'train.ema_decay must be in [0, 1)',
    'train:total_iter=.inf': 'train.total_iter must be a positive whole number',
    'train:scheduler:milestones=3': 'train.scheduler.milestones must be a list of iterations',
    'train:scheduler:gamma=~': 'train.scheduler.gamma must be a number',
    'train:scheduler:restarts=[0, 2]': 'restarts and their weights do not match',
    'train:scheduler={type: CosineAnnealingRestartLR, periods: [1], restart_weights: [1]}': 'no learning rate for iteration',
    'train:scheduler={type: VibrateLR, total_iter: 9}': 'train.scheduler.type: VibrateLR is not known',
    'train:optim_wrapper={dtype: float16, loss_scale: {init_scale: 99999999}}': 'init_scale <= ceiling',
    'train:optim_wrapper={dtype: float16, loss_scale: {init_scale: high}}': 'train.optim_wrapper',
    'train:pixel_opt:loss_weight=~': 'train.pixel_opt.loss_weight must be a number',
    'train:pixel_opt:loss_weight=.inf': 'train.pixel_opt.loss_weight must be a number',
    'train:pixel_opt:reduction=most': 'train.pixel_opt: Unsupported reduction mode',
    'train:gan_opt:real_label_val=one': 'train.gan_opt',
    'train:perceptual_opt={type: PerceptualLoss, layer_weights: {conv9_9: 1}}': 'has no layer conv9_9',
    'train:perceptual_opt={type: PerceptualLoss, layer_weights: {conv5_4: 1}, criterion: l3}': 'must be one of l1, l2, fro',
    'val:val_freq=~': 'val.val_freq is missing',
    'val:metrics=psnr': 'val.metrics must be a section of metrics',
    'val:metrics:psnr=~': 'val.metrics.psnr',
    'val:metrics={psnr: {type: calculate_psnr}}': 'val.metrics.psnr: calculate_psnr() missing 1 required',
    'val:metrics:psnr:crop_border=wide': 'val.metrics.psnr',
    'logger:use_tb_logger=maybe': 'logger.use_tb_logger must be true or false',
    'logger:wandb=project': 'logger.wandb must be',
    'manual_seed=-1': 'manual_seed must be a whole number from 0 to',
    'manual_seed=4294967296': 'manual_seed must be a whole number from 0 to',
    'num_gpu=.nan': 'num_gpu must be auto',
    'scale=.inf': 'scale must be a positive whole number',
    'network_g:num_block=1000000000000': 'more than 30000 weight tensors',
    'network_g:num_feat=10000000': 'has weights of',
    'network_g:num_out_ch=1': 'network_g makes 2 x 1 x 32 x 32',
    'network_d:num_in_ch=1': 'network_d',
    'path:pretrain_network_g=[a]': 'path.pretrain_network_g must be a path',
    'path:resume_state=3': 'path.resume_state must be a path',
    'path:strict_load_g="yes"': 'path.strict_load_g must be true or false',
}


@pytest.mark.parametrize('entry, message', SENTENCES.items(), ids=SENTENCES)
def test_what_would_fail_later_is_told_before(opt, tmp_path, monkeypatch, capsys, entry, message):
    override(opt, [entry])
    if entry.startswith('datasets:3'):
        opt['datasets'][3] = opt['datasets'].pop('3')
    assert run_train(opt, tmp_path, monkeypatch) == 2
    error = capsys.readouterr().err
    assert message in error and 'Traceback' not in error and 'could not be checked' not in error
    assert not (tmp_path / 'experiments').exists()


@pytest.mark.parametrize('value', NOT_NUMBERS)
@pytest.mark.parametrize('key', ['scale', 'num_gpu', 'train:total_iter', 'train:net_d_iters', 'train:optim_d:lr',
                                 'val:val_freq', 'logger:save_checkpoint_freq', 'datasets:train:batch_size_per_gpu',
                                 'datasets:train:gt_size'])
def test_what_is_no_number_is_told_with_its_key(opt, key, value):
    override(opt, [f'{key}={value}'])
    with pytest.raises(OptionError) as error:
        check(opt)
    shown = error.value.findings
    assert any(finding.startswith(key.replace(':', '.')) for finding in shown), shown
    assert not any('could not be checked' in finding for finding in error.value.findings)


def test_numbers_that_are_whole_count_as_such_however_they_are_written(opt, tmp_path, monkeypatch):
    override(opt, ['train:total_iter=2.0', 'datasets:train:gt_size=3.2e1', 'datasets:train:batch_size_per_gpu=4.0',
                   'scale=4.0', 'manual_seed=0.0', 'val:val_freq=1e0', 'train:net_d_iters=1.0',
                   'train:scheduler:milestones=[1.0]', 'logger:print_freq=1e0', 'num_gpu=0.0',
                   'datasets:train:num_worker_per_gpu=0.0'])
    assert run_train(opt, tmp_path, monkeypatch) == 0


def test_fractions_stay_fractions(opt):
    complete(opt, Path('unused'), auto_resume=False, debug=False)
    assert isinstance(opt['train']['optim_g']['lr'], float)
    assert with_whole_numbers({'train': {'optim_g': {'lr': 1.0}}})['train']['optim_g']['lr'].is_integer()


def test_a_network_without_end_is_not_built_twice():
    with pytest.raises(Endless):
        network_to_inspect({'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 10**9,
                            'num_grow_ch': 4})


def test_parts_of_others_are_tried_as_well(opt, monkeypatch):
    class Flat(nn.Module):
        def forward(self, images):
            return images.mean(0)

    class Wordy(nn.Module):
        def forward(self, output, gt, **kwargs):
            return 'small'

    def complain(img, img2, **kwargs):
        raise LookupError('no such table')

    for registry, name, thing in ((ARCH_REGISTRY, 'Flat', Flat), (LOSS_REGISTRY, 'Wordy', Wordy),
                                  (METRIC_REGISTRY, 'complain', complain)):
        monkeypatch.setitem(registry._obj_map, name, thing)
    opt.update(network_d={'type': 'Flat'})
    opt['train']['pixel_opt'] = {'type': 'Wordy'}
    opt['val']['metrics'] = {'odd': {'type': 'complain'}}
    with pytest.raises(OptionError) as error:
        check(opt)
    text = '\n'.join(error.value.findings)
    for sentence in ('network_d makes 3 x 32 x 32 of 2 samples', 'train.pixel_opt gives a str',
                     'val.metrics.odd: LookupError'):
        assert sentence in text


def _pairs(opt, tmp_path, spoil):
    for part in ('train', 'val'):
        for kind in ('gt', 'lq'):
            source = Path(opt['datasets'][part][f'dataroot_{kind}'])
            shutil.copytree(source, tmp_path / f'{part}_{kind}')
            opt['datasets'][part][f'dataroot_{kind}'] = str(tmp_path / f'{part}_{kind}')
    spoil(tmp_path)
    with pytest.raises(OptionError) as error:
        check(opt)
    assert len(error.value.findings) == 1
    return error.value.findings[0]


def _shrink(file):
    with Image.open(file) as image:
        smaller = image.crop((0, 0, image.width - 1, image.height))
    smaller.save(file)


@pytest.mark.parametrize('part, spoil, message', [
    ('train', lambda root: next((root / 'train_lq').iterdir()).unlink(), 'different number of images'),
    ('val', lambda root: next((root / 'val_gt').glob('*.png')).unlink(), 'different number of images'),
    ('train', lambda root: next((root / 'train_lq').glob('*.png')).rename(root / 'train_lq' / 'other.png'), 'is not in lq'),
    ('train', lambda root: _shrink(max((root / 'train_lq').glob('*.png'))), 'is not 4 times as much'),
    ('val', lambda root: _shrink(max((root / 'val_gt').glob('*.png'))), 'is not 4 times as much'),
])
def test_pairs_that_do_not_fit_are_told(opt, tmp_path, part, spoil, message):
    finding = _pairs(opt, tmp_path, spoil)
    assert finding.startswith(f'datasets.{part}: ') and message in finding


def test_a_larger_ground_truth_is_cropped_in_validation_as_ever(opt, tmp_path):
    opt['datasets']['val'].update({f'dataroot_{kind}': str(shutil.copytree(opt['datasets']['val'][f'dataroot_{kind}'],
                                                                           tmp_path / kind)) for kind in ('gt', 'lq')})
    for file in (tmp_path / 'gt').glob('*.png'):
        with Image.open(file) as image:
            larger = image.resize((image.width + 3, image.height + 1))
        larger.save(file)
    check(opt)


def test_the_check_leaves_the_random_numbers_as_they_are(opt):
    state = torch.get_rng_state()
    check(opt)
    assert torch.equal(torch.get_rng_state(), state)
