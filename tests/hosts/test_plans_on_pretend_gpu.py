"""Every plan that is proposed for a card runs there: CUDA's build of PyTorch, with its allocator, on a simulated device.

`pytest -m slow -s tests/hosts/test_plans_on_pretend_gpu.py` prints the table of docs/memory.md. It takes minutes, and needs
in PRETEND_GPU_FOLDER a folder whose script `run` starts Python with CUDA's PyTorch on a device that computes nothing.
"""
import functools
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from sr_bigbatch.hosts.basicsr.plan.prediction import candidates
from sr_bigbatch.hosts.basicsr.settings import TrainingSettings
from sr_bigbatch.memory.predict import choose
from sr_bigbatch.memory.target import CUDA, CUDNN_BYTES, Target
from sr_bigbatch.options import load
from tests.conftest import ROOT

FOLDER = Path(os.environ.get('PRETEND_GPU_FOLDER', 'PRETEND_GPU_FOLDER'))
CARDS = (4, 6, 8, 11, 12, 16, 24, 80)
OPTIONS = ROOT / 'options' / 'esrgan_256_bs128.yml'
STEPS = ROOT / 'tests' / 'memory' / 'steps_on_pretend_gpu.py'
_GB = 2**30

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not (FOLDER / 'run').exists(),
                                                   reason='PRETEND_GPU_FOLDER names no folder with a simulated device')]


@functools.cache
def _plans():
    return candidates(TrainingSettings.from_options(load(OPTIONS)), 256, 1024, CUDA, os.cpu_count() or 1)


@functools.cache
def _run(options, gigabytes, workspace, expandable):
    """What some steps of a plan took, on a device with this much memory for the allocator."""
    done = subprocess.run([FOLDER / 'run', '-W', 'ignore', STEPS, OPTIONS, '3', *options], cwd=ROOT, text=True,
                          capture_output=True, check=False, timeout=1800, env={
                              **os.environ, 'FAKE_GB': str(gigabytes), 'FAKE_WORKSPACE_MB': str(workspace),
                              'PYTORCH_CUDA_ALLOC_CONF': f'expandable_segments:{expandable}'})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize('card', CARDS)
@pytest.mark.parametrize('expandable', [True, False])
def test_the_plan_for_a_card_runs_there(card, expandable):
    plan = choose([replace(plan, target=Target('cuda', expandable)) for plan in _plans()], card * _GB)
    outside = sum(plan.target.besides.values())  # which the simulated device does not take
    seen = _run(tuple(plan.options), card - outside / _GB, CUDNN_BYTES // 2**20, expandable)
    predicted = max(plan.peak.values())  # of tensors; where a step is at its highest no convolution is at work
    taken = max(peak['allocated'] for peak in seen['peaks'])
    held = max(peak['reserved'] for peak in seen['peaks'])
    print(f'\n| {card} GB{"" if expandable else ", default allocator"} | `{plan.memory}`, {plan.micro}, '
          f'{"kept" if plan.kept else "replayed"} | {plan.flops:.2f} | {predicted / _GB:.2f} | {taken / _GB:.2f} | '
          f'{predicted / taken - 1:+.1%} | {held / _GB:.2f} | {(held + outside) / _GB:.2f} |')
    assert (seen['events'], seen['flushes'], seen['ooms']) == ([], 0, 0)
    assert predicted == pytest.approx(taken, rel=0.05)
    assert seen['peaks'][1]['allocated'] == pytest.approx(seen['peaks'][2]['allocated'], rel=0.01)
