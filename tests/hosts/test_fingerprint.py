"""A resumed run tells what has changed since the save, and refuses what makes it another run."""
import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sr_bigbatch.hosts.basicsr.options.check import complete
from sr_bigbatch.hosts.basicsr.training.fingerprint import difference_between_processes, differences, fingerprint
from tests.conftest import ROOT, run_train
from tests.hosts.test_reliability import _sets, _write


@pytest.fixture
def short(opt, data, tmp_path):
    """Options of a run of a second, with data of its own."""
    del opt['val'], opt['datasets']['val']
    opt['train'].update(total_iter=4, scheduler={'type': 'MultiStepLR', 'milestones': [3, 100], 'gamma': 0.5})
    opt['datasets']['train']['num_worker_per_gpu'] = 0
    for kind in ('gt', 'lq'):
        shutil.copytree(data / f'train_{kind}', tmp_path / kind)
        opt['datasets']['train'][f'dataroot_{kind}'] = str(tmp_path / kind)
    return opt


@pytest.fixture
def saved(short, tmp_path, monkeypatch, basicsr_log):
    """The folder of that run, which was saved at 2 and 4 and is to go on to 5."""
    assert run_train(short, tmp_path, monkeypatch) == 0
    short['train']['total_iter'] = 5
    basicsr_log.clear()
    return tmp_path / 'experiments' / 'quickstart'


def _set(opt, path, value):
    *sections, key = path.split('.')
    for section in sections:
        opt = opt.setdefault(section, {})
    opt[key] = value


def _of(opt, root):
    opt = copy.deepcopy(opt)
    complete(opt, root, auto_resume=False, debug=False)
    return fingerprint(opt)


LATTER, KEPT = 'from now on the latter.', 'it stays as saved.'


@pytest.mark.parametrize(('path', 'value', 'line'), [
    ('train.optim_g.lr', 0.5, f'train.optim_g.lr was 0.001 and is 0.5 in the options: {KEPT}'),
    ('train.optim_d.betas', [0, 0.9], f'train.optim_d.betas was [0.9, 0.99] and is [0, 0.9] in the options: {KEPT}'),
    ('train.scheduler.milestones', [1], f'train.scheduler.milestones was [3, 100] and is [1] in the options: {KEPT}'),
    ('train.micro_batch_size', 4, f'train.micro_batch_size was 2 and is 4: {LATTER}'),
    ('train.micro_batch_size', {'generator': 4}, f'train.micro_batch_size was 2 and is not set: {LATTER}'),
    ('train.ema_decay', None, f'train.ema_decay was 0.9 and is not set: {LATTER}'),
    ('train.gan_opt.loss_weight', 1, f'train.gan_opt.loss_weight was 0.001 and is 1: {LATTER}'),
    ('datasets.train.batch_size_per_gpu', 8, f'datasets.train.batch_size_per_gpu was 4 and is 8: {LATTER}'),
    ('manual_seed', 7, f'manual_seed was 0 and is 7: {LATTER}'),
    ('custom_hooks', [{'type': 'EMAHook'}], f'custom_hooks was not set and is [{{"type": "EMAHook"}}]: {LATTER}'),
    ('network_g.activation_memory', 'minimal', f'network_g.activation_memory was lean and is minimal: {LATTER}'),
    ('network_g.type', 'RRDBNet', f'network_g.type was CheckpointedRRDBNet and is RRDBNet: {LATTER}')])
def test_an_edited_option_is_told_in_a_line(short, tmp_path, path, value, line):
    before = _of(short, tmp_path)
    _set(short, path, value)
    refused, told = differences(before, _of(short, tmp_path))
    assert refused == [] and line in told and all(each.startswith((path, 'network_g')) for each in told)


