"""Overflows and bad input, injected wherever a step computes: nothing is lost, and nothing else notices."""
import itertools
import random

import pytest
import torch
from torch import nn

from sr_bigbatch.step.adversarial_step import AdversarialStep
from sr_bigbatch.step.loss_scale import LossScale
from sr_bigbatch.step.overflow_guard import PoisonedWeights
from sr_bigbatch.step.plan import MicroBatchSizes, StepPlan
from sr_bigbatch.step.precision import Precision
from sr_bigbatch.step.supervised_step import SupervisedStep
from sr_bigbatch.step.update import SafeUpdate, Verdict
from tests.reference import GANLoss, checked, difference, pixel_loss

COMMITTED = {'g': Verdict.COMMITTED, 'd': Verdict.COMMITTED}
VALUES = [float('inf'), float('-inf'), float('nan'), 1e30]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SCALE, PLAN = 2.0**10, StepPlan(MicroBatchSizes(2, 2, 2), kept_graphs=1)  # of 5 samples: 2, 2 and an uneven 1


class _Generator(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3, 1, 1), nn.LeakyReLU(0.2), nn.Conv2d(4, 48, 3, 1, 1), nn.PixelShuffle(4))


class _Discriminator(nn.Sequential):
    def __init__(self, norm):
        middle = nn.BatchNorm2d(4) if norm == 'batch' else nn.GroupNorm(2, 4)
        super().__init__(nn.Conv2d(3, 4, 3, 2, 1), middle, nn.LeakyReLU(0.2), nn.Conv2d(4, 4, 3, 2, 1), nn.Flatten(),
                         nn.Linear(16, 1))


def _step(dtype, norm='group', plan=PLAN, scale=(SCALE, SCALE)):
    torch.manual_seed(3)
    net_g, net_d = _Generator(), _Discriminator(norm)
    scales = [LossScale(value) if dtype is torch.float16 else None for value in scale]
    # SGD: the update is the gradient, so a difference cannot hide behind Adam's normalisation.
    updates = [SafeUpdate(torch.optim.SGD(net.parameters(), 1e-2, momentum=0.9), scale)
               for net, scale in zip((net_g, net_d), scales, strict=True)]
    step = AdversarialStep(net_g, net_d, *updates, pixel_loss, GANLoss('vanilla', 1.0, 0.0, 5e-3), plan=plan, dtype=dtype)
    lq, gt = torch.rand(5, 3, 2, 2), torch.rand(5, 3, 8, 8)
    return checked(step, lq, gt), lq, gt


class _Poison:
    """Multiplies the k-th thing that passes, and the ones after it up to a number of times, by something bad."""

    def __init__(self, value, at, times):
        self.value, self.at, self.times, self.seen = value, at, times, 0

    def __call__(self, tensor, whole=False):
        self.seen += 1
        if not self.at < self.seen <= self.at + self.times:
            return tensor
        factor = torch.full_like(tensor, self.value) if whole else torch.ones_like(tensor)
        factor.view(-1)[0] = self.value
        return tensor * factor


def _inject(step, place, network, poison):
    net = step.net_g if network == 'g' else step.net_d
    if place in ('gradient element', 'whole gradient'):
        parameter = random.choice(list(net.parameters()))
        parameter.register_hook(lambda gradient: poison(gradient, place == 'whole gradient'))
    elif place == 'activation':
        net[0].register_forward_hook(lambda module, inputs, output: poison(output))
    elif place == 'output':
        net.register_forward_hook(lambda module, inputs, output: poison(output))
    else:
        losses = step.losses
        step.losses = lambda *images: {'l_g_pix': poison(losses(*images)['l_g_pix'].reshape(1)).reshape(())}


def _finite(step):
    tensors = [*step.net_g.state_dict().values(), *step.net_d.state_dict().values()]
    for update in (step.update_g, step.update_d):
        tensors += [entry for state in update.optimizer.state.values() for entry in state.values() if entry is not None]
    return all(torch.isfinite(tensor).all() for tensor in tensors)


