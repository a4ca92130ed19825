"""Runs that version 0.1.0 saved in the middle are resumed, and end where version 0.1.0 itself ended them."""
import json
import shutil

import pytest
import torch
from mmengine.config import Config

from sr_bigbatch.options import load
from sr_bigbatch.report.run_log import LOG_FILE, read_log
from tests.conftest import ROOT, load_tool, run_train

SAVED = ROOT / 'tests' / 'data' / 'saved_by_0_1_0'
EVENTS = {'out of memory': 1, 'gradient overflow': 1, 'forward overflow': 1}


def _basicsr(name, data, tmp_path, monkeypatch):
    """Resume a copy of a saved run with the option file of that time; returns the run's folder."""
    folder = tmp_path / name
    shutil.copytree(SAVED / name, folder)
    opt = load(folder / f'{name}.yml')
    for phase, dataset in opt['datasets'].items():
        dataset.update(dataroot_gt=str(data / f'{phase}_gt'), dataroot_lq=str(data / f'{phase}_lq'))
    opt['path']['experiments_root'] = str(tmp_path)
    assert run_train(opt, tmp_path, monkeypatch, '--auto_resume') == 0
    return folder


def _runner(data, tmp_path, monkeypatch):
    """Resume a copy of the saved run of mmengine's Runner; returns the checkpoint that it ends with."""
    folder = tmp_path / 'runner'
    shutil.copytree(SAVED / 'runner', folder)
    (folder / 'last_checkpoint').write_text(str(folder / 'iter_3.pth'))  # mmengine writes the whole path into it
    config = Config.fromfile(folder / 'runner.py')
    config.train_dataloader.dataset.opt.update(dataroot_gt=str(data / 'train_gt'), dataroot_lq=str(data / 'train_lq'))
    del config.default_hooks.checkpoint['out_dir']
    config.work_dir = str(folder)
    config.dump(str(tmp_path / 'config.py'))
    monkeypatch.setattr('sys.argv', ['train_mmengine.py', str(tmp_path / 'config.py'), '--resume'])
    assert load_tool('train_mmengine').main() == 0
    return torch.load(folder / 'iter_5.pth', weights_only=False)


def _flat(weights):
    """All weights of a network in one row, in the order of their names."""
    return torch.cat([weights[name].flatten() for name in sorted(weights)])


def _ends_as_then(weights, name, net='net_g'):
    """Whether a network is what version 0.1.0 reached.

    Measured: float32 in place of 16 bits, which is far more than another order of sums, moves the weights by 4e-7 on
    average (those of a generator by 4e-6 at the most). Lost moments of Adam move them by 4e-6 on average.
    """
    found, expected = _flat(weights), torch.load(SAVED / 'expected_weights.pth', weights_only=True)[f'{name} {net}']
    assert float((found - expected).abs().mean()) < 1.5e-6
    if net == 'net_g':
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=5e-6)


def _state(folder, iteration):
    return torch.load(folder / 'training_states' / f'{iteration}.state', weights_only=True)


def _losses_as_then(record, name):
    """Whether the last iteration logged what version 0.1.0 logged; the logits tell of the discriminator's weights."""
    expected = json.loads((SAVED / 'expected_losses.json').read_text())[name]
    assert {key: record[key] for key in expected} == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_an_adversarial_run_in_float16_keeps_scales_counters_plan_and_noise(data, tmp_path, monkeypatch):
    before = _state(SAVED / 'adversarial', 2)['sr_bigbatch']
    folder = _basicsr('adversarial', data, tmp_path, monkeypatch)
    _ends_as_then(torch.load(folder / 'models' / 'net_g_4.pth', weights_only=True)['params'], 'adversarial')
    log = read_log(folder / LOG_FILE)
    assert log[:6] == read_log(SAVED / 'adversarial' / LOG_FILE)  # three events, two iterations, a validation
    steps = [record for record in log if 'lr' in record]
    assert [record['iter'] for record in steps] == [1, 2, 3, 4]
    _losses_as_then(steps[-1], 'adversarial')
    # Each scale doubles after three updates in a row, of which two came before the save; new ones would begin at 4096.
    assert [(record['scale_g'], record['scale_d']) for record in steps[2:]] == [(4096, 8192)] * 2
    assert all(steps[-1][f'n_{kind.replace(" ", "_")}'] == count for kind, count in EVENTS.items())
    ours = _state(folder, 4)['sr_bigbatch']
    after = ours['step']
    assert ours['events'] == before['events'] == EVENTS
    assert after['plan'].items() >= before['plan'].items()
    assert after['plan']['generator'] == 1  # configured are 2: memory had run out
    assert after['precision'] == {**before['precision'], 'steps': 4} and after['precision']['recent']['generator'] == [2]
    assert [(scale['scale'], scale['_growth_tracker'], scale['overflows']) for scale in after['loss_scales'].values()] == [
        (4096, 1, 1), (8192, 1, 0)]
    assert [noise['updates'] for noise in after['noise'].values()] == [4, 4]
    assert (folder / 'curves.png').is_file()  # also from what the log says of the time before the save


