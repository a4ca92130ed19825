"""Pictures of a run: its curves, and its images beside others."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D

from sr_bigbatch.report.log_fields import title_of, unit_of
from sr_bigbatch.report.panels import Line, Panel, panel_grid, points_of
from sr_bigbatch.report.run_log import read_log

_MARKS = {'gradient overflow': 'red', 'forward overflow': 'orange', 'bad input': 'black', 'out of memory': 'blue',
          'weights restored': 'purple'}
_SAID_BY_THE_TITLE = {'lr', 'images_per_s', 'batch'}
_ZOOM = 96  # pixels of the ground truth


def draw_curves(log_file: Path, target: Path) -> Path:
    """Draw losses, discriminator outputs, metrics, learning rate and speed of a run over its iterations.

    A metric has a panel of its own, with a line for each validation set.

    Args:
        log_file: one JSON record a line, as the training writes it.
        target: the PNG to write.
    """
    records = read_log(log_file)
    marks = sorted({(record['iter'], record['event']) for record in records if 'event' in record})
    panels = [panel for panel in _panels(records) if panel] or [Panel('Nothing was logged', '', {})]
    figure, axes = panel_grid(len(panels))
    for axis, panel in zip(axes, panels, strict=True):
        panel.draw(axis)
        if not panel.lines.keys() <= _SAID_BY_THE_TITLE:
            axis.legend(fontsize='small')
        for iteration, kind in marks:
            axis.axvline(iteration, color=_MARKS.get(kind, 'grey'), alpha=0.5, linestyle=':')
    kinds = dict.fromkeys(kind for _, kind in marks)
    if kinds:
        figure.legend([Line2D([], [], color=_MARKS.get(kind, 'grey'), linestyle=':') for kind in kinds], list(kinds),
                      loc='outside lower center', ncols=len(kinds), fontsize='small')
    return save_figure(figure, target)


def _panels(records: list[dict[str, Any]]) -> list[Panel]:
    train = [record for record in records if 'val' not in record and 'event' not in record]
    val = [record for record in records if 'val' in record]
    names = list(dict.fromkeys(name for record in train for name in record))
    metrics = list(dict.fromkeys(name for record in val for name in record if name not in ('iter', 'val')))
    sets = list(dict.fromkeys(record['val'] for record in val))

    def lines(*keys: str) -> dict[str, Line]:
        """The curves of fields of the training."""
        return {key: points_of(train, key) for key in keys}

    def beginning(*starts: str) -> list[str]:
        return [name for name in names if name.startswith(starts)]

    discriminator = beginning('l_d_')
    batches = {record.get('batch') for record in train}
    noise = beginning('noise_scale_')
    return [Panel('Losses of the generator', 'loss', lines(*(key for key in beginning('l_') if key not in discriminator))),
            Panel('Losses of the discriminator', 'loss', lines(*discriminator)),
            Panel('Mean logit of the discriminator', 'logits', lines(*beginning('out_'))),
            *(Panel(title_of(metric), unit_of(metric), {name: points_of((row for row in val if row['val'] == name), metric)
                                                       for name in sets}) for metric in metrics),
            Panel('Learning rate', 'learning rate', lines(*beginning('lr'))),
            Panel('Loss scale', 'loss scale', lines(*beginning('scale_'))),
            Panel('Noise scale of the gradient', 'images', lines(*noise, 'batch') if noise else {}),
            Panel('Effective batch', 'images', lines('batch') if len(batches) > 1 else {}, counts=True),
            Panel('Speed', 'images/s', lines('images_per_s'))]


def draw_comparison(images: Mapping[str, np.ndarray], target: Path) -> Path:
    """Draw images beside one another, whole and at the place where the first differs most from the last.

    Args:
        images: (H, W, 3), blue first, uint8, by the title to show; the first is the baseline, the last the ground truth.
        target: the PNG to write.
    """
    baseline, *_, truth = images.values()
    row, column = _where_detail_is_lost(baseline, truth)
    size = min(_ZOOM, *truth.shape[:2])
    count = len(images)
    figure, axes = plt.subplots(2, count, figsize=(4.33 * count, 4.33 * (truth.shape[0] / truth.shape[1] + 1)))
    for index, (title, image) in enumerate(images.items()):
        axes[0, index].set_title(title)
        axes[0, index].imshow(image[..., ::-1])
        axes[0, index].add_patch(plt.Rectangle((column, row), size, size, fill=False, color='red'))
        axes[1, index].imshow(image[row:row + size, column:column + size, ::-1], interpolation='nearest')
    for axis in axes.flat:
        axis.axis('off')
    return save_figure(figure, target)


def _where_detail_is_lost(baseline: np.ndarray, truth: np.ndarray) -> tuple[int, int]:
    error = ((baseline.astype(np.float64) - truth)**2).sum(-1)
    size = min(_ZOOM, *truth.shape[:2])
    sums = np.pad(error.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    boxes = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
    row, column = np.unravel_index(boxes.argmax(), boxes.shape)
    return int(row), int(column)


def by_iteration(files: Iterable[Path]) -> dict[int, Path]:
    """Validation images by iteration; BasicSR names them ``NAME_ITERATION.png``. Of several the first in the alphabet."""
    return {int(file.stem.rpartition('_')[2]): file for file in sorted(files, reverse=True)
            if file.stem.rpartition('_')[2].isdigit()}


def middle_of(file: Path, size: int, width: int | None = None) -> np.ndarray:
    """The middle ``size`` x ``width`` pixels of an image, blue first; all of a smaller one.

    Args:
        file: the image.
        size: height, in pixels.
        width: in pixels; None for the height.
    """
    image: Any = cv2.imread(str(file))
    wanted = size, width or size
    row, column = ((length - min(most, length)) // 2 for length, most in zip(image.shape[:2], wanted, strict=True))
    middle: np.ndarray = image[row:row + wanted[0], column:column + wanted[1]]
    return middle


def save_figure(figure: Any, target: Path) -> Path:
    """Write a matplotlib figure as PNG and forget it; returns its path."""
    if figure.get_layout_engine() is None:
        figure.tight_layout()
    figure.savefig(target, dpi=110)
    plt.close(figure)
    return target
