"""Each example runs, learns the same as the base, and is the base plus its marked lines."""
import importlib.util
import re

import pytest
import torch

from tests.conftest import ROOT

EXAMPLES = {'plain_pytorch': None, 'with_accelerate': 'accelerate', 'with_lightning': 'lightning'}


def _load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / 'examples' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _without_marks(text):
    """The base: marked lines are dropped, and lines that they replace are put back."""
    text = re.sub(r'^ *# >>> (\w+)\n(?s:.*?)^ *# <<< \1\n', '', text, flags=re.MULTILINE)
    return re.sub(r'^( *)# - ', r'\1', text, flags=re.MULTILINE)


@pytest.mark.parametrize('name', EXAMPLES)
def test_an_example_is_the_base_plus_its_marked_lines(name):
    base, text = ((ROOT / 'examples' / f'{each}.py').read_text() for each in ('plain_pytorch', name))
    assert _without_marks(text) == base
    assert ('# >>> ' in text.split('"""', 2)[2]) == (name != 'plain_pytorch')


def test_every_example_is_tested():
    assert {path.stem for path in (ROOT / 'examples').glob('*.py')} == set(EXAMPLES)


@pytest.mark.filterwarnings('ignore')  # of Lightning and accelerate
@pytest.mark.parametrize('name', EXAMPLES)
def test_an_example_trains_as_the_base_does(name, tmp_path):
    if EXAMPLES[name]:
        pytest.importorskip(EXAMPLES[name], reason=f'{EXAMPLES[name]} is not installed')
    base = _load('plain_pytorch').train(2, tmp_path / 'base.pth')
    assert _load(name).train(2, tmp_path / 'run.pth') == pytest.approx(base, rel=0.05)  # Lightning draws other batches
    state = torch.load(tmp_path / 'run.pth', weights_only=True)
    assert state['step']['steps'] == 4
