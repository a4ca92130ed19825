"""mmengine's Runner, killed, stopped and given broken checkpoints."""
import os
import shutil
import signal
import sys
import time
import traceback

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS

from sr_bigbatch.hosts.mmengine.runner import admit_histories
from sr_bigbatch.hosts.mmengine.safe_runner import newest_whole
from tests.conftest import ROOT, load_tool

_WHOLE = []  # where the folder of a whole run lies, once there is one

pytestmark = pytest.mark.filterwarnings('ignore')  # mmengine's own


@pytest.fixture
def config(data, tmp_path):
    """The shipped configuration, reduced to a second: no validation, a checkpoint at every second iteration."""
    config = Config.fromfile(ROOT / 'options' / 'mmengine' / 'quickstart.py')
    config.train_dataloader.dataset.opt.update(dataroot_gt=str(data / 'train_gt'), dataroot_lq=str(data / 'train_lq'))
    for name in ('val_dataloader', 'val_cfg', 'val_evaluator'):
        config.pop(name)
    config.train_dataloader.update(batch_size=4, num_workers=0, persistent_workers=False)
    config.model.net_g.update(num_feat=8, num_block=1, num_grow_ch=8)
    config.model.net_d.update(num_feat=8)
    config.model.update(micro_batch_size=2, kept_graphs=0)
    config.custom_hooks = []
    config.train_cfg = dict(by_epoch=False, max_iters=6)
    config.default_hooks.checkpoint.interval = 2
    config.default_hooks.logger.interval = 1
    config.work_dir = str(tmp_path / 'work')
    _study(config)
    return config


def _study(config):
    """Have the networks studied here, so that no child of this process need do it again."""
    settings = {name: value for name, value in config.optim_wrapper.items() if name != 'constructor'}
    model = MODELS.build(config.model)
    wrappers = OPTIM_WRAPPER_CONSTRUCTORS.build({'type': 'OptimWrapperPerNetwork', 'optim_wrapper_cfg': settings})(model)
    model.train_step({'lq': torch.rand(4, 3, 8, 8), 'gt': torch.rand(4, 3, 32, 32)}, wrappers)


@pytest.fixture
def saved(config, tmp_path, tmp_path_factory):
    """A copy of the folder of a whole run."""
    if not _WHOLE:
        assert _fork(config, tmp_path)[0] == 0
        _WHOLE.append(tmp_path_factory.mktemp('whole') / 'work')
        shutil.copytree(tmp_path / 'work', _WHOLE[0])
    else:
        shutil.copytree(_WHOLE[0], tmp_path / 'work')
    (tmp_path / 'work' / 'last_checkpoint').write_text(str(tmp_path / 'work' / 'iter_6.pth'))
    return tmp_path / 'work'


def _fork(config, tmp_path, *arguments, each=lambda runner: None, prepare=lambda: None):
    """Run ``tools/train_mmengine.py`` in a child; ``each`` is called after every iteration. The exit status and the log."""
    path = tmp_path / 'config.py'
    config.dump(str(path))
    said = tmp_path / 'said'
    child = os.fork()
    if child == 0:
        status = 99
        try:
            torch.set_num_threads(1)
            descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.stdout, sys.stderr = os.fdopen(1, 'w'), os.fdopen(2, 'w')
            from sr_bigbatch.hosts.mmengine.model import AccumulatingESRGAN
            original = AccumulatingESRGAN.train_step

            def train_step(self, *given, **more):
                logged = original(self, *given, **more)
                each(self)
                return logged

            AccumulatingESRGAN.train_step = train_step
            prepare()
            sys.argv = ['train_mmengine.py', str(path), *arguments]
            status = load_tool('train_mmengine').main()
            sys.stderr.flush()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, said.read_text()


def _load(file):
    admit_histories()
    return torch.load(file, weights_only=True)


def _at(step, then):
    """Call ``then(model)`` in the iteration after which so many steps are made."""
    return lambda model: then(model) if model.step.steps == step else None


