import io
import os
import pickle
import zipfile

import pytest
import torch

from sr_bigbatch.files.storage import BadFile, load_tensors, save_atomically, write_atomically
from tests.conftest import run_train


class _Calls:
    """Pickles to a call of any function with any arguments."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def _by_opcode(module, name, command):
    """The same by hand, for functions that pickle would store under another name."""
    return (b'\x80\x02c' + module.encode() + b'\n' + name.encode() + b'\nX' + len(command).to_bytes(4, 'little')
            + command.encode() + b'\x85R.')


def hostile_files(folder, canary):
    """Files that create ``canary`` if they are unpickled without a guard: (path, name of the global)."""
    import importlib
    import subprocess
    command, code = f'touch {canary}', f'open({str(canary)!r}, "w")'
    content = {
        'os_system': pickle.dumps(_Calls(os.system, command), 2), 'popen': pickle.dumps(_Calls(os.popen, command), 2),
        'subprocess': pickle.dumps(_Calls(subprocess.call, ['touch', str(canary)]), 2),
        'eval': pickle.dumps(_Calls(eval, code), 2), 'exec': pickle.dumps(_Calls(exec, code), 2),
        'import': pickle.dumps(_Calls(importlib.import_module, 'antigravity'), 2),
        'open': pickle.dumps(_Calls(open, str(canary), 'w'), 2),
        'inst': b'(S' + repr(command).encode() + b'\nios\nsystem\n.',
        'posix': _by_opcode('posix', 'system', command), 'runpy': _by_opcode('runpy', '_run_code', code),
        'code': _by_opcode('code', 'interact', code), 'protocol_4': pickle.dumps(_Calls(eval, code), 4)}
    for name, pickled in content.items():
        path = folder / f'{name}.pth'
        with zipfile.ZipFile(path, 'w') as archive:  # as torch.save lays it out
            archive.writestr('archive/data.pkl', pickled)
            archive.writestr('archive/version', '3\n')
            archive.writestr('archive/byteorder', 'little')
        yield path
    for name in ('os_system', 'inst'):
        (folder / f'{name}_bare.pth').write_bytes(content[name])
        yield folder / f'{name}_bare.pth'
    buffer = io.BytesIO()
    torch.save({'params': {'weight': torch.zeros(1)}, 'extra': _Calls(os.system, command)}, buffer)
    (folder / 'among_weights.pth').write_bytes(buffer.getvalue())
    yield folder / 'among_weights.pth'


def test_hostile_files_are_refused_and_nothing_runs(tmp_path):
    canary, met = tmp_path / 'canary', 0
    for path in hostile_files(tmp_path, canary):
        with pytest.raises(BadFile) as caught:
            load_tensors(path)
        assert not canary.exists(), path
        assert str(path) in str(caught.value) and 'weights_only' not in str(caught.value)
        met += 'which no checkpoint of weights needs' in str(caught.value)
    assert met >= 8


def test_they_are_refused_before_a_training_starts(opt, tmp_path, monkeypatch, capsys):
    path = next(hostile_files(tmp_path, tmp_path / 'canary'))
    for key in ('pretrain_network_g', 'pretrain_network_d', 'resume_state'):
        assert run_train({**opt, 'path': {**opt['path'], key: str(path)}}, tmp_path, monkeypatch) == 2
        assert f'path.{key}: {path} is not read, because it asks for' in capsys.readouterr().err
    assert not (tmp_path / 'canary').exists() and not (tmp_path / 'experiments').exists()


@pytest.mark.parametrize('content', [b'', b'\x00' * 100, b'PK\x03\x04 torn', b'<html>404</html>'])
def test_torn_and_foreign_files_are_named(tmp_path, content):
    path = tmp_path / 'net.pth'
    path.write_bytes(content)
    with pytest.raises(BadFile, match=r'torn|no checkpoint|not read'):
        load_tensors(path)
    (tmp_path / 'net.safetensors').write_bytes(content)
    with pytest.raises(BadFile, match='torn or no checkpoint'):
        load_tensors(tmp_path / 'net.safetensors')


def test_safetensors_are_read(tmp_path):
    from safetensors.torch import save_file
    save_file({'weight': torch.ones(2)}, tmp_path / 'net.safetensors')
    assert torch.equal(load_tensors(tmp_path / 'net.safetensors')['params']['weight'], torch.ones(2))


class _SimulatedCrash(BaseException):
    pass


@pytest.mark.parametrize('call', ['open', 'write', 'fsync', 'replace'])
def test_an_interrupted_save_leaves_what_was_there(tmp_path, monkeypatch, call):
    path = tmp_path / 'a.pth'
    save_atomically({'value': 1}, path)

    def crash(*arguments):
        raise _SimulatedCrash

    if call in ('fsync', 'replace'):
        monkeypatch.setattr(f'sr_bigbatch.files.storage.os.{call}', crash)
    with pytest.raises(_SimulatedCrash):
        if call == 'open':
            monkeypatch.setattr('pathlib.Path.open', crash)
        write_atomically(crash if call == 'write' else lambda file: file.write(b'new'), path)
    monkeypatch.undo()
    assert load_tensors(path) == {'value': 1} and list(tmp_path.iterdir()) == [path]
