"""BasicSR's own tests of its models, step by step, with ours: built from a script, without any of our tools."""
import copy

import pytest
import torch
from basicsr.archs.edsr_arch import EDSR
from basicsr.losses.basic_loss import L1Loss
from basicsr.losses.gan_loss import GANLoss
from basicsr.models import build_model
from basicsr.utils.registry import MODEL_REGISTRY
from torch.utils.data import DataLoader, Dataset

from sr_bigbatch.hosts.basicsr.model.saved_state import GaveUp
from sr_bigbatch.options import OptionError

PSNR = {'type': 'calculate_psnr', 'crop_border': 4, 'test_y_channel': False}


def options(**train):
    """What BasicSR's tests give to ``SRModel``: neither data sets nor logger, and no folder of an experiment."""
    return {'model_type': 'AccumulatingSRModel', 'scale': 4, 'num_gpu': 0, 'manual_seed': 0, 'is_train': True, 'dist': False,
            'network_g': {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1, 'upscale': 4},
            'path': {'pretrain_network_g': None, 'strict_load_g': True, 'resume_state': None},
            'train': {'ema_decay': 0.999, 'optim_g': {'type': 'Adam', 'lr': 1e-4, 'betas': [0.9, 0.99]},
                      'scheduler': {'type': 'MultiStepLR', 'milestones': [50000], 'gamma': 0.5}, 'total_iter': 10,
                      'warmup_iter': -1, 'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0, 'reduction': 'mean'}, **train},
            'val': {'val_freq': 5, 'save_img': True, 'pbar': False, 'metrics': {'psnr': dict(PSNR)}}}


def esrgan_options(**train):
    """What they give to ``ESRGANModel``."""
    return {**options(gan_opt={'type': 'GANLoss', 'gan_type': 'vanilla', 'loss_weight': 0.1},
                      optim_d={'type': 'Adam', 'lr': 1e-4}, net_d_iters=1, net_d_init_iters=0, **train),
            'model_type': 'AccumulatingESRGANModel',
            'network_d': {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 2, 'skip_connection': True}}


KINDS = {'sr': (options, {'l_pix'}),
         'esrgan': (esrgan_options, {'l_g_pix', 'l_g_gan', 'l_d_real', 'l_d_fake', 'out_d_real', 'out_d_fake'})}
kinds = pytest.mark.parametrize(('make', 'keys'), KINDS.values(), ids=KINDS)


class Pairs(Dataset):
    """Validation images as a data set of BasicSR hands them out."""

    def __init__(self):
        self.opt = {'name': 'Test'}

    def __getitem__(self, index):
        return {'lq': torch.rand(3, 8, 8), 'gt': torch.rand(3, 32, 32), 'lq_path': f'image{index}.png'}

    def __len__(self):
        return 2


def batch(count=1):
    return {'lq': torch.rand(count, 3, 8, 8), 'gt': torch.rand(count, 3, 32, 32)}


def trained(opt, count=1):
    """A model after one iteration."""
    model = build_model(opt)
    model.feed_data(batch(count))
    model.optimize_parameters(1)
    return model


@kinds
def test_the_steps_of_the_hosts_own_model_test(make, keys, tmp_path):
    model = build_model(make())
    assert isinstance(model.net_g, EDSR) and isinstance(model.cri_pix, L1Loss)
    assert all(isinstance(optimizer, torch.optim.Adam) for optimizer in model.optimizers)
    assert model.ema_decay == 0.999
    if make is esrgan_options:
        assert isinstance(model.cri_gan, GANLoss) and len(model.optimizers) == 2

    model.feed_data(batch())
    assert model.lq.shape == (1, 3, 8, 8) and model.gt.shape == (1, 3, 32, 32)
    model.optimize_parameters(1)
    assert model.output.shape == (1, 3, 32, 32)
    assert isinstance(model.log_dict, dict) and model.log_dict == model.get_current_log()
    assert set(model.log_dict) == keys and all(isinstance(value, float) for value in model.log_dict.values())

    model.opt['path'].update(models=str(tmp_path / 'saved'), training_states=str(tmp_path / 'saved'))
    (tmp_path / 'saved').mkdir()
    model.save(0, 1)
    networks = {'net_g_1.pth'} | ({'net_d_1.pth'} if make is esrgan_options else set())
    assert {file.name for file in (tmp_path / 'saved').iterdir()} == {*networks, '1.state'}

    model.test()
    assert model.output.shape == (1, 3, 32, 32)
    del model.net_g_ema
    model.test()
    assert model.output.shape == (1, 3, 32, 32) and model.net_g.training


@kinds
@pytest.mark.parametrize(('is_train', 'suffix', 'expected'), [
    (True, None, 'image{}/image{}_1.png'), (False, 'test', 'Test/image{}_test.png'), (False, None, 'Test/image{}_demo.png')])
def test_the_hosts_own_validation(make, keys, is_train, suffix, expected, tmp_path):
    model = trained(make())
    model.opt.update(is_train=is_train, name='demo')
    model.opt['val'].update(suffix=suffix, pbar=not is_train)
    model.opt['path']['visualization'] = str(tmp_path)
    model.nondist_validation(DataLoader(Pairs(), batch_size=1), 1, None, save_img=True)
    assert isinstance(model.metric_results['psnr'], float) and model.is_train
    assert {str(file.relative_to(tmp_path)) for file in tmp_path.rglob('*.png')} == {
        expected.format(*[index] * expected.count('{}')) for index in range(2)}


@kinds
def test_a_model_of_a_script_saves_whole_files_and_resumes(make, keys, tmp_path):
    model = trained(make())
    model.opt['path'].update(models=str(tmp_path / 'models'), training_states=str(tmp_path / 'states'))
    for folder in ('models', 'states'):
        (tmp_path / folder).mkdir()
    model.save(0, 1)
    model.save(-1, -1)
    assert not [file for file in tmp_path.rglob('*') if file.suffix in ('.json', '.next')]
    opt = make()
    opt['path']['pretrain_network_g'] = str(tmp_path / 'models' / 'net_g_latest.pth')
    again = build_model(opt)
    again.resume_training(torch.load(tmp_path / 'states' / '1.state', weights_only=True))
    assert again.step.steps == 1 and again.current_iter == 2
    for mine, saved in zip(again.net_g.parameters(), model.net_g.parameters(), strict=True):
        assert torch.equal(mine, saved)


@kinds
def test_a_model_of_a_script_cuts_the_batch_that_it_is_given(make, keys):
    whole, cut = trained(make(), count=4), trained(make(micro_batch_size=3), count=4)
    assert whole.step.plan.micro.generator >= 4 and cut.step.plan.micro.generator == 3
    assert set(cut.log_dict) == keys


@kinds
def test_weights_that_break_without_a_folder_of_saves_end_the_training_in_words(make, keys):
    model = trained(make())
    with torch.no_grad():
        next(model.net_g.parameters()).fill_(float('nan'))
    model.feed_data(batch())
    with pytest.raises(GaveUp, match=r'no save to return to.*path\.training_states'):
        model.optimize_parameters(2)


@kinds
def test_a_model_that_only_tests_needs_no_training_section(make, keys):
    opt = make()
    opt['is_train'] = False
    del opt['train']
    model = build_model(opt)
    model.feed_data(batch())
    model.test()
    assert model.output.shape == (1, 3, 32, 32)


@kinds
def test_the_options_of_a_script_are_left_as_they_are(make, keys):
    opt = make(micro_batch_size='auto')
    before = copy.deepcopy(opt)
    MODEL_REGISTRY.get(opt['model_type'])(opt)
    assert opt == before


def test_auto_activation_memory_of_a_script_is_refused_in_words():
    opt = options()
    opt['network_g'] = {'type': 'CheckpointedRRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1,
                        'num_grow_ch': 8, 'activation_memory': 'auto'}
    with pytest.raises(OptionError, match=r'activation_memory.*auto.*datasets\.train'):
        build_model(opt)
