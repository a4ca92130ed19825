"""The pictures of runs: what is on their axes."""
import numpy as np
import pytest
from matplotlib import pyplot as plt

from sr_bigbatch.report import pictures, progress
from sr_bigbatch.report.panels import panel_grid
from tests.report.logs import panels, smallest_text, ticks, write_run


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, still open."""
    kept = []
    for module in (pictures, progress):
        monkeypatch.setattr(module, 'save_figure', lambda figure, target: kept.append(figure) or target)
    yield kept
    plt.close('all')


@pytest.mark.parametrize('sets', [('city',), ('city', 'trees'), ('a', 'b', 'c')])
def test_each_metric_has_a_panel_and_each_validation_set_a_line(figures, tmp_path, sets):
    pictures.draw_curves(write_run(tmp_path / 'run', sets=sets) / 'train_log.jsonl', tmp_path / 'curves.png')
    shown = panels(figures[0])
    for title, unit in (('PSNR', 'dB'), ('NIQE', '')):
        axis = shown[title]
        lines = [line for line in axis.lines if len(line.get_xdata()) > 2]  # the others mark events
        assert [line.get_label() for line in lines] == list(sets) and axis.get_ylabel() == unit
        assert all((np.diff(line.get_xdata()) > 0).all() for line in lines)  # no line goes back
        assert axis.get_legend() is not None


def test_losses_that_differ_by_decades_are_readable_and_the_learning_rate_is_there(figures, tmp_path):
    pictures.draw_curves(write_run(tmp_path / 'run', noise_scale_g=2.0, noise_scale_d=90.0) / 'train_log.jsonl',
                         tmp_path / 'curves.png')
    shown = panels(figures[0])
    assert {'Losses of the generator', 'Losses of the discriminator', 'Learning rate', 'Noise scale of the gradient',
            'Speed'} <= set(shown)
    assert 'Effective batch' not in shown  # it never changed
    axis = shown['Losses of the generator']
    assert axis.get_yscale() == 'log' and shown['Losses of the discriminator'].get_yscale() == 'linear'
    assert {'l_g_pix', 'l_g_percep', 'l_g_gan'} <= {line.get_label() for line in axis.lines}
    figures[0].canvas.draw()
    assert not any('10^' in label or '$' in label for label in ticks(axis.yaxis)) and '0.1' in ticks(axis.yaxis)
    assert smallest_text(figures[0], 110) >= 11


def test_a_loss_below_zero_is_drawn_too(figures, tmp_path):
    folder = write_run(tmp_path / 'run', l_g_gan_more=-3.0)
    pictures.draw_curves(folder / 'train_log.jsonl', tmp_path / 'curves.png')
    assert panels(figures[0])['Losses of the generator'].get_yscale() == 'linear'


def test_an_empty_log_makes_a_picture(tmp_path):
    (tmp_path / 'log').write_text('')
    assert pictures.draw_curves(tmp_path / 'log', tmp_path / 'curves.png').is_file()


@pytest.mark.parametrize('count', range(1, 12))
def test_panels_fill_their_rows(count):
    figure, axes = panel_grid(count)
    figure.canvas.draw()
    assert len(axes) == count
    rows = {}
    for axis in axes:
        box = axis.get_position()
        rows.setdefault(round(box.y0, 2), []).append(box)
    for boxes in rows.values():
        assert min(box.x0 for box in boxes) < 0.2 and max(box.x1 for box in boxes) > 0.9
    plt.close(figure)


@pytest.mark.parametrize('runs', [1, 2, 3])
def test_runs_are_labelled_and_no_part_of_the_picture_is_empty(figures, tmp_path, runs):
    folders = [write_run(tmp_path / f'run{number}', border=20, later_batch=16 if number else None) for number in range(runs)]
    progress.draw_progress(folders, tmp_path / 'progressive.png')
    figure = figures[0]
    figure.canvas.draw()
    labels = [text.get_text() for part in figure.subfigs for legend in part.legends for text in legend.get_texts()]
    assert labels == [f'run{number}, crops of 32, then 64 px' for number in range(runs)]
    shown = panels(figure)
    assert {'PSNR of city', 'PSNR of trees', 'Effective batch', 'Logit gap, real - generated'} <= set(shown)
    batch = shown['Effective batch']
    assert batch.get_ylim()[0] == 0 and not any('.' in tick for tick in ticks(batch.yaxis))
    pictured = [axis for axis in figure.get_axes() if axis.images]
    assert len(pictured) == 2 * runs
    for axis in pictured:
        assert axis.get_window_extent().width > 0.3 * figure.bbox.width
    assert [part.get_suptitle() for part in figure.subfigs[1:]] == [folder.name for folder in folders]
    assert smallest_text(figure, 110) >= 11


def test_a_progressive_run_without_discriminator_is_drawn(figures, tmp_path):
    folder = write_run(tmp_path / 'run', border=20)
    log = folder / 'train_log.jsonl'
    log.write_text(log.read_text().replace('l_g_pix', 'l_pix').replace('l_g_gan', 'x').replace('out_d_real', 'y'))
    progress.draw_progress([folder], tmp_path / 'progressive.png')
    assert 'Pixel loss' in panels(figures[0]) and not any('GAN' in title for title in panels(figures[0]))
