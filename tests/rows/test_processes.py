"""Rows that concern several processes, in every host: two processes with 3 and 2 samples, started once for all rows."""
import datetime
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from tests.processes import run_processes
from tests.rows.cases import ALL_WHOLE, COUPLING, D_WHOLE, LOSSES, STATE, Branches, Row
from tests.rows.reference import Undivided, judge

_ALONE = '(generator|discriminator): .* each process sees its own samples only'
ROWS = {
    'unequal shards': Row(),
    'branches by content': Row(net_g=Branches),  # each way in another process
    'branches by content, one way in a process': Row(net_g=lambda: Branches(0.37)),
    'BatchNorm in D': COUPLING['BatchNorm in D, whole'],
    'BatchNorm in D, one number': COUPLING['BatchNorm in D, one number'],
    'BatchNorm in G': COUPLING['BatchNorm in G, whole'],
    **{name: replace({**COUPLING, **STATE}[f'{name}, one number'], micro=micro, refused=_ALONE) for name, micro in (
        ('functional batch norm in D', D_WHOLE), ('functional batch norm in G', ALL_WHOLE),
        ('minibatch standard deviation', 2), ('coupling and noise in D', 2), ('gate that couples later in D', 2),
        ('D with one scalar', 2), ('InstanceNorm with running statistics in D', 2),
        ("layer drop by Python's random in D", 2))},
    'sum': LOSSES['sum'],
}
HOSTS = ('plain', 'BasicSR', 'mmengine')


def _host(kind, row):
    """What makes an update, the networks, and what is to be done before."""
    if kind == 'plain':
        from tests.rows.test_plain_step import make_step
        step = make_step(row)
        return step, step.nets, lambda: None
    if kind == 'BasicSR':
        from tests.rows.test_basicsr import Host, options_of
        options = {**options_of(row), 'dist': True}
        options.pop('datasets')
        host = Host(options)
        return host, host.nets, host.build
    from tests.rows.test_mmengine import build
    model, wrappers = build(row)
    nets = {'g': model.net_g, 'd': model.net_d}
    return (lambda lq, gt: model.train_step({'lq': lq, 'gt': gt}, wrappers)), nets, lambda: None


def _outcome(kind, row, rank):
    make, nets, make_ready = _host(kind, row)
    mine = slice(0, 3) if rank == 0 else slice(3, 5)
    try:
        return judge(row, lambda lq, gt: make(lq[mine], gt[mine]), nets, make_ready,
                     Undivided(row))
    except AssertionError as error:
        return f'WRONG: {error}'


def _process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2,
                            timeout=datetime.timedelta(seconds=60))
    outcomes = {(kind, name): _outcome(kind, row, rank) for kind in HOSTS for name, row in ROWS.items()}
    torch.save(outcomes, f'{folder}/{rank}.pth')
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('processes')
    run_processes(_process, (str(folder),), 2)
    return [torch.load(folder / f'{rank}.pth', weights_only=True) for rank in range(2)]


@pytest.mark.parametrize('name', ROWS)
@pytest.mark.parametrize('kind', HOSTS)
def test_row(kind, name, outcomes):
    found = [outcome[kind, name] for outcome in outcomes]
    print(found[0])
    assert not [text for text in found if text.startswith('WRONG')], found
