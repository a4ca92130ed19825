import json
import math
import re
import shutil
from pathlib import Path

import pytest
import yaml
from basicsr.utils import scandir

from sr_bigbatch.options import OptionError
from sr_bigbatch.report.study_results import Trial, final, fit
from sr_bigbatch.tasks.study import options_of, visible_gpus
from tests.conftest import load_tool


def _study(opt, folder, monkeypatch, *arguments):
    file = folder / 'base.yml'
    file.write_text(yaml.safe_dump(opt))
    monkeypatch.setattr('sys.argv', ['batch_size_study.py', '-opt', str(file), '--out', str(folder / 'study'), *arguments])
    return load_tool('batch_size_study').main()


def test_a_study_trains_reports_and_goes_on_where_it_was_stopped(opt, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('sr_bigbatch.tasks.study._EVERY', 0.05)
    opt['train'].update(total_iter=8, micro_batch_size=1)
    assert _study(opt, tmp_path, monkeypatch, '--batches', '2', '4', '--seeds', '0') == 0
    study = tmp_path / 'study'
    bars = capsys.readouterr().err
    assert re.search(r'batch2_seed0: +\d+%.*? [1-9]\d*/16 ', bars) and 'batch4_seed0: ' in bars  # inside each training, too
    assert [file.name for file in (study / 'batch2_seed0' / 'training_states').glob('*.state')] == ['16.state']
    first = (study / 'batch2_seed0' / 'models' / 'net_g_latest.pth').stat().st_mtime
    assert 'too few trainings' in (study / 'report.html').read_text()
    assert _study(opt, tmp_path, monkeypatch, '--batches', '2', '4', '--seeds', '0', '1', '--jobs', '2') == 0
    assert (study / 'batch2_seed0' / 'models' / 'net_g_latest.pth').stat().st_mtime == first
    updates = {folder.name: json.loads((folder / 'train_log.jsonl').read_text().splitlines()[-1])['iter']
               for folder in study.iterdir() if folder.is_dir()}
    assert updates == {'batch2_seed0': 16, 'batch2_seed1': 16, 'batch4_seed0': 8, 'batch4_seed1': 8}  # as many images
    report = (study / 'report.html').read_text()
    assert 'PSNR: ' in report and 'per doubling of the batch' in report and report.count('data:image/png;base64,') == 3
    assert not re.search(r'(src|href)="(?!data:)', report)  # nothing is fetched from elsewhere
    assert all((study / f'{name}.png').stat().st_size > 5000 for name in ('curves', 'quality', 'images'))


@pytest.mark.parametrize('jobs', ['1', '2'])
def test_a_training_that_fails_ends_the_study_with_its_message(opt, tmp_path, monkeypatch, capsys, jobs):
    (tmp_path / 'lq').mkdir()
    first, *others = scandir(opt['datasets']['train']['dataroot_gt'])
    shutil.copy(Path(opt['datasets']['train']['dataroot_lq']) / first, tmp_path / 'lq')  # the check tries it
    for name in others:
        (tmp_path / 'lq' / name).write_bytes(b'no image')
    opt['datasets']['train']['dataroot_lq'] = str(tmp_path / 'lq')
    assert _study(opt, tmp_path, monkeypatch, '--batches', '2', '4', '--seeds', '0', '--jobs', jobs) == 1
    assert '_seed0.yml ended with status 1' in capsys.readouterr().err
    assert (tmp_path / 'study' / 'batch4_seed0').is_dir() == (jobs == '2')  # none is begun after it


def test_trainings_get_the_gpus_that_the_study_may_use(monkeypatch):
    monkeypatch.setattr('torch.cuda.device_count', lambda: 2)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    assert visible_gpus() == ['0', '1']
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '2,3')
    assert visible_gpus() == ['2', '3']
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    assert visible_gpus() == []


def _trials(folder, values):
    trials = []
    for number, (batch, value) in enumerate(values):
        trial = Trial(batch, number, folder / str(number))
        trial.folder.mkdir()
        (trial.folder / 'train_log.jsonl').write_text(json.dumps({'iter': 1, 'val': 'v', 'psnr': value}) + '\n')
        trials.append(trial)
    return trials


def test_the_fit_says_what_the_data_support_and_what_they_do_not(tmp_path):
    rising = _trials(tmp_path, [(16, 30.0), (16, 30.02), (32, 30.5), (32, 30.52), (64, 31.01), (64, 30.99)])
    line = fit(rising, 'psnr')
    assert line.slope == pytest.approx(0.4950, abs=1e-4) and 0 < line.error < 0.02
    assert 'a larger batch raises it, which is better' in line.sentence('psnr', lower=False)
    assert final(rising[0], 'psnr') == 30
    assert 'a larger batch raises it, which is worse' in line.sentence('niqe', lower=True)
    (tmp_path / 'flat').mkdir()
    flat = fit(_trials(tmp_path / 'flat', [(16, 30.0), (16, 30.4), (32, 30.3), (32, 30.1), (64, 30.4), (64, 30.1)]), 'psnr')
    assert 'no difference between batch sizes is supported' in flat.sentence('psnr', lower=False)
    (tmp_path / 'few').mkdir()
    few = fit(_trials(tmp_path / 'few', [(16, 30.0), (32, 30.4)]), 'psnr')
    assert math.isnan(few.error) and 'too few trainings' in few.sentence('psnr', lower=False)


def test_the_second_axis_is_updates(opt, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no weights of VGG19 are
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    options = options_of(opt, 8, 3, 'iterations', 'same', tmp_path)
    assert options['train']['total_iter'] == 4 and options['datasets']['train']['batch_size_per_gpu'] == 8
    assert options['logger']['keep_last'] == 1 and options['manual_seed'] == 3 and options['name'] == 'batch8_seed3'
    assert [metric['type'] for metric in options['val']['metrics'].values()] == ['calculate_psnr', 'calculate_ssim']
    del opt['val']
    with pytest.raises(OptionError, match='held-out photographs'):
        options_of(opt, 8, 3, 'iterations', 'same', tmp_path)


def test_a_batch_that_the_photographs_do_not_fill_is_refused_before_the_start(opt, tmp_path, monkeypatch, capsys):
    assert _study(opt, tmp_path, monkeypatch, '--batches', '4000', '--axis', 'iterations') == 2
    assert 'cannot fill a batch of 4000' in capsys.readouterr().err and not (tmp_path / 'study').exists()
    with pytest.raises(OptionError):
        options_of({**opt, 'model_type': 'EDVRModel'}, 8, 0, 'images', 'same', tmp_path)
