"""Crops and discriminator grow in mid-run; the effective batch does not shrink."""
import pytest
import torch
from basicsr.data import build_dataset

from sr_bigbatch.hosts.basicsr_options import check
from sr_bigbatch.options import OptionError
from tests.conftest import ROOT, load_tool


@pytest.fixture
def progressive(opt):
    opt['datasets']['train'].update(type='ProgressivePairedImageDataset', gt_size=64)
    opt['network_d'].update(input_size=64)
    opt['custom_hooks'] = [{'type': 'ProgressiveResolutionHook', 'stages': [{'gt_size': 64, 'until': 2}, {'gt_size': 128}]}]
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
                dataset.set_gt_size(128)
    assert sizes[0] == 64 and sizes[-1] == 128 and sizes == sorted(sizes)


def test_at_the_border_the_discriminator_grows_and_keeps_its_moments_and_the_batch_its_size(progressive, built):
    model = built()
    dataset = build_dataset(model.opt['datasets']['train'])
    seen = []
    for iteration in range(1, 6):
        batch = torch.utils.data.default_collate(dataset.__getitems__([0, 1, 2, 3]))
        model.update_learning_rate(iteration)
        model.feed_data(batch)
        if iteration == 4:
            old = list(model.net_d.parameters())
            moments = [model.optimizer_d.state[p]['exp_avg'].clone() for p in old]
            model.fit_to(128)
            assert all(torch.equal(model.optimizer_d.state[p]['exp_avg'], m) for p, m in zip(old, moments, strict=True))
        model.optimize_parameters(iteration)
        seen.append((model.net_d.input_size, *model.output.shape[::3], model.step.recovery.plan.now.micro.generator))
    # The batch of iteration 3 was cut before the border was reached: it is used, not lost.
    assert seen == [(64, 4, 64, 2)] * 3 + [(128, 4, 128, 1)] * 2
    assert len(model.optimizer_d.param_groups) == 2


@pytest.mark.parametrize('stop', [2, 4], ids=['before_the_border', 'after_it'])
def test_a_resumed_run_knows_its_stage(progressive, built, tmp_path, stop, monkeypatch):
    import yaml
    path = tmp_path / 'run.yml'
    path.write_text(yaml.safe_dump(progressive))
    for extra in (['--force_yml', f'train:total_iter={stop}'], ['--auto_resume', '--force_yml', 'train:total_iter=6']):
        monkeypatch.setattr('sys.argv', ['train.py', '-opt', str(path), *extra])
        assert load_tool('train').main() == 0
    folder = tmp_path / 'experiments' / 'quickstart'
    state = torch.load(folder / 'training_states' / '6.state', weights_only=True)
    assert len(state['optimizers'][1]['param_groups']) == 2
    grown = torch.load(folder / 'models' / 'net_d_6.pth', weights_only=True)['params']
    assert 'conv5_0.weight' not in grown and 'conv4_0.weight' in grown


def test_a_data_set_with_a_fixed_crop_is_refused_before_the_start(progressive):
    progressive['datasets']['train']['type'] = 'PairedImageDataset'
    with pytest.raises(OptionError, match='ProgressivePairedImageDataset'):
        check(progressive)


def test_stages_that_do_not_fit_the_start_are_refused_before_the_start(progressive):
    progressive['custom_hooks'][0]['stages'][0]['gt_size'] = 32
    with pytest.raises(OptionError, match=r'first stage has gt_size 32 but datasets.train.gt_size is 64'):
        check(progressive)
    progressive['custom_hooks'][0]['stages'] = [{'gt_size': 64, 'until': 2}, {'gt_size': 96}]
    with pytest.raises(OptionError, match=r'custom_hooks\[0\]: gt_size must double'):
        check(progressive)


def test_the_example_file_is_progressive():
    assert 'ProgressiveResolutionHook' in (ROOT / 'options' / 'esrgan_progressive_128to256_bs128.yml').read_text()
