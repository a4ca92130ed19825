"""Other programs load our weights and make the same image."""
import pytest
import torch
from mmengine.config import Config

from sr_bigbatch.nets.rrdb import CheckpointedRRDBNet
from sr_bigbatch.options import load
from tests.conftest import ROOT, load_tool, run_train

pytestmark = pytest.mark.filterwarnings('ignore')  # torch's exporter and spandrel have their own


@pytest.fixture
def saved(tmp_path):
    net = CheckpointedRRDBNet(3, 3, 4, 16, 2, 32).eval()  # spandrel knows no other growth
    torch.save({'params': net.state_dict(), 'params_ema': net.state_dict()}, tmp_path / 'net_g_latest.pth')
    return net, tmp_path / 'net_g_latest.pth'


def _convert(monkeypatch, *arguments):
    monkeypatch.setattr('sys.argv', ['convert.py', *map(str, arguments)])
    return load_tool('convert').main()


def test_spandrel_makes_the_same_image(saved):
    spandrel = pytest.importorskip('spandrel')
    net, path = saved
    image = torch.rand(1, 3, 20, 28)
    with torch.no_grad():
        theirs = spandrel.ModelLoader().load_from_file(str(path)).model(image)
        torch.testing.assert_close(theirs, net(image), rtol=0, atol=1e-6)


def _shipped():
    """The generators of all option files, each once, with the names of their files."""
    found = {file.name: load(file)['network_g'] for file in sorted((ROOT / 'options').glob('*.yml'))}
    file = ROOT / 'options' / 'mmengine' / 'quickstart.py'
    found[file.name] = Config.fromfile(file).model.net_g.to_dict()
    sizes = {name: {key: settings[key] for key in ('num_feat', 'num_block', 'num_grow_ch')}
             for name, settings in found.items()}
    names = {str(size): ' '.join(name for name, other in sizes.items() if other == size) for size in sizes.values()}
    return [pytest.param(size, id=names[str(size)]) for index, size in enumerate(sizes.values())
            if size not in list(sizes.values())[:index]]


@pytest.mark.parametrize('size', _shipped())
def test_spandrel_loads_the_weights_of_every_shipped_option_file(size, tmp_path):
    spandrel = pytest.importorskip('spandrel')
    net = CheckpointedRRDBNet(3, 3, 4, **size).eval()
    torch.save({'params': net.state_dict(), 'params_ema': net.state_dict()}, tmp_path / 'net_g_latest.pth')
    theirs, image = spandrel.ModelLoader().load_from_file(str(tmp_path / 'net_g_latest.pth')), torch.rand(1, 3, 16, 12)
    assert theirs.scale == 4
    with torch.no_grad():
        torch.testing.assert_close(theirs.model(image), net(image), rtol=0, atol=1e-6)


def test_spandrel_loads_what_a_training_leaves(opt, tmp_path, monkeypatch):
    spandrel = pytest.importorskip('spandrel')
    opt['network_g'].update(load(ROOT / 'options' / 'quickstart.yml')['network_g'])
    opt['train']['total_iter'] = 1
    assert run_train(opt, tmp_path, monkeypatch) == 0
    models = tmp_path / 'experiments' / 'quickstart' / 'models'
    assert spandrel.ModelLoader().load_from_file(str(models / 'net_g_latest.pth')).architecture.name == 'ESRGAN'


def test_onnxruntime_makes_the_same_image_at_any_size(saved, tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    net, path = saved
    assert _convert(monkeypatch, path, tmp_path / 'net.onnx', '--to', 'onnx') == 0
    session = onnxruntime.InferenceSession(str(tmp_path / 'net.onnx'))
    for size in ((1, 3, 20, 28), (3, 3, 33, 17)):
        image = torch.rand(size)
        output, = session.run(None, {'image': image.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(output), net(image), rtol=0, atol=1e-4)
