"""Runs that are killed, stopped, out of space or given broken files, as a user meets them."""
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from basicsr.utils import logger
from basicsr.utils.registry import METRIC_REGISTRY

from sr_bigbatch.files import storage
from sr_bigbatch.files.checkpoint_set import fault, iterations
from sr_bigbatch.hosts.basicsr.model import saved_state
from sr_bigbatch.report.run_log import LOG_FILE, read_log
from tests.conftest import load_tool, run_train, run_two_processes
from tests.hosts.test_progressive import _same
from tests.reference import checked

ITERATIONS = 8
_OTHER = 'train:pixel_opt:loss_weight=9'  # makes another training of it


@pytest.fixture
def short(opt, tmp_path):
    """A run of a second: no validation, a save at every second iteration."""
    del opt['val'], opt['datasets']['val']
    opt['train'].update(total_iter=ITERATIONS)
    opt['logger'].update(save_checkpoint_freq=2)
    opt['datasets']['train']['num_worker_per_gpu'] = 0
    return opt


def _write(opt, path):
    path.write_text(yaml.safe_dump(opt))
    return str(path)


def _fork(arguments, prepare=lambda: None):
    """Run ``tools/train.py`` in a child of this process, which has imported everything already; returns its id."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            torch.set_num_threads(1)
            logger.initialized_logger.clear()  # as in a new process: BasicSR writes a log file only then
            prepare()
            sys.argv = ['train.py', *arguments]
            sys.stdout = sys.stderr = open(os.devnull, 'w')
            status = load_tool('train').main()
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)  # pytest shows it with the failure
        finally:
            os._exit(status)
    return child


def _status(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _slow_saves():
    """Half of the time of a save is spent between writing a file and giving it its name."""
    replace = os.replace

    def slowly(*arguments):
        time.sleep(0.02)
        replace(*arguments)

    storage.os.replace = slowly


def _final(folder):
    return {file.name: torch.load(file, weights_only=True)
            for file in (*(folder / 'models').glob(f'net_*_{ITERATIONS}.pth'),
                         folder / 'training_states' / f'{ITERATIONS}.state')}


def _kill_trials(short, tmp_path, trials):
    assert _status(_fork(['-opt', _write(short, tmp_path / 'run.yml')])) == 0
    expected, inside, whole = _final(tmp_path / 'experiments' / 'quickstart'), 0, 3.0
    for trial in range(trials):
        random.seed(trial)
        arguments = ['-opt', _write({**short, 'name': f'trial_{trial}'}, tmp_path / 'run.yml'), '--auto_resume']
        folder, kills = tmp_path / 'experiments' / f'trial_{trial}', 0
        while True:
            began, child = time.monotonic(), _fork(arguments, _slow_saves)
            if kills == 2:
                assert _status(child) == 0
                break
            time.sleep(random.uniform(0.3, 1.0) * whole)
            os.kill(child, signal.SIGKILL)
            if _status(child) == 0:
                whole = min(whole, time.monotonic() - began)
                break
            kills += 1
            inside += bool(list(folder.glob('*/.*.part')))
        assert set(expected) <= {file.name for file in folder.glob('*/*')}
        _same(_final(folder), expected, f'trial {trial}')
        assert not list(folder.glob('*/.*.part')) or kills
        shutil.rmtree(folder)
    return inside


def test_a_killed_run_ends_with_the_same_bits(short, tmp_path):
    _kill_trials(short, tmp_path, 4)


@pytest.mark.slow
def test_fifty_killed_runs_end_with_the_same_bits(short, tmp_path):
    assert _kill_trials(short, tmp_path, 50) > 0  # some kills met a save


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_ends_the_run_after_a_save_and_nothing_is_lost(short, tmp_path, number):
    short['logger']['save_checkpoint_freq'] = 1000
    short['train']['total_iter'] = 100_000
    file, states = _write(short, tmp_path / 'run.yml'), tmp_path / 'experiments' / 'quickstart' / 'training_states'
    child = _fork(['-opt', file])
    _wait_for(tmp_path / 'experiments' / 'quickstart' / 'train_log.jsonl')
    os.kill(child, number)
    assert _status(child) == 128 + number
    stopped, = (int(state.stem) for state in states.glob('*.state'))
    log = (states.parent / 'train_log.jsonl').read_text().count('"l_g_pix"')
    assert log == stopped  # the step under way was finished, logged and saved
    child = _fork(['-opt', file, '--auto_resume', '--force_yml', f'train:total_iter={stopped + 2}',
                   'logger:save_checkpoint_freq=1'])
    assert _status(child) == 0 and (states / f'{stopped + 2}.state').is_file()


def _wait_for(path, seconds=60):
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f'{path} did not appear'
        time.sleep(0.05)


def test_a_second_signal_leaves_at_once(short, tmp_path):
    short['train']['total_iter'] = 100_000

    def stuck():
        import sr_bigbatch.hosts.basicsr.training.run as run
        run.Run.one = lambda *arguments: [Path(tmp_path / 'stuck').touch(), time.sleep(60)]

    child = _fork(['-opt', _write(short, tmp_path / 'run.yml')], stuck)
    _wait_for(tmp_path / 'stuck')
    began = time.monotonic()
    for _ in range(2):
        os.kill(child, signal.SIGTERM)
        time.sleep(0.3)
    assert _status(child) == 143 and time.monotonic() - began < 10


_LOADER = """
import os, signal, subprocess
from sr_bigbatch.hosts.basicsr.training.loader import BatchOrder, training_loader
order = BatchOrder(100, 2, 0)
images = [{'gt': number} for number in range(100)]
kept = iter(training_loader(images, {'num_worker_per_gpu': 2}, order, pin_memory=False))
next(kept), next(kept)  # one of each worker: both are at work
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)
    subprocess.run(['kill', f'-{number:d}', '--', f'-{os.getpgrp()}'])
