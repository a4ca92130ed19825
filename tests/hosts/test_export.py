"""Other programs load our weights and make the same image."""
import pytest
import torch

from sr_bigbatch.nets.rrdb import CheckpointedRRDBNet
from tests.conftest import load_tool

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