def _names(tmp_path):
    return sorted(path.name for path in (tmp_path / 'work').glob('*.pth'))


@pytest.mark.parametrize(('where', 'value'), [('net_g', float('nan')), ('net_d', float('inf')), ('net_g_ema', float('nan'))])
def test_weights_that_are_not_finite_are_never_saved(config, tmp_path, where, value):
    config.default_hooks.checkpoint.max_keep_ckpts = 1

    def poison(model):
        with torch.no_grad():
            weight = next(getattr(model, where).parameters())
            weight[(0,) * weight.dim()] = value

    status, said = _fork(config, tmp_path, each=_at(4, poison))
    assert status == 1 and 'are not finite, so nothing is saved any more' in said and 'Traceback' not in said
    assert _names(tmp_path) == ['iter_2.pth'] and not list((tmp_path / 'work').glob('.*'))
    assert _fork(config, tmp_path, '--resume')[0] == 0 and _names(tmp_path) == ['iter_6.pth']


DAMAGES = {'empty': lambda content: b'', 'half': lambda content: content[:len(content) // 2],
           'almost whole': lambda content: content[:-100], 'text': lambda content: b'<html>'}


def _damage(newest, damage):
    if damage in DAMAGES:
        newest.write_bytes(DAMAGES[damage](newest.read_bytes()))
    elif damage == 'gone':
        newest.unlink()
    else:
        content = _load(newest)
        content['state_dict']['net_g.conv_first.weight'][0] = float('nan')
        torch.save(content if damage == 'not finite' else content['state_dict'], newest)


@pytest.mark.parametrize('last', [True, False])
@pytest.mark.parametrize('damage', [*DAMAGES, 'gone', 'not finite', 'another thing'])
def test_a_checkpoint_that_cannot_be_used_is_passed_over_and_named(saved, damage, last):
    admit_histories()
    newest = saved / 'iter_6.pth'
    _damage(newest, damage)
    found, passed_over = newest_whole(saved, newest if last else None)
    assert found == saved / 'iter_4.pth'
    assert len(passed_over) == (last or damage != 'gone') and all(line.startswith('iter_6.pth is passed over: ')
                                                                  for line in passed_over)
    newest.with_name('iter_10.pth').write_bytes(found.read_bytes())  # a number, not a text
    assert newest_whole(saved, None)[0].name == 'iter_10.pth' and newest_whole(saved, found) == (found, [])


def test_a_run_goes_on_from_the_newest_whole_checkpoint(config, saved, tmp_path):
    _damage(saved / 'iter_6.pth', 'half')
    status, said = _fork(config, tmp_path, '--resume', '--cfg-options', 'train_cfg.max_iters=7')
    assert status == 0 and 'iter_6.pth is passed over: ' in said and 'resumed epoch: 0, iter: 4' in said
    assert _load(saved / 'iter_7.pth')['meta']['iter'] == 7


def test_without_any_whole_checkpoint_a_run_begins_anew(config, tmp_path):
    (tmp_path / 'work').mkdir()
    (tmp_path / 'work' / 'iter_2.pth').write_bytes(b'')
    (tmp_path / 'work' / 'last_checkpoint').write_text('')
    status, said = _fork(config, tmp_path, '--resume')
    assert status == 0 and 'iter_2.pth is passed over' in said and 'iter_6.pth' in _names(tmp_path)
    assert newest_whole(tmp_path, None) == (None, [])


def test_a_torn_checkpoint_that_was_named_is_one_sentence(config, tmp_path):
    (tmp_path / 'torn.pth').write_bytes(b'torn')
    status, said = _fork(config, tmp_path, '--cfg-options', f'load_from={tmp_path}/torn.pth')
    assert status == 2 and 'torn.pth is torn or no checkpoint' in said and 'Traceback' not in said


@pytest.mark.parametrize(('number', 'step'), [(signal.SIGTERM, 1), (signal.SIGINT, 4), (signal.SIGUSR1, 3)])
def test_a_signal_finishes_the_step_saves_and_ends(config, tmp_path, number, step):
    config.default_hooks.checkpoint.max_keep_ckpts = 2
    status, said = _fork(config, tmp_path, each=_at(step, lambda model: os.kill(os.getpid(), number)))
    assert status == 128 + number and f'iteration {step} was finished and saved' in said and 'Traceback' not in said
    assert _load(tmp_path / 'work' / f'iter_{step}.pth')['meta']['iter'] == step
    assert (tmp_path / 'work' / 'last_checkpoint').read_text().endswith(f'iter_{step}.pth')
    assert _fork(config, tmp_path, '--resume')[0] == 0
    assert _load(tmp_path / 'work' / 'iter_6.pth')['optimizer']['net_g']['step']['steps'] == 6


def test_a_second_signal_leaves_at_once(config, tmp_path):
    def twice(model):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    assert _fork(config, tmp_path, each=_at(1, twice))[0] == 143


def test_a_signal_to_the_group_leaves_the_workers_at_work(config, tmp_path):
    config.train_dataloader.update(num_workers=2, persistent_workers=True)

    def to_all(model):
        signal.signal(signal.SIGALRM, lambda *_: os._exit(98))
        signal.alarm(60)
        os.killpg(os.getpgrp(), signal.SIGINT)

    status, said = _fork(config, tmp_path, each=_at(1, to_all), prepare=os.setpgrp)
    assert status == 130 and 'exited unexpectedly' not in said and _names(tmp_path) == ['iter_1.pth']


@pytest.mark.parametrize('keep', [1, 2])
def test_a_save_that_fails_or_is_killed_costs_no_earlier_checkpoint(config, tmp_path, keep):
    config.default_hooks.checkpoint.max_keep_ckpts = keep
    config.default_hooks.checkpoint.interval = 1

    def die_in_a_save():
        import sr_bigbatch.hosts.mmengine.safe_runner as module
        replace = os.replace

        def dies(source, target):
            if str(target).endswith('iter_4.pth'):
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)

        module.os.replace = dies

    assert _fork(config, tmp_path, prepare=die_in_a_save)[0] == -signal.SIGKILL
    assert _names(tmp_path) == [f'iter_{number}.pth' for number in range(4 - keep, 4)]
    assert _fork(config, tmp_path, '--resume')[0] == 0
    assert _names(tmp_path) == [f'iter_{number}.pth' for number in range(7 - keep, 7)]


