"""K processes with B / K samples each make the update of one process with B."""
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.reference import difference, make_case


def _one_of_many(rank, world, folder, batch, exact):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=world)
    case = make_case('group', batch=batch)
    share = slice(rank * batch // world, (rank + 1) * batch // world)
    case.lq, case.gt = case.lq[share], case.gt[share]
    net_g, net_d, report = case.divided((1, 2, 2), 1, exact)
    if rank == world - 1:
        torch.save({'g': net_g.state_dict(), 'd': net_d.state_dict(), 'losses': report.losses}, f'{folder}/update.pth')
    dist.destroy_process_group()


def _update_of(world, folder, exact=True, batch=8):
    mp.spawn(_one_of_many, (world, str(folder), batch, exact), nprocs=world)
    case = make_case('group', batch=batch)
    reference_g, reference_d, losses = case.undivided()
    saved = torch.load(folder / 'update.pth', weights_only=True)
    net_g, net_d, _ = case._copies()
    net_g.load_state_dict(saved['g'])
    net_d.load_state_dict(saved['d'])
    return difference(net_g, reference_g, case.net_g), difference(net_d, reference_d, case.net_d), losses, saved['losses']


@pytest.mark.parametrize('world', [1, 2, 4])
def test_the_update_and_the_logged_losses_are_those_of_one_process(world, tmp_path):
    error_g, error_d, expected, logged = _update_of(world, tmp_path)
    assert error_g <= 1e-10 and error_d <= 1e-10
    for name, value in expected.items():
        torch.testing.assert_close(logged[name], value.detach())
