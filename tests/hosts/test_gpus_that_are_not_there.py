"""``num_gpu`` of an option file against what the machine has: check and training say the same, before anything starts."""
import pytest
import torch
import yaml
from basicsr.models import build_model

from sr_bigbatch.hosts.basicsr.options.check import complete
from sr_bigbatch.hosts.basicsr.options.notes import notes
from sr_bigbatch.hosts.basicsr.settings import gpus_of
from sr_bigbatch.hosts.basicsr.training.train import start_processes
from sr_bigbatch.options import OptionError
from tests.conftest import load_tool, run_train


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device=None: (8, 0))


@pytest.mark.parametrize('asked', [1, 4, 1.0])
@pytest.mark.parametrize('kind', ['AccumulatingESRGANModel', 'ESRGANModel'])
def test_without_a_gpu_the_training_runs_on_the_cpu_and_says_so(opt, tmp_path, monkeypatch, capsys, no_gpu, asked, kind):
    opt.update(num_gpu=asked, model_type=kind)
    opt['train']['total_iter'] = 1
    if kind == 'ESRGANModel':
        for key in ('micro_batch_size', 'kept_graphs', 'accumulation', 'optim_wrapper'):
            opt['train'].pop(key)
    said = f'num_gpu is {asked:g}, but the installed torch is one without CUDA: the training runs on the CPU'
    assert run_train(opt, tmp_path, monkeypatch) == 0
    assert said in capsys.readouterr().err
    monkeypatch.setattr('sys.argv', ['check.py', '-opt', str(tmp_path / 'run.yml')])
    assert load_tool('check').main() == 0
    assert said in capsys.readouterr().out


@pytest.mark.parametrize('asked', [0, 'auto'])
def test_who_did_not_ask_for_a_gpu_is_told_nothing(no_gpu, asked):
    assert notes({'num_gpu': asked, 'path': {}, 'datasets': {}}) == [] and gpus_of({'num_gpu': asked}) == 0


def test_our_model_runs_on_the_cpu_in_the_script_of_another(opt, tmp_path, no_gpu):
    complete(opt, tmp_path, auto_resume=False, debug=False)
    start_processes(opt, 'none')
    opt['num_gpu'] = 1  # as BasicSR's own script leaves it
    assert build_model(opt).device.type == 'cpu'


def test_several_gpus_in_one_process_are_refused_before_anything_is_written(opt, tmp_path, monkeypatch, capsys, two_gpus):
    opt['num_gpu'] = 2
    assert run_train(opt, tmp_path, monkeypatch) == 2
    assert 'num_gpu is 2 in one process' in capsys.readouterr().err
    assert not (tmp_path / 'experiments').exists()
    assert 'torchrun --nproc_per_node=2' in notes(yaml.safe_load((tmp_path / 'run.yml').read_text()))[0]


def test_more_processes_than_gpus_are_refused_by_name(monkeypatch, two_gpus):
    monkeypatch.setenv('LOCAL_RANK', '2')
    with pytest.raises(OptionError, match=r'process 2 has no GPU of its own, there are 2: .*--nproc_per_node=2'):
        start_processes({'num_gpu': 1}, 'pytorch')


@pytest.mark.parametrize('asked', ['auto', 1, 0])
def test_the_gpu_of_a_mac_is_not_used_and_that_is_said(monkeypatch, no_gpu, asked):
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    told = notes({'num_gpu': asked, 'path': {}, 'datasets': {}})
    assert len(told) == (asked != 0) and all('(mps) is not used' in line for line in told)
