"""Crops and discriminator grow in mid-run; the effective batch does not shrink."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import basicsr
import cv2
import numpy as np
import pytest
import torch
import yaml
from basicsr.archs.discriminator_arch import VGGStyleDiscriminator
from basicsr.data import build_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sr_bigbatch.hosts.basicsr.options.check import check
from sr_bigbatch.nets import vgg_growth
from sr_bigbatch.options import OptionError
from sr_bigbatch.progressive.stages import cut
from tests.conftest import ROOT, run_train, run_two_processes


@pytest.fixture
def progressive(opt):
    opt['datasets']['train'].update(type='ProgressivePairedImageDataset', gt_size=64)
    opt['network_d'].update(input_size=64)
    opt['custom_hooks'] = [{'type': 'ProgressiveResolutionHook', 'stages': [{'gt_size': 64, 'until': 3}, {'gt_size': 128}]}]
    opt['val']['val_freq'] = 100
    return opt


@pytest.mark.parametrize('backend', ['disk', 'lmdb'])
def test_live_workers_follow_the_crop_size_and_batches_are_never_mixed(progressive, backend, data):
    settings = {**progressive['datasets']['train'], 'phase': 'train', 'scale': 4, 'io_backend': {'type': backend}}
    if backend == 'lmdb':
        settings.update(dataroot_gt=f'{data}/train_gt.lmdb', dataroot_lq=f'{data}/train_lq.lmdb')
    dataset = build_dataset(settings)
    loader = torch.utils.data.DataLoader(dataset, 2, num_workers=1, persistent_workers=True)
    sizes = []
    for epoch in range(3):
        for batch in loader:
            sizes.append(batch['gt'].shape[-1])
            assert batch['lq'].shape[-1] * 4 == batch['gt'].shape[-1]
            if epoch == 0:
                dataset.crop_size.pixels = 128
    assert sizes[0] == 64 and sizes[-1] == 128 and sizes == sorted(sizes)


def test_any_crop_of_a_pair_stays_aligned(progressive, tmp_path):
    (tmp_path / 'gt').mkdir()
    (tmp_path / 'lq').mkdir()
    low = np.random.default_rng(0).integers(0, 255, (40, 52, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'lq' / 'a.png'), low)
    cv2.imwrite(str(tmp_path / 'gt' / 'a.png'), low.repeat(4, 0).repeat(4, 1))  # blocks: in place however it is turned
    dataset = build_dataset({**progressive['datasets']['train'], 'phase': 'train', 'scale': 4,
                             'dataroot_gt': str(tmp_path / 'gt'), 'dataroot_lq': str(tmp_path / 'lq')})

    @given(st.integers(4, 40), st.integers(1, 40))
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def aligned(size, smaller):
        dataset.crop_size.pixels = 4 * size
        batch = torch.utils.data.default_collate(dataset.__getitems__([0, 0]))
        lq, gt = cut(batch['lq'], batch['gt'], 4 * min(size, smaller))
        assert lq.shape[-1] == min(size, smaller) and gt.shape[-1] == 4 * lq.shape[-1]
        assert torch.equal(gt[..., ::4, ::4], lq)

    aligned()


def _dataset(opt):
    return build_dataset({**opt['datasets']['train'], 'phase': 'train', 'scale': 4})


def _train_at(model, dataset, iterations):
    for iteration in iterations:
        model.update_learning_rate(iteration)
        model.feed_data(torch.utils.data.default_collate(dataset.__getitems__([0, 1, 2, 3])))
        model.optimize_parameters(iteration)
        yield iteration


def test_at_the_border_the_discriminator_grows_and_keeps_its_moments_and_the_batch_its_size(progressive, built,
                                                                                            basicsr_log):
    progressive['custom_hooks'][0].update(new_lr_factor=0.5, warmup_iters=3)
    dataset = _dataset(progressive)
    model, seen, rates = built(), [], {}
    model.optimizer_d.register_step_pre_hook(
        lambda optimizer, *_: rates.__setitem__(model.current_iter, [group['lr'] for group in optimizer.param_groups]))
    enter = model.enter_stage

    def watched(*arguments):
        old = list(model.net_d.parameters())
        kept = [(p.clone(), {key: value.clone() for key, value in model.optimizer_d.state[p].items()}) for p in old]
        enter(*arguments)
        for parameter, (value, moments) in zip(old, kept, strict=True):
            assert torch.equal(parameter, value)
            assert all(torch.equal(model.optimizer_d.state[parameter][key], moments[key]) for key in moments)

    model.enter_stage = watched
    for _ in _train_at(model, dataset, range(1, 9)):
        seen.append((model.net_d.input_size, *model.output.shape[::3], model.step.plan.micro.generator))
    assert seen == [(64, 4, 64, 2)] * 3 + [(128, 4, 128, 1)] * 5
    rates = list(rates.values())
    base = rates[0][0]
    assert rates[:3] == [[base]] * 3
    np.testing.assert_allclose(rates[3:], [[base * f, base * f / 2] for f in (0.25, 0.5, 0.75, 1, 1)])
    assert [group['lr'] for group in model.optimizer_d.param_groups] == [base, base / 2]
    text = basicsr_log.text
    assert 'has grown to 128 px (append): logit gap' in text and 'Crops of 128 px, effective batch 4' in text


def test_a_new_stage_before_the_others_is_faded_in(progressive, built):
    progressive['custom_hooks'][0].update(growth='prepend', fade_iters=3)
    dataset, shares = _dataset(progressive), []
    model = built()
    for iteration in _train_at(model, dataset, range(1, 9)):
        shares.append(float(model.net_d.pre1_fade) if iteration > 3 else 0)
    assert shares == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1] and model.net_d.prepended == 1


@pytest.mark.parametrize('way', ['append', 'prepend'])
def test_the_judgement_hardly_changes_where_it_grows(progressive, built, way):
    """Measured on a discriminator that can already tell photographs from what an untrained generator makes of them."""
    progressive['custom_hooks'][0].update(growth=way)
    progressive['custom_hooks'][0]['stages'][0]['until'] = 25
    progressive['train']['optim_d']['lr'] = 1e-3
    dataset = _dataset(progressive)
    model, measured = built(), []
    original = vgg_growth.measure
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vgg_growth, 'measure', lambda *args: measured.append(original(*args)) or measured[-1])
        for _ in _train_at(model, dataset, range(1, 27)):
            pass
    growth, = measured
    assert growth.gap_before > 0.5 and growth.ranking > (0.5 if way == 'append' else 0.999)
    assert abs(growth.gap_after / growth.gap_before - 1) < (0.3 if way == 'append' else 1e-4)


def test_unet_discriminators_need_no_new_layer(progressive, built):
    progressive['network_d'] = {'type': 'UNetDiscriminatorSN', 'num_in_ch': 3, 'num_feat': 8}
    dataset, model = _dataset(progressive), built()
    widths = [model.output.shape[-1] for _ in _train_at(model, dataset, range(1, 6))]
    assert widths == [64, 64, 64, 128, 128] and len(model.optimizer_d.param_groups) == 1


CASES = {'append': {}, 'prepend': {'growth': 'prepend', 'fade_iters': 3, 'new_lr_factor': 0.5, 'warmup_iters': 2},
         'images': {'stages': [{'gt_size': 32, 'until_images': 7}, {'gt_size': 64, 'until': 4}, {'gt_size': 128}],
                    'growth': 'prepend', 'fade_iters': 1}}


STOPS = {'append': (1, 3, 4), 'prepend': (2, 3, 4, 5), 'images': (2, 3, 4, 5)}  # before, at, after a border; in a fade


@pytest.mark.parametrize('case', CASES)
def test_a_resumed_run_ends_with_the_same_bits_wherever_it_was_cut(progressive, tmp_path, monkeypatch, case):
    hook = progressive['custom_hooks'][0]
    hook.update(CASES[case])
    first = hook['stages'][0]['gt_size']
    progressive['network_d']['input_size'] = progressive['datasets']['train']['gt_size'] = first
    progressive['datasets']['train']['num_worker_per_gpu'] = 1
    progressive['train']['total_iter'] = 7
    del progressive['val'], progressive['datasets']['val']
    progressive['logger']['save_checkpoint_freq'] = 1
    assert run_train(progressive, tmp_path, monkeypatch) == 0
    straight = tmp_path / 'experiments' / 'quickstart'
    ends = {file.name: torch.load(file, weights_only=True)
            for file in straight.glob('*/*') if file.suffix in ('.pth', '.state')}
    for stop in STOPS[case]:
        again = tmp_path / 'experiments' / f'from_{stop}'
        for folder, ending in (('models', 'pth'), ('training_states', 'state')):
            (again / folder).mkdir(parents=True)
            for name in (f'net_g_{stop}.pth', f'net_d_{stop}.pth', f'{stop}.state'):
                if name.endswith(ending):
                    shutil.copy(straight / folder / name, again / folder / name)
        assert run_train({**progressive, 'name': f'from_{stop}'}, tmp_path, monkeypatch, '--auto_resume') == 0
        for name in ('models/net_g_7.pth', 'models/net_d_7.pth', 'training_states/7.state'):
            _same(torch.load(again / name, weights_only=True), ends[Path(name).name], f'{case}, from {stop}: {name}')


def _same(mine, theirs, where):
    if isinstance(mine, torch.Tensor):
        assert torch.equal(mine, theirs), where
    elif isinstance(mine, dict):
        assert list(mine) == list(theirs), where
        for key, value in mine.items():
            _same(value, theirs[key], f'{where} {key}')
    elif isinstance(mine, list | tuple):
        assert len(mine) == len(theirs), where
        for one, other in zip(mine, theirs, strict=True):
            _same(one, other, where)
    else:
        assert mine == theirs, where


@pytest.mark.parametrize('mode', [None, 'cpu'])
def test_in_basicsrs_own_script_no_batch_of_the_old_size_comes_after_the_border(progressive, tmp_path, mode):
    """With live workers and prefetchers; and its own discriminator loads the result."""
    script = tmp_path / 'basicsr' / 'train.py'
    script.parent.mkdir()
    script.write_text((Path(basicsr.__file__).parent / 'train.py').read_text())
    progressive['path'].pop('experiments_root')
    progressive['val'].pop('val_at_start')
    # Not both: BasicSR's prefetcher begins to read twice, and from live workers each reading gets a part of the batches.
    progressive['datasets']['train'].update(num_worker_per_gpu=2, persistent_workers=mode is None, prefetch_mode=mode)
    progressive['network_d'].update(norm='batch')
    progressive['custom_hooks'][0]['stages'][0]['until'] = 8
    progressive['train'].update(total_iter=12, micro_batch_size=4)
    if mode == 'cpu':
        progressive['datasets']['train']['num_prefetch_queue'] = 2
    (tmp_path / 'run.yml').write_text(yaml.safe_dump(progressive))
    done = subprocess.run([sys.executable, '-m', 'sr_bigbatch', str(script), '-opt', 'run.yml'], cwd=tmp_path,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True, text=True, check=False,
                          timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count('Crops of 128 px, effective batch 4') == 1, done.stderr[-3000:]
    file = tmp_path / 'experiments' / 'quickstart' / 'models' / 'net_d_latest.pth'
    weights = torch.load(file, weights_only=True)['params']
    VGGStyleDiscriminator(3, 8, 128).load_state_dict(weights, strict=True)


def test_two_processes_cross_the_border_together(progressive, tmp_path):
    progressive['train']['total_iter'] = 5
    progressive['datasets']['train'].update(num_worker_per_gpu=1)
    (tmp_path / 'run.yml').write_text(yaml.safe_dump(progressive))
    said = run_two_processes('train', '-opt', str(tmp_path / 'run.yml'))
    assert 'Crops of 128 px, effective batch 8' in said and 'has grown to 128 px' in said


def _photographs(folder, size):
    for name, width in (('gt', size), ('lq', size // 4)):
        (folder / name).mkdir()
        for number in range(4):
            cv2.imwrite(str(folder / name / f'{number}.png'), np.zeros((width, width, 3), np.uint8))


def test_weights_for_128_px_start_a_run_at_256(progressive, built, tmp_path):
    host = VGGStyleDiscriminator(3, 8, 128)
    torch.save({'params': host.state_dict()}, tmp_path / 'net_d.pth')
    progressive['custom_hooks'] = []
    _photographs(tmp_path, 256)
    progressive['datasets']['train'].update(gt_size=256, type='PairedImageDataset', dataroot_gt=str(tmp_path / 'gt'),
                                            dataroot_lq=str(tmp_path / 'lq'))
    progressive['network_d'].update(input_size=256, norm='batch')
    progressive['path']['pretrain_network_d'] = str(tmp_path / 'net_d.pth')
    model = built()
    assert model.net_d.input_size == 256
    for name, value in host.state_dict().items():
        assert torch.equal(model.net_d.state_dict()[name], value)


def test_a_smaller_batch_at_the_border_must_be_asked_for_in_words(progressive, built):
    hook = progressive['custom_hooks'][0]
    hook['stages'][1]['batch_size'] = 2
    with pytest.raises(OptionError, match=r'effective batch would change.*change_effective_batch: true'):
        check(progressive)
    hook['change_effective_batch'] = True
    dataset, model = _dataset(progressive), built()
    assert [len(model.output) for _ in _train_at(model, dataset, range(1, 6))] == [4, 4, 4, 2, 2]


def test_a_batch_that_comes_too_late_is_refused_with_the_way_out(progressive, built):
    progressive['custom_hooks'][0]['lead'] = 0
    dataset, model = _dataset(progressive), built()
    model.current_iter = 4
    assert dataset.opt['gt_size'] == 64
    with pytest.raises(RuntimeError, match=r'keeps more than 0 batches under way.*lead'):
        model.hooks[0].before_train_iter(model, 4, {'lq': torch.rand(4, 3, 16, 16), 'gt': torch.rand(4, 3, 64, 64)})


def test_a_last_stage_that_does_not_fit_is_told_before_the_first_iteration(progressive, tmp_path, monkeypatch, capsys):
    progressive['train'].update(memory_budget_gb=0.2, micro_batch_size=4)
    progressive['custom_hooks'][0]['stages'] = [{'gt_size': 64, 'until': 2}, {'gt_size': 512}]
    progressive['datasets']['train'].update(dataroot_gt=str(tmp_path / 'gt'), dataroot_lq=str(tmp_path / 'lq'))
    _photographs(tmp_path, 512)
    assert run_train(progressive, tmp_path, monkeypatch) == 2
    error = capsys.readouterr().err
    assert 'the stage of 512 px would fail in mid-run' in error and 'GB' in error


def test_a_data_set_with_a_fixed_crop_is_refused_before_the_start(progressive):
    progressive['datasets']['train']['type'] = 'PairedImageDataset'
    with pytest.raises(OptionError, match='ProgressivePairedImageDataset'):
        check(progressive)


def test_the_example_file_is_progressive():
    assert 'ProgressiveResolutionHook' in (ROOT / 'options' / 'esrgan_progressive_128to256_bs128.yml').read_text()


@pytest.mark.parametrize(('change', 'message'), [
    ({'stages': [{'gt_size': 64, 'until': 2}, {'gt_size': 96}]}, r'custom_hooks\[0\]: gt_size must double'),
    ({'stages': [{'gt_size': 64, 'until': 2}, {'gt_size': 256}]}, r'is 128x128 pixels.* 256'),
    ({'stages': [{'gt_size': 32, 'until': 2}, {'gt_size': 64}]}, 'first stage has gt_size 32 but datasets.train.gt_size is'),
    ({'stages': [{'gt_size': 64, 'until': 2, 'until_images': 3}, {'gt_size': 128}]}, 'it needs gt_size and'),
    ({'growth': 'insert'}, 'growth must be one of append, prepend'),
    ({'fade_iters': 5}, 'fade_iters is for growth: prepend'),
    ({'warmup_iters': -1}, 'must not be negative'),
    ({'stage': []}, 'did you mean stages'),
])
def test_stages_that_make_no_sense_are_refused_before_the_start(progressive, change, message):
    progressive['custom_hooks'][0].update(change)
    with pytest.raises(OptionError, match=message):
        check(progressive)


def test_a_discriminator_that_cannot_grow_is_refused_before_the_start(progressive):
    progressive['network_d'] = {'type': 'VGGStyleDiscriminator', 'num_in_ch': 3, 'num_feat': 8, 'input_size': 128}
    progressive['train']['accumulation'] = 'plain'
    progressive['datasets']['train']['gt_size'] = 128
    progressive['custom_hooks'][0]['stages'] = [{'gt_size': 128, 'until': 2}, {'gt_size': 256}]
    with pytest.raises(OptionError, match=r'VGGStyleDiscriminator does not judge crops of 256 px.*GrowableVGGDiscriminator'):
        check(progressive, data=False)
    progressive['network_d'] = {'type': 'GrowableVGGDiscriminator', 'num_feat': 8, 'input_size': 32}
    progressive['datasets']['train']['gt_size'] = 32
    progressive['custom_hooks'][0]['stages'] = [{'gt_size': 32, 'until': 2}, {'gt_size': 64}]
    with pytest.raises(OptionError, match=r'cannot grow by append.*growth: prepend'):
        check(progressive, data=False)
