"""The option files that we ship."""
import copy

import pytest
import yaml

from sr_bigbatch.hosts.basicsr.options.check import check
from sr_bigbatch.hosts.basicsr.options.reference import reference
from sr_bigbatch.hosts.basicsr.options.schema import SCHEMA
from sr_bigbatch.options import OptionError, load
from tests.conftest import ROOT, load_tool

FILES = sorted((ROOT / 'options').glob('*.yml'))
FULL = [file for file in FILES if 'quickstart' not in file.stem]


def test_the_promised_files_are_there():
    assert {file.stem for file in FILES} == {'quickstart', 'progressive_quickstart', 'rrdb_psnr_128_bs128',
                                             'esrgan_128_bs128', 'esrgan_256_bs128',
                                             'esrgan_progressive_128to256_bs128', 'realesrgan_x4plus_bs128',
                                             'realesrnet_x4plus_bs128'}


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_only_data_and_weights_are_missing_where_they_have_not_been_fetched(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    options = load(file)
    assert options['name'] == file.stem
    with pytest.raises(OptionError) as caught:
        check(options)
    machine = ('there is no folder', 'there is no file', 'ImageNet weights', '/dev/shm')
    assert all(any(sign in finding for sign in machine) for finding in caught.value.findings)


@pytest.mark.parametrize('file', FULL, ids=lambda file: file.stem)
def test_the_full_recipes_train_an_effective_batch_of_128(file):
    assert load(file)['datasets']['train']['batch_size_per_gpu'] == 128


def test_the_256_px_recipe_differs_from_the_128_px_one_in_size_alone():
    small, large = (load(ROOT / 'options' / f'esrgan_{size}_bs128.yml') for size in (128, 256))
    expected = copy.deepcopy(small)
    expected['name'] = 'esrgan_256_bs128'
    expected['datasets']['train']['gt_size'] = expected['network_d']['input_size'] = 256
    expected['train']['micro_batch_size'] = large['train']['micro_batch_size']
    assert large == expected


def test_every_key_of_the_schema_is_in_the_readme():
    text = (ROOT / 'README.md').read_text()
    for section in ('train', 'network_g', 'logger', 'val'):
        for key in SCHEMA['properties'][section]['properties']:
            assert f'{section}.{key}`' in text, key


def test_check_tells_what_train_would(opt, tmp_path, monkeypatch, capsys):
    path = tmp_path / 'run.yml'
    path.write_text(yaml.safe_dump(opt))
    file = ['-opt', str(path)]
    for arguments, status, said in ((file, 0, 'nothing to be changed'), ([*file, '--vram', '4'], 0, 'Predicted peak'),
                                    ([*file, '--vram', '0.1'], 2, '1 to be changed'),
                                    ([*file, '--force_yml', 'train:micro_batch_size=0'], 2, 'must be a positive'),
                                    (['--schema'], 0, '"micro_batch_size"')):
        monkeypatch.setattr('sys.argv', ['check.py', *arguments])
        assert load_tool('check').main() == status
        captured = capsys.readouterr()
        assert said in captured.out + captured.err
    assert list(tmp_path.iterdir()) == [path]


def test_the_page_of_options_is_made_from_the_schema():
    assert (ROOT / 'docs' / 'options.md').read_text() == reference()  # python tools/check.py --reference > docs/options.md
