"""The report of a study: its words, numbers and pictures."""
import re

import numpy as np
import pytest
from matplotlib import pyplot as plt
from PIL import Image

from sr_bigbatch.report import study_report
from sr_bigbatch.report.study_report import write_report
from sr_bigbatch.report.study_results import Trial, final, metrics_of
from tests.report.logs import smallest_text, write_run

OPTIONS = {'val': {'metrics': {'psnr': {}, 'niqe': {'better': 'lower'}}}, 'datasets': {'val': {'dataroot_gt': '/nowhere'}}}


def _trials(folder, total=lambda batch: 5120 // batch, **arguments):
    return [Trial(batch, seed, write_run(folder / f'{batch}_{seed}', total(batch) // 4 * 4, batch, **arguments))
            for batch in (8, 16, 32) for seed in (0, 1)]


@pytest.fixture
def figures(monkeypatch):
    """The figures of a report, with their dots per inch, still open."""
    kept, real = [], study_report._png
    monkeypatch.setattr(study_report, '_png', lambda figure, beside: kept.append(figure) or real(figure, beside))
    monkeypatch.setattr(study_report.plt, 'close', lambda figure: None)
    yield kept
    monkeypatch.undo()
    plt.close('all')


def test_it_says_units_and_how_many_updates_each_training_had(tmp_path):
    report = write_report(_trials(tmp_path, sets=('city',)), 'made up', OPTIONS, tmp_path / 'report.html').read_text()
    assert '640 updates at batch 8, 320 updates at batch 16, 160 updates at batch 32' in report
    heads = re.findall('<th>(.*?)</th>', report)
    assert {'batch, images', 'PSNR, dB', 'NIQE', 'images/s', 'memory, GB'} <= set(heads)
    assert 'PSNR: ' in report and ' dB per doubling of the batch' in report and 'psnr' not in report


def test_equal_updates_are_said_once(tmp_path):
    report = write_report(_trials(tmp_path, lambda batch: 40, sets=('city',)), 'made up', OPTIONS, tmp_path / 'report.html')
    assert '40 updates at each batch' in report.read_text()


@pytest.mark.parametrize('more', [{}, {'noise_scale_g': 3.0}, {'noise_scale_g': 3.0, 'noise_scale_d': 9.0}])
def test_no_column_is_empty(tmp_path, more):
    trials = _trials(tmp_path, sets=('city',), **more)
    report = write_report(trials, 'made up', OPTIONS, tmp_path / 'report.html').read_text()
    assert '<td></td>' not in report and '<th></th>' not in report
    assert report.count('<th>noise scale of') == len(more)


def test_text_is_large_enough_and_the_axis_of_batches_has_plain_numbers(tmp_path, figures):
    write_report(_trials(tmp_path, sets=('city',)), 'made up', OPTIONS, tmp_path / 'report.html')
    curves, quality, _ = figures
    for figure in figures:
        assert smallest_text(figure, study_report._DPI) >= 11
    for axis in quality.get_axes():
        assert [label.get_text() for label in axis.get_xticklabels()] == ['8', '16', '32']
        assert not [label for label in axis.get_xticklabels(minor=True) if label.get_text()]
        assert axis.get_ylabel() in ('PSNR, dB', 'NIQE')
    assert all(axis.get_ylabel() and axis.get_xlabel() for axis in curves.get_axes())
    for name in ('curves', 'quality'):
        width = np.asarray(Image.open(tmp_path / f'{name}.png')).shape[1]
        assert width <= study_report._PAGE, 'a browser would make it smaller'


def test_validation_sets_are_told_apart(tmp_path):
    trials = _trials(tmp_path, sets=('city', 'trees'))
    assert metrics_of(trials) == ['psnr, city', 'niqe, city', 'psnr, trees', 'niqe, trees']
    assert final(trials[0], 'psnr, trees') == final(trials[0], 'psnr, city') + 1
    report = write_report(trials, 'made up', OPTIONS, tmp_path / 'report.html').read_text()
    assert 'PSNR, city' in report and 'NIQE, trees' in report
