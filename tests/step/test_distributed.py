"""K processes with B / K samples each make the update of one process with B."""
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from sr_bigbatch.step.adversarial_step import AdversarialStep
from sr_bigbatch.step.check import NotExact
from sr_bigbatch.step.distributed import (
    alone,
    batch_sizes,
    gather_batch,
    my_samples,
    rank,
    sum_gradients,
    sum_in_place,
    world_size,
    worst,
)
from sr_bigbatch.step.plan import WHOLE, MicroBatchSizes, StepPlan
from sr_bigbatch.step.update import SafeUpdate
from tests.processes import run_processes
from tests.reference import checked, difference, make_case, pixel_loss

DISCRIMINATORS = ('group', 'batch')


def _one_of_many(rank, folder, shares):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=len(shares))
    mine = slice(sum(shares[:rank]), sum(shares[:rank + 1]))
    for discriminator in DISCRIMINATORS:
        case = make_case(discriminator, batch=sum(shares))
        case.lq, case.gt = case.lq[mine], case.gt[mine]
        net_g, net_d, report = case.divided((1, 2, WHOLE if discriminator == 'batch' else 2), 1)
        if rank == len(shares) - 1:
            torch.save({'g': net_g.state_dict(), 'd': net_d.state_dict(), 'losses': report.losses},
                       f'{folder}/{discriminator}.pth')
    dist.destroy_process_group()


@pytest.mark.parametrize('shares', [(8,), (5, 3), (3, 1, 2, 2)], ids=str)
def test_the_update_and_the_logged_losses_are_those_of_one_process(shares, tmp_path):
    run_processes(_one_of_many, (str(tmp_path), shares), len(shares))
    for discriminator in DISCRIMINATORS:
        _check_update(make_case(discriminator, batch=8), torch.load(tmp_path / f'{discriminator}.pth', weights_only=True))


def _check_update(case, saved):
    reference_g, reference_d, losses = case.undivided()
    net_g, net_d, _ = case._copies()
    net_g.load_state_dict(saved['g'])
    net_d.load_state_dict(saved['d'])
    assert difference(net_g, reference_g, case.net_g) <= 1e-10
    assert difference(net_d, reference_d, case.net_d) <= 1e-10
    for name, value in losses.items():
        torch.testing.assert_close(saved['losses'][name], value.detach())
    _, alone, _ = case.divided((8, 8, 8))  # running statistics move once a step here, and five times in BasicSR
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(saved['d'][name], value, rtol=1e-10, atol=1e-12)


def _with_a_judge_of_the_whole_batch(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2)
    case = make_case('none', batch=4)
    case.net_d.register_forward_pre_hook(lambda module, images: (images[0] + images[0].std(0).mean(),))
    case.lq, case.gt = case.lq[2 * rank:2 * rank + 2], case.gt[2 * rank:2 * rank + 2]
    with pytest.raises(NotExact, match=r'discriminator: couples samples .* each process sees its own samples only'):
        case.divided((1, 1, WHOLE))
    dist.destroy_process_group()


def test_a_discriminator_that_judges_the_whole_batch_otherwise_is_refused_in_several_processes(tmp_path):
    run_processes(_with_a_judge_of_the_whole_batch, (str(tmp_path),), 2)


def _one_of_two_in_trouble(rank, folder, trouble):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2)
    case = make_case('group', batch=4)
    share = slice(2 * rank, 2 * rank + 2)
    net_g, net_d, optimizers = case._copies()
    step = AdversarialStep(net_g, net_d, *(SafeUpdate(optimizer) for optimizer in optimizers), pixel_loss, case.gan_loss,
                           plan=StepPlan(MicroBatchSizes(2, 2, 2)))
    checked(step, case.lq[share], case.gt[share])
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
    torch.save({'g': net_g.state_dict(), 'd': net_d.state_dict(), 'plan': vars(step.plan.micro),
                'events': [event.kind for event in report.events]}, f'{folder}/{rank}.pth')
    dist.destroy_process_group()


@pytest.mark.parametrize('trouble', ['forward', 'backward', 'bad input'])
def test_trouble_of_one_process_is_answered_by_all(trouble, tmp_path):
    run_processes(_one_of_two_in_trouble, (str(tmp_path), trouble), 2)
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


