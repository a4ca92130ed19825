"""The wrapper and the hook as mmengine builds them."""
import pytest
import torch
from mmengine.registry import HOOKS, OPTIM_WRAPPERS
from torch import nn

from sr_bigbatch.hosts.mmengine import optim_wrapper
from sr_bigbatch.step.update import Verdict


def _wrapper(net, **settings):
    return OPTIM_WRAPPERS.build({'type': 'OverflowSafeOptimWrapper', 'optimizer': torch.optim.Adam(net.parameters()),
                                 **settings})


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16', torch.bfloat16, None])
def test_update_params_trains_on_cpu_in_every_dtype(dtype):
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
    wrapper = _wrapper(net, dtype=dtype, clip_grad={'max_norm': 1.0})
    losses = []
    for _ in range(40):
        with wrapper.optim_context(net):
            loss = (net(torch.ones(2, 4)).float() - 1).square().mean()
        wrapper.update_params(loss)
        losses.append(loss.item())
    assert losses[-1] < losses[0] and wrapper.last_verdict is Verdict.COMMITTED


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16', torch.bfloat16, None])
def test_on_a_gpu_that_only_emulates_bfloat16_that_dtype_is_refused(monkeypatch, dtype):
    monkeypatch.setattr(optim_wrapper, 'has_bfloat16', lambda device: False)
    wanted = torch.get_autocast_dtype('cpu') if dtype is None else dtype
    if 'bfloat16' in str(wanted):
        with pytest.raises(ValueError, match=r'only emulates bfloat16.*use float16'):
            _wrapper(nn.Linear(4, 1), dtype=dtype)
    else:
        _wrapper(nn.Linear(4, 1), dtype=dtype)


def test_accumulation_of_mmengine_works_with_it():
    nets = [nn.Linear(4, 1) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    data = torch.rand(4, 4)
    whole, parts = _wrapper(nets[0], dtype='float32'), _wrapper(nets[1], dtype='float32', accumulative_counts=2)
    whole.update_params(nets[0](data).mean())
    for half in data.split(2):
        parts.update_params(nets[1](half).mean())
    torch.testing.assert_close(nets[1].weight, nets[0].weight)


def test_an_overflow_skips_the_step_and_the_state_survives_saving():
    net = nn.Linear(4, 1)
    wrapper = _wrapper(net, dtype='float16', loss_scale={'init_scale': 2.0**10})
    before = net.weight.clone()
    wrapper.update_params(net(torch.ones(1, 4)).mean() * float('inf'))
    assert wrapper.last_verdict is Verdict.REPEAT and torch.equal(net.weight, before)
    other = _wrapper(nn.Linear(4, 1), dtype='float16')
    other.load_state_dict(wrapper.state_dict())
    assert other.safe_update.scale == 2.0**9


@pytest.mark.parametrize('settings', [{'dtype': 'float8'}, {'dtype': 'float64'}, {'dtype': 'float16', 'loss_scale': 'auto'}])
def test_unknown_settings_are_refused(settings):
    with pytest.raises(ValueError, match='must be'):
        _wrapper(nn.Linear(1, 1), **settings)


def test_the_hook_refuses_a_model_that_cannot_grow():
    hook = HOOKS.build({'type': 'ProgressiveResolutionHook', 'stages': [{'gt_size': 64}]})
    with pytest.raises(TypeError, match='needs a model that can grow'):
        hook.before_train_iter(object(), 0, {})
