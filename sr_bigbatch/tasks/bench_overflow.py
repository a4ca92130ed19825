"""Trains through a storm of overflows with torch's GradScaler and with our step, and counts what our checks cost."""
from __future__ import annotations

import copy
import cProfile
import pstats
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot as plt
from torch import nn
from tqdm import tqdm

from sr_bigbatch.hosts.basicsr.grad_scaler_model import GradScalerESRGANModel
from sr_bigbatch.hosts.basicsr.outside_training import model_of, training_batches
from sr_bigbatch.report.pictures import save_figure
from sr_bigbatch.step.finite import nan_unless_finite
from sr_bigbatch.step.overflow_guard import OverflowGuard
from sr_bigbatch.step.replay import Snapshot
from sr_bigbatch.step.trial import Trial
from sr_bigbatch.step.update import SafeUpdate
from sr_bigbatch.tasks.bench import as_in_training

_TOO_LARGE = 2.0**40  # beyond float16 for any network; a power of two, so that wider formats lose nothing
CHECKS = (Trial.reject_bad_input, OverflowGuard.look_at, OverflowGuard.widen_overflowed, nan_unless_finite,
          SafeUpdate.is_doomed, Trial.make_usable, Snapshot.take)
"""Everything that our step does only because something might overflow."""


def through_a_storm(opt: dict[str, Any], iterations: int, storm: range) -> dict[str, list[dict[str, float]]]:
    """Train both from the same weights on the same batches, while in ``storm`` the generator's numbers exceed float16.

    Args:
        opt: an option file of ours.
        iterations: of each run.
        storm: iterations in which the generator's output is multiplied by 2^40 and divided by it again.

    Returns:
        The log of each iteration by contender.
    """
    ours, plain = copy.deepcopy(opt), copy.deepcopy(opt)
    ours['train']['optim_wrapper'] = {'type': 'OverflowSafeOptimWrapper', 'dtype': 'float16'}
    plain['network_g'] = {key: value for key, value in opt['network_g'].items() if key != 'activation_memory'}
    plain['network_g']['type'] = 'RRDBNet'
    models = {'torch GradScaler': model_of(plain, Path.cwd(), build=GradScalerESRGANModel),
              'OverflowSafeOptimWrapper': model_of(ours, Path.cwd())}
    logs: dict[str, list[dict[str, float]]] = {}
    for name, model in models.items():
        torch.manual_seed(0)
        current, logs[name] = [0], []
        _disturb(model.net_g, current, storm)
        for iteration, batch in zip(tqdm(range(1, iterations + 1), desc=name), training_batches(model.opt), strict=False):
            current[0] = iteration
            model.feed_data(batch)
            model.optimize_parameters(iteration)
            logs[name].append(dict(model.get_current_log()))
    return logs


def _disturb(net: nn.Module, current: list[int], storm: range) -> None:
    net.register_forward_hook(lambda module, inputs, output:
                              output * _TOO_LARGE / _TOO_LARGE if current[0] in storm else output)


def draw_storm(logs: dict[str, list[dict[str, float]]], storm: range, target: Path) -> Path:
    """Draw pixel loss and loss scale of both runs over their iterations."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8))
    titles = {'l_g_pix': 'Pixel loss of the generator', 'scale_g': 'Loss scale'}
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        for name, rows in logs.items():
            axis.plot(range(1, len(rows) + 1), [row.get(key, float('nan')) for row in rows], label=name)
        axis.axvspan(storm.start, storm.stop - 1, color='grey', alpha=0.2, label='numbers beyond float16')
        axis.set_yscale('log')
        axis.set_title(title)
        axis.set_xlabel('iteration')
        axis.grid(alpha=0.3)
        axis.legend(fontsize='small')
    return save_figure(figure, target)


@as_in_training()
def share_of_checks(opt: dict[str, Any], steps: int) -> tuple[float, float | None]:
    """Seconds of a step, and the share of it that goes into :data:`CHECKS`, as a profiler of calls sees it.

    On a GPU the share is None: a check only launches its work, and a wait in it is the wait for all work before it.
    """
    model, profile = model_of(opt, Path.cwd()), cProfile.Profile()
    batches = training_batches(model.opt)
    for number in range(steps + 2):
        model.feed_data(next(batches))
        if number >= 2:
            profile.enable()
        model.optimize_parameters(number + 1)
        profile.disable()
    stats: dict[Any, Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    whole = _seconds(stats, [type(model).optimize_parameters])
    return whole / steps, _seconds(stats, CHECKS) / whole if model.device.type == 'cpu' else None


def _seconds(stats: dict[Any, Any], functions: Iterable[Any]) -> float:
    places = {(function.__code__.co_filename, function.__code__.co_firstlineno) for function in functions}
    return float(sum(row[3] for (file, line, _), row in stats.items() if (file, line) in places))
