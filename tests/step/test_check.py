"""When a step is checked, and what it says."""
import pytest
import torch
from torch import nn

from sr_bigbatch.step.adversarial_step import AdversarialStep
from sr_bigbatch.step.audit import Finding
from sr_bigbatch.step.check import Check, NotExact
from sr_bigbatch.step.plan import MicroBatchSizes, StepPlan
from sr_bigbatch.step.update import SafeUpdate
from tests.step.small import adversarial, batch, discriminator, gan_loss, generator, l1

SHAPES, PLAN = ((3, 6, 6), (3, 12, 12)), StepPlan(MicroBatchSizes(2, 2, 2))


@pytest.fixture
def check():
    nets = {'g': generator(), 'd': discriminator(nn.Dropout(0.5))}
    return Check(nets, {name: SafeUpdate(torch.optim.SGD(net.parameters(), 0.1)) for name, net in nets.items()}, l1), nets


CHANGES = {
    'plan': lambda nets: (StepPlan(MicroBatchSizes(1, 2, 2)), *SHAPES, [5]),
    'crop': lambda nets: (PLAN, (3, 8, 8), (3, 16, 16), [5]),
    'batch': lambda nets: (PLAN, *SHAPES, [6]),
    'layer': lambda nets: (nets['d'].append(nn.Linear(1, 1).double()), PLAN, *SHAPES, [5])[1:],
    'hook': lambda nets: (nets['g'].register_forward_hook(lambda *_: None), PLAN, *SHAPES, [5])[1:],
    'pre-hook': lambda nets: (nets['g'].register_forward_pre_hook(lambda *_: None), PLAN, *SHAPES, [5])[1:],
    'frozen': lambda nets: (nets['g'].requires_grad_(False), PLAN, *SHAPES, [5])[1:],
    'mode': lambda nets: (nets['g'].eval(), PLAN, *SHAPES, [5])[1:],
}


@pytest.mark.parametrize('change', CHANGES)
def test_it_is_due_at_first_and_after_each_change(check, change):
    made, nets = check
    assert made.is_due(PLAN, *SHAPES, [5])
    plan, findings = made(PLAN, *SHAPES, [5])
    assert plan == PLAN and all(finding.exact for finding in findings)
    assert not made.is_due(PLAN, *SHAPES, [5])
    assert made.is_due(*CHANGES[change](nets))


def test_noise_of_each_sample_is_exact_and_known(check):
    made, _ = check
    made(PLAN, *SHAPES, [5])
    assert made.draws_noise and not made.uncuttable


def test_the_refusal_names_every_reason():
    text = str(NotExact([Finding('generator', False, 'couples'), Finding('l1', False, 'is a sum')]))
    assert '- generator: couples' in text and '- l1: is a sum' in text and 'micro_batch_size' in text


class _Penalised(nn.Module):
    """Reaches the generator's weights by themselves."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, output, gt, lq):
        return {**l1(output, gt, lq), 'decay': sum(parameter.square().sum() for parameter in self.net.parameters())}


@pytest.mark.parametrize(('loss', 'name'), [
    (lambda net: _Penalised(net), 'decay'),
    (lambda net: lambda output, gt, lq: {'cycle': l1(output, gt, lq)['l1'] + (net(lq) - gt).abs().mean()}, 'cycle')])
def test_a_loss_that_reaches_the_generator_beside_its_images_is_refused_where_they_are_cut(loss, name):
    step = adversarial(micro_batch_size=2)
    step = AdversarialStep(*step.nets.values(), *step.updates.values(), loss(step.net_g), gan_loss, micro_batch_size=2)
    with pytest.raises(NotExact, match=f"{name}: reaches the generator's 0[.]weight in another way") as error:
        step(*batch(4))
    assert len(error.value.findings) == 1


def test_a_loss_may_use_the_discriminator():
    step = adversarial(micro_batch_size=2)
    features = step.net_d[0]
    step = AdversarialStep(*step.nets.values(), *step.updates.values(),
                           lambda output, gt, lq: {'features': (features(output) - features(gt)).abs().mean()}, gan_loss,
                           micro_batch_size=2)
    step(*batch(4))
    assert max(step.last_verification.values()) < 1e-10


def test_a_frozen_parameter_that_a_pass_changes_is_a_state():
    class Tracking(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean = nn.Parameter(torch.zeros(()), requires_grad=False)

        def forward(self, x):
            self.mean.data.lerp_(x.detach().mean().to(self.mean), 0.1)
            return x

    with pytest.raises(NotExact, match=r'its parameter 1\.mean changes from call to call'):
        adversarial(discriminator(Tracking()), micro_batch_size=2)(*batch(4))


@pytest.mark.filterwarnings('ignore:Lazy modules')
def test_a_network_whose_layers_are_made_by_its_first_pass_is_refused_by_name():
    step = adversarial(nn.Sequential(*discriminator()[:-1], nn.LazyLinear(1)).double())
    with pytest.raises(NotExact, match='discriminator: could not be tried on a toy batch'):
        step.check(*batch(4))
