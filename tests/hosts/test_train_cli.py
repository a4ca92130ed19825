"""``tools/train.py`` as a user meets it."""
import json
import os
import subprocess
import sys
from pathlib import Path

import basicsr
import numpy as np
import pytest
import torch
import yaml
from basicsr.archs.rrdbnet_arch import RRDBNet
from PIL import Image

from sr_bigbatch.files.names import fault_of_name
from tests.conftest import ROOT, load_tool, run_two_processes


def _write(opt, path):
    path.write_text(yaml.safe_dump(opt))
    return str(path)


def _train(monkeypatch, *arguments):
    monkeypatch.setattr('sys.argv', ['train.py', *arguments])
    return load_tool('train').main()


def test_a_run_leaves_weights_states_curves_and_a_comparison(opt, tmp_path, monkeypatch):
    file = _write(opt, tmp_path / 'run.yml')
    assert _train(monkeypatch, '-opt', file, '--force_yml', 'train:total_iter=3', 'num_gpu=0') == 0
    folder = tmp_path / 'experiments' / 'quickstart'
    assert {path.name for path in (folder / 'models').iterdir()} == {
        'net_g_2.pth', 'net_d_2.pth', 'net_g_latest.pth', 'net_d_latest.pth'}
    assert (folder / 'training_states' / '2.state').is_file() and (folder / 'run.yml').is_file()
    for picture in ('curves.png', 'comparison.png'):
        pixels = np.asarray(Image.open(folder / picture))
        assert pixels.shape[1] > 800 and pixels.std() > 10
    weights = torch.load(folder / 'models' / 'net_g_latest.pth', weights_only=True)
    RRDBNet(3, 3, 4, 8, 1, 8).load_state_dict(weights['params_ema'], strict=True)
    records = [json.loads(line) for line in (folder / 'train_log.jsonl').read_text().splitlines()]
    assert [record['iter'] for record in records] == [0, 1, 2, 2, 3, 3]
    assert all(np.isfinite(value) for record in records for value in record.values() if not isinstance(value, str))


def test_a_resumed_run_goes_on_where_it_stopped_and_learns_the_same(opt, tmp_path, monkeypatch):
    opt['datasets']['train'].update(use_hflip=False, use_rot=False, gt_size=128, dataset_enlarge_ratio=1,
                                    batch_size_per_gpu=24)  # a whole epoch per batch, whole sub-images: no chance in it
    opt['network_d']['input_size'] = 128
    opt['train']['micro_batch_size'] = 24
    file = _write(opt, tmp_path / 'run.yml')
    ends = {}
    for name, parts in (('straight', ['4']), ('resumed', ['2', '4'])):
        for total in parts:
            arguments = ['-opt', file, '--force_yml', f'train:total_iter={total}', f'name={name}']
            assert _train(monkeypatch, *arguments, *(['--auto_resume'] if total != parts[0] else [])) == 0
        ends[name] = torch.load(tmp_path / 'experiments' / name / 'models' / 'net_g_latest.pth', weights_only=True)
    for key, value in ends['straight']['params_ema'].items():
        torch.testing.assert_close(ends['resumed']['params_ema'][key], value, rtol=1e-4, atol=1e-6)


def test_command_line_of_basicsr_is_understood(opt, tmp_path, monkeypatch):
    opt['train']['total_iter'] = 1
    file = _write(opt, tmp_path / 'run.yml')
    for flag in (['--local_rank=0'], ['--local-rank', '0', '--debug']):
        assert _train(monkeypatch, '-opt', file, *flag) == 0
    assert (tmp_path / 'experiments' / 'debug_quickstart').is_dir()