@pytest.mark.parametrize(('path', 'value', 'line'), [
    ('train.scheduler.type', 'CosineAnnealingRestartLR', 'train.scheduler.type was MultiStepRestartLR at the save'),
    ('train.optim_d.type', 'SGD', 'train.optim_d.type was Adam at the save and is SGD: a run cannot go on with that'),
    ('model_type', 'AccumulatingSRModel', 'model_type was'), ('scale', 2, 'scale was 4 at the save and is 2'),
    ('network_g.num_feat', 16, 'network_g.num_feat was 8'), ('network_g.num_block', None, 'network_g.num_block was 1'),
    ('network_d.norm', 'batch', 'network_d.norm was'), ('network_d.type', 'UNetDiscriminatorSN', 'network_d.type was')])
def test_another_training_is_refused(short, tmp_path, path, value, line):
    before = _of(short, tmp_path)
    _set(short, path, value)
    if value is None:
        del short['network_g']['num_block']  # now that of the network's signature
    refused, _ = differences(before, _of(short, tmp_path))
    assert any(each.startswith(line) for each in refused)


@pytest.mark.parametrize(('path', 'value'), [
    ('train.total_iter', 4.0), ('train.scheduler.type', 'MultiStepRestartLR'), ('train.warmup_iter', None),
    ('network_g.scale', 4), ('network_g.activation_memory', 'lean'), ('val', None), ('custom_hooks', []),
    ('path.resume_state', 'a.state'), ('name', 'another'), ('logger.keep_last', 3), ('path.pretrain_network_g', 'a.pth')])
def test_what_means_the_same_is_no_difference(short, tmp_path, path, value):
    if path.startswith('network_g'):
        short['network_g'].pop(path.split('.')[1], None)
    if path == 'train.warmup_iter':
        short['train'].pop('warmup_iter', None)
    before = _of(short, tmp_path)
    _set(short, path, value)
    assert differences(before, _of(short, tmp_path)) == ([], [])
    assert differences(json.loads(json.dumps(before)), _of(short, tmp_path)) == ([], [])


def _rewrite(file, content=None):
    file.write_bytes(file.read_bytes() if content is None else content)
    os.utime(file, (1, 1))


@pytest.mark.parametrize(('change', 'line'), [
    (lambda files: files[0].unlink(), 'there were 24 files and there are 23'),
    (lambda files: shutil.copy(files[0], files[0].with_name('z.png')), 'there were 24 files and there are 25'),
    (lambda files: files[0].rename(files[0].with_name('z.png')), 'files have other names'),
    (lambda files: _rewrite(files[3], b'other'), 'files have other sizes'),
    (lambda files: _rewrite(files[3]), 'files were written again'),
    (lambda files: (files[3].rename(files[0].with_name('x')), files[4].rename(files[3]), files[0].with_name('x').rename(
        files[4])), 'files have other sizes')], ids=['removed', 'added', 'renamed', 'replaced', 'touched', 'exchanged'])
@pytest.mark.parametrize('kind', ['gt', 'lq'])
def test_other_data_are_told_in_a_line(short, tmp_path, change, line, kind):
    before = _of(short, tmp_path)
    change(sorted((tmp_path / kind).glob('*.png')))
    refused, told = differences(before, _of(short, tmp_path))
    assert refused == [] and len(told) == 1
    assert told[0].startswith(f'datasets.train.dataroot_{kind}: ') and line in told[0]


def test_an_lmdb_is_not_changed_by_being_read(short, data, tmp_path):
    short['datasets']['train']['dataroot_gt'] = str(data / 'train_gt.lmdb')
    before = _of(short, tmp_path)
    (data / 'train_gt.lmdb' / 'lock.mdb').touch()
    assert differences(before, _of(short, tmp_path)) == ([], [])


def test_other_versions_and_another_device_are_told(short, tmp_path):
    before = _of(short, tmp_path)
    before['versions'].update(torch='1.0', device='A GPU', processes='4')
    _, told = differences(before, _of(short, tmp_path))
    assert told[:2] == ['device was A GPU and is CPU.', 'processes was 4 and is 1.']
    assert told[2:] == [f'torch was 1.0 and is {torch.__version__}.']


