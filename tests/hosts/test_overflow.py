"""What a user of BasicSR sees of overflows, bad input and broken weights."""
import copy
import json
import math

import pytest
import torch
from basicsr.data import build_dataset
from basicsr.utils import logger
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from sr_bigbatch.hosts.basicsr.model.saved_state import GaveUp
from sr_bigbatch.step.update import Verdict
from tests.conftest import run_train
from tests.hosts.test_basicsr_models import _batch
from tests.reference import checked


def _nan(gradient):
    return gradient * float('nan')


def test_bad_input_is_named_by_its_file_and_nothing_moves(opt, built):
    model = built()
    data = _batch(model.opt)
    data['gt_path'] = [f'/photos/{name}.png' for name in 'abcd']
    data['lq'][2, 0, 0, 0] = float('inf')
    model.feed_data(data)
    before = copy.deepcopy([net.state_dict() for net in (model.net_g, model.net_d, model.net_g_ema)])
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr('sr_bigbatch.hosts.basicsr.model.event_log.get_root_logger',
                      lambda: type('L', (), {'warning': lines.append}))
        model.optimize_parameters(1)
    assert lines == ['Iteration 1: bad input (batch): samples [2] are not finite; the step was left out: /photos/c.png']
    after = [net.state_dict() for net in (model.net_g, model.net_d, model.net_g_ema)]
    assert all(torch.equal(value, new[key]) for old, new in zip(before, after, strict=True) for key, value in old.items())
    assert model.get_current_log() == {'n_bad_input': 1}


def test_schedules_stand_still_with_their_network(opt, built):
    opt['train']['scheduler'] = {'type': 'MultiStepLR', 'milestones': [2, 3, 4], 'gamma': 0.5}
    model = built()
    model.feed_data(_batch(model.opt))
    checked(model.step, model.lq, model.gt)
    handle = next(model.net_g.parameters()).register_hook(_nan)
    rates = []
    for iteration in range(1, 6):
        model.update_learning_rate(iteration)
        rates.append([round(math.log2(optimizer.param_groups[0]['lr'] / optimizer.param_groups[0]['initial_lr']))
                      for optimizer in model.optimizers])
        if iteration == 3:
            handle.remove()
        model.optimize_parameters(iteration)
    assert [d for _, d in rates] == [0, 0, -1, -2, -3]
    assert [g for g, _ in rates] == [0, 0, 0, 0, -1]  # two of its steps were refused


def _broken(model):
    with torch.no_grad():
        next(model.net_g.parameters())[0, 0, 0, 0] = float('nan')


def test_broken_weights_are_never_saved_and_the_last_good_ones_come_back(opt, built, tmp_path):
    model = built()
    for folder in ('models', 'training_states'):
        (tmp_path / folder).mkdir()
        model.opt['path'][folder] = str(tmp_path / folder)
    model.feed_data(_batch(model.opt))
    model.optimize_parameters(1)
    model.save(0, 1)
    good = copy.deepcopy([net.state_dict() for net in (model.net_g, model.net_d, model.net_g_ema)])
    moments = copy.deepcopy(model.optimizer_g.state_dict())
    model.optimize_parameters(2)
    for times in range(1, 4):
        _broken(model)
        if times == 1:
            model.save(0, 2)
            saved = torch.load(tmp_path / 'models' / 'net_g_2.pth', weights_only=True)['params']
            assert torch.isfinite(saved['conv_first.weight']).all()
            (tmp_path / 'training_states' / '2.state').unlink()
        else:
            model.optimize_parameters(2 + times)
            assert [event.kind for event in model.report.events] == ['weights restored']
        now = [net.state_dict() for net in (model.net_g, model.net_d, model.net_g_ema)]
        assert all(torch.equal(value, new[key]) for old, new in zip(good, now, strict=True) for key, value in old.items())
        for index, state in moments['state'].items():
            assert torch.equal(state['exp_avg'], model.optimizer_g.state_dict()['state'][index]['exp_avg'])
    _broken(model)
    with pytest.raises(GaveUp, match=r'not finite.*happened 4 times; lower train.optim_g.lr.*1\.state'):
        model.optimize_parameters(6)


def test_broken_weights_before_the_first_save_end_the_run(opt, built):
    model = built()
    model.feed_data(_batch(model.opt))
    _broken(model)
    with pytest.raises(GaveUp, match='nothing has been saved yet'):
        model.optimize_parameters(1)


