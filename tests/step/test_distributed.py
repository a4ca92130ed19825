"""K processes with B / K samples each make the update of one process with B."""
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from sr_bigbatch.step.adversarial_step import AdversarialStep
from sr_bigbatch.step.plan import MicroBatchSizes, StepPlan
from sr_bigbatch.step.update import SafeUpdate
from tests.reference import difference, make_case, pixel_loss


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


def _one_of_two_in_trouble(rank, folder, trouble):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2)
    case = make_case('group', batch=4)
    share = slice(2 * rank, 2 * rank + 2)
    net_g, net_d, optimizers = case._copies()
    step = AdversarialStep(net_g, net_d, *(SafeUpdate(optimizer) for optimizer in optimizers), pixel_loss, case.gan_loss,
                           StepPlan(MicroBatchSizes(2, 2, 2)))
    failures = [RuntimeError('CUDA error: out of memory')] if rank == 1 else []

    def fail(*_):
        if failures:
            raise failures.pop()

    if trouble == 'forward':
        net_d.register_forward_hook(fail)
    elif trouble == 'backward':
        net_g.conv_last.weight.register_hook(fail)
    gt = case.gt[share].clone()
    if trouble == 'bad input' and rank == 1:
        gt[1, 0, 3, 3] = float('nan')
    report = step(case.lq[share], gt)
    torch.save({'g': net_g.state_dict(), 'd': net_d.state_dict(), 'plan': vars(step.recovery.plan.now.micro),
                'events': [event.kind for event in report.events]}, f'{folder}/{rank}.pth')
    dist.destroy_process_group()


@pytest.mark.parametrize('trouble', ['forward', 'backward', 'bad input'])
def test_trouble_of_one_process_is_answered_by_all(trouble, tmp_path):
    mp.spawn(_one_of_two_in_trouble, (str(tmp_path), trouble), nprocs=2)
    first, second = (torch.load(tmp_path / f'{rank}.pth', weights_only=True) for rank in (0, 1))
    assert first['plan'] == second['plan'] and first['events'] == second['events']
    for name in ('g', 'd'):
        assert all(torch.equal(value, second[name][key]) for key, value in first[name].items())
    case = make_case('group', batch=4)
    net_g, net_d, _ = case._copies()
    net_g.load_state_dict(first['g'])
    net_d.load_state_dict(first['d'])
    if trouble == 'bad input':
        assert first['events'] == ['bad input']
        assert all(torch.equal(p, q) for p, q in zip(net_g.parameters(), case.net_g.parameters(), strict=True))
    else:
        reference_g, reference_d, _ = case.undivided()
        assert first['events'] == ['out of memory']
        assert difference(net_g, reference_g, case.net_g) <= 1e-10 and difference(net_d, reference_d, case.net_d) <= 1e-10
