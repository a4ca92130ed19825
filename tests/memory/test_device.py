import torch
from torch import nn

from sr_bigbatch.memory.device import peak_bytes, saved_bytes, usable_bytes
from sr_bigbatch.memory.live_bytes import peak_of
from sr_bigbatch.memory.target import CONTEXT_BYTES


def test_saved_bytes_are_those_of_the_inputs_that_backward_needs():
    net = nn.Conv2d(3, 8, 3, 1, 1)
    image = torch.zeros(1, 3, 16, 16)
    assert saved_bytes(lambda: net(image), net) == image.numel() * 4


def test_memory_of_this_machine_is_known():
    assert usable_bytes(torch.device('cpu')) > 0
    assert peak_bytes(torch.device('cpu')) > 10**6


def test_the_cuda_context_is_counted_once(monkeypatch):
    """A card of 8 GB with nothing on it but the context of this process holds what is predicted to take 8 GB."""
    card, held = 8 * 10**9, 10**9
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (card - CONTEXT_BYTES - held, card))
    monkeypatch.setattr(torch.cuda, 'memory_reserved', lambda device: held)
    assert usable_bytes(torch.device('cuda')) == card


def test_the_peak_on_a_gpu_is_that_of_a_run_in_which_cudnn_tries_nothing(monkeypatch):
    peaks, now = [9 * 10**9, 10**9], [0]  # of the first run and of later ones
    monkeypatch.setattr(torch.cuda, 'reset_peak_memory_stats', lambda device: now.__setitem__(0, 0))
    monkeypatch.setattr(torch.cuda, 'max_memory_allocated', lambda device: now[0])
    runs = []

    def run():
        now[0] = max(now[0], peaks[min(len(runs), 1)])
        runs.append(1)

    assert peak_of(run, torch.device('cuda'), []) == peaks[1]
