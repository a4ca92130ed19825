"""``tools/verify.py`` on our option files and on one where the promise does not hold."""
import pytest

from tests.conftest import ROOT, load_tool


def _verify(monkeypatch, *arguments):
    monkeypatch.setattr('sys.argv', ['verify.py', *arguments])
    return load_tool('verify').main()


@pytest.mark.parametrize(('file', 'changes'), [
    ('quickstart', []),
    ('rrdb_psnr_128_bs128', []),
    ('esrgan_progressive_128to256_bs128', ['train:perceptual_opt=~', 'train:net_d_iters=2', 'train:net_d_init_iters=3']),
    ('quickstart', ['network_d:norm=batch']),
    ('realesrnet_x4plus_bs128', []),
    ('quickstart', ['network_d:norm=spectral', 'train:relativistic_gan=false', 'train:gan_opt:gan_type=hinge']),
    ('quickstart', ['network_d={type: UNetDiscriminatorSN, num_in_ch: 3, num_feat: 8}', 'train:ema_decay=0']),
], ids=str)
def test_the_update_of_an_option_file_is_that_of_the_undivided_batch(file, changes, monkeypatch, capsys):
    status = _verify(monkeypatch, '-opt', str(ROOT / 'options' / f'{file}.yml'),
                     *(['--force_yml', *changes] if changes else []))
    said = capsys.readouterr().out
    assert status == 0, said
    assert 'plain accumulation' in said and 'generator' in said and 'DOES NOT HOLD' not in said


def test_plain_accumulation_is_found_out(monkeypatch, capsys):
    assert _verify(monkeypatch, '-opt', str(ROOT / 'options' / 'quickstart.yml'), '--force_yml',
                   'train:accumulation=plain') == 1
    assert 'DOES NOT HOLD' in capsys.readouterr().out


def test_what_cannot_be_verified_is_said(monkeypatch, capsys):
    assert _verify(monkeypatch, '-opt', str(ROOT / 'options' / 'quickstart.yml'), '--force_yml',
                   'train:ldl_opt={type: L1Loss}') == 2
    assert 'train.ldl_opt' in capsys.readouterr().err
