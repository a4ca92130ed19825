"""The picture of a progressive run: what happens to losses, logits, batch and images where the crops grow."""
from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from sr_bigbatch.report.pictures import by_iteration, middle_of, save_figure
from sr_bigbatch.report.run_log import LOG_FILE, read_log

_SMOOTH = 5  # records that a curve is averaged over
_ZOOM = 128  # pixels of the shown part of a validation image


def draw_progress(folders: Sequence[Path], target: Path) -> Path:
    """Draw runs beside one another: curves over the iterations, and a validation image at the end of each stage.

    Args:
        folders: of the experiments, with ``train_log.jsonl`` and, for the images, ``visualization/``.
        target: the PNG to write.
    """
    records = {folder.name: read_log(folder / LOG_FILE) for folder in folders}
    borders = {name: _borders(rows) for name, rows in records.items()}
    images = {folder.name: _images(folder, borders[folder.name]) for folder in folders}
    shown = [(name, image) for name, found in images.items() for image in found]
    figure = plt.figure(figsize=(16, 7.6 if shown else 3.8))
    grid = figure.add_gridspec(2 if shown else 1, 1)
    curves = grid[0].subgridspec(1, 5).subplots()
    for name, rows in records.items():
        _curves(curves, name, rows, borders[name])
    curves[3].legend(fontsize='small')
    if shown:
        for axis, (name, (title, picture)) in zip(grid[1].subgridspec(1, len(shown)).subplots(squeeze=False)[0], shown,
                                                  strict=True):
            axis.imshow(picture[..., ::-1], interpolation='nearest')
            axis.set_title(f'{name}: {title}' if len(folders) > 1 else title, fontsize='small')
            axis.axis('off')
    return save_figure(figure, target)


def _borders(rows: list[dict[str, Any]]) -> list[int]:
    """The first logged iteration of each stage but the first."""
    train = [row for row in rows if 'gt_size' in row]
    return [row['iter'] for before, row in itertools.pairwise(train) if row['gt_size'] != before['gt_size']]


def _curves(axes: Any, name: str, rows: list[dict[str, Any]], borders: list[int]) -> None:
    train = [row for row in rows if 'gt_size' in row and 'l_g_pix' in row]
    for row in train:
        row['gap'] = row.get('out_d_real', 0.0) - row.get('out_d_fake', 0.0)
    metrics = [row for row in rows if 'psnr' in row]
    panels = (('Pixel loss of the generator', train, 'l_g_pix', _SMOOTH),
              ('GAN loss of the generator', train, 'l_g_gan', _SMOOTH),
              ('Logit gap, real - generated', train, 'gap', _SMOOTH), ('Effective batch', train, 'batch', 1),
              ('PSNR of the validation set, dB', metrics, 'psnr', 1))
    for axis, (title, points, key, smooth) in zip(axes, panels, strict=True):
        values = [row[key] for row in points if key in row]
        means = [sum(values[max(0, at - smooth + 1):at + 1]) / min(smooth, at + 1) for at in range(len(values))]
        axis.plot([row['iter'] for row in points if key in row], means, label=name)
        axis.set_title(title, fontsize='medium')
        axis.set_xlabel('iteration')
        axis.grid(alpha=0.3)
        for border in borders:
            axis.axvline(border, color='grey', linestyle=':')
    sizes = list(dict.fromkeys(row['gt_size'] for row in train))
    axes[3].set_ylim(bottom=0)
    axes[3].set_title(f'Effective batch (crops {" -> ".join(map(str, sizes))} px)', fontsize='medium')


def _images(folder: Path, borders: list[int]) -> list[tuple[str, Any]]:
    """Title and middle of the first validation image at the end of each stage, as far as images were saved."""
    files, found = by_iteration((folder / 'visualization').glob('*/*.png')), []
    for end in (*borders, max(files, default=0)):
        at = max((number for number in files if number <= end), default=None)
        if at is None:
            continue
        found.append((f'iteration {at}', middle_of(files[at], _ZOOM)))
    return found
