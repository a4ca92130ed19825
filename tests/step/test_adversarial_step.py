"""The divided update is the undivided one."""
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from sr_bigbatch.step.adversarial_step import AdversarialStep
from sr_bigbatch.step.loss_scale import LossScale
from sr_bigbatch.step.plan import MicroBatchSizes, StepPlan
from sr_bigbatch.step.update import SafeUpdate, Verdict
from tests.reference import DISCRIMINATORS, checked, difference, make_case, pixel_loss

GAN_TYPES = ('vanilla', 'lsgan', 'wgan', 'wgan_softplus', 'hinge')
MICRO = {'one': (1, 1, 1), 'uneven': (2, 3, 2), 'whole': (5, 5, 5), 'mixed': (3, 1, 5)}
KEPT = {'replayed': 0, 'mixed': 1, 'kept': 5}
# BatchNorm over a part of the batch is refused (tests/hosts/test_basicsr_models.py), so it is not among these.
CUTS = [(discriminator, micro) for discriminator in DISCRIMINATORS for micro in MICRO
        if discriminator != 'batch' or MICRO[micro][2] == 5]
_references = {}


def _reference(*key):
    if key not in _references:
        case = make_case(*key)
        _references[key] = case, case.undivided()
    return _references[key]


def _check(case, reference, divided, tolerance):
    net_g, net_d, report = divided
    reference_g, reference_d, losses = reference
    assert difference(net_g, reference_g, case.net_g) <= tolerance
    assert difference(net_d, reference_d, case.net_d) <= tolerance
    assert report.verdicts == {'g': Verdict.COMMITTED, 'd': Verdict.COMMITTED}
    for name, value in losses.items():
        allowed = max(10 * tolerance, 1e-6)
        torch.testing.assert_close(report.losses[name], value.detach(), rtol=allowed, atol=allowed)


@pytest.mark.parametrize('kept', KEPT)
@pytest.mark.parametrize(('discriminator', 'micro'), CUTS)
@pytest.mark.parametrize('gan_type', GAN_TYPES)
@pytest.mark.parametrize('relativistic', [True, False], ids=['relativistic', 'plain_gan'])
def test_update_is_that_of_the_undivided_batch_in_float64(relativistic, gan_type, discriminator, micro, kept):
    case, reference = _reference(discriminator, gan_type, relativistic)
    _check(case, reference, case.divided(MICRO[micro], KEPT[kept]), 1e-10)


@pytest.mark.parametrize(('discriminator', 'micro'), CUTS)
def test_update_is_that_of_the_undivided_batch_in_float32(discriminator, micro):
    case, reference = _reference(discriminator, 'vanilla', True, 5, torch.float32)
    _check(case, reference, case.divided(MICRO[micro], 1), 1e-5)


@pytest.mark.parametrize('discriminator', DISCRIMINATORS)
def test_plain_accumulation_is_another_update(discriminator):
    """If this fails the cases above have become too easy to tell exact from plain."""
    case, (reference_g, reference_d, _) = _reference(discriminator, 'vanilla', True)
    net_g, net_d, _ = case.divided((2, 2, 2), exact=False)
    assert max(difference(net_g, reference_g, case.net_g), difference(net_d, reference_d, case.net_d)) > 1e-3


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_partition_of_any_batch(data):
    batch = data.draw(st.integers(1, 6))
    size = st.integers(1, batch)
    case = make_case(data.draw(st.sampled_from(('none', 'group', 'spectral', 'unet'))),
                     data.draw(st.sampled_from(GAN_TYPES)), data.draw(st.booleans()), batch, torch.float64,
                     data.draw(st.integers(0, 1000)))
    reference = case.undivided()
    _check(case, reference, case.divided(data.draw(st.tuples(size, size, size)), data.draw(st.integers(0, batch))), 1e-10)


