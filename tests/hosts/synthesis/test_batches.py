"""A batch is a function of seed, iteration and photographs; its groups are those of BasicSR's own code, bit for bit."""
import hashlib
import itertools
import random

import numpy as np
import pytest
import torch
import torch.distributed as dist

from sr_bigbatch.hosts.basicsr.synthesis.batches import SynthesisedBatches, random_numbers_of, seed_of
from sr_bigbatch.hosts.basicsr.synthesis.degradation import Photographs
from sr_bigbatch.hosts.basicsr.synthesis.settings import SynthesisSettings
from tests.hosts.realesrgan import GAN, NET, fed, host_of, photographs, synthesis_options
from tests.processes import run_processes

CPU = torch.device('cpu')


def _batches(opt):
    return SynthesisedBatches(SynthesisSettings.from_options(opt), CPU)


def _hash(tensors):
    return hashlib.sha256(b''.join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()


@pytest.mark.parametrize('group', [1, 3, 4])
@pytest.mark.parametrize(('model', 'changes'), [(GAN, {}), (NET, {}), (NET, {'gt_usm': False})])
def test_each_group_is_what_basicsr_makes_of_it_with_the_same_random_numbers(model, changes, group, monkeypatch):
    opt = synthesis_options(model, degradation_group=group, queue_size=0, **changes)
    images = photographs(7)
    for iteration in range(1, 6):  # so that up, down and keep, both kinds of noise and both orders occur
        lq, gt = _batches(opt).make(images, iteration)
        for number, first in enumerate(range(0, 7, group)):
            part = Photographs(*(tensor[first:first + group] for tensor in images))
            host = host_of({**opt, 'queue_size': 420}, monkeypatch)
            with random_numbers_of(seed_of(opt['manual_seed'], iteration, number), CPU):
                expected = fed(host, part)
            assert torch.equal(lq[first:first + group], expected[0])
            assert torch.equal(gt[first:first + group], expected[1])


@pytest.mark.parametrize('model', [GAN, NET])
def test_with_a_pool_whole_batches_are_those_of_basicsr(model, monkeypatch):
    opt = synthesis_options(model, degradation_group=4, queue_size=12)
    batches, host, exchange = _batches(opt), host_of(opt, monkeypatch), []
    enter = type(host)._dequeue_and_enqueue

    def with_our_numbers(model):
        torch.manual_seed(seed_of(opt['manual_seed'], exchange[-1], 2**31))
        enter(model)

    monkeypatch.setattr(type(host), '_dequeue_and_enqueue', with_our_numbers)
    for iteration in range(1, 8):  # the pool is full after three
        images = photographs(4, seed=iteration)
        exchange.append(iteration)
        with random_numbers_of(seed_of(opt['manual_seed'], iteration, 0), CPU):
            expected = fed(host, images)
        assert all(map(torch.equal, batches.make(images, iteration), expected)), iteration


def test_seed_iteration_and_group_each_change_every_draw():
    opt = synthesis_options(degradation_group=2, queue_size=0)
    images = Photographs(*(torch.cat([tensor, tensor]) for tensor in photographs(2)))
    lq = _batches(opt).make(images, 1)[0]
    others = (_batches(opt).make(images, 2)[0], _batches({**opt, 'manual_seed': 4}).make(images, 1)[0])
    assert not any(torch.equal(lq, other) for other in others)
    assert not torch.equal(lq[:2], lq[2:])
    assert torch.equal(lq, _batches(opt).make(images, 1)[0])


def test_the_random_numbers_of_the_training_go_on_as_if_nothing_had_been_drawn():
    draws = []
    for makes in (False, True):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        if makes:
            _batches(synthesis_options()).make(photographs(2), 1)
        draws.append((random.random(), np.random.rand(), torch.rand(())))
    assert draws[0] == draws[1]


def test_images_are_made_in_float32_under_autocast_too():
    plain = _batches(synthesis_options()).make(photographs(3), 1)
    with torch.autocast('cpu', torch.bfloat16):
        under_autocast = _batches(synthesis_options()).make(photographs(3), 1)
    assert all(map(torch.equal, plain, under_autocast))


def _made_in_process(rank, opt, iterations, sizes, folder):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=len(sizes))
    batches, first = _batches(opt), sum(sizes[:rank])
    for iteration in range(1, iterations + 1):
        images = photographs(sum(sizes), seed=iteration)
        pair = batches.make(Photographs(*(tensor[first:first + sizes[rank]] for tensor in images)), iteration)
    torch.save([tensor.clone() for tensor in pair], f'{folder}/{rank}.pth')
    dist.destroy_process_group()


@pytest.mark.parametrize(('sizes', 'group'), [((3, 3), 4), ((4, 4), 4), ((2, 4), 12), ((2, 1, 3), 4)])
def test_processes_make_the_batch_of_one(sizes, group, tmp_path):
    opt, iterations = synthesis_options(degradation_group=group, queue_size=13), 4
    alone = _batches(opt)
    for iteration in range(1, iterations + 1):
        expected = alone.make(photographs(sum(sizes), seed=iteration), iteration)
    run_processes(_made_in_process, (opt, iterations, sizes, str(tmp_path)), len(sizes))
    parts = [torch.load(tmp_path / f'{rank}.pth', weights_only=True) for rank in range(len(sizes))]
    assert _hash(expected) == _hash([torch.cat(tensors) for tensors in zip(*parts, strict=True)])


@pytest.mark.parametrize('until', [1, 3, 5])
def test_a_resumed_run_makes_what_it_would_have_made(until, tmp_path):
    opt = synthesis_options(degradation_group=2, queue_size=9)
    whole, first, second = _batches(opt), _batches(opt), _batches(opt)
    expected = [_hash(whole.make(photographs(4, seed=iteration), iteration)) for iteration in range(1, 8)]
    for iteration in range(1, until + 1):
        first.make(photographs(4, seed=iteration), iteration)
    torch.save(first.state_dict(), tmp_path / 'state')
    second.load_state_dict(torch.load(tmp_path / 'state', weights_only=True))
    found = [_hash(second.make(photographs(4, seed=iteration), iteration)) for iteration in range(until + 1, 8)]
    assert found == expected[until:]


def test_a_state_that_was_loaded_and_not_yet_used_is_saved_again():
    first, second = _batches(synthesis_options()), _batches(synthesis_options())
    first.make(photographs(2), 1)
    second.load_state_dict(first.state_dict())
    assert second.state_dict() is not None and _batches(synthesis_options()).state_dict() is None


@pytest.mark.parametrize(('batch', 'group', 'expected'), [(12, 12, 180), (48, 12, 288), (128, 12, 768), (128, 1, 768)])
def test_the_default_pool_has_fifteen_draws_and_six_batches(batch, group, expected):
    opt = synthesis_options(degradation_group=group)
    assert SynthesisSettings.from_options(opt).pool_size(batch) == expected


def test_ready_made_pairs_need_no_settings():
    assert SynthesisSettings.from_options(synthesis_options(high_order_degradation=False)) is None


def test_seeds_of_near_groups_differ():
    seeds = [seed_of(*numbers) for numbers in itertools.product(range(4), repeat=3)]
    assert len(set(seeds)) == len(seeds)
