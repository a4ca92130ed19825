import pytest
import torch
from torch import nn

from sr_bigbatch.step.loss_scale import LossScale
from sr_bigbatch.step.update import SafeUpdate, Verdict


@pytest.fixture
def net():
    return nn.Linear(3, 1)


def _accumulate(net, update, factor=1.0):
    (net(torch.ones(1, 3)).sum() * update.scale * factor).backward()


def test_a_scaled_update_is_bitwise_the_unscaled_one(net):
    plain = nn.Linear(3, 1)
    plain.load_state_dict(net.state_dict())
    for module, scale in ((net, LossScale(2.0**10)), (plain, None)):
        update = SafeUpdate(torch.optim.Adam(module.parameters()), scale)
        _accumulate(module, update)
        assert update.commit() is Verdict.COMMITTED
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize('poison', [float('inf'), float('nan'), 1e30])
def test_a_gradient_that_would_poison_the_optimizer_is_never_applied(net, poison):
    before = [parameter.clone() for parameter in net.parameters()]
    update = SafeUpdate(torch.optim.Adam(net.parameters()), LossScale(4.0))
    verdicts = []
    for _ in range(4):
        _accumulate(net, update, poison)
        verdicts.append(update.commit())
    assert verdicts == [Verdict.REPEAT, Verdict.REPEAT, Verdict.REFUSED, Verdict.REFUSED]
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    assert not update.optimizer.state and all(parameter.grad is None for parameter in net.parameters())


def test_a_thousand_overflows_leave_the_scale_at_its_floor(net):
    update = SafeUpdate(torch.optim.Adam(net.parameters()), LossScale())
    for _ in range(1000):
        _accumulate(net, update, float('inf'))
        update.commit()
    assert update.scale == 1.0
    _accumulate(net, update)
    assert update.commit() is Verdict.COMMITTED
    assert all(torch.isfinite(parameter).all() for parameter in net.parameters())


def test_clipping_sees_unscaled_gradients(net):
    norms = []
    clip = lambda: norms.append(nn.utils.clip_grad_norm_(net.parameters(), 0.5).item())  # noqa: E731
    update = SafeUpdate(torch.optim.SGD(net.parameters(), 1.0), LossScale(2.0**8), clip)
    before = torch.cat([parameter.detach().flatten() for parameter in net.parameters()])
    _accumulate(net, update)
    update.commit()
    after = torch.cat([parameter.detach().flatten() for parameter in net.parameters()])
    assert norms == [pytest.approx(2.0)]
    assert (before - after).norm().item() == pytest.approx(0.5, rel=1e-4)


def test_scale_grows_after_an_interval_and_stops_at_its_ceiling():
    scale = LossScale(1.0, growth_interval=2, ceiling=4.0)
    values = []
    for _ in range(8):
        scale.success()
        values.append(scale.value)
    assert values == [1, 2, 2, 4, 4, 4, 4, 4]


@pytest.mark.parametrize('settings', [{'floor': 0}, {'init_scale': 0.5}, {'ceiling': 2.0}, {'backoff_factor': 1.0},
                                      {'growth_factor': 0.5}, {'growth_interval': 0}])
def test_a_scale_that_could_vanish_is_refused(settings):
    with pytest.raises(ValueError, match='loss scale needs'):
        LossScale(**settings)


@pytest.mark.parametrize('saved', [0.0, float('inf'), float('nan'), -1.0])
def test_a_poisoned_saved_scale_is_refused(saved):
    with pytest.raises(ValueError, match='saved loss scale'):
        LossScale().load_state_dict({'scale': saved, '_growth_tracker': 0})


def test_grad_scalers_state_loads_both_ways():
    scaler = torch.amp.GradScaler('cpu', init_scale=2.0**12)
    scaler.scale(torch.ones(1))  # the scaler makes its tensors on first use
    scale = LossScale()
    scale.load_state_dict(scaler.state_dict())
    assert scale.value == 2.0**12
    scaler.load_state_dict({**scale.state_dict(), 'scale': 8.0})
    assert scaler.state_dict()['scale'] == 8.0


def test_the_memory_of_the_first_step_of_an_optimizer_is_known_before_it():
    net = nn.Linear(4, 2)
    update = SafeUpdate(torch.optim.Adam(net.parameters()))
    missing = update.bytes_of_missing_state
    net(torch.ones(1, 4)).sum().backward()
    update.commit()
    made = sum(value.nbytes for state in update.optimizer.state.values() for value in state.values() if value.dim())
    assert missing == made and update.bytes_of_missing_state == 0
