"""Losses of micro-batches add up to those of the batch."""
import torch

from sr_bigbatch.step.sample_losses import LossSums, no_losses
from tests.step.small import l1


def test_weighted_parts_are_the_whole():
    output, gt = torch.rand(5, 3, requires_grad=True), torch.rand(5, 3)
    sums = LossSums()
    for part in (slice(0, 2), slice(2, 5)):
        sums.add(l1(output[part], gt[part], gt), (part.stop - part.start) / 5).backward()
    whole = l1(output, gt, gt)['l1']
    torch.testing.assert_close(sums.values['l1'], whole.detach())
    torch.testing.assert_close(output.grad, torch.autograd.grad(whole, output)[0])


def test_no_loss_at_all_is_none():
    sums = LossSums()
    assert sums.add(no_losses(*torch.rand(3, 1)), 1.0) is None and sums.values == {}
