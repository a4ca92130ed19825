"""Each weight is cast to 16 bits once a step, and nothing but the number of casts changes by it."""
import contextlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sr_bigbatch.nets.rrdb import POLICIES, CheckpointedRRDBNet
from sr_bigbatch.nets.vgg_discriminator import GrowableVGGDiscriminator
from sr_bigbatch.step import trial, weight_copies
from sr_bigbatch.step.adversarial_step import AdversarialStep
from sr_bigbatch.step.plan import MicroBatchSizes, StepPlan
from sr_bigbatch.step.supervised_step import SupervisedStep
from sr_bigbatch.step.weight_copies import cast, weights_cast_once
from tests.counting import Count
from tests.step.small import gan_loss, l1

BATCH = 4


class _Twice(nn.Module):
    """One layer is used twice, one in float32, one by its parent, one inside of a checkpoint, one without graph at first."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        for name in ('shared', 'wide', 'modulated', 'inner', 'looked_at'):
            self.add_module(name, nn.Conv2d(4, 4, 3, padding=1))
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3 * 4, 1)

    def forward(self, x):
        x = self.shared(F.leaky_relu(self.shared(self.first(x)), 0.2))
        with torch.autocast('cpu', enabled=False):
            x = self.wide(x.float())
        x = F.conv2d(x, self.modulated.weight * 1.0009, self.modulated.bias, padding=1)
        x = checkpoint(self.inner, x, use_reentrant=self.reentrant) if torch.is_grad_enabled() else self.inner(x)
        with torch.no_grad():
            shift = self.looked_at(x).mean((1, 2, 3), keepdim=True)
        return F.pixel_shuffle(self.last(self.looked_at(x) + shift), 2)


def _plain():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.LeakyReLU(0.2), nn.ConvTranspose2d(8, 3, 2, 2))


def _rrdb(policy):
    net = nn.Sequential(CheckpointedRRDBNet(3, 3, 4, 8, 2, 4, policy), nn.AvgPool2d(2))
    for parameter in net.parameters():
        parameter.data *= 3
    return net


GENERATORS = {'plain': _plain, 'reentrant': lambda: _Twice(True), 'not reentrant': lambda: _Twice(False),
              **{policy: lambda policy=policy: _rrdb(policy) for policy in POLICIES}}


def _step(name, dtype, micro, kept=0, net_d=None):
    torch.manual_seed(0)
    net_g = GENERATORS[name]()
    net_d = net_d or GrowableVGGDiscriminator(3, 8, 32, 'group')
    plan = StepPlan(MicroBatchSizes(micro, micro, micro), kept)
    return AdversarialStep(net_g, net_d, torch.optim.Adam(net_g.parameters()), torch.optim.Adam(net_d.parameters()), l1,
                           gan_loss, plan=plan, dtype=dtype, verify_every=None)


def _batch():
    return torch.rand(BATCH, 3, 16, 16), torch.rand(BATCH, 3, 32, 32)


def _weights_after(step, steps=2):
    torch.manual_seed(1)
    for _ in range(steps):
        step(*_batch())
    return [parameter.detach().clone() for net in step.nets.values() for parameter in net.parameters()]


@pytest.mark.parametrize('kept', [0, 1])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('name', GENERATORS)
def test_the_update_is_that_of_a_cast_at_every_pass_bit_by_bit(monkeypatch, name, dtype, kept):
    ours = _weights_after(_step(name, dtype, 2, kept))
    monkeypatch.setattr(trial, 'weights_cast_once', lambda *nets: contextlib.nullcontext())
    theirs = _weights_after(_step(name, dtype, 2, kept))
    assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize('kept', [0, BATCH])
@pytest.mark.parametrize('name', ['plain', *POLICIES])
def test_casts_of_weights_do_not_grow_with_the_number_of_micro_batches(name, kept):
    casts = []
    for micro in (1, 2, BATCH):
        step = _step(name, torch.bfloat16, micro, kept)
        step(*_batch())  # the first one also studies the networks
        with Count(*step.nets.values()) as count:
            step(*_batch())
        casts.append(count.weight_casts)
    assert casts[0] == casts[1] == casts[2] <= sum(len(list(net.parameters())) for net in step.nets.values())


def test_a_discriminator_with_batch_norm_casts_once_too():
    step = _step('plain', torch.bfloat16, BATCH, net_d=GrowableVGGDiscriminator(3, 8, 32, 'batch'))
    step(*_batch())
    with Count(step.net_d) as count:
        step(*_batch())
    assert count.weight_casts <= len(list(step.net_d.parameters()))


def test_a_supervised_step_casts_once_too():
    net = GENERATORS['compact']()
    step = SupervisedStep(net, torch.optim.Adam(net.parameters()), l1, micro_batch_size=1, dtype=torch.bfloat16)
    step(*_batch())
    with Count(net) as count:
        step(*_batch())
    assert count.weight_casts <= len(list(net.parameters()))


def test_nothing_is_left_behind_also_after_an_exception():
    net = GENERATORS['plain']()
    with pytest.raises(RuntimeError, match='in mid-work'), weights_cast_once(net):
        assert 'forward' in vars(net[0])
        raise RuntimeError('in mid-work')
    assert not any({'forward', 'weight', 'bias'} & set(vars(layer)) for layer in net) and weight_copies._copies is None


def test_a_copy_is_one_tensor_until_the_weight_changes():
    layer = nn.Conv2d(1, 1, 1)
    (outside,), (again,) = cast([layer.weight], torch.bfloat16), cast([layer.weight], torch.bfloat16)
    assert outside is not again and cast([layer.weight], None)[0] is layer.weight
    with weights_cast_once():
        first, second = (cast([layer.weight], torch.bfloat16)[0] for _ in range(2))
        assert first is second and not first.requires_grad
        with torch.no_grad():
            layer.weight.add_(1)
        changed, = cast([layer.weight], torch.bfloat16)
        assert torch.equal(changed, layer.weight.bfloat16())
        assert cast([layer.weight], torch.float16)[0].dtype is torch.float16


def test_layers_of_other_dtypes_and_kinds_are_left_alone():
    strange = type('Strange', (nn.Conv2d,), {})
    net = nn.Sequential(strange(3, 3, 1), nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 3, 1)), nn.BatchNorm2d(3))
    with weights_cast_once(net):
        assert not any('forward' in vars(layer) for layer in net)
    double = nn.Linear(2, 2).double()
    with weights_cast_once(double):
        assert double(torch.ones(1, 2, dtype=torch.float64)).dtype is torch.float64
