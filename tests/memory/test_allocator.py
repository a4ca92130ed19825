"""Training extends pieces of GPU memory unless the user has chosen another way."""
import os
import subprocess
import sys

import pytest

from sr_bigbatch.memory import allocator
from sr_bigbatch.memory.allocator import has_expandable_segments, use_expandable_segments
from sr_bigbatch.memory.target import Target
from tests.conftest import ROOT

OLD, NEW = 'PYTORCH_CUDA_ALLOC_CONF', 'PYTORCH_ALLOC_CONF'
WATCH = '''
import os, runpy, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == 'torch':
            print('torch sees', os.environ.get('PYTORCH_ALLOC_CONF'), os.environ.get('PYTORCH_CUDA_ALLOC_CONF'))
            sys.stdout.flush()
            os._exit(0)
sys.meta_path.insert(0, Watch())
sys.argv = sys.argv[1:]
if sys.argv[0] == '-m':
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)
else:
    runpy.run_path(sys.argv[0], run_name='__main__')
'''


@pytest.fixture
def machine(monkeypatch):
    """``machine(torch, platform, **environment)`` -> which variables are set afterwards."""
    def start(torch='2.13.0', platform='linux', **environment):
        monkeypatch.setattr(allocator, 'version', lambda name: torch)
        monkeypatch.setattr(sys, 'platform', platform)
        for name in (OLD, NEW):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        use_expandable_segments()
        return {name: os.environ[name] for name in (OLD, NEW) if name in os.environ}
    return start


@pytest.mark.parametrize(('torch', 'name'), [('2.6.0', OLD), ('2.8.0+cu128', OLD), ('2.9.0', NEW), ('2.13.0+cu130', NEW),
                                             ('2.14.0.dev20260801', NEW), ('3.0.0', NEW)])
def test_the_variable_is_the_one_that_this_torch_knows(machine, torch, name):
    assert machine(torch) == {name: 'expandable_segments:True'}
    assert has_expandable_segments() and Target.of_training('cuda').expandable


@pytest.mark.parametrize('given', [{OLD: 'max_split_size_mb:256'}, {NEW: 'backend:cudaMallocAsync'}, {OLD: ''},
                                   {NEW: 'expandable_segments:False'}])
def test_what_the_user_has_set_stays(machine, given):
    assert machine(**given) == given
    assert not has_expandable_segments() and not Target.of_training('cuda').expandable


@pytest.mark.parametrize('given', ['expandable_segments:True', 'max_split_size_mb:256, expandable_segments : true'])
@pytest.mark.parametrize('name', [OLD, NEW])
def test_a_user_may_choose_it_among_other_settings(machine, name, given):
    assert machine(**{name: given}) == {name: given} and has_expandable_segments()


@pytest.mark.parametrize('where', [{'platform': 'win32'}, {'platform': 'darwin'}, {'torch': '2.9.0+rocm6.4'}])
def test_where_the_allocator_cannot_do_it_nothing_is_set(machine, where):
    assert machine(**where) == {} and not has_expandable_segments()


def test_the_planner_uses_the_allowance_of_the_allocator_in_force():
    plain, expandable = (Target('cuda', way).total_bytes(10**9) for way in (False, True))
    assert expandable < plain


@pytest.mark.parametrize('start', [['tools/train.py', '-opt', 'options/quickstart.yml'],
                                   ['tools/train_mmengine.py', 'options/mmengine/quickstart.py'],
                                   ['-m', 'sr_bigbatch', 'tools/train.py', '-opt', 'options/quickstart.yml']], ids=' '.join)
def test_it_is_set_before_torch_is_imported(start):
    environment = {name: value for name, value in os.environ.items() if name not in (OLD, NEW)}
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', WATCH, *start], cwd=ROOT, text=True, capture_output=True,
                          env={**environment, 'PYTHONPATH': str(ROOT)}, check=False, timeout=120)
    assert 'torch sees' in done.stdout, done.stderr[-3000:]
    assert 'expandable_segments:True' in done.stdout