def test_scales_counters_and_precision_survive_a_resume(opt, built, tmp_path):
    opt['train']['optim_wrapper'].update(dtype='float16', loss_scale={'init_scale': 64.0, 'growth_interval': 50})
    model = built(copy.deepcopy(opt))
    model.opt['path'].update(models=str(tmp_path / 'm'), training_states=str(tmp_path / 's'))
    model.feed_data(_batch(model.opt))
    failures = [1]
    checked(model.step, model.lq, model.gt)
    next(model.net_g.parameters()).register_hook(lambda gradient: _nan(gradient) if failures and failures.pop() else None)
    model.optimize_parameters(1)
    assert model.report.verdicts == {'g': Verdict.COMMITTED, 'd': Verdict.COMMITTED}
    log = model.get_current_log()
    assert (log['scale_g'], log['scale_d'], log['n_gradient_overflow']) == (32, 64, 1)
    model.save(0, 1)
    resumed = built(copy.deepcopy(opt))
    resumed.resume_training(torch.load(tmp_path / 's' / '1.state', weights_only=True))
    assert [wrapper.safe_update.scale for wrapper in resumed.optim_wrappers] == [32, 64]
    assert resumed.optim_wrappers[0].safe_update.loss_scale.successes == 1
    assert resumed.events.counts == {'gradient overflow': 1}


def test_a_state_of_basicsr_itself_still_resumes(opt, built, tmp_path):
    model = built()
    model.resume_training({'epoch': 0, 'iter': 3, 'schedulers': [scheduler.state_dict() for scheduler in model.schedulers],
                           'optimizers': [optimizer.state_dict() for optimizer in model.optimizers]})
    assert model.current_iter == 4


def test_a_run_with_events_tells_them_in_its_log_and_its_picture(opt, tmp_path, monkeypatch):
    opt['train']['optim_wrapper'] = {'type': 'OverflowSafeOptimWrapper', 'dtype': 'float16'}
    dataset = type(build_dataset({**opt['datasets']['train'], 'phase': 'train', 'scale': 4}))
    original, seen = dataset.__getitem__, []

    def bad(self, index):
        sample = original(self, index)
        if self.opt['phase'] == 'train':
            seen.append(index)
        if len(seen) == 2:  # the first one is that of the check
            sample['gt'][0, 0, 0] = float('nan')
        return sample

    monkeypatch.setattr(dataset, '__getitem__', bad)
    # BasicSR adds the log file only to a logger that it has not set up before in this process.
    monkeypatch.setattr(logger, 'initialized_logger', {})
    assert run_train(opt, tmp_path, monkeypatch) == 0
    folder = tmp_path / 'experiments' / 'quickstart'
    records = [json.loads(line) for line in (folder / 'train_log.jsonl').read_text().splitlines()]
    assert [record['event'] for record in records if 'event' in record] == ['bad input']
    assert any(record.get('n_bad_input') == 1 and record.get('scale_g') for record in records)
    text = next(folder.glob('train_*.log')).read_text()
    assert 'Iteration 1: bad input' in text and '.png' in text and 'In the whole run: 1 x bad input.' in text
    assert (folder / 'curves.png').stat().st_size > 10_000


def test_checkpoints_are_exchanged_with_amp_optim_wrapper(monkeypatch):
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    monkeypatch.setattr(amp_optimizer_wrapper, 'GradScaler', lambda **settings: torch.amp.GradScaler('cpu', **settings))
    states = {}
    for source, target in (('AmpOptimWrapper', 'OverflowSafeOptimWrapper'), ('OverflowSafeOptimWrapper', 'AmpOptimWrapper')):
        nets = [nn.Linear(3, 1) for _ in range(2)]
        nets[1].load_state_dict(nets[0].state_dict())
        wrappers = [OPTIM_WRAPPERS.build({'type': kind, 'optimizer': torch.optim.Adam(net.parameters(), 0.1),
                                          'loss_scale': {'init_scale': 2.0**12, 'growth_interval': 3}, 'dtype': 'float16'})
                    for kind, net in zip((source, target), nets, strict=True)]
        wrappers[0].update_params(nets[0](torch.ones(1, 3)).sum())
        wrappers[0].optimizer.param_groups[0]['lr'] = 0.05
        states[source] = wrappers[0].state_dict()
        wrappers[1].load_state_dict(copy.deepcopy(states[source]))
        nets[1].load_state_dict(nets[0].state_dict())
        for net, wrapper in zip(nets, wrappers, strict=True):
            wrapper.update_params(net(torch.ones(1, 3)).sum())
        assert torch.equal(nets[0].weight, nets[1].weight)
        scale = wrappers[1].state_dict()['loss_scaler']
        assert scale['scale'] == 2.0**12 and scale['_growth_tracker'] == 2
    assert set(states['AmpOptimWrapper']) == set(states['OverflowSafeOptimWrapper'])
    assert set(states['AmpOptimWrapper']['loss_scaler']) <= set(states['OverflowSafeOptimWrapper']['loss_scaler'])
