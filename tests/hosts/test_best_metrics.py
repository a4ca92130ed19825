"""What a resumed run knows of the best metrics, and what that keeps."""
import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from basicsr.utils.registry import METRIC_REGISTRY

from sr_bigbatch.hosts.basicsr.model.best_metrics import best_iterations, best_metrics, load_best_metrics
from tests.hosts.test_reliability import _after_save, _fork, _log, _sets, _status, _write


@pytest.fixture
def judged(opt, monkeypatch):
    """A run that saves at every second iteration and validates there, too: a first metric is best at 2, a second at 4."""
    now = [0]
    best = {'first': 2, 'second': 4}
    for name, iteration in best.items():
        monkeypatch.setitem(METRIC_REGISTRY._obj_map, name,
                            lambda img, img2, iteration=iteration, **_: float(-abs(now[0] - iteration)))

    def validated():
        import sr_bigbatch.hosts.basicsr.training.run as run
        original = run.Run.validate

        def validate(self, iteration):
            now[0] = iteration
            original(self, iteration)

        run.Run.validate = validate

    opt['val'].update(val_freq=2, save_img=False, metrics={name: {'type': name} for name in best})
    opt['train']['total_iter'] = 10
    opt['logger'].update(save_checkpoint_freq=2, keep_last=1, keep_best=True)
    return opt, validated


def _both(*prepares):
    def prepare():
        for each in prepares:
            each()
    return prepare


def _killed_after(iteration):
    return _after_save(iteration, lambda: os.kill(os.getpid(), signal.SIGKILL))


@pytest.mark.parametrize('killed', [2, 4, 7])
def test_the_best_saves_outlive_a_resume(judged, tmp_path, killed):
    opt, validated = judged
    file, folder = _write(opt, tmp_path / 'run.yml'), tmp_path / 'experiments' / 'quickstart'
    assert _status(_fork(['-opt', file], _both(validated, _killed_after(killed)))) == -signal.SIGKILL
    assert _status(_fork(['-opt', file, '--auto_resume'], validated)) == 0
    assert _sets(folder) == ([2, 4, 10], [2, 4, 10])
    best = torch.load(folder / 'training_states/10.state', weights_only=True)['sr_bigbatch']['best']['held_out']
    assert {name: entry['iter'] for name, entry in best.items()} == {'first': 2, 'second': 4}


def test_a_run_that_goes_back_forgets_what_was_best_later(judged, tmp_path):
    opt, validated = judged
    file, folder = _write(opt, tmp_path / 'run.yml'), tmp_path / 'experiments' / 'quickstart'
    assert _status(_fork(['-opt', file], validated)) == 0
    again = ['-opt', file, '--force_yml', f'path:resume_state={folder}/training_states/2.state', 'train:total_iter=3',
             'logger:save_checkpoint_freq=1']
    assert _status(_fork(again, validated)) == 0
    best = torch.load(folder / 'training_states/3.state', weights_only=True)['sr_bigbatch']['best']['held_out']
    assert {name: entry['iter'] for name, entry in best.items()} == {'first': 2, 'second': 2}


@pytest.mark.parametrize('changed', [
    lambda metrics: {'first': metrics['first']}, lambda metrics: {**metrics, 'third': {'type': 'first'}},
    lambda metrics: {'first': metrics['first'], 'second': {**metrics['second'], 'better': 'lower'}}],
    ids=['fewer', 'more', 'another direction'])
def test_other_metrics_than_at_the_save_begin_anew(judged, tmp_path, changed):
    opt, validated = judged
    folder = tmp_path / 'experiments' / 'quickstart'
    assert _status(_fork(['-opt', _write(opt, tmp_path / 'run.yml'), '--force_yml', 'train:total_iter=5'], validated)) == 0
    opt['val']['metrics'] = changed(opt['val']['metrics'])
    assert _status(_fork(['-opt', _write(opt, tmp_path / 'run.yml'), '--auto_resume'], validated)) == 0
    best = torch.load(folder / 'training_states/10.state', weights_only=True)['sr_bigbatch']['best']['held_out']
    assert set(best) == set(opt['val']['metrics']) and best['first']['iter'] == 2
    assert all(math.isfinite(entry['val']) for entry in best.values())


@pytest.mark.parametrize('saved', [None, [], 'x', {'held_out': 1}, {'held_out': {'first': {}}},
                                   {'held_out': {'first': {'better': 'higher', 'val': 'x', 'iter': 1}}},
                                   {'held_out': {'first': {'better': 'higher', 'val': 1.0, 'iter': None}}}])
def test_what_is_no_record_of_metrics_is_left_out(judged, saved):
    model = SimpleNamespace(opt=judged[0])
    load_best_metrics(model, saved)
    known = {entry['iter'] for metrics in best_metrics(model).values() for entry in metrics.values()}
    assert known <= {-1} and best_iterations(model) == known


def test_a_save_that_cannot_be_removed_is_told_once_in_a_run(judged, tmp_path):
    opt, validated = judged
    opt['logger']['keep_best'] = False
    folder = tmp_path / 'experiments' / 'quickstart'

    def protect():
        unlink = os.unlink

        def refuse(path, *arguments, **more):
            if Path(path).name == '2.json':
                raise PermissionError(1, 'Operation not permitted', str(path))
            unlink(path, *arguments, **more)

        os.unlink = refuse

    assert _status(_fork(['-opt', _write(opt, tmp_path / 'run.yml')], _both(validated, protect))) == 0
    assert _sets(folder) == ([2, 10], [2, 10])
    assert _log(folder).count('could not be removed') == 1 and 'The save of iteration 2 could not be removed' in _log(folder)
