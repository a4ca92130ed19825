"""ESRGAN in mmengine's Runner, on real photographs."""
import copy
import json
import re

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS

from tests.conftest import ROOT, load_tool, run_two_processes
from tests.reference import checked

pytestmark = pytest.mark.filterwarnings('ignore')  # mmengine's own


@pytest.fixture
def config(data, tmp_path):
    """The shipped configuration, reduced to seconds."""
    config = Config.fromfile(ROOT / 'options' / 'mmengine' / 'quickstart.py')
    for name, folder in (('train', 'train'), ('val', 'val')):
        config[f'{name}_dataloader'].dataset.opt.update(dataroot_gt=str(data / f'{folder}_gt'),
                                                        dataroot_lq=str(data / f'{folder}_lq'))
    config.train_dataloader.update(batch_size=4, num_workers=0, persistent_workers=False)
    config.model.net_g.update(num_feat=8, num_block=1, num_grow_ch=8)
    config.model.net_d.update(num_feat=8)
    config.model.update(micro_batch_size=2)
    config.custom_hooks[0].update(stages=[dict(gt_size=32, until=3), dict(gt_size=64)], fade_iters=1)
    config.train_cfg.update(max_iters=6, val_interval=6)
    config.default_hooks.checkpoint.interval = 1
    config.default_hooks.logger.interval = 1
    config.work_dir = str(tmp_path / 'work')
    return config


def _run(config, tmp_path, monkeypatch, *arguments):
    path = tmp_path / 'config.py'
    config.dump(str(path))
    monkeypatch.setattr('sys.argv', ['train_mmengine.py', str(path), *arguments])
    return load_tool('train_mmengine').main()


def test_a_run_crosses_a_border_is_validated_and_resumed(config, tmp_path, monkeypatch):
    assert _run(config, tmp_path, monkeypatch) == 0
    work = tmp_path / 'work'
    whole = torch.load(work / 'iter_6.pth', weights_only=False)
    assert whole['growths'] == ['prepend'] and 'net_d.pre1_0.weight' in whole['state_dict']
    assert len(whole['optimizer']['net_d']['param_groups']) == 2
    log = next(work.rglob('*.log')).read_text()
    assert 'has grown to 64 px (prepend)' in log and 'Crops of 64 px, effective batch 4' in log and 'psnr:' in log
    scalars = [json.loads(line) for line in next(work.rglob('scalars.json')).read_text().splitlines()]
    assert {'l_g_pix', 'l_g_gan', 'l_d_real'} <= set(scalars[0])
    (work / 'iter_6.pth').unlink()
    (work / 'last_checkpoint').write_text(str(work / 'iter_5.pth'))  # after the border; the file still says 32 px
    assert _run(config, tmp_path, monkeypatch, '--resume', '--cfg-options', 'train_cfg.max_iters=7') == 0
    resumed = torch.load(work / 'iter_7.pth', weights_only=False)
    assert resumed['growths'] == ['prepend'] and len(resumed['optimizer']['net_d']['param_groups']) == 2
    assert float(resumed['state_dict']['net_d.pre1_fade']) == 1


def _models(opt, built, config):
    """Our model in BasicSR and in mmengine, with the same weights."""
    opt['train'].pop('scheduler')
    opt['train']['scheduler'] = {'type': 'MultiStepLR', 'milestones': [1000]}
    theirs = built(opt)
    ours = MODELS.build(config.model)
    ours.net_g.load_state_dict(theirs.net_g.state_dict())
    ours.net_d.load_state_dict(theirs.net_d.state_dict())
    ours.net_g_ema.load_state_dict(theirs.net_g_ema.state_dict())
    settings = copy.deepcopy(config.optim_wrapper)
    settings.pop('constructor')
    return theirs, ours, OPTIM_WRAPPER_CONSTRUCTORS.build(
        {'type': 'OptimWrapperPerNetwork', 'optim_wrapper_cfg': settings})(ours)


