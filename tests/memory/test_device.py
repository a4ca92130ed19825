import torch
from torch import nn

from sr_bigbatch.memory.device import peak_bytes, saved_bytes, usable_bytes


def test_saved_bytes_are_those_of_the_inputs_that_backward_needs():
    net = nn.Conv2d(3, 8, 3, 1, 1)
    image = torch.zeros(1, 3, 16, 16)
    assert saved_bytes(lambda: net(image), net) == image.numel() * 4


def test_memory_of_this_machine_is_known():
    assert usable_bytes(torch.device('cpu')) > 0
    assert peak_bytes(torch.device('cpu')) > 10**6
