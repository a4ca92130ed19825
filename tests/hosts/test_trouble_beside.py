"""What fails beside a training does not end it; what ends it is one sentence, and the last whole iteration is saved."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
import torch
from basicsr.utils.registry import METRIC_REGISTRY
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from sr_bigbatch.files.checkpoint_set import fault, iterations
from sr_bigbatch.hosts.basicsr.images import make_lmdb, size_of
from sr_bigbatch.hosts.basicsr.options.check import check
from sr_bigbatch.options import OptionError
from sr_bigbatch.report.run_log import read_log, trim_log
from sr_bigbatch.tasks.prepare import bundled, cut_all
from tests.conftest import ROOT, run_train


@pytest.fixture
def folder(tmp_path):
    return tmp_path / 'experiments' / 'quickstart'


def _hook(monkeypatch, act):
    class Acts(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            act(batch_idx, runner)

    monkeypatch.setitem(HOOKS.module_dict, 'Acts', Acts)
    return [{'type': 'Acts'}]


def _metric(monkeypatch, opt, act):
    calls = []

    def odd(img, img2, **kwargs):
        calls.append(None)
        return act(len(calls) - 1)  # the first call is that of the check

    monkeypatch.setitem(METRIC_REGISTRY._obj_map, 'odd', odd)
    opt['val']['metrics'] = {'odd': {'type': 'odd'}}
    return calls


def _whole(folder):
    return [iteration for iteration in iterations(folder) if fault(folder, iteration) is None]


@pytest.mark.parametrize('error', [RuntimeError, KeyError, AssertionError, OSError, TypeError])
def test_a_metric_that_raises_does_not_end_the_training(opt, tmp_path, folder, monkeypatch, error, basicsr_log):
    def act(call):
        if call:
            raise error('odd')
        return 1.0

    _metric(monkeypatch, opt, act)
    assert run_train(opt, tmp_path, monkeypatch) == 0
    assert _whole(folder) == [2, 4] and 'could not be judged' in basicsr_log.text


@pytest.mark.parametrize('what', ['train_log.jsonl', 'visualization', 'curves.png'])
def test_what_cannot_be_written_beside_the_training_is_said_once(opt, tmp_path, folder, monkeypatch, what, basicsr_log):
    def spoil(iteration, runner):
        if iteration == 1:
            (folder / what).mkdir() if what.endswith('png') else None
            if what == 'train_log.jsonl':
                (folder / what).unlink()
                (folder / what).mkdir()
            if what == 'visualization':
                shutil.rmtree(folder / what)
                (folder / what).write_text('in the way')

    opt['custom_hooks'] = _hook(monkeypatch, spoil)
    opt['val']['val_at_start'] = what == 'train_log.jsonl'
    assert run_train(opt, tmp_path, monkeypatch) == 0
    assert _whole(folder) == [2, 4] and (folder / 'models' / 'net_g_latest.pth').is_file()
    assert basicsr_log.text.count(f'{what} cannot be written') <= 1


def test_a_folder_that_is_removed_is_made_again_by_the_next_save(opt, tmp_path, folder, monkeypatch):
    opt['custom_hooks'] = _hook(monkeypatch, lambda iteration, runner: shutil.rmtree(folder) if iteration == 3 else None)
    assert run_train(opt, tmp_path, monkeypatch) == 0
    assert _whole(folder) == [4]


def test_a_hook_that_raises_is_one_sentence_with_the_newest_save(opt, tmp_path, monkeypatch, capsys):
    def act(iteration, runner):
        if iteration == 3:
            raise LookupError('no such thing')

    opt['custom_hooks'] = _hook(monkeypatch, act)
    assert run_train(opt, tmp_path, monkeypatch) == 1
    error = capsys.readouterr().err
    assert 'iteration 3 has failed (LookupError no such thing' in error and 'that of iteration 2' in error
    assert 'Traceback' not in error.splitlines()[-1]


def test_an_image_that_vanishes_ends_the_training_after_a_save(opt, tmp_path, folder, monkeypatch, capsys):
    gt = shutil.copytree(opt['datasets']['train']['dataroot_gt'], tmp_path / 'gt')
    opt['datasets']['train']['dataroot_gt'] = str(gt)
    opt['logger']['save_checkpoint_freq'] = 100
    opt['custom_hooks'] = _hook(monkeypatch, lambda iteration, runner: shutil.rmtree(gt) if iteration == 3 else None)
    assert run_train(opt, tmp_path, monkeypatch) == 1
    assert 'cannot be read' in capsys.readouterr().err and _whole(folder) == [3]


@pytest.mark.parametrize('call', [1, 2, 3])  # before iteration 1, after iteration 2, after the last
def test_a_signal_in_a_validation_saves_and_ends(opt, tmp_path, folder, monkeypatch, call):
    shutil.copytree(opt['datasets']['val']['dataroot_gt'], tmp_path / 'gt')
    shutil.copytree(opt['datasets']['val']['dataroot_lq'], tmp_path / 'lq')
    opt['datasets']['val'].update(dataroot_gt=str(tmp_path / 'gt'), dataroot_lq=str(tmp_path / 'lq'))
    for kind in ('gt', 'lq'):
        first = min((tmp_path / kind).glob('*.png'))
        for other in (tmp_path / kind).glob('*.png'):
            if other != first:
                other.unlink()
        shutil.copy(first, first.with_name(f'z_{first.name}'))  # two images: two calls of the metric each time

    def act(number):
        if number == 2 * call - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return 1.0

    calls = _metric(monkeypatch, opt, act)
    assert run_train(opt, tmp_path, monkeypatch) == 128 + signal.SIGTERM
    assert len(calls) == 2 * call  # the second image was left out
    assert _whole(folder) == {1: [1], 2: [2], 3: [2, 4]}[call]


@pytest.mark.parametrize('change, message', [
    ({'network_g': {'num_feat': 12}}, 'network_g.num_feat was 8 at the save'),
    ({'network_d': {'num_feat': 16}}, 'network_d.num_feat was 8 at the save'),
    ({'model_type': 'AccumulatingSRModel'}, 'model_type was AccumulatingESRGANModel at the save')])
def test_a_state_of_other_networks_is_one_sentence(opt, tmp_path, folder, monkeypatch, capsys, change, message):
    del opt['val'], opt['datasets']['val']
    assert run_train(opt, tmp_path, monkeypatch) == 0
    for key, value in change.items():
        opt[key] = {**opt[key], **value} if isinstance(value, dict) else value
    opt['train']['total_iter'] = 6
    assert run_train(opt, tmp_path, monkeypatch, '--auto_resume') == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n- ') == 1


@pytest.mark.parametrize('spoil', [
    {'iter': 'two'}, {'iter': None}, {'iter': -1}, {'iter': True}, {'optimizers': None}, {'optimizers': [1]},
    {'optimizers': []}, {'schedulers': {}}, {'schedulers': []}, {'optimizers': [{}, {}]}, {'schedulers': [{}, {}]},
    {'sr_bigbatch': {}}, {'sr_bigbatch': {'step': 3}}, {'sr_bigbatch': []}])
def test_an_odd_state_is_one_sentence(opt, tmp_path, folder, monkeypatch, capsys, spoil):
    del opt['val'], opt['datasets']['val']
    opt['train']['total_iter'] = 2
    assert run_train(opt, tmp_path, monkeypatch) == 0
    state = torch.load(folder / 'training_states' / '2.state', weights_only=True)
    torch.save({**state, **spoil}, tmp_path / 'odd.state')
    opt['path']['resume_state'] = str(tmp_path / 'odd.state')
    opt['train']['total_iter'] = 3
    status = run_train(opt, tmp_path, monkeypatch)
    assert status == 2 or spoil == {'schedulers': [{}, {}]}
    assert capsys.readouterr().err.count('\n- ') == 1 or status == 0


ODD_LINES = ['{"iter": "x"}', '{"iter": null}', '{"iter": [1]}', '[1]', '3', '{"iter": 1', '\0', '[' * 100_000,
             '{"iter": 1e400}', 'null', '{"iter": {}}', '"iter"']


@pytest.mark.parametrize('line', ODD_LINES, ids=range(len(ODD_LINES)))
def test_odd_lines_of_a_log_are_left_out(tmp_path, line):
    log = tmp_path / 'train_log.jsonl'
    log.write_text(f'{{"iter": 1}}\n{line}\n{{"iter": 5}}\n')
    assert [record['iter'] for record in read_log(log)] == [1, 5]
    trim_log(log, 3)
    assert [record['iter'] for record in read_log(log)] == [1]


@pytest.mark.parametrize('text', ['', '[]', '3', 'null', '{}', '{"files": []}', '{"files": 3}',
                                  '{"files": {"models/net_g_2.pth": 1}}', '{"files": {"models": {"bytes": 1}}}',
                                  '{"files": {"x": null}}',
                                  '[' * 100_000, '\0', '{"files"'])
def test_an_odd_manifest_is_a_reason_to_pass_over(opt, tmp_path, folder, monkeypatch, text):
    del opt['val'], opt['datasets']['val']
    opt['train']['total_iter'] = 2
    assert run_train(opt, tmp_path, monkeypatch) == 0
    (folder / 'training_states' / '2.json').write_text(text)
    assert isinstance(fault(folder, 2), str)


def test_names_with_spaces_and_dots_work_in_an_lmdb(opt, tmp_path, data):
    names = ['my photo', 'a.b', 'a_b', ' x', 'a.b.c', 'ü.1']
    for kind in ('gt', 'lq'):
        source, target = data / f'train_{kind}', tmp_path / f'set.v2 {kind}'
        target.mkdir()
        for name, file in zip(names, sorted(source.glob('*.png')), strict=False):
            shutil.copy(file, target / f'{name}.png')
        opt['datasets']['train'][f'dataroot_{kind}'] = str(make_lmdb(target))
    opt['datasets']['train'].update(io_backend={'type': 'lmdb'}, batch_size_per_gpu=2)
    check(opt)


def _bomb(file, side=20_000):
    def chunk(kind, content):
        return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)

    rows = zlib.compressobj()
    content = b''.join(rows.compress(bytes(1 + side // 8)) for _ in range(side)) + rows.flush()
    file.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', side.to_bytes(4) * 2 + b'\1\0\0\0\0') + chunk(b'IDAT', content)
                     + chunk(b'IEND', b''))


def test_an_image_that_would_fill_the_memory_is_told(opt, tmp_path):
    for kind in ('gt', 'lq'):
        folder = Path(shutil.copytree(opt['datasets']['train'][f'dataroot_{kind}'], tmp_path / kind))
        _bomb(folder / 'zz.png')
        opt['datasets']['train'][f'dataroot_{kind}'] = str(folder)
    assert size_of(tmp_path / 'gt' / 'zz.png') is not None
    with pytest.raises(OptionError, match=r'zz\.png has more than'):
        check(opt)
    refused = cut_all([tmp_path / 'gt' / 'zz.png'], tmp_path / 'a', tmp_path / 'b', None, 4, 1, 'x')
    assert len(refused) == 1 and 'zz.png has more' in refused[0]


def test_prepare_data_ends_with_its_workers_at_a_signal(tmp_path):
    photos = tmp_path / 'photos'
    photos.mkdir()
    for number in range(30):
        shutil.copy(bundled(['astronaut.png'])[0], photos / f'{number}.png')
    process = subprocess.Popen(
        [sys.executable, str(ROOT / 'tools' / 'prepare_data.py'), str(photos), '--out', str(tmp_path / 'out'),
         '--processes', '2'],
        env={**os.environ, 'PYTHONPATH': str(ROOT)}, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not list(tmp_path.glob('out/train_gt/.*.done')) and time.monotonic() < end:
        time.sleep(0.05)
    children = Path(f'/proc/{process.pid}/task/{process.pid}/children')
    workers = children.read_text().split() if children.is_file() else []
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert 'stopped by SIGTERM' in error and 'Traceback' not in error
    assert not list(tmp_path.rglob('*.part')) and not any(Path(f'/proc/{worker}').exists() for worker in workers)
    assert json.dumps(sorted(file.name for file in tmp_path.glob('out/train_gt/*.png')))
