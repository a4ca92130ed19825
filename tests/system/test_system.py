"""A training where the system has neither POSIX modules nor signals nor fork, as on Windows; and what stands in for them."""
import errno
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import yaml

from sr_bigbatch import system
from tests.conftest import ROOT

# What Windows has not. Workers import this script anew, because they are spawned.
PRELUDE = '''
import multiprocessing, os, runpy, signal, sys
for name in ('resource', 'fcntl', 'pwd', 'grp'):
    sys.modules[name] = None
for name in ('SIGUSR1', 'SIGUSR2', 'SIGHUP', 'SIGKILL', 'pthread_sigmask', 'sigwaitinfo', 'sigwait'):
    delattr(signal, name)
for name in ('sysconf', 'fork', 'pread', 'pwrite', 'killpg', 'getpgid', 'setsid'):
    delattr(os, name)
opened = os.open
def open_as_windows(path, flags, *more, **others):
    if os.path.isdir(path) and 'sr_bigbatch' in sys._getframe(1).f_code.co_filename:
        raise PermissionError(13, 'Permission denied', path)
    return opened(path, flags, *more, **others)
os.open = open_as_windows
import sr_bigbatch.system
sr_bigbatch.system._ON_WINDOWS = True
if __name__ == '__main__':
    multiprocessing.set_start_method('spawn')
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name='__main__')
'''


def _run(script, tmp_path, *arguments):
    (tmp_path / 'prelude.py').write_text(textwrap.dedent(PRELUDE))
    command = [sys.executable, '-W', 'ignore', str(tmp_path / 'prelude.py'), str(ROOT / 'tools' / script), *arguments]
    return subprocess.run(command, env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True, text=True, check=False,
                          timeout=250)


@pytest.mark.parametrize('made', [False, True])
def test_a_training_runs_saves_and_resumes_without_what_windows_lacks(opt, tmp_path, made):
    for dataset in opt['datasets'].values() if made else []:
        dataset['dataroot_lq'] = None
    opt['datasets']['train'].update(num_worker_per_gpu=1, type='ProgressivePairedImageDataset')
    opt['train'].update(total_iter=2)
    text = '# Größe\n' + yaml.safe_dump(opt)
    (tmp_path / 'run.yml').write_bytes(text.replace('\n', '\r\n').encode())
    done = _run('train.py', tmp_path, '-opt', str(tmp_path / 'run.yml'))
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / 'experiments' / 'quickstart'
    assert (folder / 'training_states' / '2.state').is_file() and (folder / 'comparison.png').is_file()
    more = ['--auto_resume', '--force_yml', 'train:total_iter=3']
    done = _run('train.py', tmp_path, '-opt', str(tmp_path / 'run.yml'), *more)
    assert done.returncode == 0 and 'Resuming training from epoch: 0, iter: 2' in done.stderr
    assert not list(folder.parent.glob('.*.lock'))


def test_a_preparation_and_a_check_run_without_what_windows_lacks(opt, data, tmp_path):
    done = _run('prepare_data.py', tmp_path, str(data / 'train_gt'), '--out', str(tmp_path / 'out'), '--size', '64',
                '--step', '64', '--processes', '2', '--lmdb')
    assert done.returncode == 0, done.stderr[-3000:]
    (tmp_path / 'run.yml').write_text(yaml.safe_dump(opt))
    assert _run('check.py', tmp_path, '-opt', str(tmp_path / 'run.yml')).returncode == 0


def test_a_path_of_windows_is_a_folder_that_is_not_there(opt, tmp_path):
    opt['datasets']['train']['dataroot_gt'] = r'C:\photos\train gt'
    (tmp_path / 'run.yml').write_text(yaml.safe_dump(opt))
    done = _run('check.py', tmp_path, '-opt', str(tmp_path / 'run.yml'))
    assert done.returncode == 2 and r'there is no folder C:\photos\train gt' in done.stderr


def test_memory_is_told_or_guessed(monkeypatch):
    assert system.free_bytes() > 2**20 and system.peak_process_bytes() > 2**20
    monkeypatch.setattr(os, 'sysconf_names', {'SC_PHYS_PAGES': 1, 'SC_PAGE_SIZE': 2})  # macOS
    assert system.free_bytes() == os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') // 2
    monkeypatch.delattr(os, 'sysconf')
    assert system.free_bytes() == 4 * 2**30
    monkeypatch.setattr(system, '_ON_WINDOWS', True)
    assert system.free_bytes() == 4 * 2**30  # no Windows to ask
    monkeypatch.setitem(sys.modules, 'resource', None)
    assert system.peak_process_bytes() == 0


def test_without_locks_the_caller_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'fcntl', None)
    with (tmp_path / 'file').open('wb') as file, pytest.raises(OSError, match='no locks') as caught:
        system.lock(file.fileno())
    assert caught.value.errno == errno.ENOSYS


def test_windows_locks_a_byte_behind_what_is_written(tmp_path, monkeypatch):
    locked = []

    class Msvcrt:
        LK_NBLCK = 2

        @staticmethod
        def locking(descriptor, mode, count):
            locked.append((os.lseek(descriptor, 0, os.SEEK_CUR), mode, count))

    monkeypatch.setitem(sys.modules, 'fcntl', None)
    monkeypatch.setitem(sys.modules, 'msvcrt', Msvcrt)
    with (tmp_path / 'file').open('w+b') as file:
        system.lock(file.fileno())
        system.replace_content(file.fileno(), b'a longer content')
        system.replace_content(file.fileno(), b'content')
        assert system.read_at_start(file.fileno(), 99) == b'content'
    assert locked == [(1 << 20, 2, 1)]


def test_only_the_module_for_systems_names_what_some_of_them_lack():
    words = ('import resource', 'import fcntl', 'import msvcrt', 'signal.SIGUSR1', 'os.sysconf(', 'os.fsync(',
             'os.fork(', 'os.pread(', 'os.pwrite(')
    for path in (ROOT / 'sr_bigbatch').rglob('*.py'):
        if path.name != 'system.py':
            lines = [line for line in path.read_text(encoding='utf-8').splitlines() if "'" not in line]
            assert not [line for line in lines for word in words if word in line.split('#')[0]], path


def test_signals_that_exist_stop_a_training():
    assert set(system.STOP_SIGNALS) == {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}
