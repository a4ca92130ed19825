"""One run at a time in an experiment's folder."""
import errno
import json
import os
import signal
import socket
import time

import pytest

from sr_bigbatch.files.run_lock import lock_file
from sr_bigbatch.hosts.basicsr.model.saved_state import GaveUp
from sr_bigbatch.options import OptionError
from tests.conftest import run_train, run_two_processes
from tests.hosts.test_reliability import _fork, _status, _wait_for, _write

_ENDLESS = ['--force_yml', 'train:total_iter=100000']


@pytest.fixture
def short(opt):
    """A run of a second: no validation, a save at every second iteration."""
    del opt['val'], opt['datasets']['val']
    opt['train']['total_iter'] = 8
    return opt


@pytest.fixture
def folder(tmp_path):
    return tmp_path / 'experiments' / 'quickstart'


@pytest.fixture
def running(short, tmp_path, folder):
    """A run that is at work and has saved."""
    child = _fork(['-opt', _write(short, tmp_path / 'run.yml'), *_ENDLESS])
    _wait_for(folder / 'training_states' / '2.json')
    yield child
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _left(folder):
    return {path.name for path in folder.parent.iterdir()} - {folder.name}


@pytest.mark.parametrize('arguments', [
    [], ['--auto_resume'], ['--force_yml', 'path:resume_state={folder}/training_states/2.state'],
    ['--force_yml', 'datasets:train:num_worker_per_gpu=1']])
def test_a_second_run_in_the_folder_ends_with_one_sentence(short, tmp_path, folder, running, monkeypatch, capsys, arguments):
    given = [argument.format(folder=folder) for argument in arguments]
    assert run_train(short, tmp_path, monkeypatch, *given) == 2
    told = capsys.readouterr().err
    assert told.count('\n') == 1 and f'a run (process {running} on {socket.gethostname()}, since 2' in told
    assert f'is at work in {folder}: wait for its end, or give this run another name' in told
    assert _left(folder) == {lock_file(folder).name} and len(list(folder.glob('train_*.log'))) == 1
    assert run_train({**short, 'name': 'another'}, tmp_path, monkeypatch) == 0


def test_of_runs_that_begin_together_one_goes_on(short, tmp_path, folder):
    children = {_fork(['-opt', _write(short, tmp_path / 'run.yml'), *_ENDLESS]) for _ in range(4)}
    for _ in range(3):
        child, status = os.wait()
        children.remove(child)
        assert os.waitstatus_to_exitcode(status) == 2
    last, = children
    _wait_for(folder / 'training_states' / '2.json')
    os.kill(last, signal.SIGTERM)
    assert _status(last) == 143 and not _left(folder)


@pytest.mark.parametrize('workers', [0, 2])
def test_the_lock_of_a_killed_run_hinders_none(short, tmp_path, folder, workers):
    short['datasets']['train']['num_worker_per_gpu'] = workers
    file = _write(short, tmp_path / 'run.yml')
    child = _fork(['-opt', file, *_ENDLESS])
    _wait_for(folder / 'training_states' / '2.json')
    os.kill(child, signal.SIGKILL)
    assert _status(child) == -signal.SIGKILL and _left(folder) == {lock_file(folder).name}
    newest = max(int(state.stem) for state in folder.glob('training_states/*.json'))
    assert _status(_fork(['-opt', file, '--auto_resume', '--force_yml', f'train:total_iter={newest + 2}'])) == 0
    assert not _left(folder)


def _raise(error):
    def prepare():
        import sr_bigbatch.hosts.basicsr.training.run as run

        def one(*arguments):
            raise error

        run.Run.one = one
    return prepare


@pytest.mark.parametrize(('prepare', 'status'), [
    (lambda: None, 0), (_raise(GaveUp('lost')), 1), (_raise(OptionError(['wrong'])), 2),
    (_raise(RuntimeError('a defect')), 1), (_raise(KeyboardInterrupt()), 99), (_raise(SystemExit(3)), 99)])
def test_the_lock_is_released_at_every_end(short, tmp_path, folder, prepare, status):
    short['train']['total_iter'] = 2
    assert _status(_fork(['-opt', _write(short, tmp_path / 'run.yml')], prepare)) == status
    assert folder.is_dir() and not _left(folder)


@pytest.mark.parametrize('content', [b'', b'{"pid"', b'\xff\0', b'[]', b'{}', b'{"pid": "x", "host": "HERE", "more": 3}'])
def test_a_stale_lock_is_taken_over(short, tmp_path, folder, content, monkeypatch):
    short['train']['total_iter'] = 2
    folder.parent.mkdir()
    lock_file(folder).write_bytes(content.replace(b'HERE', socket.gethostname().encode()))
    assert run_train(short, tmp_path, monkeypatch) == 0 and not _left(folder)


def _lock_elsewhere(folder):
    folder.parent.mkdir()
    lock_file(folder).write_text(json.dumps({'pid': 7, 'host': 'elsewhere', 'started': '2026-01-02 03:04:05'}))


def test_a_lock_of_another_host_is_named_with_what_to_do(short, tmp_path, folder, monkeypatch, capsys):
    _lock_elsewhere(folder)
    assert run_train(short, tmp_path, monkeypatch) == 2
    told = capsys.readouterr().err
    assert told.count('\n') == 1 and 'a run (process 7 on elsewhere, since 2026-01-02 03:04:05) has' in told
    assert f'if it is not, remove {lock_file(folder)}' in told and not folder.exists()
    lock_file(folder).unlink()
    assert run_train(short, tmp_path, monkeypatch, '--force_yml', 'train:total_iter=2') == 0 and not _left(folder)


def test_a_file_system_without_locks_is_trained_on(short, tmp_path, folder, monkeypatch):
    def no_locks(*arguments):
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr('fcntl.lockf', no_locks)
    assert run_train(short, tmp_path, monkeypatch, '--force_yml', 'train:total_iter=2') == 0 and not _left(folder)


def test_a_folder_that_cannot_be_made_is_one_sentence(short, tmp_path, folder, monkeypatch, capsys):
    folder.parent.write_text('no folder')
    assert run_train(short, tmp_path, monkeypatch) == 2
    assert capsys.readouterr().err.count('\n') == 1


def test_all_processes_of_a_run_end_when_the_first_is_refused(short, tmp_path, folder):
    _lock_elsewhere(folder)
    began = time.monotonic()
    with pytest.raises(AssertionError, match='process 7 on elsewhere'):
        run_two_processes('train', '-opt', _write(short, tmp_path / 'run.yml'))
    assert time.monotonic() - began < 60 and not folder.exists()
