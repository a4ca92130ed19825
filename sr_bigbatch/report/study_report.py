"""The report of a study of the batch size: one HTML file that needs no other."""
from __future__ import annotations

import base64
import glob
import html
import io
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt

from sr_bigbatch.report.log_fields import title_of, unit_of, with_unit
from sr_bigbatch.report.panels import panel_grid
from sr_bigbatch.report.pictures import by_iteration, middle_of
from sr_bigbatch.report.study_results import Trial, final, fit, metrics_of
from sr_bigbatch.step.words import count

_LOSSES = ('l_g_pix', 'l_g_percep', 'l_g_gan', 'd_gap')
_ZOOM = 96  # pixels of the shown part of a validation image
_DPI = 100  # with text of 10 points: 14 pixels, smaller ones 11
_PAGE = 1140  # pixels: three panels
_ROWS = 3  # validation images that are shown
_CAPTIONS = {'curves': 'Means over the seeds; bands from the lowest to the highest. Dotted: overflows and other events. '
             'Logit gap: the discriminator\'s mean logit of real images less that of generated ones.',
             'quality': 'At the end, one point a training, with the fitted line.',
             'images': 'The same part of validation images at the end, first seed.'}


def write_report(trials: Sequence[Trial], title: str, opt: dict[str, Any], target: Path) -> Path:
    """Write ``target`` (HTML) and beside it the pictures as PNG.

    Args:
        trials: of one study.
        title: what was trained, and how.
        opt: options of one of the trainings: which metrics are better when they are lower, and where the ground truth is.
        target: the HTML file.
    """
    metrics, settings = metrics_of(trials), opt['val']['metrics']
    pictures = {'curves': _curves(trials, metrics), 'quality': _quality(trials, metrics) if metrics else None,
                'images': _images(trials, opt['datasets']['val'])}
    parts = [f'<h1>Is a bigger batch better?</h1><p>{html.escape(title)}: {_updates(trials)}. torch {torch.__version__}, '
             f'{"CUDA" if torch.cuda.is_available() else "CPU"}.</p><h2>What the data support</h2><ul>']
    for metric in metrics:
        lower = settings.get(metric.partition(',')[0], {}).get('better') == 'lower'
        parts.append(f'<li>{html.escape(fit(trials, metric).sentence(metric, lower=lower))}</li>')
    parts += ['</ul>', _table(trials, metrics)]
    for name, figure in pictures.items():
        if figure is not None:
            parts.append(f'<figure><img src="data:image/png;base64,{_png(figure, target.with_name(f"{name}.png"))}" '
                         f'alt="{html.escape(_CAPTIONS[name])}"><figcaption>{_CAPTIONS[name]}</figcaption></figure>')
    style = (f'body{{font:16px/1.5 sans-serif;max-width:{_PAGE}px;margin:2em auto;padding:0 1em}}'
             'figure{margin:2em 0;overflow-x:auto}table{border-collapse:collapse}'  # a narrow window scrolls
             'td,th{padding:.2em .8em;text-align:right}tr+tr td{border-top:1px solid #ddd}')
    target.write_text(f'<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title><style>{style}</style>'
                      + ''.join(parts), encoding='utf-8')
    return target


def _updates(trials: Sequence[Trial]) -> str:
    """How many updates each training had, in words."""
    made = {batch: max(record['iter'] for trial in trials if trial.batch == batch for record in trial.records)
            for batch in _batches(trials)}
    if len(set(made.values())) == 1:
        return f'{count(next(iter(made.values())), "update")} at each batch'
    return ', '.join(f'{count(updates, "update")} at batch {batch}' for batch, updates in made.items())


def _png(figure: Any, beside: Path) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=_DPI)
    plt.close(figure)
    beside.write_bytes(buffer.getvalue())
    return base64.b64encode(buffer.getvalue()).decode()


def _batches(trials: Sequence[Trial]) -> list[int]:
    return sorted({trial.batch for trial in trials})


def _table(trials: Sequence[Trial], metrics: list[str]) -> str:
    """A row for each batch; a column in which nothing is known is left out."""
    columns: dict[str, list[str]] = {}
    for batch in _batches(trials):
        mine = [trial for trial in trials if trial.batch == batch]
        train = [record for trial in mine for record in trial.records if 'images_per_s' in record]
        cells = {'batch, images': str(batch), 'trainings': str(len(mine)),
                 **{with_unit(metric): _mean([final(trial, metric) for trial in mine]) for metric in metrics},
                 'updates': str(max(record['iter'] for record in train)),
                 'images/s': _median(train, 'images_per_s', '.1f'),
                 'memory, GB': f'{max(record["peak_gb"] for record in train):.2f}',
                 'noise scale of the generator, images': _median(train, 'noise_scale_g', '.3g'),
                 'noise scale of the discriminator, images': _median(train, 'noise_scale_d', '.3g'),
                 'events': str(sum('event' in record for trial in mine for record in trial.records))}
        for name, cell in cells.items():
            columns.setdefault(name, []).append(cell)
    known = {name: cells for name, cells in columns.items() if any(cells)}
    head = ''.join(f'<th>{html.escape(name)}</th>' for name in known)
    rows = (''.join(f'<td>{cell or "unknown"}</td>' for cell in row) for row in zip(*known.values(), strict=True))
    return f'<table><tr>{head}</tr>' + ''.join(f'<tr>{row}</tr>' for row in rows) + '</table>'


