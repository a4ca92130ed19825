"""What the trainings of a study measured, and what that supports."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sr_bigbatch.report.log_fields import title_of, unit_of
from sr_bigbatch.report.run_log import LOG_FILE, read_log
from sr_bigbatch.step.words import count


@dataclass(frozen=True)
class Trial:
    """One training of a study.

    Attributes:
        batch: effective batch, in images.
        seed: of data order and weights.
        folder: of its experiment.
    """

    batch: int
    seed: int
    folder: Path

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """Its log, once it has ended.

        ``d_gap`` is the mean logit of real images less that of generated ones. Where there are several validation sets, a
        metric is named with its set: ``psnr, SET``.
        """
        file = self.folder / LOG_FILE
        lines = read_log(file) if file.is_file() else []
        for line in lines:
            if 'out_d_real' in line:
                line['d_gap'] = line['out_d_real'] - line['out_d_fake']
        if len({line['val'] for line in lines if 'val' in line}) > 1:
            return [{key if key in ('iter', 'val') or 'val' not in line else f'{key}, {line["val"]}': value
                     for key, value in line.items()} for line in lines]
        return lines


def metrics_of(trials: Sequence[Trial]) -> list[str]:
    """The names of what was measured on the validation sets, in every training."""
    measured = [dict.fromkeys(name for record in trial.records if 'val' in record for name in record) for trial in trials]
    return [name for name in measured[0] if name not in ('iter', 'val') and all(name in names for names in measured)]


def final(trial: Trial, metric: str) -> float:
    """A metric at the end of a training."""
    return float([record[metric] for record in trial.records if metric in record][-1])


@dataclass(frozen=True)
class Fit:
    """Final quality against the logarithm of the batch.

    Attributes:
        slope: per doubling of the batch.
        error: its standard error; NaN if there are too few trainings.
        offset: at batch 1.
        count: of trainings.
    """

    slope: float
    error: float
    offset: float
    count: int

    def sentence(self, metric: str, *, lower: bool) -> str:
        """What the data support; ``lower`` says that less of the metric is better."""
        name, unit = title_of(metric), f' {unit_of(metric)}'.rstrip()
        if math.isnan(self.error):
            return f'{name}: {self.slope:+.3g}{unit} per doubling of the batch; too few trainings to know how sure that is.'
        low, high = self.slope - 2 * self.error, self.slope + 2 * self.error
        claim = ('no difference between batch sizes is supported' if low <= 0 <= high else
                 f'a larger batch {"raises" if self.slope > 0 else "lowers"} it, which is '
                 f'{"worse" if lower == (self.slope > 0) else "better"}')
        return (f'{name}: {self.slope:+.3g}{unit} per doubling of the batch, two standard errors {low:+.3g} .. {high:+.3g}, '
                f'from {count(self.count, "training")}: {claim}.')


def fit(trials: Sequence[Trial], metric: str) -> Fit:
    """Least squares of a final metric against log2 of the batch."""
    x = np.log2([trial.batch for trial in trials])
    y = np.array([final(trial, metric) for trial in trials])
    centred = x - x.mean()
    spread = float((centred**2).sum())
    slope = float((centred * y).sum() / spread) if spread else 0.0
    residual = y - y.mean() - slope * centred
    freedom = len(y) - 2
    error = math.sqrt(float((residual**2).sum()) / freedom / spread) if freedom > 0 and spread else math.nan
    return Fit(slope, error, float(y.mean() - slope * x.mean()), len(y))