def test_a_progressive_run_stays_in_its_stage_and_its_fade(data, tmp_path, monkeypatch):
    folder = _basicsr('progressive', data, tmp_path, monkeypatch)
    _ends_as_then(torch.load(folder / 'models' / 'net_g_5.pth', weights_only=True)['params'], 'progressive')
    log = read_log(folder / LOG_FILE)
    assert [(record['iter'], record['gt_size'], record['batch']) for record in log] == [
        (1, 32, 4), (2, 32, 4), (3, 64, 4), (4, 64, 4), (5, 64, 4)]
    _losses_as_then(log[-1], 'progressive')
    net_d = torch.load(folder / 'models' / 'net_d_5.pth', weights_only=True)['params']
    _ends_as_then(net_d, 'progressive', 'net_d')
    assert float(net_d['pre1_fade']) == 0.75  # three of four iterations after the border
    state = _state(folder, 5)
    assert [len(group['params']) for group in state['optimizers'][1]['param_groups']] == [
        len(group['params']) for group in _state(SAVED / 'progressive', 3)['optimizers'][1]['param_groups']]
    assert len(state['optimizers'][1]['param_groups']) == 2
    ours = state['sr_bigbatch']
    step = ours['step']
    assert ours['growths'] == ['prepend'] and step['plan']['generator'] == 1
    assert [noise['updates'] for noise in step['noise'].values()] == [5, 5]
    assert [scale['_growth_tracker'] for scale in step['loss_scales'].values()] == [5, 5]


def test_a_run_without_discriminator_ends_as_then(data, tmp_path, monkeypatch):
    folder = _basicsr('psnr', data, tmp_path, monkeypatch)
    _ends_as_then(torch.load(folder / 'models' / 'net_g_4.pth', weights_only=True)['params'], 'psnr')
    log, state = read_log(folder / LOG_FILE), _state(folder, 4)
    assert [record['iter'] for record in log] == [1, 2, 3, 4]
    _losses_as_then(log[-1], 'psnr')
    assert state['schedulers'][0]['last_epoch'] == 3
    assert [noise['updates'] for noise in state['sr_bigbatch']['step']['noise'].values()] == [4]


@pytest.mark.filterwarnings('ignore')  # mmengine's own
def test_a_run_of_mmengines_runner_keeps_scales_growth_and_fade(data, tmp_path, monkeypatch):
    checkpoint = _runner(data, tmp_path, monkeypatch)
    weights = checkpoint['state_dict']
    for net in ('net_g', 'net_d'):
        _ends_as_then({name: value for name, value in weights.items() if name.startswith(f'{net}.')}, 'runner', net)
    scalars = next((tmp_path / 'runner').rglob('scalars.json')).read_text().splitlines()
    assert [json.loads(line)['step'] for line in scalars] == [4, 5]
    _losses_as_then(json.loads(scalars[-1]), 'runner')
    assert checkpoint['growths'] == ['prepend'] and float(weights['net_d.pre1_fade']) == 0.75
    assert len(checkpoint['optimizer']['net_d']['param_groups']) == 2
    # Each scale doubles after two updates in a row; one came before the save. New ones would begin at 16384 and 4096.
    scales = {name: state['loss_scaler'] for name, state in checkpoint['optimizer'].items()}
    assert {name: (scale['scale'], scale['_growth_tracker']) for name, scale in scales.items()} == {
        'net_g': (65536, 1), 'net_d': (16384, 1)}