PLACES = [(place, network) for place in ('gradient element', 'whole gradient', 'activation', 'output') for network in 'gd']
MOMENTS = list(itertools.product(VALUES, (0, 1, 2, 4), (1, 3)))
GROUPS = list(itertools.product(DTYPES, [*PLACES, ('loss', 'g')]))


def test_there_are_enough_of_them():
    assert len(GROUPS) * len(MOMENTS) >= 500


@pytest.mark.parametrize(('dtype', 'where'), GROUPS, ids=lambda value: str(value).removeprefix('torch.'))
def test_whatever_overflows_the_update_is_that_of_an_undisturbed_step(dtype, where):
    met = 0
    for number, (value, at, times) in enumerate(MOMENTS):
        random.seed(number)
        step, lq, gt = _step(dtype)
        _inject(step, *where, _Poison(value, at, times))
        report = step(lq, gt)
        said = f'{value} at {at} x {times}: {[event.text for event in report.events]}'
        met += bool(report.events)
        assert _finite(step), said
        _check_scales(step, report, said)
        if times == 1 and dtype is not torch.float32:
            assert report.verdicts == COMMITTED, said
        if value == 1e30 and where[0] in ('activation', 'output'):
            continue  # a number that is wrong and finite cannot be told from a right one
        for name in 'gd':
            _check_network(name, step, report, where, dtype, said)
    assert met >= len(MOMENTS) / 3  # the poison was there


def _check_scales(step, report, said):
    lowered = sum('at scale' in event.text for event in report.events)
    assert step.update_g.scale * step.update_d.scale in (1, SCALE**2 / 2**lowered), said


def _check_network(name, step, report, where, dtype, said):
    start = _network(_step(dtype)[0], name)
    undisturbed, lq, gt = _step(dtype, scale=(step.update_g.scale, step.update_d.scale))
    precision, levels = undisturbed.trial.overflow.precision, step.trial.overflow.precision._levels
    precision.begin = lambda count: setattr(precision, '_levels', levels)
    undisturbed(lq, gt)
    net, reference = _network(step, name), _network(undisturbed, name)
    if report.verdicts[name] is Verdict.REFUSED:
        assert where[1] == name or where[0] in ('activation', 'output'), said
        assert all(map(torch.equal, net.state_dict().values(), start.state_dict().values())), said
    elif not any('repeated in' in event.text for event in report.events):
        # Bit by bit, also where samples were computed in a wider dtype: as if they had been from the beginning.
        assert all(map(torch.equal, net.parameters(), reference.parameters())), said
    elif where[1] == name:  # a gradient taken in a wider dtype than the images it belongs to
        assert difference(net, reference, start) <= 0.05, said


def _network(step, name):
    return step.net_g if name == 'g' else step.net_d


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('which', ['lq', 'gt'])
@pytest.mark.parametrize('value', VALUES[:3])
def test_bad_input_is_named_and_left_out(dtype, which, value):
    step, lq, gt = _step(dtype)
    start = [tensor.clone() for net in (step.net_g, step.net_d) for tensor in net.state_dict().values()]
    (lq if which == 'lq' else gt)[3, 1, 0, 0] = value
    report = step(lq, gt)
    assert report.verdicts == {} and report.losses == {} and report.output is None
    assert [(event.kind, event.samples) for event in report.events] == [('bad input', (3,))]
    now = [tensor for net in (step.net_g, step.net_d) for tensor in net.state_dict().values()]
    assert all(map(torch.equal, start, now)) and not step.update_g.optimizer.state


def test_running_statistics_are_not_poisoned_by_a_forward_overflow():
    for dtype in (torch.bfloat16, torch.float32):
        step, lq, gt = _step(dtype, norm='batch', plan=StepPlan(MicroBatchSizes(2, 2, 5)))
        before = step.net_d[1].running_var.clone()
        _inject(step, 'activation', 'd', _Poison(float('inf'), 0, 1))
        verdict = step(lq, gt).verdicts['d']
        assert torch.isfinite(step.net_d[1].running_var).all()
        assert (verdict is Verdict.REFUSED) == torch.equal(step.net_d[1].running_var, before) == (dtype is torch.float32)


