import pytest
import torch

from sr_bigbatch.memory.live_bytes import LiveBytes
from sr_bigbatch.nets.rrdb import CheckpointedRRDBNet
from sr_bigbatch.nets.tail_in_strips import TailInStrips


@pytest.mark.parametrize('scale', [4, 2, 1])
@pytest.mark.parametrize('size', [(1, 1), (300, 40), (40, 300), (97, 129)])  # in features
def test_strips_make_the_image_of_the_whole(scale, size, monkeypatch):
    monkeypatch.setattr('sr_bigbatch.nets.tail_in_strips._PIXELS', 900)
    net = CheckpointedRRDBNet(3, 3, scale, 8, 1, 4).double()
    image = torch.rand(1, 3, *(length * 4 // scale for length in size), dtype=torch.float64)
    with torch.no_grad():
        whole = net(image)
    assert torch.allclose(TailInStrips(net)(image), whole, rtol=0, atol=1e-13)


def test_strips_need_less_than_a_third_of_the_memory():
    net, image, peaks = CheckpointedRRDBNet(3, 3, 4, 32, 1, 16), torch.rand(1, 3, 256, 256), []
    for run in (net, TailInStrips(net)):
        with torch.no_grad(), LiveBytes([image]) as live:
            run(image)
        peaks.append(live.peak[''])
    assert peaks[1] < peaks[0] / 3
