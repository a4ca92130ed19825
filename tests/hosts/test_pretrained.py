"""``pretrain_network_g``: which weights of a file are meant, and do they fit? Known before anything starts."""
import pytest
import torch
from basicsr.archs.rrdbnet_arch import RRDBNet
from safetensors.torch import save_file

from sr_bigbatch.files.formats import converted
from tests.conftest import load_tool, run_train


def _weights(blocks=1, features=8):
    torch.manual_seed(blocks)
    return RRDBNet(3, 3, 4, features, blocks, 8).state_dict()


NET = _weights()
TAKEN = {
    'averaged': ({'params_ema': NET}, 'has no params: its params_ema are taken'),
    'bare': (NET, 'has no params: its weights stand in it without a key and are taken'),
    'of another program': ({'epoch': 3, 'model': NET, 'lr': {'a': 1.0}}, 'has no params: its model are taken'),
    'in processes': ({'params_ema': {f'module.{name}': value for name, value in NET.items()}}, 'its params_ema are taken'),
    'plain': ({'params': NET}, None),
    'both': ({'params': NET, 'params_ema': NET}, None),
    'mmagic': (converted({'params_ema': NET}, 'mmagic'), 'its params_ema are taken'),
    'mmengine': (converted({'params': NET}, 'mmengine'), None),
}


@pytest.fixture
def start(opt, tmp_path, monkeypatch, capsys):
    """``start(content, **path)``: exit status of check and of a training of no iterations, and what both have said."""
    opt['train'].update(total_iter=1)
    opt['train']['optim_g']['lr'] = opt['train']['optim_d']['lr'] = 0.0

    def run(content, **path):
        file = tmp_path / ('net.safetensors' if content == 'safetensors' else 'net.pth')
        save_file(NET, file) if content == 'safetensors' else torch.save(content, file)
        opt['path'].update(pretrain_network_g=str(file), **path)
        status = run_train(opt, tmp_path, monkeypatch)
        trained = capsys.readouterr().err
        monkeypatch.setattr('sys.argv', ['check.py', '-opt', str(tmp_path / 'run.yml')])
        assert load_tool('check').main() == status
        checked = capsys.readouterr()
        return status, trained, checked.out + checked.err

    return run


@pytest.mark.parametrize('kind', TAKEN)
@pytest.mark.parametrize('decay', [0, 0.9])
def test_the_only_weights_of_a_file_are_taken_and_that_is_said(opt, tmp_path, start, kind, decay):
    opt['train']['ema_decay'] = decay
    content, said = TAKEN[kind]
    status, *told = start(content)
    assert status == 0
    for text in told:
        assert ('path.pretrain_network_g: ' in text) is bool(said) and (said or '') in text
    saved = torch.load(tmp_path / 'experiments' / 'quickstart' / 'models' / 'net_g_latest.pth', weights_only=True)
    for network in saved.values():
        assert all(torch.allclose(network[name], value) for name, value in NET.items())


def test_safetensors_are_taken(start):
    assert start('safetensors')[0] == 0


@pytest.mark.parametrize(('content', 'path', 'said'), [
    ({'g': NET, 'd': NET}, {}, 'has no params, but g, d: choose one (path.param_key_g'),
    ({'params_ema': NET, 'model': NET}, {}, 'has no params, but params_ema, model'),
    ({'epoch': 1}, {}, 'holds no weights of a network'),
    ({'params': _weights(blocks=2)}, {}, 'does not fit network_g: 30 are not in the network, body.1.rdb1'),
    ({'params_ema': _weights(features=4)}, {}, 'conv_first.weight is 4x3x3x3 in the file and 8x3x3x3 in the network, as'),
    ({'params': {'conv.weight': torch.zeros(1)}}, {}, 'tensors are not in the file, conv_first.weight first'),
    ({'params': {'conv.weight': torch.zeros(1)}}, {'strict_load_g': False}, 'are not in the network, conv.weight first'),
], ids=str)
def test_weights_that_are_not_meant_or_do_not_fit_are_one_sentence_before_the_start(tmp_path, start, content, path, said):
    status, *told = start(content, **path)
    assert status == 2 and not (tmp_path / 'experiments').exists()
    for text in told:
        assert said in text and 'Traceback' not in text


@pytest.mark.parametrize('decay', [0, 0.9])
def test_the_named_one_of_several_is_taken(opt, start, decay):
    opt['train']['ema_decay'] = decay
    status, *told = start({'g': NET, 'd': _weights(2)}, param_key_g='g')
    assert status == 0 and not any('path.pretrain_network_g: ' in text for text in told)


def test_without_strictness_what_fits_is_taken(start):
    assert start({'params': _weights(blocks=2)}, strict_load_g=False)[0] == 0


@pytest.mark.parametrize(('path', 'decay', 'status'), [
    ({}, 0, 2), ({'param_key_g': 'params_ema'}, 0.9, 0), ({'param_key_g': 'params_ema'}, 0, 0)], ids=str)
def test_a_model_of_basicsr_is_checked_by_its_own_rule(opt, start, path, decay, status):
    for key in ('micro_batch_size', 'kept_graphs', 'accumulation', 'optim_wrapper'):
        opt['train'].pop(key)
    opt['model_type'], opt['train']['ema_decay'] = 'ESRGANModel', decay
    found, *told = start({'params_ema': NET}, **path)
    assert found == status
    assert status == 0 or all('ESRGANModel of BasicSR looks for params' in text for text in told)