def test_poisoned_weights_are_found_and_named():
    for dtype in DTYPES:
        step, lq, gt = _step(dtype)
        with torch.no_grad():
            step.net_g[2].weight[0, 0, 0, 0] = float('nan')
        with pytest.raises(PoisonedWeights, match=r'1 parameters of _Generator are not finite, 2\.weight'):
            step(lq, gt)


def test_a_loss_without_discriminator_that_overflows_is_computed_in_a_wider_dtype():
    for dtype in (torch.float16, torch.bfloat16):
        net = _Generator()
        step = SupervisedStep(net, SafeUpdate(torch.optim.Adam(net.parameters())), pixel_loss, plan=PLAN, dtype=dtype)
        checked(step, torch.rand(5, 3, 2, 2), torch.rand(5, 3, 8, 8))
        poison = _Poison(float('inf'), 1, 1)
        net[0].register_forward_hook(lambda module, inputs, output, poison=poison: poison(output))
        report = step(torch.rand(5, 3, 2, 2), torch.rand(5, 3, 8, 8))
        assert report.verdicts == {'g': Verdict.COMMITTED}
        assert [event.kind for event in report.events] == ['forward overflow']
        assert step.trial.overflow.precision.of('generator', slice(2, 4)) is not dtype


def test_a_part_that_overflows_often_stays_on_a_wider_dtype_for_a_while():
    precision, everything = Precision(torch.float16, torch.device('cpu')), slice(0, 4)
    for step in range(3):
        precision.begin(4)
        assert precision.of('generator', everything) is torch.float16
        assert precision.widen('generator', slice(1, 2))
        assert precision.of('generator', slice(0, 1)) is torch.float16
        assert precision.of('generator', everything) is torch.bfloat16
        assert precision.end() == (['generator'] if step == 2 else [])
    resumed = Precision(torch.float16, torch.device('cpu'))
    resumed.load_state_dict(precision.state_dict())
    for one in (precision, resumed):
        for _ in range(500):
            one.begin(4)
            assert one.of('generator', everything) is torch.bfloat16
            assert one.of('discriminator', everything) is torch.float16
            one.end()
        one.begin(4)
        assert one.of('generator', everything) is torch.float16
    narrow = Precision(torch.float32, torch.device('cpu'))
    narrow.begin(1)
    assert not narrow.widen('generator', slice(0, 1))


def test_an_overflow_is_noticed_before_the_last_micro_batch():
    step, lq, gt = _step(torch.float16, plan=StepPlan(MicroBatchSizes(1, 1, 1)))
    passes = []
    step.net_g.register_forward_hook(lambda *_: passes.append(1))
    _inject(step, 'whole gradient', 'g', _Poison(float('inf'), 0, 1))
    random.seed(0)
    step.net_g[0].weight.register_hook(_Poison(float('inf'), 0, 1))
    step(lq, gt)
    assert len(passes) == 5 + 1 + 5  # generate; the first micro-batch of learn; learn again


def test_a_thousand_overflows_in_a_row_do_no_harm_where_torchs_scaler_poisons_the_weights():
    step, lq, gt = _step(torch.float16)
    start = [parameter.clone() for parameter in step.net_g.parameters()]
    storm = step.net_g[0].weight.register_hook(lambda gradient: gradient * float('inf'))
    for _ in range(60):  # each repeats ten times at first, and then in two wider dtypes
        assert step(lq, gt).verdicts == {'g': Verdict.REFUSED, 'd': Verdict.COMMITTED}
    assert step.update_g.scale == 1.0 and step.update_d.scale >= SCALE
    assert all(map(torch.equal, start, step.net_g.parameters()))
    storm.remove()
    assert step(lq, gt).verdicts == COMMITTED and _finite(step)

    net = nn.Linear(2, 1)
    scaler, optimizer = torch.amp.GradScaler('cpu'), torch.optim.Adam(net.parameters())
    scales = []
    for _ in range(1000):
        scaler.scale(net(torch.ones(1, 2)).sum() * float('inf')).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scales.append(scaler.get_scale())
    assert scales.index(0.0) + 1 == 166
    scaler.scale(net(torch.ones(1, 2)).sum()).backward()
    scaler.step(optimizer)
    assert torch.isnan(net.weight).all()
