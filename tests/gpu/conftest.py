"""What all tests on a GPU need; the pretend one, whose kernels do nothing, serves those that look at no values."""
from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.conftest import load_tool

PRETENDED = 'PRETEND_GPU' in os.environ
PYTHON = [sys.executable, '-W', 'ignore', *(['-m', 'pretend'] if PRETENDED else [])]
"""The command of a process that is to run as this one does."""
MARKS = [pytest.mark.gpu,
         *(pytest.mark.filterwarnings(f'ignore:{text}:UserWarning') for text in (
             'Data has no positive values', r'cov\(\)'))]  # of a GPU that computes nothing
DTYPES = ('float32', 'bfloat16', 'float16')


@pytest.fixture(autouse=True)
def _a_gpu():
    """Skip without a GPU; leave its memory and its settings as they were."""
    if not torch.cuda.is_available():
        pytest.skip('there is neither a CUDA GPU nor the pretend one')
    settings = [(torch.backends.cudnn, 'benchmark'), (torch.backends.cudnn, 'deterministic')]
    before = [(owner, name, getattr(owner, name)) for owner, name in settings]
    yield
    for owner, name, value in before:
        setattr(owner, name, value)
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@pytest.fixture
def values():
    """For tests that look at what a kernel has computed."""
    if PRETENDED:
        pytest.skip('kernels of the pretend GPU compute nothing')


@pytest.fixture
def opt(opt) -> dict:
    """The options of a training of seconds, on the GPU."""
    opt['num_gpu'] = 1
    return opt


def with_dtype(opt: dict, dtype: str) -> dict:
    """The same options in another precision."""
    opt['train']['optim_wrapper']['dtype'] = dtype
    return opt


def train(opt: dict, folder: Path, monkeypatch, *arguments: str) -> Path:
    """Run ``tools/train.py`` to its end; returns the folder of the experiment."""
    file = folder / 'run.yml'
    file.write_text(yaml.safe_dump(opt))
    monkeypatch.setattr('sys.argv', ['train.py', '-opt', str(file), *arguments])
    assert load_tool('train').main() == 0
    return folder / 'experiments' / opt['name']


def tensors(value: object) -> list[torch.Tensor]:
    """All tensors in a tree of dicts and lists."""
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    return [tensor for part in parts for tensor in tensors(part)]


def room_for(free_bytes: int) -> None:
    """Let torch's allocator take so many bytes beside what it holds."""
    gc.collect()
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + free_bytes) / whole))