def _mean(values: list[float]) -> str:
    spread = f' &plusmn; {statistics.stdev(values):.2g}' if len(values) > 1 else ''
    return f'{statistics.mean(values):.4f}{spread}'


def _median(records: list[dict[str, Any]], key: str, form: str) -> str:
    values = [record[key] for record in records if key in record]
    return f'{statistics.median(values):{form}}' if values else ''


def _curve(trial: Trial, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Images seen, and a value; losses are averaged over an eighth of the curve."""
    points = [(record['iter'] * trial.batch, record[key]) for record in trial.records
              if key in record and 'event' not in record]
    seen, values = (np.array(column, dtype=float) for column in zip(*points, strict=True)) if points else (np.empty(0),) * 2
    width = max(1, len(values) // 8)
    if key in _LOSSES and width > 1:
        values = np.convolve(values, np.ones(width) / width, 'valid')
        seen = seen[width - 1:]
    return seen, values


def _curves(trials: Sequence[Trial], metrics: list[str]) -> Any:
    keys = [key for key in (*_LOSSES, *metrics) if any(key in record for trial in trials for record in trial.records)]
    if not keys:
        return None
    figure, axes = panel_grid(len(keys))
    for axis, key in zip(axes, keys, strict=True):
        for number, batch in enumerate(_batches(trials)):
            curves = [dict(zip(*_curve(trial, key), strict=True)) for trial in trials if trial.batch == batch]
            seen = sorted(set.intersection(*map(set, curves)))
            values = np.array([[curve[images] for images in seen] for curve in curves])
            axis.plot(seen, values.mean(0), label=f'batch {batch}', color=f'C{number}')
            axis.fill_between(seen, values.min(0), values.max(0), alpha=0.2, color=f'C{number}')
            for trial in trials:
                for record in trial.records if trial.batch == batch else []:
                    if 'event' in record:
                        axis.axvline(record['iter'] * batch, color=f'C{number}', linestyle=':', alpha=0.4)
        axis.set_title(title_of(key), fontsize='medium')
        axis.set_xlabel('images seen')
        axis.set_ylabel(unit_of(key) or ('loss' if key.startswith('l_') else title_of(key)))
        axis.grid(alpha=0.3)
    axes[0].legend()
    return figure


def _quality(trials: Sequence[Trial], metrics: list[str]) -> Any:
    figure, axes = panel_grid(len(metrics))
    batches = np.array(_batches(trials), dtype=float)
    for axis, metric in zip(axes, metrics, strict=True):
        line = fit(trials, metric)
        axis.plot([trial.batch for trial in trials], [final(trial, metric) for trial in trials], 'o')
        error = '' if math.isnan(line.error) else f' \u00b1 {line.error:.2g}'
        label = f'{line.slope:+.3g}{error} a doubling'
        axis.plot(batches, line.offset + line.slope * np.log2(batches), '-', label=label)
        axis.set_xscale('log', base=2)
        axis.set_xticks(batches, [f'{batch:g}' for batch in batches])
        axis.set_xticks([], minor=True)
        axis.set_title(f'{title_of(metric)} at the end', fontsize='medium')
        axis.set_xlabel('effective batch, images')
        axis.set_ylabel(with_unit(metric))
        axis.legend()
        axis.grid(alpha=0.3)
    return figure


def _images(trials: Sequence[Trial], dataset: dict[str, Any]) -> Any:
    """A row for each validation image, a column for each batch (first seed), and the ground truth."""
    seed = min(trial.seed for trial in trials)
    shown = sorted((trial for trial in trials if trial.seed == seed), key=lambda trial: trial.batch)
    names = sorted(folder.name for folder in (shown[0].folder / 'visualization').glob('*'))[:_ROWS]
    rows = [[*((f'batch {trial.batch}', _last(trial, name)) for trial in shown),
             ('ground truth', next(Path(str(dataset.get('dataroot_gt'))).glob(f'{glob.escape(name)}.*'), None))]
            for name in names]
    if not rows:
        return None
    figure, axes = plt.subplots(len(rows), len(rows[0]), figsize=(2.8 * len(rows[0]), 3 * len(rows)), squeeze=False,
                                layout='constrained')
    for axis, (label, file) in zip(axes.flat, (cell for row in rows for cell in row), strict=True):
        axis.axis('off')
        if file is not None:
            axis.imshow(middle_of(file, _ZOOM)[..., ::-1], interpolation='nearest')
            axis.set_title(label, fontsize='medium')
    return figure


def _last(trial: Trial, name: str) -> Path | None:
    files = by_iteration((trial.folder / 'visualization' / name).glob('*.png'))
    return files[max(files)] if files else None
