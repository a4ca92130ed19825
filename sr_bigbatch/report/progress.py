"""The picture of progressive runs: what happens to losses, logits, batch and images where the crops grow."""
from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from sr_bigbatch.report.log_fields import title_of, unit_of
from sr_bigbatch.report.panels import Line, Panel, axes_of, grid_size, points_of
from sr_bigbatch.report.pictures import by_iteration, middle_of, save_figure
from sr_bigbatch.report.run_log import LOG_FILE, read_log

_SMOOTH = 5  # records that a curve is averaged over
_ZOOM = 128  # pixels of the shown part of a validation image
_PICTURE = 2.6  # height of a row of images, in inches
_FIELDS = (('l_g_pix', 'loss'), ('l_pix', 'loss'), ('l_g_gan', 'loss'), ('d_gap', 'logits'))


def draw_progress(folders: Sequence[Path], target: Path) -> Path:
    """Draw runs beside one another: curves over the iterations, and a validation image at the end of each stage.

    Args:
        folders: of the experiments, with ``train_log.jsonl`` and, for the images, ``visualization/``.
        target: the PNG to write.
    """
    runs = {folder.name: read_log(folder / LOG_FILE) for folder in folders}
    labels = {name: f'{name}, crops of {_sizes(rows)} px' for name, rows in runs.items()}
    colours = {name: f'C{number}' for number, name in enumerate(runs)}
    panels = [panel for panel in _panels(runs, labels) if panel]
    images = {folder.name: _images(folder, _borders(runs[folder.name])) for folder in folders}
    shown = {name: found for name, found in images.items() if found}
    width, height = grid_size(len(panels))
    figure = plt.figure(figsize=(width, height + _PICTURE * len(shown)), layout='constrained')
    parts = figure.subfigures(1 + len(shown), 1, squeeze=False, height_ratios=[height, *[_PICTURE] * len(shown)])[:, 0]
    axes = axes_of(parts[0], len(panels))
    for axis, panel in zip(axes, panels, strict=True):
        panel.draw(axis, {label: colours[name] for name, label in labels.items()})
        for name, rows in runs.items():
            for border in _borders(rows):
                axis.axvline(border, color=colours[name], linestyle=':')
    if axes:
        parts[0].legend(*axes[0].get_legend_handles_labels(), loc='outside lower center', fontsize='small')
    for part, (name, found) in zip(parts[1:], shown.items(), strict=True):
        _draw_images(part, name, found, wide=width / len(found) / _PICTURE)
    return save_figure(figure, target)


def _sizes(rows: list[dict[str, Any]]) -> str:
    return ', then '.join(dict.fromkeys(str(row['gt_size']) for row in rows if 'gt_size' in row)) or '?'


def _borders(rows: list[dict[str, Any]]) -> list[int]:
    """The first logged iteration of each stage but the first."""
    train = [row for row in rows if 'gt_size' in row]
    return [row['iter'] for before, row in itertools.pairwise(train) if row['gt_size'] != before['gt_size']]


def _panels(runs: dict[str, list[dict[str, Any]]], labels: dict[str, str]) -> list[Panel]:
    train = {name: [_with_gap(row) for row in rows if 'gt_size' in row] for name, rows in runs.items()}
    val = {name: [row for row in rows if 'val' in row] for name, rows in runs.items()}
    metrics = dict.fromkeys((key, row['val']) for rows in val.values() for row in rows for key in row
                            if key not in ('iter', 'val'))
    several = len({name for _, name in metrics}) > 1

    def curves(key: str) -> dict[str, Line]:
        """A field of all runs, smoothed."""
        return {label: _smooth(points_of(train[name], key)) for name, label in labels.items()}

    return [*(Panel(title_of(key), unit, curves(key)) for key, unit in _FIELDS),
            Panel('Effective batch', 'images', {label: points_of(train[name], 'batch') for name, label in labels.items()},
                  counts=True),
            *(Panel(f'{title_of(key)}{f" of {dataset}" if several else " of the validation set"}', unit_of(key),
                    {label: points_of((row for row in val[name] if row['val'] == dataset), key)
                     for name, label in labels.items()}) for key, dataset in metrics)]


def _with_gap(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, 'd_gap': row['out_d_real'] - row['out_d_fake']} if 'out_d_real' in row else row


def _smooth(points: Line) -> Line:
    values = [value for _, value in points]
    return [(iteration, sum(values[max(0, at - _SMOOTH + 1):at + 1]) / min(_SMOOTH, at + 1))
            for at, (iteration, _) in enumerate(points)]


def _images(folder: Path, borders: list[int]) -> list[tuple[str, Path]]:
    """Title and file of the first validation image at the end of each stage, as far as images were saved."""
    files, found = by_iteration((folder / 'visualization').glob('*/*.png')), dict[int, tuple[str, Path]]()
    for end in (*borders, max(files, default=0)):
        at = max((number for number in files if number <= end), default=None)
        if at is not None:
            found[at] = (f'iteration {at}', files[at])
    return list(found.values())


def _draw_images(part: Any, name: str, found: list[tuple[str, Path]], wide: float) -> None:
    """A row of the middles of images, ``wide`` times as wide as high, whose title is the name of the run."""
    part.suptitle(name, fontsize='medium')
    for axis, (title, file) in zip(part.subplots(1, len(found), squeeze=False)[0], found, strict=True):
        axis.imshow(middle_of(file, _ZOOM, int(_ZOOM * wide))[..., ::-1], interpolation='nearest')
        axis.set_title(title, fontsize='small')
        axis.axis('off')
