"""A real batch is compared with the undivided one."""
import copy

import pytest
import torch
from torch import nn

from sr_bigbatch.step.check import NotExact
from sr_bigbatch.step.verification import Verification, verify
from tests.step.small import adversarial, batch, discriminator, generator, l1, supervised


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
