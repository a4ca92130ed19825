"""An option file and ``--force_yml`` are settings: nothing that stands in them is imported or run."""
import os
import subprocess
import sys
from pathlib import Path

import basicsr
import pytest
import yaml
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, OPTIM_WRAPPERS, Registry

import sr_bigbatch.__main__
from sr_bigbatch.hosts.registered import build_registered, registered
from sr_bigbatch.options import OptionError
from tests.conftest import ROOT, load_tool

CANARY = 'canary_module'  # a module in the working directory that leaves a file when it is imported
STAGES = [{'gt_size': 32, 'until': 3}, {'gt_size': 64}]
HOOK = {'type': 'ProgressiveResolutionHook', 'stages': STAGES}


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """The file that appears if anything runs."""
    file = tmp_path / 'ran'
    folder = tmp_path / 'modules'
    folder.mkdir()
    for path in (folder / f'{CANARY}.py', folder / 'mc.py', folder / 'canary_scope' / 'registry.py'):
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'open({str(file)!r}, "w").close()\nclass Thing:\n    pass\n')
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(tmp_path)
    yield file
    for name in (CANARY, 'mc', 'canary_scope', 'canary_scope.registry'):
        sys.modules.pop(name, None)


def _touch(kind):
    return {'type': kind, **({'command': 'touch ran'} if kind == 'os.system' else {'args': ['touch', 'ran']})}


CODE = {
    'hook os.system': {'custom_hooks': [_touch('os.system')]},
    'hook Popen': {'custom_hooks': [_touch('subprocess.Popen')]},
    'hook of a module': {'custom_hooks': [{'type': f'{CANARY}.Thing'}]},
    'hook that is a module': {'custom_hooks': [{'type': CANARY}]},
    'hook of a scope': {'custom_hooks': [{'type': 'canary_scope.Thing'}]},
    'hook with a scope': {'custom_hooks': [{'type': 'EMAHook', '_scope_': 'canary_scope'}]},
    'our hook with a scope': {'custom_hooks': [{**HOOK, '_scope_': 'canary_scope'}]},
    'hook in a hook': {'custom_hooks': [{'type': 'EMAHook', 'inner': [_touch('os.system')]}]},
    'hook in our hook': {'custom_hooks': [{**HOOK, 'stages': [{**STAGES[0], 'inner': _touch('os.system')}, STAGES[1]]}]},
    'wrapper of a module': {'train': {'optim_wrapper': {'type': f'{CANARY}.Thing'}}},
    'wrapper that is a module': {'train': {'optim_wrapper': {'type': CANARY}}},
    'wrapper of a scope': {'train': {'optim_wrapper': {'type': 'canary_scope.Thing'}}},
    'wrapper with a scope': {'train': {'optim_wrapper': {'_scope_': 'canary_scope'}}},
    'loss scale': {'train': {'optim_wrapper': {'loss_scale': _touch('os.system')}}},
    'clip_grad': {'train': {'optim_wrapper': {'clip_grad': {'type': f'{CANARY}.Thing'}}}},
    'optimizer': {'train': {'optim_g': {'type': 'lr_scheduler'}}},
    'optimizer by dots': {'train': {'optim_d': {'type': f'{CANARY}.Thing'}}},
    'scheduler': {'train': {'scheduler': {'type': 'math'}}},
    'scheduler of another module': {'train': {'scheduler': {'type': '_LRScheduler'}}},
    'pixel loss': {'train': {'pixel_opt': {'type': f'{CANARY}.Thing'}}},
    'GAN loss': {'train': {'gan_opt': {'type': f'{CANARY}.Thing'}}},
    'perceptual network': {'train': {'perceptual_opt': {'type': 'PerceptualLoss', 'layer_weights': {},
                                                        'vgg_type': 'model_urls'}}},
    'generator': {'network_g': {'type': f'{CANARY}.Thing'}},
    'discriminator': {'network_d': {'type': ['os.system']}},
    'model': {'model_type': f'{CANARY}.Thing'},
    'model of another kind': {'model_type': ['os.system']},
    'metric': {'val': {'metrics': {'psnr': {'type': f'{CANARY}.Thing'}}}},
    'data set': {'datasets': {'train': {'type': f'{CANARY}.Thing'}}},
    'data set of another kind': {'datasets': {'val': {'type': ['os.system']}}},
    'storage': {'datasets': {'train': {'io_backend': {'type': f'{CANARY}.Thing'}}}},
    'storage that imports': {'datasets': {'val': {'io_backend': {
        'type': 'memcached', 'server_list_cfg': '', 'client_cfg': '', 'sys_path': 'modules'}}}},
}


def _merge(target, changes):
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value


def _refused(status, capsys, canary):
    error = capsys.readouterr().err
    assert status == 2 and 'Traceback' not in error and error.count('\n- ') == 1, error
    assert not canary.exists()
    return error


@pytest.mark.parametrize('tool', ['check', 'train'])
@pytest.mark.parametrize('changes', CODE)
def test_an_option_file_that_names_code_is_refused(opt, canary, tmp_path, monkeypatch, capsys, changes, tool):
    _merge(opt, CODE[changes])
    file = tmp_path / 'run.yml'
    file.write_text(yaml.safe_dump(opt))
    monkeypatch.setattr('sys.argv', [f'{tool}.py', '-opt', str(file)])
    error = _refused(load_tool(tool).main(), capsys, canary)
    if '.type: ' in error and 'data' not in changes and not changes.startswith('model'):
        assert 'the nearest registered name is ' in error


