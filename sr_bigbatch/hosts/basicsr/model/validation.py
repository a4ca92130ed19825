"""Validates: images that may be larger than the memory, and metrics of which one may fail on one image."""
from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from basicsr.metrics import calculate_metric
from basicsr.utils import get_root_logger, imwrite, tensor2img
from tqdm import tqdm

from sr_bigbatch.hosts.basicsr.model import saved_state
from sr_bigbatch.hosts.basicsr.settings import Options
from sr_bigbatch.step.out_of_memory import is_out_of_memory, release

if TYPE_CHECKING:
    from sr_bigbatch.hosts.basicsr.model.accumulating import Accumulating


def generate(model: Accumulating, test: Callable[[], None]) -> None:
    """Have the host generate the image of ``model.lq``; if it does not fit, with all memory released, then on the CPU.

    Args:
        model: one of our models.
        test: the host's own method.
    """
    nets = [net for label, net in saved_state.networks(model).items() if label != 'net_d']
    for device in (model.device, model.device, torch.device('cpu')):
        try:
            for net in nets:
                net.to(device)
            model.lq = model.lq.to(device)
            test()
            return
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            failed = str(error).split('\n')[0]
        finally:
            for net in nets:
                net.to(model.device)
            model.net_g.train()
        release(model.device)
        get_root_logger().warning(f'A validation image of {tuple(model.lq.shape)} ran out of memory and is tried again '
                                  f'({failed})')
    raise RuntimeError(failed)


def validate(model: Accumulating, loader: Any, iteration: int, tb_logger: Any, save_img: bool) -> None:
    """Do what BasicSR's ``nondist_validation`` does. An image on which a metric fails is left out of that metric alone.

    Afterwards ``model.metric_results`` holds the means, but for metrics that have failed on every image.
    """
    settings: Options = model.opt.get('val') or {}
    metrics, name = settings.get('metrics') or {}, loader.dataset.opt['name']
    judge, count = _Judge(metrics), 0
    for batch in tqdm(loader, unit='image', desc=name, disable=not settings.get('pbar', False)):
        image_name, count = Path(batch['lq_path'][0]).stem, count + 1
        model.feed_data(batch)
        model.test()
        visuals = model.get_current_visuals()
        images = {'img': tensor2img([visuals['result']])}
        if 'gt' in visuals:
            images['img2'] = tensor2img([visuals['gt']])
            del model.gt
        del model.lq, model.output
        release(model.device)
        if save_img:
            imwrite(images['img'], str(_place(model.opt, name, image_name, iteration)))
        judge(images, image_name)
    model.metric_results = judge.means()
    for line in judge.failures(count):
        get_root_logger().warning(f'Iteration {iteration}, {name}: {line}')
    if not metrics:
        return
    if not hasattr(model, 'best_metric_results'):
        model.best_metric_results = {}
    best = model.best_metric_results.setdefault(name, {metric: _no_best(entry) for metric, entry in metrics.items()})
    for metric, mean in model.metric_results.items():
        sign = 1 if best[metric]['better'] == 'higher' else -1
        if judge.complete(metric, count) and sign * mean >= sign * best[metric]['val']:  # other images cannot be compared
            best[metric].update(val=mean, iter=iteration)
    _tell(model, name, iteration, tb_logger)


def _no_best(settings: Options) -> Options:
    better = settings.get('better', 'higher')
    return {'better': better, 'val': float('-inf' if better == 'higher' else 'inf'), 'iter': -1}


class _Judge:
    """Metrics of images, one after the other.

    Args:
        metrics: settings by name.
    """

    def __init__(self, metrics: Options) -> None:
        self.metrics = metrics
        self.values: dict[str, list[float]] = {metric: [] for metric in metrics}
        self.failed: dict[str, list[str]] = defaultdict(list)
        self.reasons: dict[str, str] = {}

    def __call__(self, images: dict[str, np.ndarray], image_name: str) -> None:
        for metric, settings in self.metrics.items():
            try:
                value = float(calculate_metric(images, settings))
                reason = 'it is not a number' if math.isnan(value) else ''
            except Exception as error:  # each metric has errors of its own, as NIQE on a flat image
                reason = f'{type(error).__name__}: {error}'
            if reason:
                self.reasons.setdefault(metric, reason)
                self.failed[metric].append(image_name)
            else:
                self.values[metric].append(value)

    def means(self) -> dict[str, float]:
        """The mean of each metric over the images on which it has not failed."""
        return {metric: sum(values) / len(values) for metric, values in self.values.items() if values}

    def complete(self, metric: str, count: int) -> bool:
        """Whether a metric has judged all images."""
        return len(self.values[metric]) == count

    def failures(self, count: int) -> list[str]:
        """A sentence for each metric that has failed."""
        return [f'by {metric}, {len(names)} of {count} images could not be judged ({self.reasons[metric]}); the training '
                f'goes on. Left out: {", ".join(names[:3])}{" ..." if len(names) > 3 else ""}'
                for metric, names in self.failed.items()]


def _place(opt: Options, name: str, image_name: str, iteration: int) -> Path:
    """Where BasicSR keeps a validation image."""
    folder = Path(opt['path']['visualization'])
    if opt['is_train']:
        return folder / image_name / f'{image_name}_{iteration}.png'
    return folder / name / f'{image_name}_{opt["val"].get("suffix") or opt["name"]}.png'


def _tell(model: Accumulating, name: str, iteration: int, tb_logger: Any) -> None:
    lines = [f'Validation {name}']
    for metric, mean in model.metric_results.items():
        best = model.best_metric_results[name][metric]
        lines.append(f'\t # {metric}: {mean:.4f}' + (f'\tBest: {best["val"]:.4f} @ {best["iter"]} iter' if best['iter'] >= 0
                                                     else ''))
        if tb_logger:
            tb_logger.add_scalar(f'metrics/{name}/{metric}', mean, iteration)
    get_root_logger().info('\n'.join(lines) + '\n')