print(*(next(kept)['gt'].shape for _ in range(20)))
"""


def test_workers_survive_a_signal_to_the_group_and_never_keep_the_process_from_its_end():
    """Not even if their iterator is still alive at the exit, as it is after an error."""
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', _LOADER], capture_output=True, text=True, check=False,
                          timeout=60, start_new_session=True)
    assert done.returncode == 0 and done.stdout.count('[2]') == 20, done.stderr[-2000:]


def test_no_room_for_a_save_keeps_the_one_before_and_ends_with_an_error(short, tmp_path):
    file, folder = _write(short, tmp_path / 'run.yml'), tmp_path / 'experiments' / 'quickstart'
    assert _status(_fork(['-opt', file, '--force_yml', 'train:total_iter=2'])) == 0
    before = {path: path.read_bytes() for path in folder.glob('*/2.*')}

    def no_room():  # no file may grow larger than this: what a full disk does, also to root
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    assert _status(_fork(['-opt', file, '--auto_resume'], no_room)) == 1
    assert all(path.read_bytes() == content for path, content in before.items())
    assert not list(folder.glob('*/*.part')) and not list(folder.glob('*/4.*')) and not list(folder.glob('*/*_4.pth'))
    assert 'has failed, the newest whole save is that of iteration 2: ' in _log(folder)
    assert _status(_fork(['-opt', file, '--auto_resume'])) == 0


def _log(folder):
    return sorted(folder.glob('train_*.log'))[-1].read_text()


def _sets(folder):
    """The iterations of all saves, and of those that are whole."""
    there = iterations(folder)
    return there, [iteration for iteration in there if fault(folder, iteration) is None]


def _contents(folder, iteration):
    return {file.name: file.read_bytes() for file in (*folder.glob(f'*/net_*_{iteration}.pth'),
                                                      *folder.glob(f'*/{iteration}.*'))}


def _room_until(limit, prepare=lambda: None):
    """After ``prepare``, files may grow to so many bytes only: what a full disk does, also to root."""
    def full():
        prepare()
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return full


def _after_save(iteration, then):
    """Have ``then`` follow on the save that is due at an iteration."""
    def prepare():
        import sr_bigbatch.hosts.basicsr.training.run as run
        original = run.Run.one

        def one(self, epoch, current, *arguments):
            original(self, epoch, current, *arguments)
            if current == iteration:
                then()

        run.Run.one = one
    return prepare


@pytest.mark.parametrize('full', [False, True])
@pytest.mark.parametrize('keep_last', [None, 1, 2])
def test_a_signal_after_a_save_of_the_same_iteration_saves_nothing_again(short, tmp_path, keep_last, full):
    short['train']['total_iter'], short['logger']['keep_last'] = 100, keep_last
    folder = tmp_path / 'experiments' / 'quickstart'

    def stop():
        if full:
            _room_until(30_000)()
        os.kill(os.getpid(), signal.SIGTERM)

    assert _status(_fork(['-opt', _write(short, tmp_path / 'run.yml')], _after_save(8, stop))) == 143
    there = [2, 4, 6, 8][-(keep_last or 4):]
    assert _sets(folder) == (there, there) and 'has failed' not in _log(folder)
    assert not list(folder.glob('*/.*'))


@pytest.mark.parametrize('limit', [10_000, 30_000, 60_000, 100_000])
def test_a_save_that_fails_where_an_earlier_run_had_saved_leaves_that_save_whole(short, tmp_path, limit):
    file, folder = _write(short, tmp_path / 'run.yml'), tmp_path / 'experiments' / 'quickstart'
    assert _status(_fork(['-opt', file])) == 0
    before = {iteration: _contents(folder, iteration) for iteration in (2, 4, 6, 8)}
    sizes = sorted(len(content) for content in before[8].values())
    assert limit < sizes[-1], sizes  # one file at least does not fit
    again = ['-opt', file, '--force_yml', f'path:resume_state={folder}/training_states/2.state', _OTHER]
    assert _status(_fork(again, _room_until(limit))) == 1
    aside, = folder.glob('set_aside_*')
    assert {iteration: _contents(aside if iteration > 2 else folder, iteration) for iteration in before} == before
    assert _sets(folder) == ([2], [2]) and not list(folder.glob('*/.*'))
    assert 'The save of iteration 4 has failed, the newest whole save is that of iteration 2: ' in _log(folder)
    assert _status(_fork(again)) == 0
    assert _sets(folder) == ([2, 4, 6, 8], [2, 4, 6, 8])
    assert all(_contents(folder, iteration) != before[iteration] for iteration in (4, 6, 8))


@pytest.mark.parametrize('moved', range(4))
def test_a_kill_while_a_save_replaces_one_is_made_good_at_the_next_start(short, tmp_path, moved):
    short['train']['total_iter'] = 2
    file, folder = _write(short, tmp_path / 'run.yml'), tmp_path / 'experiments' / 'quickstart'
    assert _status(_fork(['-opt', file, '--force_yml', 'logger:save_checkpoint_freq=1'])) == 0
    before = _contents(folder, 2)

    def killed():
        replace, moves = os.replace, []

        def replace_or_die(source, target):
            if str(source).endswith('.next'):
                if len(moves) == moved:
                    os.kill(os.getpid(), signal.SIGKILL)
                moves.append(target)
            replace(source, target)

        storage.os.replace = replace_or_die

    again = ['-opt', file, '--force_yml', f'path:resume_state={folder}/training_states/1.state', _OTHER]
    assert _status(_fork(again, killed)) == -signal.SIGKILL
    assert _status(_fork(['-opt', file, '--auto_resume', '--force_yml', 'train:total_iter=3'])) == 0
    assert 'Resuming training from epoch' in _log(folder) and 'iter: 2.' in _log(folder)
    assert 'passed over' not in _log(folder) and 2 in _sets(folder)[1]
    assert _contents(folder, 2) != before and not list(folder.glob('*/.*'))


@pytest.mark.parametrize(('keep_last', 'torn'), [(1, [8]), (1, [6, 8]), (2, [6, 8]), (2, [8]), (3, [6, 8]), (2, [4, 6, 8])])
def test_torn_saves_do_not_count_as_kept_ones(short, tmp_path, keep_last, torn):
    file, folder = _write(short, tmp_path / 'run.yml'), tmp_path / 'experiments' / 'quickstart'
    assert _status(_fork(['-opt', file])) == 0
    for iteration in torn:
        path = folder / 'models' / f'net_g_{iteration}.pth'
        path.write_bytes(path.read_bytes()[:-100])
    resumed = max({2, 4, 6} - set(torn))
    assert _status(_fork(['-opt', file, '--auto_resume', '--force_yml', f'logger:keep_last={keep_last}',
                          'logger:save_checkpoint_freq=1', f'train:total_iter={resumed + 1}'])) == 0
    good = [iteration for iteration in (2, 4, 6, resumed + 1) if iteration not in torn][-keep_last:]
    assert _sets(folder)[1] == good and resumed + 1 in good


@pytest.mark.parametrize('protected', ['models/net_g_2.pth', 'training_states/2.json', 'training_states/2.state'])
def test_an_old_save_that_cannot_be_removed_does_not_fail_the_new_one(short, tmp_path, protected):
    short['logger']['keep_last'] = 1
    short['train']['total_iter'] = 4
    folder = tmp_path / 'experiments' / 'quickstart'

    def protect():
        unlink = os.unlink

        def refuse(path, *arguments, **more):  # rights do not bind root, and not every file system has immutable files
            if Path(path) == folder / protected:
                raise PermissionError(1, 'Operation not permitted', str(path))
            unlink(path, *arguments, **more)

        os.unlink = refuse

    assert _status(_fork(['-opt', _write(short, tmp_path / 'run.yml')], protect)) == 0
    assert 4 in _sets(folder)[1] and 'has failed' not in _log(folder)
    assert _log(folder).count('The save of iteration 2 could not be removed: ') == 1


def test_a_folder_in_the_place_of_an_old_file_does_not_fail_the_new_save(short, tmp_path):
    short['logger']['keep_last'] = 1
    file, folder = _write(short, tmp_path / 'run.yml'), tmp_path / 'experiments' / 'quickstart'
    assert _status(_fork(['-opt', file, '--force_yml', 'train:total_iter=2'])) == 0
    (folder / 'models' / 'net_g_1.pth').mkdir()
    for ending in ('state', 'json'):
        (folder / f'training_states/1.{ending}').write_text('{}')
    assert _status(_fork(['-opt', file, '--auto_resume', '--force_yml', 'train:total_iter=4'])) == 0
    assert _sets(folder)[1] == [4] and 'The save of iteration 1 could not be removed: ' in _log(folder)


def test_a_folder_in_the_place_of_a_new_file_fails_the_save_and_harms_none(short, tmp_path):
    file, folder = _write(short, tmp_path / 'run.yml'), tmp_path / 'experiments' / 'quickstart'
    assert _status(_fork(['-opt', file, '--force_yml', 'train:total_iter=2'])) == 0
    before = _contents(folder, 2)
    (folder / 'models' / 'net_d_4.pth').mkdir()
    assert _status(_fork(['-opt', file, '--auto_resume', '--force_yml', 'train:total_iter=6'])) == 0
    assert _sets(folder) == ([2, 6], [2, 6]) and _contents(folder, 2) == before and not list(folder.glob('*/.*'))
    assert 'The save of iteration 4 has failed, the newest whole save is that of iteration 2: ' in _log(folder)


def test_a_folder_that_cannot_be_written_ends_with_an_error(short, tmp_path):
    def spoil():
        import sr_bigbatch.hosts.basicsr.training.run as run
        original = run.Run.one

        def one(self, *arguments):
            folder = Path(self.opt['path']['models'])
            if folder.is_dir():
                shutil.rmtree(folder)
                folder.write_text('no folder any more')
            return original(self, *arguments)

        run.Run.one = one

    assert _status(_fork(['-opt', _write(short, tmp_path / 'run.yml')], spoil)) == 1


def test_auto_resume_passes_over_a_damaged_save_and_says_so(short, tmp_path):
    file, folder = _write(short, tmp_path / 'run.yml'), tmp_path / 'experiments' / 'quickstart'
    assert _status(_fork(['-opt', file, '--force_yml', 'logger:keep_last=3'])) == 0
    assert sorted(int(state.stem) for state in folder.glob('training_states/*.state')) == [4, 6, 8]
    expected = _final(folder)
    for name in ('models/net_g_8.pth', 'training_states/6.state'):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:len(content) // 2])
    assert _status(_fork(['-opt', file, '--auto_resume'])) == 0
    log = sorted(folder.glob('train_*.log'))[-1].read_text()
    assert 'save of iteration 8 is passed over: models/net_g_8.pth has' in log and 'iteration 6 is passed over' in log
    assert 'iter: 4.' in log
    _same(_final(folder), expected, 'resumed at 4')


@pytest.mark.parametrize('keep_last', [None, 1, 2])
@pytest.mark.parametrize('back', [2, 6, 8])
def test_a_run_that_goes_back_sets_later_saves_aside(short, tmp_path, back, keep_last):
    file, folder = _write(short, tmp_path / 'run.yml'), tmp_path / 'experiments' / 'quickstart'
    assert _status(_fork(['-opt', file])) == 0
    before, lines = {iteration: _contents(folder, iteration) for iteration in (2, 4, 6, 8)}, (folder / LOG_FILE).read_bytes()
    other = ['-opt', file, '--force_yml', f'logger:keep_last={keep_last or "~"}', 'logger:save_checkpoint_freq=1', _OTHER]
    stop = _after_save(back + 1, lambda: os.kill(os.getpid(), signal.SIGKILL))
    going_back = [*other, f'path:resume_state={folder}/training_states/{back}.state', f'train:total_iter={back + 5}']
    assert _status(_fork(going_back, stop)) == -signal.SIGKILL
    later = [iteration for iteration in before if iteration > back]
    for aside in folder.glob('set_aside_*'):  # as whole as they were
        assert _sets(aside) == (later, later) and {each: _contents(aside, each) for each in later} == {
            each: before[each] for each in later}
        assert (aside / LOG_FILE).read_bytes() == lines
        assert f'The saves of iterations {", ".join(map(str, later))} are set aside in {aside}.' in _log(folder)
    assert len(list(folder.glob('set_aside_*'))) == bool(later)
    assert _status(_fork([*other, f'train:total_iter={back + 2}', '--auto_resume'])) == 0
    assert f'iter: {back + 1}.' in _log(folder)
    kept = [*(iteration for iteration in before if iteration <= back), back + 1, back + 2][-(keep_last or 9):]
    assert _sets(folder) == (kept, kept)


def test_what_a_killed_save_has_left_is_set_aside_too(short, tmp_path):
    file, folder = _write(short, tmp_path / 'run.yml'), tmp_path / 'experiments' / 'quickstart'
    assert _status(_fork(['-opt', file])) == 0
    before = _contents(folder, 8)
    for path in (*folder.glob('models/net_*_8.pth'), *folder.glob('training_states/8.*')):
        path.rename(path.with_name(f'.{path.name}.next'))
    again = ['-opt', file, '--force_yml', f'path:resume_state={folder}/training_states/2.state', 'train:total_iter=4']
    assert _status(_fork(again)) == 0
    aside, = folder.glob('set_aside_*')
    assert _contents(aside, 8) == before and _sets(folder) == ([2, 4], [2, 4]) and not list(folder.glob('*/.*'))


def test_saves_that_cannot_be_set_aside_end_the_run(short, tmp_path):
    file, folder = _write(short, tmp_path / 'run.yml'), tmp_path / 'experiments' / 'quickstart'
    assert _status(_fork(['-opt', file])) == 0

    def protect():
        replace = os.replace

        def refuse(source, target):
            if 'set_aside_' in str(target):
                raise PermissionError(1, 'Operation not permitted', str(source))
            replace(source, target)

        storage.os.replace = refuse

    again = ['-opt', file, '--force_yml', f'path:resume_state={folder}/training_states/2.state']
    assert _status(_fork(again, protect)) == 1 and _sets(folder) == ([2, 4, 6, 8], [2, 4, 6, 8])


def test_the_log_of_a_resumed_run_tells_every_iteration_once(short, tmp_path):
    file, log = _write(short, tmp_path / 'run.yml'), tmp_path / 'experiments' / 'quickstart' / 'train_log.jsonl'
    assert _status(_fork(['-opt', file, '--force_yml', 'train:total_iter=5'])) == 0
    with log.open('a') as opened:
        opened.write('{"iter": 6, "l_g_p')  # killed while it was writing
    assert _status(_fork(['-opt', file, '--auto_resume'])) == 0
    assert [json.loads(line)['iter'] for line in log.read_text().splitlines()] == list(range(1, ITERATIONS + 1))


def test_two_processes_go_on_where_one_has_stopped(short, tmp_path):
    file, folder = _write(short, tmp_path / 'run.yml'), tmp_path / 'experiments' / 'quickstart'
    assert _status(_fork(['-opt', file])) == 0
    expected = _final(folder)
    for state in folder.glob('*/*8*'):
        state.unlink()
    run_two_processes('train', '-opt', file, '--auto_resume', '--force_yml', 'datasets:train:batch_size_per_gpu=2')
    for key, value in expected[f'net_g_{ITERATIONS}.pth']['params'].items():
        found = _final(folder)[f'net_g_{ITERATIONS}.pth']['params'][key]
        torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-6)  # sums in another order


def _saved_seed(folder):
    return torch.load(folder / 'training_states' / f'{ITERATIONS}.state', weights_only=True)['sr_bigbatch']['seed']


@pytest.mark.parametrize('absent', [{}, {'manual_seed': None}])
def test_a_run_without_a_seed_goes_on_with_the_one_that_it_has_drawn(short, tmp_path, absent):
    seed, folder = short.pop('manual_seed'), tmp_path / 'experiments' / 'quickstart'
    file = _write({**short, **absent}, tmp_path / 'run.yml')
    assert _status(_fork(['-opt', file, '--force_yml', 'train:total_iter=4'], lambda: random.seed(1))) == 0
    assert _status(_fork(['-opt', file, '--auto_resume'], lambda: random.seed(2))) == 0
    drawn, expected = _saved_seed(folder), _final(folder)
    assert drawn != seed
    assert _status(_fork(['-opt', file, '--force_yml', f'manual_seed={drawn}'])) == 0
    _same(_final(folder), expected, 'in one piece')


def test_a_state_without_a_seed_is_still_resumed(short, tmp_path):
    del short['manual_seed']
    file, folder = _write(short, tmp_path / 'run.yml'), tmp_path / 'experiments' / 'quickstart'
    assert _status(_fork(['-opt', file, '--force_yml', 'train:total_iter=4'])) == 0
    (folder / 'training_states' / '4.json').unlink()
    state = torch.load(folder / 'training_states' / '4.state', weights_only=True)
    del state['sr_bigbatch']['seed']
    torch.save(state, folder / 'training_states' / '4.state')
    assert _status(_fork(['-opt', file, '--auto_resume'])) == 0 and _saved_seed(folder)


def test_processes_without_a_seed_draw_one_for_all(short, tmp_path):
    del short['manual_seed']
    file, folder = _write(short, tmp_path / 'run.yml'), tmp_path / 'experiments' / 'quickstart'
    run_two_processes('train', '-opt', file, '--force_yml', 'datasets:train:batch_size_per_gpu=2')
    found, seed = _final(folder)[f'net_g_{ITERATIONS}.pth']['params'], _saved_seed(folder)
    assert _status(_fork(['-opt', file, '--force_yml', f'manual_seed={seed}'])) == 0
    for key, value in _final(folder)[f'net_g_{ITERATIONS}.pth']['params'].items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6)  # sums in another order


def test_runs_that_begin_in_the_same_second_do_not_meet(short, tmp_path, monkeypatch):
    times = iter(['now', 'now', 'later', *(f'later_{number}' for number in range(9))])
    monkeypatch.setattr('basicsr.utils.misc.get_time_str', lambda: next(times))
    for _ in range(3):
        assert run_train(short, tmp_path, monkeypatch, '--force_yml', 'train:total_iter=1') == 0
    archived = {folder.name for folder in (tmp_path / 'experiments').iterdir()}
    assert archived == {'quickstart', 'quickstart_archived_now', 'quickstart_archived_later'}


def _not_finite(names, healthy_every=10**9):
    """From the second iteration on, the gradients of networks are not finite, but in every so many iterations."""
    def prepare():
        import sr_bigbatch.hosts.basicsr.training.run as run
        original, now = run.Run.one, [0]

        def poison(gradient):
            return gradient if now[0] % healthy_every == 0 else gradient * float('nan')

        def one(self, epoch, iteration, *arguments):
            now[0] = iteration
            if iteration == 2:
                checked(self.model.step, self.model.lq, self.model.gt)
                for name in names:
                    next(getattr(self.model, name).parameters()).register_hook(poison)
            original(self, epoch, iteration, *arguments)

        run.Run.one = one
    return prepare


def _kinds(folder, kind):
    return [record['iter'] for record in read_log(folder / LOG_FILE) if record.get('event') == kind]


@pytest.mark.parametrize('names', [['net_g'], ['net_d'], ['net_g', 'net_d']])
@pytest.mark.parametrize('saves', [True, False])
def test_a_run_whose_gradients_are_never_finite_again_ends(short, tmp_path, monkeypatch, saves, names):
    monkeypatch.setattr(saved_state, 'MOST_REFUSALS', 5)  # 50 take a minute
    short['train']['total_iter'], short['logger']['save_checkpoint_freq'] = 100, 2 if saves else 100
    folder = tmp_path / 'experiments' / 'quickstart'
    assert _status(_fork(['-opt', _write(short, tmp_path / 'run.yml')], _not_finite(names))) == 1
    refused = set(_kinds(folder, 'refused'))
    assert _kinds(folder, 'weights restored') == ([6, 11, 16] if saves else [])
    assert refused == set(range(2, 21 if saves else 6))  # at the last one the run has ended
    assert sorted(_sets(folder)[1]) == (list(range(2, 21, 2)) if saves else [])


def test_refusals_that_are_not_in_a_row_do_not_end_a_run(short, tmp_path, monkeypatch):
    monkeypatch.setattr(saved_state, 'MOST_REFUSALS', 5)
    short['train']['total_iter'], folder = 14, tmp_path / 'experiments' / 'quickstart'
    assert _status(_fork(['-opt', _write(short, tmp_path / 'run.yml')], _not_finite(['net_g', 'net_d'], 5))) == 0
    assert len(set(_kinds(folder, 'refused'))) == 11 and not _kinds(folder, 'weights restored')


def _lmdb(short, data, tmp_path):
    for name in ('train_gt', 'train_lq'):
        shutil.copytree(data / f'{name}.lmdb', tmp_path / f'{name}.lmdb')
    short['datasets']['train'].update(io_backend={'type': 'lmdb'}, dataroot_gt=str(tmp_path / 'train_gt.lmdb'),
                                      dataroot_lq=str(tmp_path / 'train_lq.lmdb'))
    return tmp_path / 'train_gt.lmdb'


def test_a_metric_that_fails_does_not_end_the_training(opt, data, tmp_path, monkeypatch):
    calls, images = [], len(list((data / 'val_gt').glob('*.png')))

    def fussy(img, img2):
        calls.append(img.shape)
        if 1 < len(calls) <= 1 + images:  # the first call is that of the check
            raise np.linalg.LinAlgError('SVD did not converge')  # as NIQE does
        return 1.0

    monkeypatch.setitem(METRIC_REGISTRY._obj_map, 'fussy', fussy)
    monkeypatch.setattr(logger, 'initialized_logger', {})  # as in a new process: BasicSR writes a log file only then
    opt['val']['metrics'] = {'fussy': {'type': 'fussy'}}
    opt['train']['total_iter'], opt['val']['val_freq'] = 2, 2
    assert run_train(opt, tmp_path, monkeypatch) == 0
    folder = tmp_path / 'experiments' / 'quickstart'
    judged = [record for record in read_log(folder / LOG_FILE) if 'val' in record]
    assert judged == [{'iter': 2, 'val': 'held_out', 'fussy': 1.0}]
    told = next(folder.glob('train_*.log')).read_text()
    assert 'could not be judged (LinAlgError: SVD did not converge); the training goes on' in told


@pytest.mark.parametrize('answer', [np.linalg.LinAlgError('SVD did not converge'), TypeError('no img2'), KeyError('img2'),
                                    ZeroDivisionError('by zero'), float('nan'), 1 + 1j], ids=repr)
def test_a_metric_that_fails_on_one_image_loses_neither_others_nor_other_images(opt, data, tmp_path, monkeypatch, answer):
    seen, folder = [], tmp_path / 'experiments' / 'quickstart'

    def fussy(img, img2, **_):
        seen.append(img.shape)  # the first call is that of the check
        if len(seen) % 3 == 2:  # the first of three images
            if isinstance(answer, Exception):
                raise answer
            return answer
        return 4.0 if len(seen) % 3 == 0 else 2.0

    for kind in ('gt', 'lq'):
        (tmp_path / f'val_{kind}').mkdir()
        for name in 'abc':
            shutil.copy(data / f'val_{kind}' / 'chelsea_s001.png', tmp_path / f'val_{kind}' / f'{name}.png')
        opt['datasets']['val'][f'dataroot_{kind}'] = str(tmp_path / f'val_{kind}')
    monkeypatch.setitem(METRIC_REGISTRY._obj_map, 'fussy', fussy)
    monkeypatch.setattr(logger, 'initialized_logger', {})
    opt['val']['metrics'] = {'fussy': {'type': 'fussy', 'better': 'lower'}, **opt['val']['metrics'],
                             'ssim': {'type': 'calculate_ssim', 'crop_border': 4}}
    opt['train']['total_iter'], opt['val']['val_freq'], opt['val']['val_at_start'] = 1, 1, False
    opt['logger'].update(keep_last=1, keep_best=True)
    assert run_train(opt, tmp_path, monkeypatch) == 0
    judged = [record for record in read_log(folder / LOG_FILE) if 'val' in record]
    assert judged[0]['fussy'] == 3.0 and judged[0]['psnr'] > 0 and 0 < judged[0]['ssim'] < 1
    told = next(folder.glob('train_*.log')).read_text()
    assert 'held_out: by fussy, 1 of 3 images could not be judged' in told and 'Left out: a' in told
    assert 'psnr' in told and 'Best: inf' not in told


@pytest.mark.parametrize('val', [None, {}])
def test_a_training_without_validation_is_what_basicsr_takes_for_one(opt, tmp_path, monkeypatch, val):
    opt['val'], opt['train']['total_iter'] = val, 1
    assert run_train(opt, tmp_path, monkeypatch, '--debug') == 0
    records = read_log(tmp_path / 'experiments' / 'debug_quickstart' / LOG_FILE)
    assert records and not any('val' in record for record in records)


def test_how_often_is_asked_before_the_start(opt, tmp_path, monkeypatch, capsys):
    opt['val'].pop('val_freq')
    assert run_train(opt, tmp_path, monkeypatch) == 2
    assert 'val.val_freq is missing' in capsys.readouterr().err


def test_a_broken_lmdb_is_named_before_the_start(short, data, tmp_path, monkeypatch, capsys):
    folder = _lmdb(short, data, tmp_path)
    whole = (folder / 'data.mdb').read_bytes()
    meta = (folder / 'meta_info.txt').read_text()
    for content, names, message in ((whole[:len(whole) // 2], meta, 'was cut off: it should have'),
                                    (b'no database', meta, 'is not an LMDB, or damaged'),
                                    (whole, meta + 'ghost.png (128,128,3) 1\n', 'has no image ghost')):
        (folder / 'data.mdb').write_bytes(content)
        (folder / 'meta_info.txt').write_text(names)
        assert run_train(short, tmp_path, monkeypatch) == 2
        assert message in capsys.readouterr().err
    (folder / 'data.mdb').unlink()
    assert run_train(short, tmp_path, monkeypatch) == 2
    assert 'data.mdb is missing' in capsys.readouterr().err


@pytest.mark.parametrize('choice', ['fatal', 'skip'])
def test_an_unreadable_image_is_named_and_fatal_or_skipped(short, data, tmp_path, monkeypatch, capsys, choice):
    for name in ('train_gt', 'train_lq'):
        shutil.copytree(data / name, tmp_path / name)
        short['datasets']['train'][f'dataroot_{name[-2:]}'] = str(tmp_path / name)
    broken = sorted((tmp_path / 'train_gt').iterdir())[3]
    broken.write_bytes(broken.read_bytes()[:200])
    short['datasets']['train'].update(on_bad_image=choice, num_worker_per_gpu=1)
    assert run_train(short, tmp_path, monkeypatch) == (1 if choice == 'fatal' else 0)
    said = capsys.readouterr().err
    assert str(broken) in said and {'fatal': 'on_bad_image: skip', 'skip': 'the next image stands in'}[choice] in said
    if choice == 'skip':
        assert '"n_unreadable": ' in (tmp_path / 'experiments' / 'quickstart' / 'train_log.jsonl').read_text()
