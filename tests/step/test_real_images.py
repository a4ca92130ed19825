"""A discriminator that takes other images for real than those that the sample losses compare with."""
import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from sr_bigbatch.step import undivided
from sr_bigbatch.step.adversarial_step import AdversarialStep
from sr_bigbatch.step.check import NotExact
from sr_bigbatch.step.plan import MicroBatchSizes, StepPlan
from tests.processes import run_processes
from tests.reference import checked, difference, make_case, pixel_loss


class Sharper(nn.Module):
    """More of what a blur takes away."""

    def forward(self, images):
        return (images + 0.5 * (images - F.avg_pool2d(images, 3, 1, 1))).clamp(0, 1)


class Normalised(nn.Module):
    """Makes the mean of the batch grey."""

    def forward(self, images):
        return images - images.mean() + 0.5


class OfLastTime(nn.Module):
    """Mixes in what it saw in the call before."""

    def __init__(self):
        super().__init__()
        self.register_buffer('last', torch.zeros(()))

    def forward(self, images):
        mixed = images + self.last
        self.last.copy_(images.mean())
        return mixed


def _step(case, micro, real_images, **settings):
    net_g, net_d = copy.deepcopy(case.net_g), copy.deepcopy(case.net_d)
    optimizers = [torch.optim.SGD(net.parameters(), 1e-2) for net in (net_g, net_d)]
    plan = StepPlan(MicroBatchSizes(*micro), settings.pop('kept_graphs', 0))
    return AdversarialStep(net_g, net_d, *optimizers, pixel_loss, case.gan_loss, plan=plan, real_images=real_images,
                           relativistic=case.relativistic, **settings)


def _reference(case, real_images):
    """The undivided update, by hand."""
    net_g, net_d = copy.deepcopy(case.net_g), copy.deepcopy(case.net_d)
    fake, real, loss = net_g(case.lq), real_images(case.gt), case.gan_loss
    real_logits, fake_logits = net_d(real), net_d(fake)
    loss_g, detached = F.l1_loss(fake, case.gt), net_d(fake.detach())
    if case.relativistic:
        loss_g = loss_g + (loss(real_logits.detach() - fake_logits.mean(), False)
                           + loss(fake_logits - real_logits.detach().mean(), True)) / 2
        loss_d = (loss(real_logits - detached.detach().mean(), True, is_disc=True)
                  + loss(detached - real_logits.detach().mean(), False, is_disc=True)) / 2
    else:
        loss_g = loss_g + loss(fake_logits, True)
        loss_d = loss(real_logits, True, is_disc=True) + loss(detached, False, is_disc=True)
    for net, value in ((net_g, loss_g), (net_d, loss_d)):
        gradients = torch.autograd.grad(value, list(net.parameters()), retain_graph=True)
        with torch.no_grad():
            for parameter, gradient in zip(net.parameters(), gradients, strict=True):
                parameter.sub_(1e-2 * gradient)
    return net_g, net_d


@pytest.mark.parametrize('micro', [(1, 1, 1), (2, 3, 2), (5, 5, 5)])
@pytest.mark.parametrize('kept_graphs', [0, 1])
@pytest.mark.parametrize('relativistic', [True, False])
def test_the_update_is_that_of_the_undivided_batch(relativistic, kept_graphs, micro):
    case = make_case(relativistic=relativistic)
    step = _step(case, micro, Sharper(), kept_graphs=kept_graphs)
    step(case.lq, case.gt)
    for net, reference, start in zip((step.net_g, step.net_d), _reference(case, Sharper()), (case.net_g, case.net_d),
                                     strict=True):
        assert difference(net, reference, start) <= 1e-10


def test_it_makes_a_difference():
    case = make_case()
    plain, sharpened = _step(case, (2, 2, 2), None), _step(case, (2, 2, 2), Sharper())
    plain(case.lq, case.gt)
    sharpened(case.lq, case.gt)
    assert difference(sharpened.net_d, plain.net_d, case.net_d) > 1e-3


def test_verification_compares_with_the_same_images():
    case = make_case()
    step = _step(case, (2, 2, 2), Sharper())
    assert max(step.verify(case.lq, case.gt).values()) < 1e-12
    true = step.undivided_gradients(case.lq, case.gt)['d']
    others = undivided.adversarial_gradients(step.net_g, step.net_d, pixel_loss, case.gan_loss, case.lq, case.gt,
                                             relativistic=True)['d']
    assert not torch.allclose(torch.cat([each.flatten() for each in true]), torch.cat([each.flatten() for each in others]))


def test_a_change_of_them_makes_a_check_due():
    case, real_images = make_case(), nn.Sequential(Sharper())
    step = _step(case, (2, 2, 2), real_images)
    step(case.lq, case.gt)
    real_images.append(Normalised())
    with pytest.raises(NotExact, match='real images'):
        step(case.lq, case.gt)


@pytest.mark.parametrize('real_images', [Normalised, OfLastTime])
def test_what_couples_samples_or_keeps_a_state_is_refused(real_images):
    case = make_case()
    with pytest.raises(NotExact, match='real images'):
        _step(case, (2, 2, 2), real_images())(case.lq, case.gt)


def test_coupled_ones_are_exact_with_the_whole_batch_which_is_then_never_cut():
    case = make_case(relativistic=False)
    step = _step(case, (2, 2, 5), Normalised())
    step(case.lq, case.gt)
    assert difference(step.net_d, _reference(case, Normalised())[1], case.net_d) <= 1e-10
    assert 'discriminator' in step.uncuttable_parts
    one_size_for_all = _step(case, (2, 2, 2), Normalised())
    one_size_for_all.plan = StepPlan.of(2, 0, exact=True)
    one_size_for_all(case.lq, case.gt)
    assert difference(one_size_for_all.net_d, step.net_d, case.net_d) <= 1e-10


def test_under_autocast_they_are_made_in_the_type_of_the_ground_truth(monkeypatch):
    case, seen, forward = make_case(dtype=torch.float32), [], Sharper.forward
    step = checked(_step(case, (2, 2, 2), Sharper(), dtype=torch.bfloat16), case.lq, case.gt)
    monkeypatch.setattr(Sharper, 'forward', lambda module, images: (
        seen.append((images.dtype, torch.is_autocast_enabled('cpu'))), forward(module, images))[1])
    step(case.lq, case.gt)
    assert set(seen) == {(torch.float32, False)}


def _one_of_two(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2)
    for relativistic in (True, False):
        case, mine = make_case(relativistic=relativistic), slice(0, 2) if rank == 0 else slice(2, 5)
        step = checked(_step(case, (2, 1, 1), Sharper()), case.lq[mine], case.gt[mine])
        step(case.lq[mine], case.gt[mine])
        for net, reference, start in zip((step.net_g, step.net_d), _reference(case, Sharper()), (case.net_g, case.net_d),
                                         strict=True):
            assert difference(net, reference, start) <= 1e-10
    dist.destroy_process_group()


def test_two_processes_with_unequal_shares_make_the_update_of_one(tmp_path):
    run_processes(_one_of_two, (str(tmp_path),), 2)
