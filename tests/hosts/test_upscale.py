import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from basicsr.archs.rrdbnet_arch import RRDBNet

from sr_bigbatch.tasks.prepare import BUNDLED_VAL, bundled
from tests.conftest import ROOT, load_tool


@pytest.fixture
def weights(tmp_path):
    net = RRDBNet(3, 3, 4, 8, 2, 4)
    with torch.no_grad():
        net.conv_last.bias += 0.5
    torch.save({'params_ema': net.state_dict()}, tmp_path / 'net.pth')
    return tmp_path / 'net.pth', net.eval()


def _upscale(monkeypatch, *arguments):
    monkeypatch.setattr('sys.argv', ['upscale.py', *map(str, arguments)])
    return load_tool('upscale').main()


def _photo(tmp_path, name='photo.png', convert=lambda image: image):
    (tmp_path / 'in').mkdir(exist_ok=True)
    cv2.imwrite(str(tmp_path / 'in' / name), convert(cv2.imread(str(bundled(BUNDLED_VAL)[0]))))
    return tmp_path / 'in' / name


def test_a_photograph_in_tiles_is_the_untiled_one(weights, tmp_path, monkeypatch):
    path, net = weights
    photo = _photo(tmp_path)
    assert _upscale(monkeypatch, photo, '--weights', path, '--out', tmp_path / 'out', '--tile', 100, '--overlap', 24) == 0
    tiled = cv2.imread(str(tmp_path / 'out' / 'photo.png')).astype(int)
    with torch.no_grad():
        image = torch.from_numpy(cv2.imread(str(photo))[..., ::-1].copy()).permute(2, 0, 1)[None] / 255
        whole = (net(image)[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()[..., ::-1]
    assert tiled.shape == whole.shape and np.abs(tiled - whole).max() <= 1 and whole.std() > 2


def test_depth_alpha_and_grey_are_kept(weights, tmp_path, monkeypatch):
    path, _ = weights
    small = (slice(0, 40), slice(0, 52))
    _photo(tmp_path, 'deep.png', lambda image: image[small].astype(np.uint16) * 257)
    _photo(tmp_path, 'alpha.png', lambda image: np.dstack([image[small], np.full((40, 52), 77, np.uint8)]))
    _photo(tmp_path, 'grey.png', lambda image: image[small][..., 0])
    assert _upscale(monkeypatch, tmp_path / 'in', '--weights', path, '--out', tmp_path / 'out', '--processes', 2) == 0
    deep, alpha, grey = (cv2.imread(str(tmp_path / 'out' / f'{name}.png'), cv2.IMREAD_UNCHANGED)
                         for name in ('deep', 'alpha', 'grey'))
    assert deep.dtype == np.uint16 and deep.shape == (160, 208, 3) and len(np.unique(deep)) > 256
    assert alpha.shape == (160, 208, 4) and (alpha[..., 3] == 77).all()
    assert grey.shape == (160, 208)


@pytest.mark.parametrize('scale', [1, 2])
def test_other_scales_take_odd_sizes(scale, tmp_path, monkeypatch):
    torch.save({'params': RRDBNet(3, 3, scale, 8, 1, 4).state_dict()}, tmp_path / 'net.pth')
    photo = _photo(tmp_path, convert=lambda image: image[:37, :51])
    assert _upscale(monkeypatch, photo, '--weights', tmp_path / 'net.pth', '--out', tmp_path / 'out') == 0
    assert cv2.imread(str(tmp_path / 'out' / 'photo.png')).shape == (37 * scale, 51 * scale, 3)


def test_a_bad_image_is_named_and_the_others_are_written(weights, tmp_path, monkeypatch, capsys):
    path, _ = weights
    _photo(tmp_path, convert=lambda image: image[:40, :40])
    (tmp_path / 'in' / 'broken.png').write_bytes(b'nothing')
    assert _upscale(monkeypatch, tmp_path / 'in', '--weights', path, '--out', tmp_path / 'out') == 1
    assert 'broken.png: cannot be read' in capsys.readouterr().err and (tmp_path / 'out' / 'photo.png').exists()


def test_wrong_arguments_are_one_clear_error(weights, tmp_path, monkeypatch, capsys):
    path, _ = weights
    photo = _photo(tmp_path)
    torch.save({'params': {'weight': torch.zeros(1)}}, tmp_path / 'other.pth')
    for arguments, message in (((photo, '--weights', tmp_path / 'other.pth'), 'holds no RRDBNet'),
                               ((photo, '--weights', tmp_path / 'none.pth'), 'there is no file'),
                               ((tmp_path / 'nothing*.png', '--weights', path), 'there is no image'),
                               ((photo, '--weights', path, '--tile', 40), 'more than twice as wide')):
        assert _upscale(monkeypatch, *arguments) == 2
        assert message in capsys.readouterr().err
    assert _upscale(monkeypatch, photo, '--weights', path, '--memory', 0.1) == 1
    assert '--memory is 0.1' in capsys.readouterr().err


@pytest.mark.slow
def test_twelve_megapixels_in_two_gigabytes(tmp_path):
    torch.save({'params': RRDBNet(3, 3, 4, 8, 1, 4).state_dict()}, tmp_path / 'net.pth')
    photo = _photo(tmp_path, convert=lambda image: cv2.resize(image, (4000, 3000), interpolation=cv2.INTER_CUBIC))
    code = ('import resource, sys; sys.argv = ["upscale.py", *sys.argv[1:]]; sys.path.insert(0, "tools"); import upscale; '
            'status = upscale.main(); print(status, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)')
    arguments = [str(photo), '--weights', str(tmp_path / 'net.pth'), '--out', str(tmp_path)]
    done = subprocess.run([sys.executable, '-c', code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    status, peak = map(int, done.stdout.split()[-2:])
    print(f'peak {peak / 1e9:.2f} GB')
    assert status == 0 and peak < 2e9


def _small(tmp_path, *names):
    for name in names:
        _photo(tmp_path, name, lambda image: image[:24, :20])
    return {path: path.read_bytes() for path in (tmp_path / 'in').iterdir()}


@pytest.mark.parametrize('more', [[], ['--overwrite'], ['--processes', 2]])
@pytest.mark.parametrize('out', ['in', 'link', 'in/../in'])
def test_photographs_are_never_written_over(weights, tmp_path, monkeypatch, capsys, out, more):
    before = _small(tmp_path, 'p.png', 'q.jpg')
    (tmp_path / 'link').symlink_to('in')
    assert _upscale(monkeypatch, tmp_path / 'in', '--weights', weights[0], '--out', tmp_path / out, *more) == 2
    told = capsys.readouterr().err
    assert 'p.png would be written over, which this program reads: choose another place' in told and told.count('\n') == 1
    assert {path: path.read_bytes() for path in (tmp_path / 'in').iterdir()} == before
    assert _upscale(monkeypatch, tmp_path / 'in', '--weights', weights[0], '--out', tmp_path / out, '--suffix', '_x4') == 0
    assert {path: path.read_bytes() for path in before} == before and (tmp_path / 'in' / 'p_x4.png').is_file()


def test_results_are_written_over_only_if_told_and_each_has_its_own_name(weights, tmp_path, monkeypatch, capsys):
    _small(tmp_path, 'p.png', 'p.jpg')
    (tmp_path / 'in' / 'more').mkdir()
    _photo(tmp_path, 'more/p.png', lambda image: image[:16, :20])
    arguments = (tmp_path / 'in', tmp_path / 'in' / '*.png', tmp_path / 'in' / 'more', '--weights', weights[0], '--out',
                 tmp_path / 'out')
    assert _upscale(monkeypatch, *arguments) == 0
    assert '3 of 3 images are in' in capsys.readouterr().out
    results = {path.name: path.read_bytes() for path in (tmp_path / 'out').iterdir()}
    assert set(results) == {'p_png.png', 'p_jpg.png', 'p_png_2.png'} and len(set(results.values())) == 3
    (tmp_path / 'out' / 'p_jpg.png').write_text('of the user')
    assert _upscale(monkeypatch, *arguments) == 2
    assert '--overwrite' in capsys.readouterr().err and (tmp_path / 'out' / 'p_jpg.png').read_text() == 'of the user'
    assert _upscale(monkeypatch, *arguments, '--overwrite') == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / 'out').iterdir()} == results


@pytest.mark.parametrize(('arguments', 'message'), [
    (['--suffix', '/../x'], '--suffix must be'), (['--suffix', 'a/b'], '--suffix must be'),
    (['--out', 'file'], 'is a file')])
def test_an_output_elsewhere_is_refused(weights, tmp_path, monkeypatch, capsys, arguments, message):
    _small(tmp_path, 'p.png')
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'file').touch()
    assert _upscale(monkeypatch, tmp_path / 'in', '--weights', weights[0], *arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('key', ['params', 'params_ema', None])
@pytest.mark.parametrize('tool', ['upscale', 'basicsr', 'mmagic', 'safetensors', 'onnx'])
def test_weights_that_are_not_finite_are_refused(weights, tmp_path, monkeypatch, capsys, tool, key, value):
    path, net = weights
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state['body.1.rdb2.conv3.bias'][2] = value
    torch.save(state if key is None else {key: state}, path)
    if tool == 'upscale':
        _small(tmp_path, 'p.png')
        assert _upscale(monkeypatch, tmp_path / 'in', '--weights', path, '--out', tmp_path / 'out') == 2
    else:
        monkeypatch.setattr('sys.argv', ['convert.py', str(path), str(tmp_path / 'out'), '--to', tool])
        assert load_tool('convert').main() == 2
    told = capsys.readouterr().err
    assert told.count('\n') == 1 and not (tmp_path / 'out').exists()
    assert 'body.1.rdb2.conv3.bias in params' in told or (key is None and tool in ('basicsr', 'mmagic', 'safetensors'))
