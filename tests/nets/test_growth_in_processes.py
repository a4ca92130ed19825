"""A discriminator that grows in several processes is the same in all, though each draws random numbers of its own."""
import itertools

import pytest
import torch
import torch.distributed as dist
from torch import nn

from sr_bigbatch.hosts.basicsr.model.models import AccumulatingESRGANModel
from sr_bigbatch.nets.vgg_discriminator import NORMS, GrowableVGGDiscriminator
from sr_bigbatch.nets.vgg_growth import WAYS, grow_to
from tests.processes import run_processes

CASES = list(itertools.product(WAYS, NORMS))


def _begin(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2)


def _grown(rank, folder):
    _begin(rank, folder)
    net_g, states = nn.Upsample(scale_factor=4), {}
    net_g.register_parameter('where', nn.Parameter(torch.zeros(1)))
    for way, norm in CASES:
        torch.manual_seed(0)
        net_d = GrowableVGGDiscriminator(3, 8, 64, norm)
        optimizer = torch.optim.Adam(net_d.parameters())
        torch.manual_seed(1 + rank)  # as a training seeds its processes
        batch = {'lq': torch.rand(2, 3, 32, 32), 'gt': torch.rand(2, 3, 128, 128)}
        lines = list(grow_to(net_g, net_d, optimizer, [], batch, 128, way, 1.0))
        states[f'{way} {norm}'] = {**net_d.state_dict(), 'line': lines[0]}
    torch.save(states, f'{folder}/{rank}.pth')
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def grown(tmp_path_factory):
    folder = tmp_path_factory.mktemp('grown')
    run_processes(_grown, (str(folder),), 2)
    return [torch.load(folder / f'{rank}.pth', weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize(('way', 'norm'), CASES)
def test_at_a_border_every_process_gets_the_same_discriminator(grown, way, norm):
    first, second = (states[f'{way} {norm}'] for states in grown)
    assert first.pop('line') == second.pop('line')
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def _enlarged(rank, folder):
    _begin(rank, folder)
    torch.manual_seed(1 + rank)
    for norm in NORMS:
        net = GrowableVGGDiscriminator(3, 8, 128, norm)
        object.__new__(AccumulatingESRGANModel).load_network(net, f'{folder}/{norm}.pth')
        torch.save(net.state_dict(), f'{folder}/{norm}_{rank}.pth')
    dist.destroy_process_group()


def test_weights_for_smaller_images_become_the_same_discriminator_in_every_process(tmp_path):
    for norm in NORMS:
        torch.save({'params': GrowableVGGDiscriminator(3, 8, 64, norm).state_dict()}, tmp_path / f'{norm}.pth')
    run_processes(_enlarged, (str(tmp_path),), 2)
    for norm in NORMS:
        first, second = (torch.load(tmp_path / f'{norm}_{rank}.pth', weights_only=True) for rank in (0, 1))
        assert [name for name in first if not torch.equal(first[name], second[name])] == []