def test_the_noise_scale_is_logged_once_it_is_known(opt, built, config):
    _, ours, wrappers = _models(opt, built, config)
    batch = {'lq': torch.rand(4, 3, 8, 8), 'gt': torch.rand(4, 3, 32, 32)}
    assert not [name for name in ours.train_step(batch, wrappers) if name.startswith('noise')]
    known = {'signal': 1e6, 'noise': 3.2e7, 'weight': 1.0, 'updates': 60}  # large numbers: one more update does not matter
    wrappers['net_g'].safe_update.noise.load_state_dict(known)
    assert float(ours.train_step(batch, wrappers)['noise_scale_net_g']) == pytest.approx(32, rel=1e-3)


def test_one_update_is_that_of_basicsrs_model(opt, built, config):
    theirs, ours, wrappers = _models(opt, built, config)
    batch = {'lq': torch.rand(4, 3, 8, 8), 'gt': torch.rand(4, 3, 32, 32)}
    theirs.feed_data(batch)
    theirs.optimize_parameters(1)
    logged = ours.train_step(batch, wrappers)
    for name in ('net_g', 'net_d', 'net_g_ema'):
        for mine, expected in zip(getattr(ours, name).parameters(), getattr(theirs, name).parameters(), strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-6)
    for name, value in theirs.get_current_log().items():
        assert float(logged[name]) == pytest.approx(value, rel=1e-5)


def test_the_average_moves_only_with_the_generator(opt, built, config):
    _, ours, wrappers = _models(opt, built, config)
    batch = {'lq': torch.rand(4, 3, 8, 8), 'gt': torch.rand(4, 3, 32, 32)}
    ours.step = checked(ours._step(wrappers), batch['lq'], batch['gt'])
    handle = next(ours.net_g.parameters()).register_hook(lambda gradient: gradient * float('nan'))
    before = copy.deepcopy(ours.net_g_ema.state_dict())
    ours.train_step(batch, wrappers)
    assert all(torch.equal(value, before[name]) for name, value in ours.net_g_ema.state_dict().items())
    handle.remove()
    ours.train_step(batch, wrappers)
    assert any(not torch.equal(value, before[name]) for name, value in ours.net_g_ema.state_dict().items())


def test_a_discriminator_with_batch_norm_sees_the_whole_batch_and_a_generator_with_it_is_refused(config):
    config.model.net_d.norm = 'batch'
    model = MODELS.build(config.model)
    settings = copy.deepcopy(config.optim_wrapper)
    settings.pop('constructor')
    wrappers = OPTIM_WRAPPER_CONSTRUCTORS.build({'type': 'OptimWrapperPerNetwork', 'optim_wrapper_cfg': settings})(model)
    batch = {'lq': torch.rand(4, 3, 8, 8), 'gt': torch.rand(4, 3, 32, 32)}
    model.train_step(batch, wrappers)
    assert model.step.plan.micro.discriminator >= 4 and model.step.plan.micro.generator == 2
    longer = {name: torch.cat([images, images.flip(0)]) for name, images in batch.items()}
    model.train_step(longer, wrappers)  # also a batch that is longer than the first
    assert model.step.plan.micro.discriminator >= 8
    model.step = None
    model.net_g = torch.nn.Sequential(torch.nn.Conv2d(3, 48, 3, 1, 1), torch.nn.BatchNorm2d(48), torch.nn.PixelShuffle(4))
    with pytest.raises(ValueError, match=r'generator: couples samples \(BatchNorm2d\) and sees a part of the batch'):
        model.train_step(batch, wrappers)


@pytest.mark.parametrize(('text', 'message'), [(None, 'there is no file'), ('a = (', 'SyntaxError'),
                                               ("custom_imports = dict(imports=['sr_bigbtach'])", 'ImportError')])
def test_a_broken_configuration_is_one_clear_error(tmp_path, monkeypatch, capsys, text, message):
    path = tmp_path / 'config.py'
    if text:
        path.write_text(text)
    monkeypatch.setattr('sys.argv', ['train_mmengine.py', str(path)])
    assert load_tool('train_mmengine').main() == 2
    assert re.search(message, capsys.readouterr().err)


def test_two_processes_cross_a_border_together(config, tmp_path):
    config.dump(str(tmp_path / 'config.py'))
    said = run_two_processes('train_mmengine', str(tmp_path / 'config.py'))
    assert 'Crops of 64 px, effective batch 8' in said