@pytest.mark.parametrize(('entry', 'message'), [
    ('train:mirco_batch_size=2', 'train.mirco_batch_size is not a known option; did you mean micro_batch_size?'),
    ('train:gt_size=64', 'train.gt_size is not a known option'),
    ('micro_batch_size=2', 'it belongs into the section train'),
    ('trian:total_iter=2', 'did you mean train?'),
    ('network_g:num_blocks=2', 'did you mean num_block?'),
    ('network_g:type=CheckpointedRRDBnet', 'network_g.type: CheckpointedRRDBnet is not known'),
    ('train:gan_opt:gan_type=vanila', 'GAN type vanila'),
    ('train:micro_batch_size=0', 'train.micro_batch_size must be a positive whole number'),
    ('train:micro_batch_size={generator: 2}', "got {'generator': 2} ('perceptual' is a required property)"),
    ('train:micro_batch_size={generator: 2, perceptual: 2, discrimnator: 2}', "'discrimnator' was unexpected"),
    ('train:micro_batch_size=2.5', 'auto or one number per part, got 2.5'),
    ('train:micro_batch_size=atuo', "got 'atuo'"),
    ('train:kept_graphs=-1', 'train.kept_graphs must be all or a number of micro-batches, got -1'),
    ('train:memory_budget_gb=0', 'train.memory_budget_gb must be a positive number, got 0'),
    ('train:relativistic_gan=1', 'train.relativistic_gan must be true or false, got 1'),
    ('train:optim_wrapper=float16', "train.optim_wrapper must be a section, got 'float16'"),
    ('train:optim_wrapper:loss_scale=-2', 'loss_scale must be dynamic, a positive number, or settings, got -2'),
    ('train:optim_wrapper:clip_grad=1', 'train.optim_wrapper.clip_grad must be a section as {max_norm: 1}, got 1'),
    ('train:optim_wrapper:type=AmpOptimWraper', 'train.optim_wrapper.type: AmpOptimWraper is not known'),
    ('network_g:activation_memory=maximal', 'must be lean, compact, minimal, auto, or a dict'),
    ('network_g:activation_memory={features: 9}', 'activation_memory.features must be a whole number from 0 to 4'),
    ('network_g:activation_memory={feature: 1}', 'activation_memory takes features, blocks and tail'),
    ('network_d:norm=layer', 'norm must be one of none, group, spectral, batch'),
    ('network_d:input_size=48', 'input_size'),
    ('network_d:norm=batch train', 'norm must be one of'),
    ('logger:keep_last=0', 'logger.keep_last must be a positive number of saves, got 0'),
    ('logger:keep_best=often', 'logger.keep_best must be true or false'),
    ('logger:print_freq=0', 'logger.print_freq must be a positive whole number'),
    ('datasets:train:on_bad_image=ignore', "datasets.train.on_bad_image is 'ignore'"),
    ('datasets:train:type=PairedImageDatset', 'did you mean PairedImageDataset?'),
    ('datasets:train:gt_sise=64', 'did you mean gt_size?'),
    ('datasets:train=photos', 'datasets.train'),
    ('val:val_at_start=3', 'val.val_at_start must be true or false, got 3'),
    ('custom_hooks=[{type: ProgressiveHook}]', 'custom_hooks[0].type: ProgressiveHook is not known'),
    ('custom_hooks={type: ProgressiveResolutionHook}', 'custom_hooks must be a list of {type: ...}'),
    ('val:metrics:psnr:type=calculate_pnsr', 'val.metrics.psnr.type: calculate_pnsr is not known'),
    ('num_gpu=-1', 'num_gpu must be auto, 0 (CPU) or a number of GPUs'),
    ('scale=0', 'scale must be a positive whole number'),
    ('train:optim_g:type=Adm', 'train.optim_g.type: Adm is not known'),
    ('train:optim_g:lrate=1', 'train.optim_g.lrate is not a known option'),
    ('model_type=AccumulatingEsrganModel', 'AccumulatingEsrganModel is not registered; did you mean'),
    ('train:gan_opt=~', 'train.gan_opt is missing'),
    ('network_d=~', 'network_d is missing'),
    ('train=fast', 'train must be a section'),
    ('train:accumulation=exakt', 'did you mean exact?'),
    ('train:optim_wrapper:dtype=bfloat', 'did you mean bfloat16?'),
    ('train:total_iter=many', 'train.total_iter must be a positive whole number'),
    ('train:scheduler:milestone=[1]', 'did you mean milestones?'),
    ('datasets:train:gt_size=50', 'not a multiple of scale 4'),
    ('network_d:input_size=64', 'make them equal'),
    ('network_g:scale=3', 'network_g: scale must be one of 1, 2 and 4'),
    ('datasets:train:batch_size_per_gpu=4000', 'cannot fill a batch of 4000'),
    ('datasets:train:dataroot_lq=/nowhere', 'there is no folder /nowhere'),
    ('datasets:train:io_backend:type=lmdb', 'is not an LMDB of BasicSR'),
    ('path:pretrain_network_g=/nowhere.pth', 'there is no file /nowhere.pth'),
    ('train:ema_decay=1.5', 'train.ema_decay must be in [0, 1)'),
    ('train={ema_decay: 0, ldl_opt: {type: L1Loss}}', 'set train.ema_decay'),
    ('train:total_iter', 'expected section:key=value'),
    ('train:total_iter=[1, 2', '--force_yml'),
    ('name=!!python/object/apply:os.system ["touch ran"]', '--force_yml'),
])
def test_a_mistake_is_one_clear_error_before_anything_is_written(opt, tmp_path, monkeypatch, capsys, entry, message):
    monkeypatch.chdir(tmp_path)
    file = _write(opt, tmp_path / 'run.yml')
    before = set(tmp_path.rglob('*'))
    assert _train(monkeypatch, '-opt', file, '--force_yml', entry) == 2
    error = capsys.readouterr().err
    assert message in error and 'Traceback' not in error
    assert set(tmp_path.rglob('*')) == before


