"""``train.verify_every``: a training compares itself with the undivided batch, and says so in its logs."""
import json

import pytest

from tests.conftest import load_tool, run_train

KEYS = {'verify_g', 'verify_d'}


def _records(tmp_path):
    lines = (tmp_path / 'experiments' / 'quickstart' / 'train_log.jsonl').read_text().splitlines()
    return [json.loads(line) for line in lines]


def _shorten(opt):
    opt['train'].pop('perceptual_opt', None)
    opt.pop('val')
    opt['datasets'].pop('val')
    opt['logger']['save_checkpoint_freq'] = 100


@pytest.mark.parametrize('discriminator', [True, False])
def test_the_difference_from_the_undivided_batch_is_logged(opt, tmp_path, monkeypatch, basicsr_log, discriminator):
    _shorten(opt)
    opt['train'].update(verify_every=2, total_iter=3)
    if not discriminator:
        opt['model_type'] = 'AccumulatingSRModel'
        opt.pop('network_d')
        for key in ('gan_opt', 'optim_d', 'kept_graphs'):
            opt['train'].pop(key)
    assert run_train(opt, tmp_path, monkeypatch) == 0
    records = _records(tmp_path)
    expected = KEYS if discriminator else {'verify_g'}
    assert [record['iter'] for record in records] == [1, 2, 3]
    assert all(KEYS & set(record) == expected for record in records[1:])
    assert all(0 <= record[name] < 1e-10 for record in records[1:] for name in expected)
    assert all(f'{name}: ' in basicsr_log.text for name in expected)


def test_a_difference_is_an_event_where_it_is_accepted(opt, tmp_path, monkeypatch, basicsr_log):
    _shorten(opt)
    opt['train'].update(verify_every=2, total_iter=2, accumulation='plain')
    assert run_train(opt, tmp_path, monkeypatch) == 0
    records = _records(tmp_path)
    assert max(records[-1][name] for name in KEYS) > 1e-8
    told = [record for record in records if record.get('event') == 'inexact']
    assert told and records[-1]['n_inexact'] == len(told) and 'undivided batch' in told[0]['text'] in basicsr_log.text


def test_without_it_the_logs_are_those_of_basicsr(opt, tmp_path, monkeypatch):
    _shorten(opt)
    opt['train']['total_iter'] = 2
    assert run_train(opt, tmp_path, monkeypatch) == 0
    assert not [record for record in _records(tmp_path) if KEYS & set(record)]


@pytest.mark.parametrize('value', [-1, 0.5, 'often', True])
def test_only_a_whole_number_says_how_often(opt, tmp_path, monkeypatch, capsys, value):
    opt['train']['verify_every'] = value
    assert run_train(opt, tmp_path, monkeypatch) == 2
    assert f'train.verify_every must be a whole number of iterations, 0 or more, got {value!r}' in capsys.readouterr().err


def test_a_misspelt_key_is_told_the_nearest(opt, tmp_path, monkeypatch, capsys):
    opt['train']['verify_evry'] = 2
    assert run_train(opt, tmp_path, monkeypatch) == 2
    assert 'did you mean verify_every?' in capsys.readouterr().err


def test_the_reference_names_it(monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['check.py', '--reference'])
    assert load_tool('check').main() == 0
    assert '`train.verify_every`' in capsys.readouterr().out