def test_an_old_checkpoint_that_cannot_be_removed_is_told(config, tmp_path):
    config.default_hooks.checkpoint.max_keep_ckpts = 1

    def protect():
        remove = os.remove

        def refuse(path, *given, **more):
            if str(path).endswith('iter_2.pth'):
                raise PermissionError(1, 'Operation not permitted', str(path))
            remove(path, *given, **more)

        os.remove = refuse

    status, said = _fork(config, tmp_path, prepare=protect)
    assert status == 0 and said.count('iter_2.pth could not be removed') == 1
    assert _names(tmp_path) == ['iter_2.pth', 'iter_6.pth']


def test_a_resumed_run_keeps_plan_and_noise_scale(config, tmp_path):
    config.default_hooks.checkpoint.interval = 1

    def short(model):
        model.step.trial.memory.plan.quiet = 4
        model.step.trial.memory.plan.shrink('generator', 4)

    assert _fork(config, tmp_path, each=_at(4, short))[0] == 0
    states = {number: _load(tmp_path / 'work' / f'iter_{number}.pth')['optimizer']['net_g']['step'] for number in (4, 5, 6)}
    (tmp_path / 'work' / 'last_checkpoint').write_text(str(tmp_path / 'work' / 'iter_4.pth'))
    assert _fork(config, tmp_path, '--resume')[0] == 0
    resumed = {number: _load(tmp_path / 'work' / f'iter_{number}.pth')['optimizer']['net_g']['step'] for number in (5, 6)}
    for number, state in resumed.items():
        assert state['steps'] == number and state['plan'] == states[number]['plan'] and state['plan']['generator'] == 1
        assert [each['updates'] for each in state['noise'].values()] == [number, number]
