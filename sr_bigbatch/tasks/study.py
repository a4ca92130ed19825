"""A study of the batch size: the same training at several effective batches and seeds, and what its logs say."""
from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryFile
from threading import Event
from typing import Any

import torch
import yaml
from tqdm import tqdm

from sr_bigbatch.hosts.basicsr.options.files import vgg_findings
from sr_bigbatch.options import OptionError
from sr_bigbatch.report.run_log import LOG_FILE, read_log
from sr_bigbatch.report.study_results import Trial
from sr_bigbatch.tasks.recipe import translate

AXES = ('images', 'iterations')
_EVERY = 2.0  # seconds from one look at how far a training is to the next


def options_of(opt: dict[str, Any], batch: int, seed: int, axis: str, lr_rule: str, root: Path) -> dict[str, Any]:
    """The options of one training: those of ``opt`` at another batch and seed.

    Args:
        opt: the base, whose batch and iterations say how many images (or iterations) each training gets.
        batch: effective batch, in images.
        seed: of data order and weights.
        axis: ``images``: each training sees as many images; ``iterations``: each makes as many updates.
        lr_rule: of :data:`sr_bigbatch.tasks.recipe.LR_RULES`; for ``images``.
        root: folder of the study.

    Raises:
        OptionError: if the options have no held-out photographs, or cannot be translated.
    """
    if axis == 'images':
        opt = translate(opt, batch, lr_rule).opt
    else:
        opt = copy.deepcopy(opt)
        opt['datasets']['train']['batch_size_per_gpu'] = batch
    opt['name'], opt['manual_seed'] = f'batch{batch}_seed{seed}', seed
    opt['path']['experiments_root'] = str(root)
    opt['logger'].update(use_tb_logger=False, keep_last=1)  # enough to go on from; a study has many trainings
    _measure(opt)
    return opt


def _measure(opt: dict[str, Any]) -> None:
    """Add PSNR, SSIM and, if the weights of its network are there, the perceptual distance to the metrics."""
    if not opt.get('val') or 'val' not in opt['datasets']:
        raise OptionError(['val and datasets.val are needed: a study compares held-out photographs'])
    wanted: dict[str, dict[str, Any]] = {'psnr': {'type': 'calculate_psnr'}, 'ssim': {'type': 'calculate_ssim'}}
    distance = {'type': 'calculate_perceptual_distance', 'better': 'lower'}
    if not list(vgg_findings({'train': {}, 'val': {'metrics': {'perceptual': distance}}})):
        wanted['perceptual'] = distance
    metrics = opt['val'].setdefault('metrics', {})
    for name, settings in wanted.items():
        if settings['type'] not in [metric.get('type') for metric in metrics.values() if isinstance(metric, dict)]:
            metrics[name] = {**settings, 'crop_border': opt['scale']}


def run_all(opt: dict[str, Any], batches: Sequence[int], seeds: Sequence[int], axis: str, lr_rule: str, root: Path,
            train: Path, jobs: int) -> list[Trial]:
    """Train all; those that are finished are left alone and those that were stopped go on.

    Args:
        opt: the base.
        batches: effective batches, in images.
        seeds: one training for each, at each batch.
        axis: see :func:`options_of`.
        lr_rule: likewise.
        root: folder of the study.
        train: ``tools/train.py``.
        jobs: trainings at a time. Each has a GPU of its own, as far as there are so many.

    Raises:
        RuntimeError: if a training fails; its message is what it said last. Others that have begun are finished first.
    """
    root.mkdir(parents=True, exist_ok=True)
    failed = Event()
    gpus: SimpleQueue[str | None] = SimpleQueue()
    visible = visible_gpus() if jobs > 1 else []
    for job in range(jobs):
        gpus.put(visible[job % len(visible)] if visible else None)

    def run(batch: int, seed: int) -> Trial:
        """One training, unless it is finished already or another has failed."""
        options = options_of(opt, batch, seed, axis, lr_rule, root)
        file = root / f'{options["name"]}.yml'
        file.write_text(yaml.safe_dump(options, sort_keys=False), encoding='utf-8')
        trial = Trial(batch, seed, root / options['name'])
        if failed.is_set() or (trial.folder / 'models' / 'net_g_latest.pth').is_file():
            return trial
        gpu = gpus.get()
        try:
            _train(train, file, trial, options['train']['total_iter'], gpu)
        except RuntimeError:
            failed.set()
            raise
        finally:
            gpus.put(gpu)
        return trial

    with ThreadPoolExecutor(jobs) as pool:
        begun = [pool.submit(run, batch, seed) for seed in seeds for batch in batches]
        for done in tqdm(as_completed(begun), total=len(begun), unit='training'):
            done.result()
    return [training.result() for training in begun]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    named = os.environ.get('CUDA_VISIBLE_DEVICES')
    return [str(number) for number in range(torch.cuda.device_count())] if named is None else [
        name for name in named.split(',') if name]


def _train(train: Path, file: Path, trial: Trial, total: int, gpu: str | None) -> None:
    environment = os.environ if gpu is None else {**os.environ, 'CUDA_VISIBLE_DEVICES': gpu}
    command = [sys.executable, '-W', 'ignore', str(train), '-opt', str(file), '--auto_resume']
    log = trial.folder / LOG_FILE
    with (TemporaryFile('w+', encoding='utf-8', errors='replace') as said,
          tqdm(total=total, unit='it', desc=trial.folder.name, leave=False) as bar,
          subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, env=environment) as training):
        while True:
            try:
                status = training.wait(_EVERY)
                break
            except subprocess.TimeoutExpired:
                done = max((record['iter'] for record in read_log(log)), default=0) if log.is_file() else 0
                bar.update(done - bar.n)
        said.seek(0)
        message = said.read()[-1500:]
    if status > 128 or status < 0:
        raise RuntimeError(f'{file} was stopped by a signal; the same command goes on from its last save')
    if status:
        raise RuntimeError(f'{file} ended with status {status}: {message}')