@pytest.mark.parametrize('then', [{}, {'options': None, 'data': 3, 'versions': []}, {'options': {1: 2, 'scale': {}}},
                                  {'data': {'datasets.train.dataroot_gt': 1}}])
def test_what_is_no_fingerprint_is_compared_as_far_as_it_goes(short, tmp_path, then):
    now = _of(short, tmp_path)
    assert differences({**now, **then}, now)[1] or then == {}


def test_a_resumed_run_does_what_it_tells(short, tmp_path, monkeypatch, basicsr_log, saved):
    short['train']['optim_g']['lr'], short['train']['micro_batch_size'] = 0.5, 4
    short['train']['scheduler']['milestones'] = [1]
    (tmp_path / 'gt' / 'chelsea_s001.png').rename(tmp_path / 'gt' / 'other.png')
    (tmp_path / 'lq' / 'chelsea_s001.png').rename(tmp_path / 'lq' / 'other.png')
    monkeypatch.setattr('sr_bigbatch.__version__', '9')
    assert run_train(short, tmp_path, monkeypatch, '--auto_resume', '--force_yml', 'logger:save_checkpoint_freq=1') == 0
    told = [line.partition('Since the save: ')[2] for line in basicsr_log.text.splitlines() if 'Since the save: ' in line]
    assert [line.split()[0].rstrip(':') for line in told] == [
        'train.micro_batch_size', 'train.optim_g.lr', 'train.scheduler.milestones', 'train.total_iter',
        'datasets.train.dataroot_gt', 'datasets.train.dataroot_lq', 'sr_bigbatch']
    state = torch.load(saved / 'training_states' / '5.state', weights_only=True)
    assert state['optimizers'][0]['param_groups'][0]['lr'] == 0.0005  # halved at 3
    assert state['sr_bigbatch']['step']['plan']['generator'] == 4
    assert state['sr_bigbatch']['fingerprint']['options']['train.total_iter'] == 5


@pytest.mark.parametrize(('path', 'value'), [
    ('train.scheduler', {'type': 'CosineAnnealingRestartLR', 'periods': [100]}),
    ('network_g.num_feat', 16), ('network_d.num_feat', 16)])
@pytest.mark.parametrize('way', ['auto', 'named'])
def test_such_a_run_is_not_begun(short, tmp_path, monkeypatch, capsys, saved, path, value, way):
    _set(short, path, value)
    before = {file: file.stat().st_mtime_ns for file in saved.rglob('*')}
    given = ['--auto_resume'] if way == 'auto' else [
        '--force_yml', f'path:resume_state={saved}/training_states/2.state']
    assert run_train(short, tmp_path, monkeypatch, *given) == 2
    told = capsys.readouterr().err
    assert 'training has not started' in told and f'- path.resume_state: {path}' in told
    assert {file: file.stat().st_mtime_ns for file in saved.rglob('*')} == before


@pytest.mark.parametrize(('fault', 'message'), [
    (lambda folder: shutil.copy(folder / 'models/net_g_4.pth', folder / 'models/net_g_2.pth'), 'net_g_2.pth has changed'),
    (lambda folder: (folder / 'models/net_d_2.pth').unlink(), 'net_d_2.pth is missing'),
    (lambda folder: shutil.copy(folder / 'training_states/4.state', folder / 'training_states/2.state'), 'iteration 4'),
    (lambda folder: (folder / 'training_states/2.json').write_text('{"files": {}}'), '2.json cannot be read')])
def test_a_state_whose_networks_are_not_its_own_is_refused(short, tmp_path, monkeypatch, capsys, saved, fault, message):
    fault(saved)
    assert run_train(short, tmp_path, monkeypatch, '--force_yml', f'path:resume_state={saved}/training_states/2.state') == 2
    told = capsys.readouterr().err
    assert 'path.resume_state: ' in told and message in told and _sets(saved)[0] == [2, 4]