PARAMETERS = 5  # of which each is missing elsewhere, see _gradients
COUNTS = (3, 0, 4, 1)  # samples of each process


def _gradients(process):
    """Of five parameters: everywhere; at process 1 alone; everywhere but there; nowhere; of one that does not learn."""
    def value(index):
        return torch.full((2,), 10.0 * index + process, dtype=torch.float32 if index == 2 else torch.float64)

    return [value(0), value(1) if process == 1 else None, None if process == 1 else value(2), None, value(4)]


def _collectives(process):
    torch.manual_seed(0)
    whole = torch.randn(sum(COUNTS), 2, 3)
    sizes = batch_sizes(COUNTS[process])
    assert sizes == list(COUNTS) and rank() == process
    assert torch.equal(gather_batch(whole[my_samples(sizes)], sizes), whole)
    assert torch.equal(gather_batch(whole[process:process + 1]), whole[:len(COUNTS)])  # the same number everywhere
    transposed = whole.transpose(1, 2)
    assert torch.equal(gather_batch(transposed[my_samples(sizes)], sizes), transposed)

    parameters = [torch.zeros(2, dtype=torch.float32 if index == 2 else torch.float64, requires_grad=index != 4)
                  for index in range(PARAMETERS)]
    optimizer = torch.optim.Adam(parameters[:4], 1.0)
    for parameter in parameters[:4]:  # moments that would move a parameter whose gradient is zero instead of missing
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for parameter, gradient in zip(parameters, _gradients(process), strict=True):
        parameter.grad = gradient
    sum_gradients(parameters)
    gradients = [parameter.grad for parameter in parameters]
    optimizer.step()
    sum_gradients([])

    with alone():
        kept = torch.full((2,), float(process))
        sum_in_place([kept])
        assert (world_size(), rank(), batch_sizes(7), my_samples([7])) == (1, 0, [7], slice(0, 7))
        assert worst(process, torch.device('cpu')) == process and gather_batch(kept, [2]) is kept
        with alone():
            pass
        assert world_size() == 1 and kept.tolist() == [process, process]
    assert world_size() == len(COUNTS)
    return gradients, [parameter.detach() for parameter in parameters]


def _one_of_four(process, folder):
    dist.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=process, world_size=len(COUNTS))
    torch.save(_collectives(process), f'{folder}/{process}.pth')
    dist.destroy_process_group()


def test_unequal_shares_are_gathered_and_missing_gradients_count_as_zeros(tmp_path):
    run_processes(_one_of_four, (str(tmp_path),), len(COUNTS))
    found = [torch.load(tmp_path / f'{process}.pth', weights_only=True) for process in range(len(COUNTS))]
    for process, (gradients, parameters) in enumerate(found):
        assert [gradient if gradient is None else gradient.tolist() for gradient in gradients] == [
            [6.0, 6.0], [11.0, 11.0], [65.0, 65.0], None, [40.0 + process] * 2]
        assert all(torch.equal(mine, first) for mine, first in zip(parameters, found[0][1], strict=True))
        assert parameters[3].tolist() == pytest.approx([-1.0, -1.0], abs=1e-6)  # where the first step had brought it


def test_one_process_keeps_its_values():
    missing, present = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    present.grad = torch.ones(2)
    sum_gradients([missing, present])
    assert missing.grad is None and present.grad.tolist() == [1, 1]
    assert batch_sizes(3) == [3] and my_samples([3]) == slice(0, 3)
    assert gather_batch(present, [2]) is present


def _one_keeps_the_others_waiting(process, folder):
    dist.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=process, world_size=2,
                            timeout=timedelta(seconds=2))
    for _ in range(2):
        assert worst(process, torch.device('cpu')) == 1
        if process == 0:  # validates alone, for longer than the group of the gradients would wait
            time.sleep(5)
    assert batch_sizes(process + 1) == [1, 2]
    total = torch.ones(())
    sum_in_place([total])
    assert total == 2
    dist.destroy_process_group()


def test_a_process_that_validates_may_take_as_long_as_it_takes(tmp_path):
    run_processes(_one_keeps_the_others_waiting, (str(tmp_path),), 2)
