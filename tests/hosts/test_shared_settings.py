"""Settings that two parts of a training share: neither takes anything away from the other, and wrong ones are told first."""
import json

import pytest
import torch
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

import sr_bigbatch.hosts.mmengine.model  # noqa: F401  (registers the constructor)
from sr_bigbatch.hosts.mmengine.optim_wrapper import OverflowSafeOptimWrapper
from sr_bigbatch.options import OptionError, load
from tests.conftest import run_train

CLIPS = [{'max_norm': 1.0}, {'type': 'norm', 'max_norm': 0.1, 'norm_type': 'inf'}, {'type': 'value', 'clip_value': 0.1}]
WRONG_CLIPS = [
    ({'type': 'vlaue', 'clip_value': 1}, 'vlaue'),
    ({'type': 'value', 'max_norm': 1}, 'clip_grad needs clip_value, a positive number'),
    ({'clip_value': 1}, 'clip_grad needs max_norm, a positive number'),
    ({'type': 'value', 'clip_value': -1}, 'clip_grad.clip_value must be a positive number, got -1'),
    ({'type': 'value', 'clip_value': None}, 'clip_grad.clip_value must be a positive number, got None'),
    ({'max_norm': 0}, 'clip_grad.max_norm must be a positive number, got 0'),
    ({'max_norm': True}, 'clip_grad.max_norm must be a positive number, got True'),
    ({'max_norm': [1]}, 'clip_grad.max_norm must be a positive number, got [1]'),
    ({'max_norm': float('nan')}, 'clip_grad.max_norm must be a positive number, got nan'),
    ({'max_norm': 1, 'norm_type': 'two'}, "clip_grad.norm_type must be a positive number, got 'two'"),
    ({'max_norm': 1, 'norm': 2}, "unexpected keyword argument 'norm'"),
    ({'max_norm': 1, 'parameters': []}, "multiple values for argument 'parameters'"),
    ({'type': 'norm'}, 'clip_grad needs max_norm, a positive number'), ({}, 'clip_grad needs max_norm, a positive number')]
WRONG_WRAPPERS = [
    *(({'clip_grad': clip}, message) for clip, message in WRONG_CLIPS),
    ({'dtype': 'float16', 'loss_scale': {'init_scale': 0.5}}, 'loss scale needs 0 < floor <= init_scale'),
    ({'dtype': 'float16', 'loss_scale': {'initial': 2}}, "unexpected keyword argument 'initial'"),
    ({'dtype': 'float16', 'loss_scale': {'init_scale': 'high'}}, 'not supported between'),
    ({'use_fsdp': True}, 'use_fsdp must be False'),
    ({'type': 'OptimWrapper'}, 'train.optim_wrapper.type: OptimWrapper cannot repeat a step that overflows')]


@pytest.mark.parametrize('clip', CLIPS)
def test_a_run_that_clips_makes_all_its_iterations(opt, tmp_path, monkeypatch, clip):
    opt['train']['optim_wrapper']['clip_grad'] = clip
    opt['train']['total_iter'] = 2
    assert run_train(opt, tmp_path, monkeypatch) == 0
    lines = (tmp_path / 'experiments' / 'quickstart' / 'train_log.jsonl').read_text().splitlines()
    assert json.loads(lines[-1])['iter'] == 2


def test_a_run_whose_optimizers_are_one_section_by_an_alias_makes_all_its_iterations(opt, tmp_path, monkeypatch):
    opt['train']['optim_d'] = opt['train']['optim_g']
    opt['datasets']['val']['io_backend'] = opt['datasets']['train']['io_backend']
    opt['train']['total_iter'] = 2
    assert run_train(opt, tmp_path, monkeypatch) == 0
    assert '*id' in (tmp_path / 'run.yml').read_text()


def test_optimizers_of_options_that_were_read_elsewhere_may_be_one_section(opt, built):
    opt['train']['optim_d'] = opt['train']['optim_g']
    assert len(built().optimizers) == 2


def test_sections_repeated_by_an_alias_are_changed_one_by_one_and_never_endless(tmp_path):
    file = tmp_path / 'run.yml'
    file.write_text('a: &x {b: [1], c: &y {d: 2}}\ne: *x\nf: [*y, *y]\n')
    options = load(file)
    assert options == {'a': {'b': [1], 'c': {'d': 2}}, 'e': {'b': [1], 'c': {'d': 2}}, 'f': [{'d': 2}, {'d': 2}]}
    options['a']['c']['d'] = 3
    options['f'][0].clear()
    assert options['e']['c'] == options['f'][1] == {'d': 2}
    file.write_text('a: &x {b: *x}\n')
    with pytest.raises(OptionError, match='stands inside what it repeats'):
        load(file)


@pytest.mark.parametrize(('wrapper', 'message'), WRONG_WRAPPERS)
def test_a_wrapper_that_cannot_be_built_is_one_sentence_before_the_start(opt, tmp_path, monkeypatch, capsys, wrapper,
                                                                         message):
    opt['train']['optim_wrapper'] = wrapper
    assert run_train(opt, tmp_path, monkeypatch) == 2
    error = capsys.readouterr().err
    assert message in error and 'Traceback' not in error and error.count('\n- ') == 1, error
    assert not (tmp_path / 'experiments').exists()


def _optimizer():
    weight = nn.Parameter(torch.zeros(3))
    weight.grad = torch.full((3,), 100.0)
    return torch.optim.SGD([weight], 1.0)


@pytest.mark.parametrize(('clip', 'message'), WRONG_CLIPS)
def test_a_wrapper_refuses_at_once_what_it_could_not_clip_by(clip, message):
    with pytest.raises(ValueError, match='clip_grad') as caught:
        OverflowSafeOptimWrapper(dtype='float32', optimizer=_optimizer(), clip_grad=clip)
    assert message in str(caught.value)


@pytest.mark.parametrize('clip', CLIPS)
def test_wrappers_that_share_their_settings_clip_alike(clip):
    shared = dict(clip)
    wrappers = [OverflowSafeOptimWrapper(dtype='float32', optimizer=_optimizer(), clip_grad=shared) for _ in range(3)]
    for wrapper in wrappers:
        wrapper.step()
    weights = [wrapper.optimizer.param_groups[0]['params'][0].detach() for wrapper in wrappers]
    assert shared == clip and 0 < weights[0].abs().max() <= 1
    assert all(torch.equal(weight, weights[0]) for weight in weights)


@pytest.mark.parametrize('clip', CLIPS)
def test_a_constructor_of_wrappers_serves_any_number_of_models(clip):
    optimizer = {'type': 'Adam', 'lr': 1e-3, 'betas': [0.9, 0.99]}
    shared = {'optimizer': optimizer, 'dtype': 'float32', 'clip_grad': dict(clip)}
    settings = {'net_g': shared, 'net_d': shared}
    constructor = OPTIM_WRAPPER_CONSTRUCTORS.build({'type': 'OptimWrapperPerNetwork', 'optim_wrapper_cfg': settings})
    model = nn.ModuleDict({'net_g': nn.Linear(2, 2), 'net_d': nn.Linear(2, 2)})
    model.net_g, model.net_d = model['net_g'], model['net_d']
    for _ in range(2):
        for wrapper in constructor(model).values():
            assert wrapper.clip_grad_kwargs == {name: value for name, value in clip.items() if name != 'type'}
            assert wrapper.optimizer.defaults['lr'] == 1e-3
    assert settings['net_g']['clip_grad'] == clip and 'type' in optimizer
