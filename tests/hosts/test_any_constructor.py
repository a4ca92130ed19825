"""Networks whose constructors need values, or fail: every tool builds them or says one sentence."""
import copy
import os
import subprocess
import sys

import pytest
import torch
import yaml
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from sr_bigbatch.hosts.basicsr.construct import fake_network, network_to_inspect
from tests.conftest import ROOT, load_tool, run_train

pytestmark = pytest.mark.filterwarnings('ignore:torch.meshgrid')  # which SwinIR calls
SWINIR = {'type': 'SwinIR', 'upscale': 4, 'img_size': 8, 'window_size': 8, 'depths': [2], 'embed_dim': 12, 'num_heads': [2],
          'mlp_ratio': 2, 'upsampler': 'pixelshuffle'}
HOSTS = [SWINIR,
         {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'upscale': 4},
         {'type': 'RCAN', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 16, 'num_group': 1, 'num_block': 1, 'upscale': 4},
         {'type': 'ECBSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_block': 1, 'num_channel': 8, 'with_idt': False,
          'act_type': 'prelu', 'scale': 4}]
FAILURES = {'KeyError': KeyError('width'), 'AttributeError': AttributeError('no width'), 'IndexError': IndexError(),
            'ZeroDivisionError': ZeroDivisionError('division by zero'), 'OSError': OSError('no such file'),
            'RuntimeError': RuntimeError('first line\nsecond line'), 'AssertionError': AssertionError(),
            'ImportError': ImportError('no module'), 'NotImplementedError': NotImplementedError()}


@ARCH_REGISTRY.register()
class FailingGenerator(nn.Module):
    """Raises what it is told to."""

    def __init__(self, failure):
        super().__init__()
        raise FAILURES[failure]


@ARCH_REGISTRY.register()
class LookingGenerator(nn.Module):
    """Reads values of its weights in its constructor and, if it is told to, of its result in its forward pass."""

    def __init__(self, forward=False):
        super().__init__()
        self.looks = forward
        self.body = nn.Sequential(nn.Conv2d(3, 48, 3, 1, 1), nn.PixelShuffle(4))
        self.register_buffer('factor', torch.tensor(1.0 + float(self.body[0].weight.sum().item() > 1e9)))

    def forward(self, x):
        image = self.body(x) * self.factor
        return image if not self.looks or image.abs().max().item() < 1e9 else image.clamp(0, 1)


@pytest.fixture
def small(opt):
    """Without a perceptual network, whose weights nobody here reads."""
    opt['train'].pop('perceptual_opt', None)
    opt['train']['total_iter'] = 2
    return opt


def _tool(name, opt, folder, monkeypatch, *arguments):
    file = folder / 'run.yml'
    file.write_text(yaml.safe_dump(opt))
    monkeypatch.setattr('sys.argv', [f'{name}.py', '-opt', str(file), *arguments])
    return load_tool(name).main()


@pytest.mark.parametrize('network', [*HOSTS, {'type': 'LookingGenerator'}], ids=lambda network: network['type'])
def test_a_network_that_can_be_built_passes_the_check(small, tmp_path, monkeypatch, network):
    small['network_g'] = network
    assert _tool('check', small, tmp_path, monkeypatch) == 0


@pytest.mark.parametrize('network', [SWINIR, {'type': 'LookingGenerator'}], ids=['SwinIR', 'constructor'])
def test_a_network_that_reads_values_is_trained(small, tmp_path, monkeypatch, network):
    small['network_g'] = network
    assert run_train(small, tmp_path, monkeypatch) == 0
    assert (tmp_path / 'experiments' / 'quickstart' / 'models' / 'net_g_2.pth').is_file()


def test_a_network_that_decides_by_a_value_of_the_whole_batch_is_refused(small, tmp_path, monkeypatch, capsys):
    small['network_g'] = {'type': 'LookingGenerator', 'forward': True}
    assert run_train(small, tmp_path, monkeypatch) == 2
    error = capsys.readouterr().err
    assert '\n- generator: ' in error and 'value of the whole batch' in error and 'Traceback' not in error


PLAN = ('--val-size', '64', '--vram', '8', '--tflops', '1')


@pytest.mark.parametrize('network', [SWINIR, {'type': 'LookingGenerator'}], ids=['SwinIR', 'constructor'])
def test_the_memory_of_a_network_whose_constructor_reads_values_is_predicted(small, tmp_path, monkeypatch, capsys, network):
    small['network_g'] = network
    monkeypatch.setattr(os, 'cpu_count', lambda: 1)
    assert _tool('plan', small, tmp_path, monkeypatch, *PLAN) == 0
    assert '32 px, effective batch 4' in capsys.readouterr().out
    assert _tool('check', small, tmp_path, monkeypatch, '--vram', '8') == 0


def test_a_network_whose_forward_pass_reads_values_is_not_planned(small, tmp_path, monkeypatch, capsys):
    small['network_g'] = {'type': 'LookingGenerator', 'forward': True}
    monkeypatch.setattr(os, 'cpu_count', lambda: 1)
    for arguments in (('plan', *PLAN), ('check', '--vram', '8')):
        assert _tool(arguments[0], small, tmp_path, monkeypatch, *arguments[1:]) == 2
        error = capsys.readouterr().err
        assert 'the memory of these networks cannot be predicted' in error and 'Traceback' not in error


@pytest.mark.parametrize('network', [{'type': 'SRVGGNetCompact', 'num_feat': 8, 'num_conv': 2, 'upscale': 2},
                                     {'type': 'RIDNet', 'in_channels': 3, 'mid_channels': 16, 'out_channels': 3}],
                         ids=lambda network: network['type'])
def test_a_network_of_another_scale_is_told_before_anything_is_planned(small, tmp_path, network):
    small['network_g'] = network
    file = tmp_path / 'run.yml'
    file.write_text(yaml.safe_dump(small))
    done = subprocess.run([sys.executable, '-W', 'ignore', str(ROOT / 'tools' / 'plan.py'), '-opt', str(file), *PLAN],
                          env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and 'Traceback' not in done.stderr, done.stderr
    assert 'scale 4 needs 2 x 3 x 32 x 32' in done.stderr


@pytest.mark.parametrize('tool', ['check', 'train', 'plan'])
@pytest.mark.parametrize('failure', FAILURES)
@pytest.mark.parametrize('part', ['network_g', 'network_d'])
def test_a_constructor_that_fails_is_one_sentence(small, tmp_path, monkeypatch, capsys, part, failure, tool):
    small[part] = {'type': 'FailingGenerator', 'failure': failure}
    assert _tool(tool, small, tmp_path, monkeypatch) == 2
    error = capsys.readouterr().err
    assert error.count('\n- ') == 1 and f'\n- {part}: ' in error and 'Traceback' not in error
    assert (str(FAILURES[failure]).split('\n')[0] or failure) in error and 'second line' not in error


@pytest.mark.parametrize('network', [*HOSTS, {'type': 'LookingGenerator'}], ids=lambda network: network['type'])
def test_building_to_look_uses_up_no_random_numbers(network):
    before = torch.get_rng_state()
    network_to_inspect(network)
    with FakeTensorMode() as mode:
        fake = fake_network(copy.deepcopy(network), mode)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(isinstance(tensor, FakeTensor) for tensor in (*fake.parameters(), *fake.buffers()))
    assert all(isinstance(parameter, nn.Parameter) for parameter in fake.parameters())