@pytest.mark.parametrize('registry', [HOOKS, OPTIM_WRAPPERS], ids=lambda registry: registry.name)
@pytest.mark.parametrize('settings', [_touch('os.system'), {'type': CANARY}, {'type': 'canary_scope.Thing'}, {},
                                      {'type': None}, {'type': 'OverflowSafeOptimWrapper', '_scope_': 'canary_scope'}])
def test_the_training_itself_builds_nothing_else(canary, registry, settings):
    with pytest.raises(OptionError):
        build_registered(registry, settings, 'here')
    assert not canary.exists()


def test_what_is_registered_is_built_also_in_a_child_that_is_imported(monkeypatch):
    child = Registry('hook', parent=HOOKS, scope='of_a_test')
    monkeypatch.setattr(HOOKS, '_children', {**HOOKS.children})

    @child.register_module()
    class Mine(Hook):
        def __init__(self, inner):
            self.inner = inner

    settings = {'type': 'of_a_test.Mine', 'inner': {'type': 'EMAHook'}}
    HOOKS._children['of_a_test'] = child
    built = build_registered(HOOKS, settings, 'here')
    assert type(built) is Mine and built.inner == {'type': 'EMAHook'} and settings['type'] == 'of_a_test.Mine'
    assert type(build_registered(child, {'type': 'ParamSchedulerHook'}, 'here')).__name__ == 'ParamSchedulerHook'
    assert 'Mine' not in registered(HOOKS)


def test_both_optimizers_clip_as_the_file_says(opt, built):
    opt['train']['optim_wrapper'] = {'clip_grad': {'type': 'value', 'clip_value': 0.1}}
    assert [wrapper.clip_grad_kwargs for wrapper in built().optim_wrappers] == 2 * [{'clip_value': 0.1}]


@pytest.fixture
def script(opt, canary, tmp_path):
    """BasicSR's own script beside an option file for it."""
    file = tmp_path / 'basicsr' / 'train.py'
    file.parent.mkdir()
    file.write_text((Path(basicsr.__file__).parent / 'train.py').read_text())
    opt['path'].pop('experiments_root')
    opt['val'].pop('val_at_start')
    (tmp_path / 'run.yml').write_text(yaml.safe_dump(opt))
    (tmp_path / 'theirs.yml').write_text(yaml.safe_dump({**opt, 'model_type': 'ESRGANModel'}))
    return str(file)


EVIL = 'manual_seed=[__import__("os").system("touch ran")]'
KEY = 'a"]=__import__("os").system("touch ran");opt["b=1'
LINES = {
    'value': ['--force_yml', EVIL],
    'blank before the value': ['--force_yml', EVIL.replace('=', '= \t', 1)],
    'key': ['--force_yml', 'name"+str(__import__("os").system("touch ran"))+"=1'],
    'key with a line': ['--force_yml', 'name"]\n__import__("os").system("touch ran")\nopt["name=1'],
    'nested in a list': ['--force_yml', 'manual_seed=[1, [__import__("os").system("touch ran")]]'],
    'comprehension': ['--force_yml', 'manual_seed=[__import__("os").system("touch ran") for x in "a"]'],
    'several values': ['--force_yml', 'manual_seed=1', 'train:ema_decay=0.9', EVIL],
    'equals sign': [f'--force_yml={EVIL}'],
    'abbreviated': ['--force', EVIL],
    'abbreviated with equals sign': [f'--f={EVIL}'],
    'twice, the first': ['--force_yml', EVIL, '--force_yml', 'manual_seed=1'],
    'twice, the last': ['--force_yml', 'manual_seed=1', '--force_yml', EVIL],
    'after another option': ['--launcher', 'none', '--debug', '--force_yml', EVIL],
    'two equals signs': ['--force_yml', KEY],
    'no YAML': ['--force_yml', 'name=!!python/object/apply:os.system ["touch ran"]'],
    'deep': ['--force_yml', 'manual_seed=' + '[' * 5000],
}


@pytest.mark.parametrize('file', ['run.yml', 'theirs.yml'])
@pytest.mark.parametrize('line', LINES)
def test_force_yml_that_the_hosts_script_would_run_does_not_reach_it(script, canary, monkeypatch, capsys, line, file):
    monkeypatch.setattr('sys.argv', ['sr_bigbatch', script, '-opt', file, *LINES[line]])
    _refused(sr_bigbatch.__main__.main(), capsys, canary)


@pytest.mark.parametrize('changes', [name for name in CODE if name.startswith(('hook', 'wrapper'))])
def test_the_hosts_script_is_not_begun_with_such_a_file(opt, script, canary, tmp_path, monkeypatch, capsys, changes):
    _merge(opt, CODE[changes])
    (tmp_path / 'run.yml').write_text(yaml.safe_dump(opt))
    monkeypatch.setattr('sys.argv', ['sr_bigbatch', script, '-opt', 'run.yml'])
    _refused(sr_bigbatch.__main__.main(), capsys, canary)


def _program(script, *entries):
    command = [sys.executable, '-W', 'ignore', '-m', 'sr_bigbatch', script, '-opt', 'run.yml', '--force_yml', *entries]
    return subprocess.run(command, env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True, text=True, check=False)


def test_the_program_refuses_code_and_hands_on_what_is_plain(script, canary):
    done = _program(script, EVIL)
    assert done.returncode == 2 and done.stderr.count('\n- ') == 1 and 'Traceback' not in done.stderr
    assert not canary.exists()
    done = _program(script, 'train:total_iter=1', 'train:scheduler:milestones=[1, 2]', 'name=plain', 'val:val_freq=9')
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'milestones: [1, 2]' in done.stderr and not canary.exists()
