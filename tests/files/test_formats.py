import pickle

import pytest
import torch
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.model import ExponentialMovingAverage

from sr_bigbatch.files.formats import FORMATS, converted, format_of
from sr_bigbatch.nets.restore import restore
from sr_bigbatch.nets.rrdb import CheckpointedRRDBNet
from tests.conftest import load_tool


def _saved():
    nets = [CheckpointedRRDBNet(3, 3, 4, 8, 1, 4) for _ in range(2)]
    return {key: net.state_dict() for key, net in zip(('params', 'params_ema'), nets, strict=True)}


@pytest.mark.parametrize('keys', [['params', 'params_ema'], ['params'], ['params_ema']], ids=str)
@pytest.mark.parametrize('by', [[], *([kind] for kind in FORMATS), ['mmagic', 'mmengine'],
                                ['mmengine', 'mmagic', 'mmengine']], ids=str)
def test_there_and_back_nothing_is_lost(by, keys, tmp_path):
    saved = {key: network for key, network in _saved().items() if key in keys}
    there = saved
    for kind in by:
        torch.save(converted(there, kind), tmp_path / 'there.pth')
        there = torch.load(tmp_path / 'there.pth', weights_only=True)
        assert format_of(there) == kind
    back = converted(there, 'basicsr')
    assert list(back) == list(saved)
    for key, network in saved.items():
        assert list(back[key]) == list(network)
        assert all(torch.equal(back[key][name], tensor) for name, tensor in network.items())


def _convert(monkeypatch, *arguments):
    monkeypatch.setattr('sys.argv', ['convert.py', *map(str, arguments)])
    return load_tool('convert').main()


def test_the_tool_writes_a_file_that_the_other_side_loads(tmp_path, monkeypatch):
    saved = _saved()
    torch.save(saved, tmp_path / 'net_g.pth')
    assert _convert(monkeypatch, tmp_path / 'net_g.pth', tmp_path / 'mmagic.pth', '--to', 'mmagic') == 0
    names = torch.load(tmp_path / 'mmagic.pth', weights_only=True)['state_dict']
    assert torch.equal(names['generator.conv_first.weight'], saved['params']['conv_first.weight'])


@pytest.mark.parametrize('kind', ['mmagic', 'mmengine'])
@pytest.mark.parametrize('keys', [['params_ema'], ['params'], ['params', 'params_ema']], ids=str)
def test_the_tool_reads_what_it_has_written(tmp_path, monkeypatch, kind, keys):
    saved = {key: network for key, network in _saved().items() if key in keys}
    torch.save(saved, tmp_path / 'net_g.pth')
    for source, target, to in (('net_g', 'there', kind), ('there', 'back', 'basicsr'), ('there', 'weights', 'safetensors')):
        ending = 'safetensors' if to == 'safetensors' else 'pth'
        assert _convert(monkeypatch, tmp_path / f'{source}.pth', tmp_path / f'{target}.{ending}', '--to', to) == 0
    back = torch.load(tmp_path / 'back.pth', weights_only=True)
    assert list(back) == keys and all(torch.equal(value, saved[key][name])
                                      for key in keys for name, value in back[key].items())
    assert restore(tmp_path / 'there.pth').scale == restore(tmp_path / 'weights.safetensors').scale == 4


def test_the_averaged_generator_alone_is_what_the_other_program_starts_from():
    saved = {'params_ema': _saved()['params_ema']}
    state = converted(saved, 'mmagic')['state_dict']
    for name, value in saved['params_ema'].items():
        assert state[f'generator.{name}'] is state[f'generator_ema.{name}'] is value


def test_the_wrapper_that_mmengine_puts_around_an_average_is_left_out():
    net = CheckpointedRRDBNet(3, 3, 4, 8, 1, 4)
    wrapped = ExponentialMovingAverage(net).state_dict()
    found = converted({'state_dict': {f'generator_ema.{name}': value for name, value in wrapped.items()}}, 'basicsr')
    assert list(found) == ['params_ema'] and list(found['params_ema']) == list(net.state_dict())


@pytest.mark.parametrize('content', [{'params': 5}, {'params': {}}, {'params_ema': {'a': 'b'}}, {'state_dict': {1: 2}}, {}])
@pytest.mark.parametrize('kind', FORMATS)
def test_a_file_with_no_weights_under_the_right_names_is_refused(content, kind):
    with pytest.raises(ValueError, match='not a checkpoint with a generator'):
        converted(content, kind)


def test_weights_without_a_key_are_converted_too():
    weights = _saved()['params']
    assert converted(weights, 'basicsr') == {'params': weights}
    assert set(converted(weights, 'mmagic')['state_dict']) == {f'generator.{name}' for name in weights}


def test_safetensors_there_and_back(tmp_path, monkeypatch):
    saved = _saved()
    torch.save(saved, tmp_path / 'net_g.pth')
    assert _convert(monkeypatch, tmp_path / 'net_g.pth', tmp_path / 'net_g.safetensors', '--to', 'safetensors') == 0
    assert _convert(monkeypatch, tmp_path / 'net_g.safetensors', tmp_path / 'again.pth', '--to', 'basicsr') == 0
    again = torch.load(tmp_path / 'again.pth', weights_only=True)['params']
    assert all(torch.equal(again[name], value) for name, value in saved['params_ema'].items())


class _Hostile:
    """Asks for an attribute of a module, as mmengine's own checkpoints ask for methods of their log histories."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, 'mean.__globals__')


@pytest.mark.parametrize('content', ['nothing', {'weights': 1}, _Hostile()])
def test_other_files_are_refused(tmp_path, monkeypatch, capsys, content):
    path = tmp_path / 'file.pth'
    if content == 'nothing':
        path.write_bytes(b'nothing')
    else:
        with path.open('wb') as file:
            torch.save(content, file) if isinstance(content, dict) else pickle.dump(content, file, protocol=2)
    assert _convert(monkeypatch, path, tmp_path / 'out.pth', '--to', 'mmengine') == 2
    assert str(path) in capsys.readouterr().err and not (tmp_path / 'out.pth').exists()


@pytest.mark.parametrize('name', ['net_g.pth', 'link.pth', 'other.pth'])
def test_no_checkpoint_is_written_over_without_being_told(tmp_path, monkeypatch, capsys, name):
    source = tmp_path / 'net_g.pth'
    torch.save(_saved(), source)
    before = source.read_bytes()
    (tmp_path / 'link.pth').hardlink_to(source)
    (tmp_path / 'other.pth').write_text('of the user')
    assert _convert(monkeypatch, source, tmp_path / name, '--to', 'mmagic') == 2
    assert 'would be written over' in capsys.readouterr().err and source.read_bytes() == before
    assert _convert(monkeypatch, source, tmp_path / name, '--to', 'mmagic', '--overwrite') == (name != 'other.pth') * 2
    assert source.read_bytes() == before


def test_a_tensor_larger_than_its_file_is_refused_without_looking_at_it():
    with pytest.raises(ValueError, match='claims 100000000000 elements'):
        converted({'params': {'weight': torch.zeros(1).expand(10**11)}}, 'basicsr')