@pytest.mark.parametrize(('models', 'status', 'message'), [
    (None, 2, 'are missing: copy those of iteration 2'), ('other', 2, 'is not the one that'), ('same', 0, '')])
def test_a_state_of_another_experiment_needs_its_own_networks(short, tmp_path, monkeypatch, capsys, saved, models, status,
                                                              message):
    there = tmp_path / 'experiments' / 'another' / 'models'
    if models is not None:
        shutil.copytree(saved / 'models', there)
    if models == 'other':
        shutil.copy(there / 'net_d_4.pth', there / 'net_d_2.pth')
    short['name'] = 'another'
    given = ['--force_yml', f'path:resume_state={saved}/training_states/2.state']
    assert run_train(short, tmp_path, monkeypatch, *given) == status
    assert message in capsys.readouterr().err


@pytest.mark.parametrize('saved_seed', [0, None])
def test_a_state_without_fingerprint_is_gone_on_from(short, tmp_path, monkeypatch, basicsr_log, saved, saved_seed):
    file = saved / 'training_states' / '4.state'
    state = torch.load(file, weights_only=True)
    del state['sr_bigbatch']['fingerprint']
    state['sr_bigbatch']['seed'] = saved_seed
    torch.save(state, file)
    file.with_suffix('.json').unlink()
    short['manual_seed'] = 7
    assert run_train(short, tmp_path, monkeypatch, '--auto_resume') == 0
    assert 'does not tell options, data and versions' in basicsr_log.text
    assert ('manual_seed was 0 and is 7' in basicsr_log.text) == (saved_seed == 0)


def test_processes_compare_what_they_were_given(short, tmp_path):
    every = [_of(short, tmp_path) for _ in range(3)]
    assert difference_between_processes(every) is None
    every[1]['options']['datasets.train.dataroot_gt'] = '/elsewhere'
    every[1]['data']['datasets.train.dataroot_gt']['times'] = '0'
    every[1]['versions']['device'] = 'another'
    assert difference_between_processes(every) is None
    _set(short, 'train.optim_g.lr', 0.5)
    every[2] = _of(short, tmp_path)
    assert difference_between_processes(every) == (
        'the processes 0 and 2 must be given the same, and differ: train.optim_g.lr is 0.001 and 0.5')
    (tmp_path / 'gt' / 'chelsea_s001.png').unlink()
    fewer = _of(short, tmp_path)
    assert 'datasets.train.dataroot_gt (files) is 24 and 23' in difference_between_processes([every[2], fewer])


_START = """
import os, subprocess, sys
rank = int(os.environ['RANK'])
sys.argv = ['train.py', '-opt', sys.argv[1 + rank], '--launcher', 'pytorch']
sys.path.insert(0, 'tools')
import train
sys.exit(train.main())
"""


@pytest.mark.parametrize(('path', 'value', 'line'), [
    ('train.optim_g.lr', 0.5, 'train.optim_g.lr is 0.001 and 0.5'), ('manual_seed', None, 'manual_seed is 0 and not set'),
    ('datasets.train.batch_size_per_gpu', 2, 'datasets.train.batch_size_per_gpu is 4 and 2'),
    ('train.total_iter', 6, 'train.total_iter is 4 and 6')])
def test_another_option_in_another_process_stops_all(short, tmp_path, path, value, line):
    Path(tmp_path / 'start.py').write_text(_START)
    first = _write(short, tmp_path / 'first.yml')
    _set(short, path, value)
    second = _write(short, tmp_path / 'second.yml')
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-m', 'torch.distributed.run', '--nproc_per_node=2', '--standalone',
         '--local-addr=127.0.0.1', str(tmp_path / 'start.py'), first, second], cwd=ROOT, timeout=120, check=False,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}, capture_output=True, text=True)
    assert done.returncode != 0 and f'the processes 0 and 1 must be given the same, and differ: {line}' in done.stderr
    assert 'exitcode  : 2' in done.stderr and not (tmp_path / 'experiments').exists()
