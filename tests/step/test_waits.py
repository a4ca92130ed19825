"""How often a step waits for its device and copies to it does not depend on the number of micro-batches."""
import pytest
import torch
import torch.distributed as dist
from torch import nn

from sr_bigbatch.step.batch import Images
from tests.counting import Count, reads
from tests.processes import run_processes
from tests.step.small import adversarial, batch, discriminator, supervised

OF_THE_BATCH = 1  # whether all images are finite: host memory is read, where the images are there


def _single(step):
    for net in step.nets.values():
        net.float()
    return step


STEPS = {'adversarial': lambda **settings: adversarial(discriminator().float(), **settings), 'supervised': supervised}


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('micro', [1, 2, 6])
@pytest.mark.parametrize('name', STEPS)
def test_a_step_waits_once_for_each_network(monkeypatch, name, micro, dtype):
    step = _single(STEPS[name](micro_batch_size=micro, dtype=dtype, verify_every=None))
    images = [part.float() for part in batch(6)]
    step(*images)  # the first one also studies the networks
    with reads(monkeypatch) as found:
        step(*images)
    assert len(found) <= len(step.nets) + OF_THE_BATCH


def test_images_go_to_the_device_once_however_often_they_are_used():
    lq, gt = batch(3)
    images = Images(lq, gt, torch.device('meta'))
    with Count() as count:
        there = [images.on_device() for _ in range(3)]
        assert there[0][1][slice(1, 3)].device.type == 'meta'
    assert count.by_name['_to_copy'] == 2 and there[0] is there[2]


@pytest.mark.parametrize('micro', [1, 4])
@pytest.mark.parametrize('name', STEPS)
def test_a_step_asks_for_its_images_once_also_if_it_begins_again(monkeypatch, name, micro):
    copied = []
    monkeypatch.setattr(Images, '_copied', lambda self, images: copied.append(images) or images)
    step = _single(STEPS[name](micro_batch_size=micro, verify_every=None))
    images = [part.float() for part in batch(4)]
    step(*images)
    copied.clear()
    losses, pending = step.losses, [torch.OutOfMemoryError('CUDA out of memory')]

    def full(*images):
        if pending:
            raise pending.pop()
        return losses(*images)

    step.losses = full
    report = step(*images)
    assert len(copied) == 2 and [event.kind for event in report.events] == ['out of memory']


class _Branching(nn.Module):
    """Its second layer has a gradient in one process only."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 12, 3, padding=1) for _ in range(2))

    def forward(self, x):
        return nn.functional.pixel_shuffle(self.layers[dist.get_rank()](x), 2)


def _votes(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2)
    step = supervised(_Branching().double(), micro_batch_size=1, exact=False, verify_every=None)
    images = batch(3)
    step(*images)
    with pytest.MonkeyPatch.context() as monkeypatch, reads(monkeypatch) as found:
        groups = []
        reduce = dist.all_reduce
        monkeypatch.setattr(dist, 'all_reduce', lambda tensor, *args, group=None, **more: (
            groups.append((tensor.dtype, group)), reduce(tensor, *args, group=group, **more))[1])
        step(*images)
    # What processes tell each other about themselves are whole numbers in a group of their own, never in that of the GPUs.
    votes = [group for dtype, group in groups if not dtype.is_floating_point]
    assert votes and all(group is not None and dist.get_backend(group) == 'gloo' for group in votes)
    assert all(group is None for dtype, group in groups if dtype.is_floating_point)
    assert len(found) - len(votes) <= len(step.nets) + OF_THE_BATCH
    dist.destroy_process_group()


def test_processes_vote_without_their_devices(tmp_path):
    run_processes(_votes, (str(tmp_path),), 2)
