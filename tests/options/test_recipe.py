import pytest
import yaml

from sr_bigbatch.options import load
from sr_bigbatch.tasks.recipe import translate
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
    assert list(large) == list(small)
    text = (tmp_path / 'large.yml').read_text()
    assert 'total_iter: 50000  # was 400000: after as many images as before: divided by 8' in text
    assert 'lr: 0.000282843  # was 0.0001: sqrt rule: times 2.828' in text


def test_unchanged_options_have_no_comment(basicsr):
    text = translate(load(basicsr), 16)
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
