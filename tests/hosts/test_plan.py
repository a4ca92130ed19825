"""The planner's predictions against real runs, and ``tools/plan.py``."""
import contextlib
import json
import shlex

import pytest
import torch
import yaml

from sr_bigbatch.hosts.basicsr.options.check import check
from sr_bigbatch.hosts.basicsr.plan import prediction
from sr_bigbatch.hosts.basicsr.settings import TrainingSettings
from sr_bigbatch.memory.live_bytes import LiveBytes
from sr_bigbatch.memory.predict import choose, fit
from sr_bigbatch.memory.target import Target
from sr_bigbatch.nets.rrdb import POLICIES
from sr_bigbatch.options import load, override
from tests.conftest import ROOT, load_tool


def _small(memory='lean', norm='group', dtype='float32', **train):
    opt = load(ROOT / 'options' / 'esrgan_128_bs128.yml')
    opt['network_g'].update(num_feat=16, num_block=2, num_grow_ch=8, activation_memory=memory)
    opt['network_d'].update(num_feat=8, norm=norm)
    opt['train'].update(optim_wrapper={'dtype': dtype}, **train)
    return opt


def _settings(*arguments, **train):
    return TrainingSettings.from_options(_small(*arguments, **train))


def test_live_bytes_are_counted_until_they_die():
    before = torch.zeros(128)
    with LiveBytes([before]) as live:
        kept = torch.zeros(256) + 1
        torch.zeros(512).add(1)
        live.phase('later')
        assert kept.numel() == 256
    assert live.now == 512 + 1024
    assert live.peak[''] == 512 + 1024 + 2 * 2048


@pytest.mark.parametrize(('memory', 'norm', 'dtype', 'batch', 'micro', 'kept'), [
    ('lean', 'group', 'float32', 9, 3, True), ('lean', 'group', 'bfloat16', 9, 4, False),
    ('compact', 'none', 'float32', 10, 5, True), ('compact', 'batch', 'float32', 8, 2, False),
    ('minimal', 'spectral', 'bfloat16', 12, 4, True), ('minimal', 'group', 'float32', 7, 2, False),
    ('lean', 'batch', 'bfloat16', 8, 8, True)])
def test_the_peak_fitted_on_fake_tensors_is_the_peak_of_a_real_step(memory, norm, dtype, batch, micro, kept, monkeypatch):
    settings = _settings(memory, norm, dtype, perceptual_opt=None)
    model = fit(lambda count, size: prediction.predict(settings, 64, count, size, kept, 'cpu'), batch)
    monkeypatch.setattr(prediction, 'FakeTensorMode', contextlib.nullcontext)
    real = prediction.predict(settings, 64, batch, micro, kept, 'cpu')
    predicted = model.peak(micro)
    assert max(predicted.values()) == pytest.approx(max(real.peak.values()), rel=0.05)
    assert model.flops(micro) * batch == pytest.approx(real.flops, rel=0.01)


def test_the_prediction_for_a_gpu_runs_under_its_rules_of_autocast_wherever_it_is_made():
    kinds, settings = ('cpu', 'cuda'), _settings('lean', dtype='bfloat16', perceptual_opt=None)
    narrow, wide = (prediction.predict(settings, 128, 8, 4, False, kind).peak['grade'] for kind in kinds)
    assert wide > narrow + 4 * 8 * 64 * 64 * 2  # GroupNorm works in float32 there
    settings = _settings('lean', dtype='float32', perceptual_opt=None)
    narrow, wide = (prediction.predict(settings, 128, 8, 4, False, kind).peak['grade'] for kind in kinds)
    assert wide == narrow


@pytest.mark.slow
def test_the_full_recipe_fits_small_cards_with_little_more_work():
    opt = load(ROOT / 'options' / 'esrgan_256_bs128.yml')
    plans = prediction.candidates(TrainingSettings.from_options(opt), 256, 1024, Target('cuda', expandable=True))
    for gigabytes, flops in ((4, 1.25), (8, 1.25), (24, 1.03)):
        plan = choose(plans, gigabytes * 2**30)
        assert plan is not None and plan.flops <= flops
        assert plan.total_bytes <= gigabytes * 2**30


