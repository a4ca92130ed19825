"""What both steps do alike: plan, check, verification, state."""
import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm

from sr_bigbatch.step.base import refuse_device
from sr_bigbatch.step.check import NotExact
from sr_bigbatch.step.plan import WHOLE, MicroBatchSizes, StepPlan
from tests.reference import checked
from tests.step.small import adversarial, batch, discriminator, generator, supervised


def test_a_discriminator_that_couples_samples_gets_the_whole_batch_where_one_size_was_given():
    step = adversarial(discriminator(nn.BatchNorm2d(4)), micro_batch_size=2)
    step.check(*batch(5))
    assert step.plan.micro == MicroBatchSizes(2, 2, WHOLE)
    assert step.uncuttable_parts == {'discriminator'}


def test_a_network_that_couples_samples_is_refused_before_anything_changes():
    net = nn.Sequential(generator(), nn.BatchNorm2d(3).double())
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(NotExact, match=r'generator: .*BatchNorm'):
        supervised(net, micro_batch_size=2)(*batch(5))
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    report = supervised(net, micro_batch_size=2, exact=False)(*batch(5))
    assert report.committed == {'g'}


def test_a_plan_that_is_set_is_in_force_for_the_next_step():
    step = supervised(micro_batch_size=2)
    step.plan = StepPlan(MicroBatchSizes(1, 1, 1))
    checked(step, *batch(3))
    seen = []
    step.net_g.register_forward_pre_hook(lambda net, inputs: seen.append(len(inputs[0])))
    step(*batch(3))
    assert seen == [1, 1, 1]


SPECTRAL_NORMS = {'hook': spectral_norm, 'parametrization': parametrizations.spectral_norm}


@pytest.mark.parametrize('api', [None, *SPECTRAL_NORMS])
def test_a_rehearsal_changes_nothing(api):
    layers = [SPECTRAL_NORMS[api](nn.Conv2d(4, 4, 3).double())] if api else []
    step = adversarial(discriminator(*layers), micro_batch_size=2)
    before = copy.deepcopy([net.state_dict() for net in step.nets.values()])
    assert step.rehearse(*batch(5)) == []
    torch.testing.assert_close([net.state_dict() for net in step.nets.values()], before, rtol=0, atol=0)


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize('api', SPECTRAL_NORMS)
def test_a_step_that_ends_in_an_exception_leaves_power_iterations_where_they_were(api, error):
    net_d = discriminator(SPECTRAL_NORMS[api](nn.Conv2d(4, 4, 3).double()))
    step = checked(adversarial(net_d, micro_batch_size=2), *batch(4))
    before = copy.deepcopy([net.state_dict() for net in step.nets.values()])
    hook = step.net_g.register_forward_hook(lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(error):
        step(*batch(4))
    hook.remove()
    torch.testing.assert_close([net.state_dict() for net in step.nets.values()], before, rtol=0, atol=0)


@pytest.mark.parametrize('make', [supervised, adversarial])
def test_a_step_that_ends_in_an_exception_leaves_no_part_of_a_gradient(make):
    step, calls = checked(make(micro_batch_size=2), *batch(4)), []

    def fail(_):
        calls.append(1)
        if len(calls) == 2:
            raise ValueError

    def watch(module, inputs, images):
        if images.requires_grad:
            images.register_hook(fail)

    step.net_g.register_forward_hook(watch)
    with pytest.raises(ValueError):
        step(*batch(4))
    assert all(parameter.grad is None for net in step.nets.values() for parameter in net.parameters())


def test_a_check_sees_gradients_in_inference_mode_too():
    class Unit(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient / gradient.norm()

    class Coupled(nn.Module):
        def forward(self, x):
            return Unit.apply(x)

    step = adversarial(discriminator(Coupled()), micro_batch_size={'generator': 2, 'perceptual': 2, 'discriminator': 2})
    with torch.inference_mode(), pytest.raises(NotExact, match='its gradient depends on the other samples'):
        step.check(*batch(4))


def test_a_state_brings_counter_and_plan_in_force_back():
    step, again = (supervised(micro_batch_size=4) for _ in range(2))
    step(*batch(4))
    step.trial.memory.plan.shrink('generator', 4)
    again.load_state_dict(step.state_dict())
    assert (again.steps, again.plan.micro.generator) == (1, 2)
    with pytest.raises(ValueError, match='version'):
        again.load_state_dict({**step.state_dict(), 'version': 99})


def test_a_batch_that_is_not_finite_is_left_out():
    step, (lq, gt) = supervised(), batch(3)
    lq[1] = float('nan')
    report = step(lq, gt)
    assert report.committed == frozenset() and report.output is None
    assert [(event.kind, event.samples) for event in report.events] == [('bad input', (1,))]


def test_a_device_without_float64_is_refused_by_name():
    with pytest.raises(ValueError, match='mps has no float64'):
        refuse_device(torch.device('mps'))
    for kind in ('cpu', 'cuda', 'meta'):
        refuse_device(torch.device(kind))
