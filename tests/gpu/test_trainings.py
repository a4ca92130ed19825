"""Whole trainings of BasicSR's loop on a GPU: steps, saves, validation, growth, and the way back from a save."""
import json
import subprocess
from pathlib import Path

import basicsr
import pytest
import torch
import yaml

from tests.conftest import ROOT
from tests.gpu.conftest import DTYPES, MARKS, PYTHON, tensors, train, with_dtype

pytestmark = MARKS
dtypes = pytest.mark.parametrize('dtype', DTYPES)


def _records(folder):
    return [json.loads(line) for line in (folder / 'train_log.jsonl').read_text().splitlines()]


def _without_discriminator(opt):
    opt.update(model_type='AccumulatingSRModel', network_d=None)
    for key in ('gan_opt', 'optim_d', 'net_d_iters', 'net_d_init_iters'):
        opt['train'].pop(key)
    return opt


@dtypes
@pytest.mark.parametrize('kind', ['esrgan', 'psnr'])
def test_a_training_saves_validates_stops_and_goes_on(opt, tmp_path, monkeypatch, kind, dtype):
    if kind == 'psnr':
        _without_discriminator(opt)
    folder = train(with_dtype(opt, dtype), tmp_path, monkeypatch)
    nets = {'esrgan': {'net_g', 'net_d'}, 'psnr': {'net_g'}}[kind]
    assert {path.stem for path in (folder / 'models').iterdir()} == {
        f'{net}_{when}' for net in nets for when in (2, 4, 'latest')}
    assert (folder / 'comparison.png').is_file() and (folder / 'curves.png').is_file()
    opt['train']['total_iter'] = 6
    train(opt, tmp_path, monkeypatch, '--auto_resume')
    assert [record['iter'] for record in _records(folder) if 'val' not in record] == [1, 2, 3, 4, 5, 6]
    assert [record['iter'] for record in _records(folder) if 'val' in record] == [0, 2, 4, 6]


@dtypes
@pytest.mark.parametrize('growth', ['append', 'prepend'])
def test_a_discriminator_grows_in_mid_run_and_a_save_behind_the_border_is_gone_on_with(opt, tmp_path, monkeypatch, growth,
                                                                                      dtype):
    size = {'append': 64, 'prepend': 32}[growth]  # append needs 64 px or more
    opt['datasets']['train'].update(type='ProgressivePairedImageDataset', gt_size=size)
    opt['network_d'].update(input_size=size)
    opt['custom_hooks'] = [{'type': 'ProgressiveResolutionHook', 'growth': growth,
                            'stages': [{'gt_size': size, 'until': 2}, {'gt_size': 2 * size}],
                            **({'fade_iters': 3} if growth == 'prepend' else {})}]
    opt['logger']['save_checkpoint_freq'] = 1
    folder = train(with_dtype(opt, dtype), tmp_path, monkeypatch)
    opt['train']['total_iter'] = 6
    train(opt, tmp_path, monkeypatch, '--auto_resume')
    assert [record['gt_size'] for record in _records(folder) if 'val' not in record] == [size] * 2 + [2 * size] * 4
    state = torch.load(folder / 'training_states' / '6.state', weights_only=True, map_location='cpu')
    assert len(state['optimizers'][1]['param_groups']) == 2


@pytest.mark.parametrize('there', [0, 1])
def test_a_save_is_gone_on_with_on_the_other_kind_of_device(opt, tmp_path, monkeypatch, there):
    opt['num_gpu'] = 1 - there
    folder = train(opt, tmp_path, monkeypatch)
    opt['num_gpu'], opt['train']['total_iter'] = there, 6
    train(opt, tmp_path, monkeypatch, '--auto_resume')
    assert (folder / 'training_states' / '6.state').is_file()


@pytest.mark.parametrize('optimizer', [
    {'fused': True}, {'foreach': False}, {'capturable': True}, {'amsgrad': True}, {'weight_decay': 0.1}],
    ids=lambda settings: '-'.join(settings))
def test_every_form_of_adam_is_saved_and_gone_on_with(opt, tmp_path, monkeypatch, optimizer):
    for name in ('optim_g', 'optim_d'):
        opt['train'][name].update(optimizer)
    folder = train(opt, tmp_path, monkeypatch)
    opt['train']['total_iter'] = 6
    train(opt, tmp_path, monkeypatch, '--auto_resume')
    state = torch.load(folder / 'training_states' / '6.state', weights_only=True, map_location='cpu')
    assert all(tensors(saved['state']) for saved in state['optimizers'])


@pytest.mark.parametrize('changes', [
    {'micro_batch_size': 'auto'}, {'micro_batch_size': {'generator': 1, 'perceptual': 4, 'discriminator': 2}},
    {'kept_graphs': 0}, {'accumulation': 'plain'}, {'relativistic_gan': False}, {'ema_decay': 0}, {'verify_every': 2},
    {'batch_schedule': [{'batch_size': 2, 'until': 2}, {'batch_size': 4}]},
    {'optim_wrapper': {'dtype': 'float16', 'clip_grad': {'max_norm': 1.0}}},
    {'optim_wrapper': {'dtype': 'float16', 'loss_scale': 128.0}}, {'net_d_iters': 2, 'net_d_init_iters': 1},
    {'ldl_opt': {'type': 'L1Loss', 'loss_weight': 1.0}}], ids=lambda changes: '-'.join(map(str, changes)))
@pytest.mark.filterwarnings('ignore:Detected call of `lr_scheduler:UserWarning')  # the generator waits for net_d_init_iters
def test_every_option_of_a_training_works_on_a_gpu(opt, tmp_path, monkeypatch, changes):
    opt['train'].update(changes)
    folder = train(opt, tmp_path, monkeypatch)
    assert (folder / 'models' / 'net_g_latest.pth').is_file()


@pytest.mark.parametrize('workers', [1, 2])
def test_workers_hand_over_batches_in_pinned_memory(opt, tmp_path, monkeypatch, workers):
    opt['datasets']['train']['num_worker_per_gpu'] = workers
    train(opt, tmp_path, monkeypatch)


@pytest.mark.parametrize(('prefetch', 'parts'), [('cpu', [2]), ('cuda', [2, 4])])
def test_basicsrs_own_script_trains_and_goes_on(opt, tmp_path, prefetch, parts):
    """Through ``python -m sr_bigbatch path/to/train.py``."""
    script = tmp_path / 'basicsr' / 'train.py'
    script.parent.mkdir()
    script.write_text((Path(basicsr.__file__).parent / 'train.py').read_text())
    opt['path'].pop('experiments_root')
    opt['val'].pop('val_at_start')
    opt['datasets']['train'].update(prefetch_mode=prefetch, pin_memory=True)
    file = tmp_path / 'run.yml'
    for total in parts:
        opt['train']['total_iter'] = total
        file.write_text(yaml.safe_dump(opt))
        done = subprocess.run([*PYTHON, '-m', 'sr_bigbatch', str(script), '-opt', str(file),
                               *(['--auto_resume'] if total > parts[0] else [])],
                              cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        assert (tmp_path / 'experiments' / 'quickstart' / 'training_states' / f'{total}.state').is_file()
