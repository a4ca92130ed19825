"""A real batch is compared with the undivided one."""
import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sr_bigbatch.step.adversarial_step import AdversarialStep
from sr_bigbatch.step.check import NotExact
from sr_bigbatch.step.verification import Verification, verify
from tests.step.small import adversarial, batch, discriminator, gan_loss, generator, l1, supervised


def test_an_exact_step_differs_by_rounding_and_nothing_changes():
    step = adversarial(micro_batch_size=2)
    before = copy.deepcopy([net.state_dict() for net in step.nets.values()])
    step.check(*batch(5))
    found = verify(step, *batch(5), torch.float64)
    assert set(found.differences) == {'g', 'd'} and max(found.differences.values()) < 1e-10 and found.breaches() == []
    torch.testing.assert_close([net.state_dict() for net in step.nets.values()], before, rtol=0, atol=0)


def test_a_step_that_is_not_exact_is_found_out():
    step = supervised(micro_batch_size=2, exact=False, losses=lambda output, gt, lq: {'sum': (output - gt).abs().sum()})
    breach, = verify(step, *batch(5), torch.float64).breaches()
    assert breach.startswith("the generator's gradient")


def test_verification_at_intervals_is_an_error_of_an_exact_plan():
    step = supervised(micro_batch_size=2, verify_every=2)
    step(*batch(4))
    step.losses = lambda output, gt, lq: {'l1': l1(output, gt, lq)['l1'] * len(gt)}  # after the check
    with pytest.raises(NotExact, match='differs from that of the undivided batch'):
        step(*batch(4))


def test_what_does_not_run_in_float64_runs_in_float32_and_noise_is_not_compared():
    class OnlyFloat32(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = generator().float()

        def forward(self, lq):
            constant = torch.nn.functional.conv2d(lq, torch.ones(3, 3, 1, 1))
            return self.net(lq) + torch.nn.functional.interpolate(constant, scale_factor=2)

    lq, gt = (images.float() for images in batch(4))
    found = verify(supervised(OnlyFloat32(), micro_batch_size=2), lq, gt, torch.float64)
    assert found.dtype is torch.float32 and found.differences['g'] < 1e-4
    noisy = adversarial(discriminator(nn.Dropout(0.5)), micro_batch_size=2)
    noisy.check(*batch(4))
    assert noisy.verify(*batch(4)) == {}


def test_float32_is_granted_its_rounding():
    assert Verification({'g': 1e-5}, torch.float32).breaches() == []
    assert len(Verification({'g': 1e-5, 'd': float('nan')}, torch.float64).breaches()) == 2


def test_an_undivided_gradient_that_is_not_finite_is_compared_with_nothing():
    def nan(output, gt, lq):
        return {'l': (output - output.detach()).abs().sqrt().mean()}

    step = supervised(micro_batch_size=2, losses=nan)
    found = verify(step, *batch(4), torch.float64)
    assert found.differences == {} and found.breaches() == []


def test_the_next_step_is_verified_where_the_first_had_no_finite_gradient():
    class NanOnBright(nn.Module):
        def forward(self, output, gt, lq):
            error = (output - gt).square().flatten(1).sum(1)
            return {'l': (error * torch.where(gt.flatten(1).amax(1) > 1e4, float('nan'), 1.0)).mean()}

    step, (lq, gt) = supervised(micro_batch_size=2, losses=NanOnBright()), batch(4)
    step(lq, gt + 1e5)
    assert step.last_verification == {}
    step(lq, gt)
    assert step.last_verification['g'] < 1e-10


class _Averaging(nn.Module):
    """A GAN loss that compares logits with their mean over the steps, as LeCam (Tseng et al. 2021) does."""

    def __init__(self):
        super().__init__()
        self.register_buffer('mean', torch.zeros((), dtype=torch.float64))

    def forward(self, logits, real, is_disc=False):
        self.mean.lerp_(logits.detach().mean(), 0.1)
        return gan_loss(logits, real) + (logits - self.mean).square().mean()


@pytest.mark.parametrize('wrap', [lambda loss: loss, lambda loss: lambda *args, **kwargs: loss(*args, **kwargs)])
def test_a_gan_loss_with_a_state_is_called_as_often_as_without_verification(wrap):
    steps, losses, given = [], [], batch(4)
    for verify_every in (0, None):
        torch.manual_seed(0)
        losses.append(_Averaging())
        step = adversarial(micro_batch_size=2)
        steps.append(AdversarialStep(*step.nets.values(), *step.updates.values(), l1, wrap(losses[-1]), micro_batch_size=2,
                                     verify_every=verify_every))
        steps[-1](*given)
    assert max(steps[0].last_verification.values()) < 1e-10
    assert torch.equal(losses[0].mean, losses[1].mean)
    for one, other in zip(steps[0].net_d.parameters(), steps[1].net_d.parameters(), strict=True):
        assert torch.equal(one, other)


def _adversarial(net_g, **settings):
    net_d = discriminator()
    optimizers = [torch.optim.SGD(net.parameters(), 0.1) for net in (net_g, net_d)]
    return AdversarialStep(net_g, net_d, *optimizers, l1, gan_loss, **settings)


@pytest.mark.filterwarnings('ignore:None of the inputs have requires_grad')  # of a pass without graph
@pytest.mark.parametrize('make', [supervised, _adversarial])
def test_a_generator_with_reentrant_checkpoints_is_verified(make):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.body = nn.Conv2d(3, 3, 1).double(), generator()

        def forward(self, lq):
            return checkpoint(self.body, self.head(lq), use_reentrant=True)

    step = make(Checkpointed(), micro_batch_size=2)
    step.check(*batch(4))
    assert max(verify(step, *batch(4), torch.float64).differences.values()) < 1e-10
