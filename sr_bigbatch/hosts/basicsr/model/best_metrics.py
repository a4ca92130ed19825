"""The best metrics of a training, which say what ``logger.keep_best`` spares: saved, and known again after a resume."""
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

from sr_bigbatch.hosts.basicsr.model.host import HostModel
from sr_bigbatch.hosts.basicsr.settings import Options

Best = dict[str, dict[str, Options]]
"""As BasicSR has it: by validation set and metric, ``better``, ``val`` and ``iter``."""


def best_metrics(model: HostModel) -> Best:
    """The best metrics so far, as plain values."""
    return {data: {metric: {'better': str(entry['better']), 'val': float(entry['val']), 'iter': int(entry['iter'])}
                   for metric, entry in metrics.items()}
            for data, metrics in getattr(model, 'best_metric_results', {}).items()}


def best_iterations(model: HostModel) -> set[int]:
    """The iterations of the best metrics."""
    return {entry['iter'] for metrics in best_metrics(model).values() for entry in metrics.values()}


def load_best_metrics(model: HostModel, saved: Any) -> None:
    """Take over what :func:`best_metrics` has given, as far as the options still ask for it; the rest begins anew.

    Args:
        model: of this run.
        saved: from a training state; whatever is not of the form is left out.
    """
    best: Best = {}
    for data, metrics in saved.items() if isinstance(saved, Mapping) else ():
        record = _of_the_options(model)
        for metric, entry in metrics.items() if isinstance(metrics, Mapping) else ():
            if metric in record and _is_entry(entry) and entry['better'] == record[metric]['better']:
                record[metric] = dict(entry)
        best[data] = record
    if best:
        model.best_metric_results = best


def take_logged(model: HostModel, records: Iterable[Mapping[str, Any]], iteration: int) -> None:
    """Take over what was measured after the save of an iteration, and before the run was ended: the log tells it.

    Args:
        model: of this run.
        records: of the log.
        iteration: that of the save.
    """
    for record in records:
        data = record.get('val')
        if record.get('iter') != iteration or not isinstance(data, str):
            continue
        best: Best = getattr(model, 'best_metric_results', {})
        known = best.setdefault(data, _of_the_options(model))
        for metric, entry in known.items():
            value = record.get(metric)
            if isinstance(value, Real) and _is_as_good(float(value), entry):
                entry.update(val=float(value), iter=iteration)
        model.best_metric_results = best


def _of_the_options(model: HostModel) -> dict[str, Options]:
    metrics = (model.opt.get('val') or {}).get('metrics') or {}
    better = {metric: settings.get('better', 'higher') for metric, settings in metrics.items()}
    return {metric: {'better': way, 'val': -math.inf if way == 'higher' else math.inf, 'iter': -1}
            for metric, way in better.items()}


def _is_entry(entry: Any) -> bool:
    return (isinstance(entry, Mapping) and set(entry) == {'better', 'val', 'iter'} and isinstance(entry['val'], Real)
            and isinstance(entry['iter'], int))


def _is_as_good(value: float, entry: Mapping[str, Any]) -> bool:
    return bool(value >= entry['val'] if entry['better'] == 'higher' else value <= entry['val'])
