"""Every row in a loop of one's own around the step."""
import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from sr_bigbatch.step.adversarial_step import AdversarialStep
from sr_bigbatch.step.out_of_memory import OutOfMemory
from sr_bigbatch.step.update import SafeUpdate
from tests.reference import checked
from tests.rows.cases import BORDER, COUPLING, ROWS, SHORT_OF_MEMORY, Row
from tests.rows.reference import FailsOnce, judge, short_of_memory

pytestmark = pytest.mark.filterwarnings('ignore:torch.meshgrid')  # which SwinIR calls


class Losses(nn.Module):
    """The losses of a row under the names that hosts give them."""

    def __init__(self, pixel, perceptual):
        super().__init__()
        self.pixel, self.perceptual = pixel, perceptual

    def forward(self, output, gt, lq):
        losses = {} if self.pixel is None else {'l_g_pix': self.pixel(output, gt)}
        if self.perceptual is not None:
            losses['l_g_percep'] = self.perceptual(output, gt)[0]
        return losses


def make_step(row: Row) -> AdversarialStep:
    net_g, net_d = row.network('g').train(), row.network('d').train()
    if row.wire:
        row.wire(net_g, net_d)
    updates = []
    for net in (net_g, net_d):
        optimizer = row.optimizer(net.parameters())
        clip = (lambda net=net: nn.utils.clip_grad_value_(net.parameters(), row.clip['clip_value'])) if row.clip else None
        updates.append(SafeUpdate(optimizer, None, clip))
    pixel, perceptual = row.loss('pixel'), row.loss('perceptual')
    losses = None if pixel is None and perceptual is None else Losses(pixel, perceptual)
    return AdversarialStep(net_g, net_d, *updates, losses, row.gan_loss(), micro_batch_size=row.micro)


@pytest.mark.parametrize('name', ROWS)
def test_row(name):
    row = ROWS[name]
    if name == 'a value for each pixel':  # hosts take the mean of such a loss; here its owner has to
        row = replace(row, refused='l_g_pix: .* it is not a scalar')
    step = make_step(row)
    print(judge(row, step, step.nets))


@pytest.mark.parametrize('name', [name for name in COUPLING if name.endswith(', cut')])
def test_a_cut_is_another_update(name):
    """If this fails, a row has become too easy to tell an exact update from another."""
    row = replace(COUPLING[name], refused=None)
    step = make_step(row)
    step.verify_every, step.plan = None, replace(step.plan, exact=False)
    with pytest.raises(AssertionError, match=r"{'g': .*, 'd': "):
        judge(row, step, step.nets)


@pytest.mark.parametrize('name', BORDER)
def test_a_part_that_couples_is_not_cut_where_crops_grow(name):
    row = BORDER[name]
    step = make_step(row)

    def make(lq, gt):
        if gt.shape[-1] > row.size:
            micro = step.plan.micro.for_crop(row.size, gt.shape[-1])
            step.plan = replace(step.plan, micro=replace(micro, **{part: 4 for part in step.uncuttable_parts}))
        return step(lq, gt)

    print(judge(row, make, step.nets))


@pytest.mark.parametrize('name', BORDER)
def test_a_plan_that_cuts_it_there_is_refused(name):
    row = BORDER[name]
    part = 'generator' if name.endswith('in G') else 'discriminator'
    step = make_step(row)

    def make(lq, gt):
        if gt.shape[-1] > row.size:
            micro = step.plan.micro.for_crop(row.size, gt.shape[-1])
            step.plan = replace(step.plan, micro=replace(micro, perceptual=2))  # another number: nothing is left to the step
        return step(lq, gt)

    refused = replace(row, refused=f'{part}: (couples samples|changes buffers) .* sees a part of the batch')
    print(judge(refused, make, step.nets))


@pytest.mark.parametrize('backward', [False, True], ids=['forward', 'backward'])
@pytest.mark.parametrize('name', SHORT_OF_MEMORY)
def test_a_part_that_couples_is_not_cut_when_memory_runs_out(name, backward):
    row = SHORT_OF_MEMORY[name]
    step = make_step(row)

    def make(lq, gt):
        short_of_memory(name, step, lq, gt, lambda: step(lq, gt), backward=backward)

    print(judge(row, make, step.nets))


def test_memory_that_runs_out_in_the_backward_pass_of_the_discriminator_is_counted_as_its_own():
    row = SHORT_OF_MEMORY['functional batch norm in D']
    step, (lq, gt) = make_step(row), row.batch(0)
    checked(step, lq, gt)
    FailsOnce(step.net_d, backward=True)
    report = step(lq, gt)
    assert [event.part for event in report.events] == ['discriminator'] and step.plan.micro.perceptual == 8


@pytest.mark.parametrize('name', SHORT_OF_MEMORY)
def test_where_memory_runs_out_again_and_again_the_run_ends_by_name(name):
    row = SHORT_OF_MEMORY[name]
    step, (lq, gt) = make_step(row), row.batch(0)
    net, part = (step.net_g, 'generator') if name.endswith('in G') else (step.net_d, 'discriminator')
    checked(step, lq, gt)
    before = copy.deepcopy([step.net_g.state_dict(), step.net_d.state_dict()])
    net.register_forward_hook(lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError('CUDA out of memory.')))
    with pytest.raises(OutOfMemory, match=f'out of memory in the {part}, .* it must see the whole batch: cutting it would'):
        step(lq, gt)
    after = [step.net_g.state_dict(), step.net_d.state_dict()]
    assert all(torch.equal(value, now[name]) for was, now in zip(before, after, strict=True) for name, value in was.items())