def test_the_plan_of_an_option_file_is_printed_and_can_be_used(tmp_path, monkeypatch, capsys):
    path = tmp_path / 'small.yml'
    opt = _small()
    opt['datasets']['train'].update(gt_size=64, type='ProgressivePairedImageDataset')
    opt['network_d']['input_size'] = 64
    opt['custom_hooks'] = [{'type': 'ProgressiveResolutionHook', 'stages': [{'gt_size': 64, 'until': 5}, {'gt_size': 128}]}]
    opt['train']['perceptual_opt'] = None
    path.write_text(yaml.safe_dump(opt))
    settings = TrainingSettings.from_options(opt)
    target = Target.of_training('cuda')
    predicted = {size: prediction.candidates(settings, size, 64, target) for size in (64, 128)}  # once, for all calls below
    monkeypatch.setattr(prediction, 'candidates', lambda settings, size, *_: predicted[size])

    def plan(*arguments):
        monkeypatch.setattr('sys.argv', ['plan.py', '-opt', str(path), '--val-size', '64', *arguments])
        return load_tool('plan').main(), capsys.readouterr()

    status, said = plan('--vram', '1.5')
    assert status == 0
    for part in ('64 px, effective batch 128', '128 px', '<- chosen', '--force_yml network_g:activation_memory='):
        assert part in said.out
    assert _pasted(said.out, path)['network_g']['activation_memory'] in POLICIES
    assert 'images/s         not known' in said.out and 'TFLOP' not in said.out  # this machine's CPU says nothing of a GPU
    assert 'a minute or two' in said.err
    status, said = plan('--vram', '1.5', '--json')
    chosen = json.loads(said.out.splitlines()[-1])
    assert status == 0 and set(chosen) == {'64', '128'} and chosen['64']['micro'] >= 1
    assert Target(**chosen['128']['target']).total_bytes(max(chosen['128']['peak'].values())) < 1.5 * 2**30
    assert plan('--vram', '0.1')[0] == 1
    assert plan('--force_yml', 'train:mirco_batch_size=1')[0] == 2


def _pasted(said, path):
    """The options of a file with the suggestion that was printed, as a training would read them."""
    line = next(line for line in said.splitlines() if 'train:micro_batch_size=' in line)
    options = load(path)
    override(options, [entry for entry in shlex.split(line) if '=' in entry])
    check(options, data=False)
    return options


_SMALL = {'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8}


@pytest.mark.parametrize(('tool', 'network'), [
    ('plan', {'type': 'RRDBNet', 'num_block': 1, 'num_grow_ch': 4}),
    ('plan', {'type': 'SRVGGNetCompact', 'num_conv': 1, 'upscale': 4}),
    ('check', {'type': 'RRDBNet', 'num_block': 1, 'num_grow_ch': 4}),
    ('check', {'type': 'CheckpointedRRDBNet', 'num_block': 1, 'num_grow_ch': 4,
               'activation_memory': {'features': 2, 'tail': 1}}),
    ('check', {'type': 'EDSR', 'num_block': 1, 'upscale': 4}),
    ('check', {'type': 'MSRResNet', 'num_block': 1, 'upscale': 4}),
    ('check', {'type': 'SRVGGNetCompact', 'num_conv': 1, 'upscale': 4})])
def test_what_is_suggested_can_be_pasted_for_every_network(tool, network, opt, tmp_path, monkeypatch, capsys):
    opt['network_g'] = {**_SMALL, **network}
    path = tmp_path / 'run.yml'
    path.write_text(yaml.safe_dump(opt))
    monkeypatch.setattr('os.cpu_count', lambda: 1)
    monkeypatch.setattr('sys.argv', [f'{tool}.py', '-opt', str(path), '--vram', '2',
                                     *(['--val-size', '64'] if tool == 'plan' else [])])
    assert load_tool(tool).main() == 0
    assert ('activation_memory' in _pasted(capsys.readouterr().out, path)['network_g']) == ('Check' in network['type'])


@pytest.mark.parametrize('flag', ['--vram', '--tflops', '--val-size'])
@pytest.mark.parametrize('value', ['-1', '0', 'nan', 'inf', 'eight', ''])
def test_what_is_no_size_is_refused_in_one_sentence(flag, value, monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['plan.py', '-opt', 'any.yml', flag, value])
    with pytest.raises(SystemExit) as ended:
        load_tool('plan').main()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count('\n') < 10
    assert f'argument {flag}: must be a' in error and 'above 0' in error
