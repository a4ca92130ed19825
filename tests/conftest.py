"""Real data and real options, small enough for a laptop."""
from __future__ import annotations

import functools
import importlib.util
import logging
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from sr_bigbatch.hosts.basicsr.images import make_lmdb
from sr_bigbatch.hosts.losses import HostLosses
from sr_bigbatch.options import load
from sr_bigbatch.tasks.prepare import BUNDLED_VAL, Cut, bundled, cut_all
from tests.reference import pixel_loss

os.environ.setdefault('OMP_NUM_THREADS', '1')  # of the processes that tests start: threads would only wait for each other
# Where networks come from that keep no state of their own: it is enough to study one of each structure.
KNOWN = ('sr_bigbatch.', 'basicsr.', 'torch.', 'tests.step.test_overflow')
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _one_thread_and_seed():
    torch.manual_seed(0)
    random.seed(0)  # BasicSR's crops and flips
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny networks: threads would only wait for each other
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope='session')
def _known_networks_are_studied_once():
    """Networks and losses of this package, of torch and of BasicSR: what they do depends on their structure alone."""
    from sr_bigbatch.step import check

    studies, found = (check.study_network, check.study_losses), {}
    plain = (bool, int, float, str, tuple)  # settings; a module may not tell them in its repr, as BasicSR's losses do not

    def once(study, subject, *arguments):
        modules = list(subject.modules()) if isinstance(subject, nn.Module) else [
            module for value in vars(subject).values() if isinstance(value, nn.Module) for module in value.modules()]
        known = isinstance(subject, nn.Module | HostLosses) or subject is pixel_loss
        if not known or any(not type(module).__module__.startswith(KNOWN) or module._forward_hooks for module in modules):
            return study(subject, *arguments)
        structure = (repr(subject), [[(name, value) for name, value in vars(module).items() if isinstance(value, plain)]
                                     + [type(hook) for hook in module._forward_pre_hooks.values()] for module in modules])
        key = str((structure, [getattr(each, 'shape', each) if not isinstance(each, list) else [t.shape for t in each]
                               for each in arguments]))
        if key not in found:
            found[key] = study(subject, *arguments)
        return found[key]

    check.study_network, check.study_losses = (functools.partial(once, study) for study in studies)
    yield
    check.study_network, check.study_losses = studies


@pytest.fixture(scope='session')
def data(tmp_path_factory) -> Path:
    """Sub-images of a real photograph, as folders and as LMDBs, for training and validation."""
    folder = tmp_path_factory.mktemp('data')
    photos = bundled(BUNDLED_VAL)
    cut_all(photos, folder / 'train_gt', folder / 'train_lq', Cut(128, 80, 4), 4, 1, 'train')
    cut_all(photos, folder / 'val_gt', folder / 'val_lq', Cut(96, 400, 4), 4, 1, 'val')
    for name in ('train_gt', 'train_lq'):
        make_lmdb(folder / name)
    return folder


@pytest.fixture
def opt(data, tmp_path) -> dict:
    """The quickstart's options, reduced to seconds, writing into the test's own folder."""
    opt = load(ROOT / 'options' / 'quickstart.yml')
    opt['num_gpu'] = 0
    opt['network_g'].update(num_feat=8, num_block=1, num_grow_ch=8)
    opt['network_d'].update(num_feat=8, input_size=32)
    opt['datasets']['train'].update(gt_size=32, batch_size_per_gpu=4, num_worker_per_gpu=0, dataset_enlarge_ratio=2,
                                    dataroot_gt=str(data / 'train_gt'), dataroot_lq=str(data / 'train_lq'))
    opt['datasets']['val'].update(dataroot_gt=str(data / 'val_gt'), dataroot_lq=str(data / 'val_lq'))
    opt['train'].update(micro_batch_size=2, total_iter=4)
    opt['val']['val_freq'] = 2
    opt['logger'].update(print_freq=1, save_checkpoint_freq=2, use_tb_logger=False)
    opt['path']['experiments_root'] = str(tmp_path / 'experiments')
    return opt


@pytest.fixture
def built(opt, tmp_path):
    """``built(**changes)`` -> a BasicSR model made from ``opt`` as the training makes it."""
    from basicsr.models import build_model

    from sr_bigbatch.hosts.basicsr.options.check import check, complete
    from sr_bigbatch.hosts.basicsr.training.train import start_processes

    def build(options: dict | None = None):
        options = options or opt
        if str(options['model_type']).startswith('Accumulating'):
            check(options)
        complete(options, tmp_path, auto_resume=False, debug=False)
        start_processes(options, 'none')
        torch.manual_seed(0)
        return build_model(options)

    return build


@pytest.fixture
def basicsr_log(caplog):
    """What BasicSR's logger says in this test: it does not propagate, so pytest alone does not see it."""
    from basicsr.utils import get_root_logger

    logger = get_root_logger()
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, logger.name):
        yield caplog
    logger.removeHandler(caplog.handler)


def load_tool(name: str):
    """Import ``tools/NAME.py`` as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_train(opt: dict, folder: Path, monkeypatch, *arguments: str) -> int:
    """Write ``opt`` to a file and run ``tools/train.py`` on it; returns its exit status."""
    file = folder / 'run.yml'
    file.write_text(yaml.safe_dump(opt))
    monkeypatch.setattr('sys.argv', ['train.py', '-opt', str(file), *arguments])
    return load_tool('train').main()


def run_two_processes(tool: str, *arguments: str) -> str:
    """Run ``tools/TOOL.py`` with torchrun in two processes, at a port that is free; returns what they printed."""
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-m', 'torch.distributed.run', '--nproc_per_node=2', '--standalone',
         '--local-addr=127.0.0.1', str(ROOT / 'tools' / f'{tool}.py'), *arguments, '--launcher', 'pytorch'],
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout[-20000:]
    return done.stdout
