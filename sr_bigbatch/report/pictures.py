"""Pictures of a run: its curves, and its images beside others."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np

from sr_bigbatch.report.run_log import read_log

matplotlib.use('Agg')
from matplotlib import pyplot as plt

_MARKS = {'gradient overflow': 'red', 'forward overflow': 'orange', 'bad input': 'black', 'out of memory': 'blue',
          'weights restored': 'purple'}
_ZOOM = 96  # pixels of the ground truth


def draw_curves(log_file: Path, target: Path) -> Path:
    """Draw losses, discriminator outputs, metrics and speed of a run over its iterations.

    Args:
        log_file: one JSON record a line, as the training writes it.
        target: the PNG to write.
    """
    records = read_log(log_file)
    train = [record for record in records if 'val' not in record and 'event' not in record]
    marks = sorted({(record['iter'], record['event']) for record in records if 'event' in record})
    val = [record for record in records if 'val' in record]
    names = list(dict.fromkeys(name for record in train for name in record))
    panels = [('Losses', train, [name for name in names if name.startswith('l_')]),
              ('Mean logit of the discriminator', train, [name for name in names if name.startswith('out_')]),
              ('Validation', val, [name for name in (val[-1] if val else {}) if name not in ('iter', 'val')]),
              ('Loss scale', train, [name for name in names if name.startswith('scale_')]),
              ('Images per second', train, ['images_per_s'])]
    panels = [panel for panel in panels if panel[2] and panel[1]]
    figure, axes = plt.subplots(1, max(1, len(panels)), figsize=(4.6 * max(1, len(panels)), 3.6), squeeze=False)
    for axis, (title, rows, keys) in zip(axes[0], panels, strict=False):
        for key in keys:
            points = [(row['iter'], row[key]) for row in rows if key in row]
            axis.plot(*zip(*points, strict=True), label=key, marker='o' if len(points) < 30 else None, markersize=3)
        axis.set_title(title)
        axis.set_xlabel('iteration (one iteration = one effective batch)')
        for number, (iteration, kind) in enumerate(marks):
            axis.axvline(iteration, color=_MARKS.get(kind, 'grey'), alpha=0.5, linestyle=':',
                         label=kind if kind not in [other for _, other in marks[:number]] else None)
        if title in ('Losses', 'Loss scale'):
            axis.set_yscale('log')
        axis.grid(alpha=0.3)
        axis.legend(fontsize='small')
    return save_figure(figure, target)


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


def middle_of(file: Path, size: int) -> np.ndarray:
    """The middle ``size`` x ``size`` pixels of an image, blue first; all of a smaller one."""
    image: Any = cv2.imread(str(file))
    row, column = ((length - min(size, length)) // 2 for length in image.shape[:2])
    middle: np.ndarray = image[row:row + size, column:column + size]
    return middle


def save_figure(figure: Any, target: Path) -> Path:
    """Write a matplotlib figure as PNG and forget it; returns its path."""
    figure.tight_layout()
    figure.savefig(target, dpi=110)
    plt.close(figure)
    return target
