import pytest
import yaml

from sr_bigbatch.hosts.basicsr.options.check import check
from sr_bigbatch.options import OptionError, load
from sr_bigbatch.tasks.recipe import translate, with_batch
from sr_bigbatch.tasks.recipe_dlas import from_dlas
from tests.conftest import ROOT, load_tool


@pytest.fixture
def basicsr(tmp_path):
    """An option file as BasicSR ships for ESRGAN: batch 16, 400,000 iterations."""
    opt = load(ROOT / 'options' / 'esrgan_128_bs128.yml')
    opt.update(name='ESRGAN_x4', model_type='ESRGANModel', num_gpu=1)
    opt['datasets']['train']['batch_size_per_gpu'] = 16
    opt['network_g'] = {'type': 'RRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 64, 'num_block': 23}
    opt['network_d'] = {'type': 'VGGStyleDiscriminator', 'num_in_ch': 3, 'num_feat': 64}
    opt['train'] = {key: value for key, value in opt['train'].items()
                    if key not in ('micro_batch_size', 'kept_graphs', 'accumulation', 'optim_wrapper', 'relativistic_gan')}
    opt['train'].update(total_iter=400_000, ema_decay=0.999, warmup_iter=-1)
    opt['train']['scheduler']['milestones'] = [50_000, 100_000, 200_000, 300_000]
    path = tmp_path / 'esrgan.yml'
    path.write_text(yaml.safe_dump(opt, sort_keys=False))
    return path


def _recipe(monkeypatch, *arguments):
    monkeypatch.setattr('sys.argv', ['recipe.py', *map(str, arguments)])
    return load_tool('recipe').main()


def test_everything_that_counts_iterations_counts_the_same_images(basicsr, tmp_path, monkeypatch):
    assert _recipe(monkeypatch, basicsr, tmp_path / 'large.yml', '--lr', 'sqrt') == 0
    large, small = load(tmp_path / 'large.yml'), load(basicsr)
    assert large['datasets']['train']['batch_size_per_gpu'] == 128
    assert large['train']['total_iter'] == 50_000
    assert large['train']['scheduler']['milestones'] == [6250, 12500, 25000, 37500]
    assert large['train']['ema_decay'] == pytest.approx(0.999**8, abs=1e-6) and large['train']['warmup_iter'] == -1
    assert large['val']['val_freq'] * 8 == pytest.approx(small['val']['val_freq'], abs=8)
    assert large['train']['optim_g']['lr'] == pytest.approx(small['train']['optim_g']['lr'] * 8**0.5, rel=1e-5)
    assert (large['model_type'], large['network_g']['type']) == ('AccumulatingESRGANModel', 'CheckpointedRRDBNet')
    assert list(large) == list(small) and large['name'] == 'ESRGAN_x4_bs128'
    text = (tmp_path / 'large.yml').read_text()
    assert 'total_iter: 50000  # was 400000: after as many images as before: divided by 8' in text
    assert 'lr: 0.000282843  # was 0.0001: sqrt rule: times 2.828' in text


def test_unchanged_options_have_no_comment(basicsr):
    text = translate(load(basicsr), 16).text()
    assert 'total_iter: 400000\n' in text and 'batch_size_per_gpu: 16\n' in text


def test_what_is_no_recipe_is_refused(basicsr, tmp_path, monkeypatch, capsys):
    for change, message in (({'model_type': 'EDVRModel'}, 'recipes for ESRGANModel'),
                            ({'datasets': {}}, "'train' is missing"),
                            ({'num_gpu': 3}, 'cannot be shared by 3 processes')):
        (tmp_path / 'other.yml').write_text(yaml.safe_dump({**load(basicsr), **change}))
        assert _recipe(monkeypatch, tmp_path / 'other.yml', tmp_path / 'out.yml') == 2
        assert message in capsys.readouterr().err and not (tmp_path / 'out.yml').exists()


@pytest.mark.parametrize('name', ['esrgan.yml', 'link.yml', 'other.yml'])
def test_no_file_is_written_over_without_being_told(basicsr, tmp_path, monkeypatch, capsys, name):
    before = basicsr.read_bytes()
    (tmp_path / 'link.yml').symlink_to(basicsr)
    (tmp_path / 'other.yml').write_text('of the user')
    assert _recipe(monkeypatch, basicsr, tmp_path / name) == 2
    assert 'would be written over' in capsys.readouterr().err and basicsr.read_bytes() == before
    assert _recipe(monkeypatch, basicsr, tmp_path / name, '--overwrite') == (0 if name == 'other.yml' else 2)
    assert basicsr.read_bytes() == before


def _leaves(section, path=()):
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


@pytest.mark.parametrize('arguments', [[], ['--batch', '64', '--lr', 'linear'], ['--batch', '16']], ids=str)
def test_every_change_stands_in_the_file_and_in_the_table_with_its_reason(basicsr, tmp_path, monkeypatch, capsys, arguments):
    opt = load(basicsr)
    opt['custom_hooks'] = [{'type': 'ProgressiveResolutionHook', 'warmup_iters': 80,
                            'stages': [{'gt_size': 128, 'until': 8000}, {'gt_size': 256}]}]
    opt['datasets']['train']['type'] = 'ProgressivePairedImageDataset'
    basicsr.write_text(yaml.safe_dump(opt, sort_keys=False))
    assert _recipe(monkeypatch, basicsr, tmp_path / 'new.yml', *arguments) == 0
    said, lines = capsys.readouterr().out, (tmp_path / 'new.yml').read_text().splitlines()
    before, after = dict(_leaves(load(basicsr))), dict(_leaves(load(tmp_path / 'new.yml')))
    changed = {path for path in after if before.get(path) != after[path]}
    assert {('network_g', 'type'), ('network_d', 'norm'), ('model_type',)} <= changed
    for path in changed:
        row = next(line for line in said.splitlines() if line.startswith('.'.join(path) + ' '))
        written = [line for line in lines if line.strip().startswith(f'{path[-1]}: ') and '  # ' in line]
        assert any(line.partition('  # ')[2].rpartition(': ')[2] in row for line in written), path
        assert before.get(path) is None or any('  # was ' in line for line in written), path
    assert sum('  # ' in line for line in lines) == len(changed)
    assert said.splitlines()[0].split() == ['option', 'old', 'new', 'why']
    assert said.endswith(f'Written: {tmp_path / "new.yml"}\n')
    if arguments != ['--batch', '16']:
        size = load(tmp_path / 'new.yml')['datasets']['train']['batch_size_per_gpu']
        assert load(tmp_path / 'new.yml')['custom_hooks'][0]['stages'][0]['until'] == 8000 * 16 // size


@pytest.mark.parametrize(('name', 'new'), [
    ('esrgan', 'esrgan_bs128'), ('esrgan_bs16', 'esrgan_bs128'), ('x4_f64b23_B16G1_x', 'x4_f64b23_B128G1_x'),
    ('batch16_seed0', 'batch128_seed0'), ('batch_size_16', 'batch_size_128'), ('bs160', 'bs160_bs128'),
    ('x16', 'x16_bs128')])
def test_the_name_says_the_new_batch(name, new):
    assert with_batch(name, 16, 128) == new


def _dlas(**changes):
    """A recipe as DL-Art-School writes them, made up for this test."""
    adam = {'lr': 2e-4, 'weight_decay': 0, 'beta1': 0.9, 'beta2': 0.99}
    recipe = {
        'name': 'made_up', 'model': 'extensibletrainer', 'scale': 4, 'gpu_ids': [0], 'fp16': True,
        'checkpointing_enabled': True, 'use_tb_logger': True,
        'datasets': {'train': {'name': 'photos', 'n_workers': 2, 'batch_size': 12, 'mode': 'single_image_extensible',
                               'paths': 'my/photos', 'target_size': 64, 'scale': 4},
                     'val': {'name': 'few', 'mode': 'fullimage', 'dataroot_GT': 'my/few', 'scale': 4}},
        'networks': {'sr': {'type': 'generator', 'which_model_G': 'RRDBNet', 'in_nc': 3, 'out_nc': 3, 'nf': 8, 'nb': 6,
                            'gc': 4, 'scale': 4, 'blocks_per_checkpoint': 3},
                     'critic': {'type': 'discriminator', 'which_model_D': 'discriminator_vgg_128_gn', 'in_nc': 3, 'nf': 8}},
        'path': {'strict_load': True},
        'steps': {
            'critic': {'training': 'critic', **adam,
                       'injectors': {'make': {'type': 'generator', 'generator': 'sr', 'grad': False, 'in': 'lq',
                                              'out': 'made'}},
                       'losses': {'judge': {'type': 'discriminator_gan', 'gan_type': 'ragan', 'weight': 1, 'real': 'hq',
                                            'fake': 'made'}}},
            'sr': {'training': 'sr', 'optimizer_params': adam,
                   'injectors': {'make': {'type': 'generator', 'generator': 'sr', 'in': 'lq', 'out': 'gen'}},
                   'losses': {'pixels': {'type': 'pix', 'weight': 0.05, 'criterion': 'l1', 'real': 'hq', 'fake': 'gen'},
                              'features': {'type': 'feature', 'which_model_F': 'vgg', 'criterion': 'l1', 'weight': 1,
                                           'real': 'hq', 'fake': 'gen'},
                              'fool': {'type': 'generator_gan', 'gan_type': 'ragan', 'weight': 0.02,
                                       'discriminator': 'critic', 'fake': 'gen', 'real': 'hq'}}}},
        'train': {'niter': 5000, 'warmup_iter': -1, 'mega_batch_factor': 5, 'val_freq': 200,
                  'default_lr_scheme': 'MultiStepLR', 'gen_lr_steps': [1400, 1800], 'lr_gamma': 0.5},
        'eval': {'output_state': 'gen'},
        'logger': {'print_freq': 30, 'save_checkpoint_freq': 1000, 'visuals': ['gen'], 'visual_debug_rate': 100}}
    for path, value in changes.items():
        *sections, key = path.split('__')
        section = recipe
        for name in sections:
            section = section[name]
        section[key] = value
    return recipe


def test_a_recipe_of_dlas_becomes_the_same_training(tmp_path, monkeypatch, capsys):
    (tmp_path / 'dlas.yml').write_text(yaml.safe_dump(_dlas(), sort_keys=False))
    assert _recipe(monkeypatch, tmp_path / 'dlas.yml', tmp_path / 'ours.yml') == 0
    opt, said = load(tmp_path / 'ours.yml'), capsys.readouterr().out
    train = opt['train']
    assert opt['name'] == 'made_up' and opt['model_type'] == 'AccumulatingESRGANModel'
    assert (opt['datasets']['train']['batch_size_per_gpu'], train['micro_batch_size']) == (12, 3)  # five parts of at most 3
    assert opt['network_g'] == {'type': 'CheckpointedRRDBNet', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8,
                                'num_block': 6, 'num_grow_ch': 4, 'activation_memory': {'blocks': 3}}
    assert opt['network_d'] == {'type': 'GrowableVGGDiscriminator', 'num_in_ch': 3, 'num_feat': 8, 'input_size': 64,
                                'norm': 'group'}
    assert train['optim_wrapper']['dtype'] == 'float16' and train['relativistic_gan'] is True
    assert train['pixel_opt'] == {'type': 'L1Loss', 'loss_weight': 0.05, 'reduction': 'mean'}
    assert train['gan_opt']['loss_weight'] == 0.02 and train['perceptual_opt']['perceptual_weight'] == 1
    assert train['optim_d'] == train['optim_g'] == {'type': 'Adam', 'lr': 2e-4, 'weight_decay': 0, 'betas': [0.9, 0.99]}
    assert train['scheduler'] == {'type': 'MultiStepLR', 'milestones': [1400, 1800], 'gamma': 0.5}
    assert train['total_iter'] == 5000
    for key in ('mega_batch_factor', 'checkpointing_enabled', 'fp16', 'gen_lr_steps'):
        assert key in said and key in (tmp_path / 'ours.yml').read_text()
    assert 'left out: order of the steps' in said and said.count('left out') == 1


def test_at_another_batch_a_recipe_of_dlas_counts_images_too():
    recipe = from_dlas(_dlas(), batch=24)
    assert recipe.opt['train']['total_iter'] == 2500 and recipe.opt['name'] == 'made_up_bs24'
    check(recipe.opt, data=False, weights=False)


@pytest.mark.parametrize(('changes', 'path', 'value'), [
    ({'networks__critic__which_model_D': 'discriminator_vgg_128'}, ('network_d', 'norm'), 'batch'),
    ({'checkpointing_enabled': False}, ('network_g', 'activation_memory'), 'lean'),
    ({'networks__sr__blocks_per_checkpoint': 1}, ('network_g', 'activation_memory'), 'minimal'),
    ({'fp16': False}, ('train', 'optim_wrapper', 'dtype'), 'float32'),
    ({'train__mega_batch_factor': 1}, ('train', 'micro_batch_size'), 12),
    ({'gpu_ids': [0, 1]}, ('datasets', 'train', 'batch_size_per_gpu'), 6),
    ({'steps__sr__losses__fool__gan_type': 'gan'}, ('train', 'relativistic_gan'), False),
    ({'steps__sr__losses__pixels__criterion': 'l2'}, ('train', 'pixel_opt', 'type'), 'MSELoss'),
    ({'steps__sr__losses__fool__after': 1000}, ('train', 'scheduler', 'milestones'), [400, 800]),
    ({'steps__sr__losses__fool__after': 1000}, ('train', 'total_iter'), 4000)])
def test_each_key_of_dlas_is_read(changes, path, value):
    recipe = from_dlas(_dlas(**changes))
    assert dict(_leaves(recipe.opt))[path] == value
    check(recipe.opt, data=False, weights=False)


@pytest.mark.parametrize(('changes', 'name'), [
    ({'steps__sr__losses__fool__noise': 0.004}, 'steps.sr.losses.fool.noise'),
    ({'steps__critic__losses__judge__gradient_penalty': True}, 'steps.critic.losses.judge.gradient_penalty'),
    ({'steps__sr__losses__shift': {'type': 'translational', 'weight': 2}}, 'steps.sr.losses.shift'),
    ({'steps__sr__losses__features__after': 80}, 'steps.sr.losses.features.after'),
    ({'steps__sr__injectors__blur': {'type': 'gaussian_blur', 'in': 'hq', 'out': 'soft'}}, 'steps.sr.injectors.blur'),
    ({'steps__sr__losses__fool__after': 1000}, 'the first 1000 iterations')])
def test_what_has_no_counterpart_is_named_in_the_file_and_in_the_table(changes, name):
    recipe = from_dlas(_dlas(**changes))
    assert name in recipe.left_out
    assert f'# left out: {name}: ' in recipe.text() and f'left out: {name}: ' in recipe.table()


@pytest.mark.parametrize(('changes', 'said'), [
    ({'networks__sr__which_model_G': 'srg2classic'}, 'RRDBNet with initial_stride 1 is expected'),
    ({'networks__critic__which_model_D': 'discriminator_unet'}, 'which_model_D is discriminator_unet'),
    ({'networks__critic__type': 'generator'}, 'one generator is expected, found sr, critic'),
    ({'train__default_lr_scheme': 'CosineAnnealingLR_Restart'}, 'MultiStepLR can be read'),
    ({'steps__sr__losses__fool__gan_type': 'pixgan'}, 'of gan_type ragan or gan'),
    ({'steps__critic__optimizer': 'lars'}, 'adam can be read'), ({'train': {}}, 'KeyError')])
def test_another_training_of_dlas_is_refused_by_name(changes, said):
    with pytest.raises(OptionError, match=said):
        from_dlas(_dlas(**changes))


@pytest.mark.parametrize(('path', 'names'), [
    ('train__mega_batch_factor', 'train.micro_batch_size'), ('checkpointing_enabled', 'network_g.activation_memory'),
    ('train__checkpointing_enabled', 'network_g.activation_memory'), ('mega_batch_factor', 'train.micro_batch_size'),
    ('fp16', 'train.optim_wrapper'), ('train__use_amp', 'train.optim_wrapper'),
    ('datasets__train__accumulate', 'train.micro_batch_size'), ('train__accum_iter', 'train.micro_batch_size')])
def test_keys_of_other_trainers_get_a_sentence_that_names_ours(opt, path, names):
    *sections, key = path.split('__')
    section = opt
    for name in sections:
        section = section[name]
    section[key] = 4
    with pytest.raises(OptionError) as caught:
        check(opt, data=False)
    assert len(caught.value.findings) == 1 and f'{key} is not a known option; ' in caught.value.findings[0]
    assert names in caught.value.findings[0]


def test_the_pool_of_real_esrgan_grows_with_the_batch(tmp_path, monkeypatch):
    opt = load(ROOT / 'options' / 'realesrgan_x4plus_bs128.yml')
    opt.update(model_type='RealESRGANModel', num_gpu=1, queue_size=180)
    opt['datasets']['train']['batch_size_per_gpu'] = 12
    (tmp_path / 'small.yml').write_text(yaml.safe_dump(opt))
    for batch, pairs in ((128, 768), (24, 180)):
        assert _recipe(monkeypatch, tmp_path / 'small.yml', tmp_path / f'{batch}.yml', '--batch', str(batch)) == 0
        large = load(tmp_path / f'{batch}.yml')
        assert (large['model_type'], large['queue_size']) == ('AccumulatingRealESRGANModel', pairs)