@pytest.mark.parametrize('name', [
    '', ' ', '.', '..', '...', '../victim', '../../victim', 'a/b', 'a/', '/', '/tmp/victim', 'a/../../victim', r'..\victim',
    r'a\b', 'C:', r'C:\victim', 'C:victim', 'a:b', 'a*', 'a?', 'a<b', 'a|b', '"a"', 'a\nb', 'a\x1b[0m', 'a.', 'a ',
    ' a', 'con', 'NUL', 'aux.txt', 'LPT1', 'a' * 201, 'ü' * 101, 42, 1.5, True, ['a'], {'a': 1}])
def test_the_name_of_a_run_is_one_folder_and_touches_no_other(opt, tmp_path, monkeypatch, capsys, name):
    opt['name'] = name
    for folder in ('victim', 'experiments', 'experiments/other'):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'kept').write_text('kept')
    file = _write(opt, tmp_path / 'run.yml')
    before = set(tmp_path.rglob('*'))
    assert _train(monkeypatch, '-opt', file, '--debug') == 2
    error = capsys.readouterr().err
    assert '- name must' in error and error.count('\n') == 2
    assert set(tmp_path.rglob('*')) == before


@pytest.mark.parametrize('name', ['quick start', 'x4_v1.2', 'Größe-π', '.hidden', 'console', '002_RRDB+GAN(x4)', 'a' * 200])
def test_other_names_are_as_good_as_ever(name):
    assert fault_of_name(name) is None


def test_without_a_discriminator_some_loss_is_needed(opt, tmp_path, monkeypatch, capsys):
    opt['model_type'] = 'AccumulatingSRModel'
    opt['train'].pop('pixel_opt')
    assert _train(monkeypatch, '-opt', _write(opt, tmp_path / 'run.yml')) == 2
    assert 'train.pixel_opt and train.perceptual_opt are both missing' in capsys.readouterr().err


def test_a_gan_loss_alone_trains(opt, tmp_path, monkeypatch):
    opt['train'].pop('pixel_opt')
    opt['train']['total_iter'] = 2
    assert _train(monkeypatch, '-opt', _write(opt, tmp_path / 'run.yml')) == 0
    lines = (tmp_path / 'experiments' / 'quickstart' / 'train_log.jsonl').read_text().splitlines()
    assert {key for key in json.loads(lines[-2]) if key.startswith('l_')} == {'l_g_gan', 'l_d_real', 'l_d_fake'}


def test_several_mistakes_are_told_together(opt, tmp_path, monkeypatch, capsys):
    opt['tarin'], opt['logger']['print_frq'], opt['train']['micro_batch_size'] = {}, 3, 0
    opt['datasets']['train']['dataroot_gt'], opt['network_d']['norm'] = '/nowhere', 'group'
    assert _train(monkeypatch, '-opt', _write(opt, tmp_path / 'run.yml')) == 2
    error = capsys.readouterr().err
    assert 'did you mean train?' in error and 'did you mean print_freq?' in error
    assert 'train.micro_batch_size must be' in error and 'there is no folder /nowhere' in error


@pytest.mark.parametrize(('text', 'message'), [
    ('a: 1\na: 2\n', "line 2, column 1: the key 'a' stands twice"), ('a: [1\n', 'line 2'), ('- a\n', 'holds no options'),
    ('a: !!python/name:os.system\n', 'line 1'), ('\ta: 1\n', 'line 1'), ('', 'holds no options')])
def test_a_file_that_is_no_option_file_is_named_with_the_line(tmp_path, monkeypatch, capsys, text, message):
    (tmp_path / 'run.yml').write_text(text)
    assert _train(monkeypatch, '-opt', str(tmp_path / 'run.yml')) == 2
    assert message in capsys.readouterr().err


def test_basicsrs_own_script_runs_the_same_option_file_unedited(opt, tmp_path):
    """``python -m sr_bigbatch path/to/train.py``; the script is a copy only because it writes beside itself."""
    script = tmp_path / 'basicsr' / 'train.py'
    script.parent.mkdir()
    script.write_text((Path(basicsr.__file__).parent / 'train.py').read_text())
    opt['path'].pop('experiments_root')  # an option of ours
    opt['train']['total_iter'] = 2
    opt['val'].pop('val_at_start')
    file = _write(opt, tmp_path / 'run.yml')
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run([sys.executable, '-m', 'sr_bigbatch', str(script), '-opt', file], cwd=tmp_path, env=environment,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'Effective batch 4' in done.stderr and 'l_g_gan' in done.stderr
    assert (tmp_path / 'experiments' / 'quickstart' / 'models' / 'net_g_latest.pth').is_file()
    opt['train']['mirco_batch_size'] = 2
    done = subprocess.run([sys.executable, '-m', 'sr_bigbatch', str(script), '-opt', _write(opt, tmp_path / 'bad.yml')],
                          cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and 'did you mean micro_batch_size?' in done.stderr


def test_two_processes_train_together(opt, tmp_path):
    opt['train']['total_iter'] = 2
    file = _write(opt, tmp_path / 'run.yml')
    assert 'Effective batch 8 in 2 processes' in run_two_processes('train', '-opt', file)
