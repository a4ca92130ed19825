import torch
from torch import nn

from sr_bigbatch.core.memory import free_bytes, largest_micro_batch, peak_bytes, saved_bytes


def test_saved_bytes_are_those_of_the_inputs_that_backward_needs():
    net = nn.Conv2d(3, 8, 3, 1, 1)
    image = torch.zeros(1, 3, 16, 16)
    assert saved_bytes(lambda: net(image), net) == image.numel() * 4


def test_the_micro_batch_fits_the_budget_and_is_never_less_than_one():
    assert largest_micro_batch(100, 1000, 128) == 6
    assert largest_micro_batch(100, 10, 128) == 1
    assert largest_micro_batch(1, 10**9, 128) == 128


def test_memory_of_this_machine_is_known():
    assert free_bytes(torch.device('cpu')) > 0
    assert peak_bytes(torch.device('cpu')) > 10**6