class _Noisy(nn.Module):
    """A generator with dropout and BatchNorm: randomness and batch statistics."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Conv2d(8, 48, 3, 1, 1),
                                  nn.PixelShuffle(4))

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize('kept', [0, 1])
def test_replayed_forward_draws_the_same_numbers_and_counts_once(kept):
    case = make_case()
    case.net_g = _Noisy().double()
    torch.manual_seed(7)
    net_g, net_d, _ = case.divided((5, 5, 5), 1)
    torch.manual_seed(7)
    replayed_g, replayed_d, _ = case.divided((5, 2, 2), kept)
    assert difference(replayed_g, net_g, case.net_g) <= 1e-10
    assert difference(replayed_d, net_d, case.net_d) <= 1e-10
    assert int(replayed_g.body[1].num_batches_tracked) == 1
    torch.testing.assert_close(replayed_g.body[1].running_var, net_g.body[1].running_var)


def test_whole_batch_discriminator_updates_its_running_statistics_once_per_kind_of_image():
    case = make_case('batch')
    _, net_d, _ = case.divided((2, 2, 5))
    assert int(net_d.bn0_1.num_batches_tracked) == 2  # real and generated images


def test_generator_is_left_alone_when_it_is_not_its_turn():
    case = make_case()
    net_g, net_d, (optimizer_g, optimizer_d) = case._copies()
    step = AdversarialStep(net_g, net_d, SafeUpdate(optimizer_g), SafeUpdate(optimizer_d), pixel_loss, case.gan_loss,
                           plan=StepPlan(MicroBatchSizes(2, 2, 2)))
    report = step(case.lq, case.gt, update_g=False)
    assert report.verdicts == {'d': Verdict.COMMITTED}
    assert all(torch.equal(p, q) for p, q in zip(net_g.parameters(), case.net_g.parameters(), strict=True))
    assert difference(net_d, case.undivided()[1], case.net_d) <= 1e-10
    assert 'l_g_gan' not in report.losses


@pytest.mark.parametrize('network', ['g', 'd'])
def test_an_overflowing_gradient_is_repeated_at_a_lower_scale_and_the_other_network_does_not_notice(network):
    case = make_case()
    net_g, net_d, (optimizer_g, optimizer_d) = case._copies()
    scale_g, scale_d = LossScale(2.0**8), LossScale(2.0**8)
    overflowing, healthy = (scale_g, scale_d) if network == 'g' else (scale_d, scale_g)
    parameter = next((net_g if network == 'g' else net_d).parameters())

    def too_large(gradient):
        return gradient * (float('inf') if overflowing.value > 2.0**5 else 1)

    step = AdversarialStep(net_g, net_d, SafeUpdate(optimizer_g, scale_g), SafeUpdate(optimizer_d, scale_d), pixel_loss,
                           case.gan_loss, plan=StepPlan(MicroBatchSizes(2, 2, 2), 1))
    checked(step, case.lq, case.gt)
    parameter.register_hook(too_large)
    report = step(case.lq, case.gt)
    assert report.verdicts == {'g': Verdict.COMMITTED, 'd': Verdict.COMMITTED}
    assert (overflowing.value, healthy.value) == (2.0**5, 2.0**8)
    reference_g, reference_d, _ = case.divided((2, 2, 2), 1)
    for net, reference in ((net_g, reference_g), (net_d, reference_d)):  # powers of two: bitwise
        assert all(torch.equal(p, q) for p, q in zip(net.parameters(), reference.parameters(), strict=True))


@pytest.mark.parametrize('micro', [(1, 1, 1), (2, 3, 2)])
def test_clipping_sees_the_gradient_of_the_whole_batch(micro):
    case = make_case()

    def updated(step_or_reference):
        net_g, net_d, optimizers = case._copies()
        clips = [lambda net=net: nn.utils.clip_grad_norm_(net.parameters(), 1e-3) for net in (net_g, net_d)]
        step_or_reference(net_g, net_d, optimizers, clips)
        return net_g, net_d

    def reference(net_g, net_d, optimizers, clips):
        for optimizer, clip in zip(optimizers, clips, strict=True):
            optimizer.register_step_pre_hook(lambda *_, clip=clip: clip() and None)
        case.undivided((net_g, net_d, optimizers))

    def divided(net_g, net_d, optimizers, clips):
        updates = [SafeUpdate(optimizer, None, clip) for optimizer, clip in zip(optimizers, clips, strict=True)]
        plan = StepPlan(MicroBatchSizes(*micro))
        AdversarialStep(net_g, net_d, *updates, pixel_loss, case.gan_loss, plan=plan)(case.lq, case.gt)

    for net, expected, start in zip(updated(divided), updated(reference), (case.net_g, case.net_d), strict=True):
        assert difference(net, expected, start) <= 1e-10
        assert sum(((p - q)**2).sum() for p, q in zip(net.parameters(), start.parameters(), strict=True)).sqrt() < 1.1e-5


def test_a_gradient_left_by_an_interrupted_step_is_forgotten():
    case = make_case()
    net_g, net_d, (optimizer_g, optimizer_d) = case._copies()
    for parameter in (*net_g.parameters(), *net_d.parameters()):
        parameter.grad = torch.ones_like(parameter)
    AdversarialStep(net_g, net_d, SafeUpdate(optimizer_g), SafeUpdate(optimizer_d), pixel_loss, case.gan_loss,
                    plan=StepPlan(MicroBatchSizes(2, 2, 2)))(case.lq, case.gt)
    reference_g, reference_d, _ = case.undivided()
    assert difference(net_g, reference_g, case.net_g) <= 1e-10
    assert difference(net_d, reference_d, case.net_d) <= 1e-10


def test_a_gradient_that_overflows_at_the_floor_is_refused_and_nothing_moves():
    case = make_case()
    net_g, net_d, (optimizer_g, optimizer_d) = case._copies()
    step = AdversarialStep(net_g, net_d, SafeUpdate(optimizer_g, LossScale(4.0)), SafeUpdate(optimizer_d), pixel_loss,
                           case.gan_loss, plan=StepPlan(MicroBatchSizes(2, 2, 2)))
    checked(step, case.lq, case.gt)
    next(net_g.parameters()).register_hook(lambda gradient: gradient * float('nan'))
    assert step(case.lq, case.gt).verdicts == {'g': Verdict.REFUSED, 'd': Verdict.COMMITTED}
    assert all(torch.equal(p, q) for p, q in zip(net_g.parameters(), case.net_g.parameters(), strict=True))
    assert difference(net_d, case.undivided()[1], case.net_d) <= 1e-10
