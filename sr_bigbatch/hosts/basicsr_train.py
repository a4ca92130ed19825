"""Runs a BasicSR training: BasicSR's loop with checks before it, a progress bar in it and pictures after it."""
from __future__ import annotations

import json
import logging
import math
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
from basicsr.data import build_dataloader, build_dataset
from basicsr.models import build_model
from basicsr.utils import (
    MessageLogger,
    check_resume,
    get_env_info,
    get_root_logger,
    get_time_str,
    init_tb_logger,
    init_wandb_logger,
    make_exp_dirs,
    mkdir_and_rename,
    set_random_seed,
)
from basicsr.utils.options import copy_opt_file, dict2str
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from sr_bigbatch.core.distributed import rank, world_size
from sr_bigbatch.core.memory import peak_bytes
from sr_bigbatch.hosts.basicsr_files import say_which_vgg
from sr_bigbatch.hosts.basicsr_growth import crop_sizes, stages_of
from sr_bigbatch.hosts.basicsr_loader import BatchOrder, seed_everything, training_loader
from sr_bigbatch.hosts.basicsr_pictures import draw_run
from sr_bigbatch.hosts.basicsr_progress_pictures import draw_progress

LOG_FILE = 'train_log.jsonl'


def train(opt: dict[str, Any], option_file: str) -> None:
    """Train with checked and completed options.

    Args:
        opt: see :func:`sr_bigbatch.hosts.basicsr_options.check` and ``complete``.
        option_file: its path; a copy goes into the experiment's folder.
    """
    _seed(opt)
    torch.backends.cudnn.benchmark = True
    resume_state = _resume_state(opt)
    tb_logger = _open_experiment(opt, option_file, fresh=resume_state is None)
    logger = get_root_logger()
    loader, order, val_loaders = _loaders(opt)
    model = build_model(opt)
    iteration = 0
    if resume_state is not None:
        model.resume_training(resume_state)
        iteration = order.iteration = resume_state['iter']
        logger.info(f'Resuming training from epoch: {iteration // order.per_epoch}, iter: {iteration}.')
    run = _Run(opt, model, val_loaders, tb_logger, iteration)
    if iteration == 0 and (opt.get('val') or {}).get('val_at_start'):
        run.validate(0)
    started = time.time()
    with logging_redirect_tqdm([logger]), run.bar:
        batches = iter(loader) if iteration < opt['train']['total_iter'] else iter(())
        for iteration in range(iteration + 1, opt['train']['total_iter'] + 1):  # noqa: B020
            waiting = time.perf_counter()
            batch = next(batches)
            run.one((iteration - 1) // order.per_epoch, iteration, batch, time.perf_counter() - waiting)
    logger.info(f'End of training after {time.time() - started:.0f} s. Save the latest model.')
    model.save(epoch=-1, current_iter=-1)
    run.validate(iteration)
    if tb_logger:
        tb_logger.close()
    if rank() == 0 and val_loaders:
        folder = Path(opt['path']['experiments_root'])
        pictures = draw_run(model, val_loaders[0], folder, opt['scale'])
        if stages_of(opt):
            pictures.append(draw_progress([folder], folder / 'progressive.png'))
        for picture in pictures:
            logger.info(f'Picture: {picture}')


def _seed(opt: dict[str, Any]) -> None:
    if opt.get('manual_seed') is None:
        opt['manual_seed'] = random.randint(1, 10000)
    set_random_seed(opt['manual_seed'] + opt['rank'])


def start_processes(opt: dict[str, Any], launcher: str) -> None:
    """Join the other processes of the run: nccl on GPUs, gloo on CPUs."""
    opt['dist'] = launcher != 'none'
    if opt['dist']:
        if launcher == 'slurm':
            from basicsr.utils.dist_util import init_dist
            init_dist(launcher, **{key: value for key, value in opt.get('dist_params', {}).items() if key == 'port'})
        else:
            if opt['num_gpu'] > 0:
                torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
            torch.distributed.init_process_group('nccl' if opt['num_gpu'] > 0 else 'gloo')
    opt['rank'], opt['world_size'] = rank(), world_size()


def _resume_state(opt: dict[str, Any]) -> dict[str, Any] | None:
    path = opt['path'].get('resume_state')
    if opt['auto_resume']:
        states = [file for file in Path(opt['path']['training_states']).glob('*.state') if file.stem.isdigit()]
        path = str(max(states, key=lambda file: int(file.stem))) if states else path
    if path is None:
        return None
    opt['path']['resume_state'] = path
    state: dict[str, Any] = torch.load(path, map_location='cpu', weights_only=True)
    check_resume(opt, state['iter'])
    return state


def _open_experiment(opt: dict[str, Any], option_file: str, fresh: bool) -> Any:
    """Make the folders and open the logs, where BasicSR has them; returns the TensorBoard writer or None."""
    settings = opt['logger']
    writes_tb = settings.setdefault('use_tb_logger', False) and not opt['name'].startswith('debug')
    tb_folder = Path(opt['root_path']) / 'tb_logger' / opt['name']
    if fresh:
        make_exp_dirs(opt)
        if writes_tb and opt['rank'] == 0:
            mkdir_and_rename(str(tb_folder))
    if world_size() > 1:
        torch.distributed.barrier()
    copy_opt_file(option_file, opt['path']['experiments_root'])
    log_file = Path(opt['path']['log']) / f'train_{opt["name"]}_{get_time_str()}.log'
    logger = get_root_logger(log_level=logging.INFO, log_file=str(log_file))
    logger.info(get_env_info())
    logger.info(dict2str(opt))
    say_which_vgg(opt)
    if writes_tb and (settings.get('wandb') or {}).get('project') is not None:
        init_wandb_logger(opt)
    return init_tb_logger(log_dir=str(tb_folder)) if writes_tb else None


def _loaders(opt: dict[str, Any]) -> tuple[Any, BatchOrder, list[Any]]:
    train, val_loaders = opt['datasets']['train'], []
    dataset, sizes = build_dataset(train), crop_sizes(opt)
    order = BatchOrder(len(dataset), int(train['batch_size_per_gpu']), opt['manual_seed'],
                       train.get('dataset_enlarge_ratio', 1), sizes)
    loader = training_loader(dataset, train, order, pin_memory=opt['num_gpu'] > 0)
    get_root_logger().info(f'{len(dataset)} training images, {order.per_epoch} iterations an epoch, '
                           f'{math.ceil(opt["train"]["total_iter"] / order.per_epoch)} epochs.')
    for phase, settings in opt['datasets'].items():
        if phase != 'train':
            val_loaders.append(build_dataloader(build_dataset(settings), settings, num_gpu=opt['num_gpu'], dist=opt['dist']))
    return loader, order, val_loaders


class _Run:
    """One training on its way: step, log, save, validate."""

    def __init__(self, opt: dict[str, Any], model: Any, val_loaders: list[Any], tb_logger: Any, iteration: int) -> None:
        self.opt, self.model, self.val_loaders, self.tb_logger = opt, model, val_loaders, tb_logger
        self.messages = MessageLogger(opt, iteration, tb_logger)
        self.messages.max_iters += 1  # BasicSR's ETA is one iteration short: below zero at the last one
        self.bar = tqdm(total=opt['train']['total_iter'], initial=iteration, unit='it', dynamic_ncols=True,
                        disable=rank() != 0 or not sys.stderr.isatty())
        self.since, self.waited, self.count, self.images = time.perf_counter(), 0.0, 0, 0
        self.log_file = Path(opt['path']['experiments_root']) / LOG_FILE

    def one(self, epoch: int, iteration: int, batch: dict[str, Any], waited: float) -> None:
        """Make one iteration and what is due after it."""
        seed_everything(self.opt['manual_seed'] + iteration * world_size() + rank())  # a resumed run draws the same numbers
        self.model.update_learning_rate(iteration, warmup_iter=self.opt['train'].get('warmup_iter', -1))
        self.model.feed_data(batch)
        self.model.optimize_parameters(iteration)
        for event in getattr(getattr(self.model, 'report', None), 'events', ()):
            self._write({'iter': iteration, 'event': event.kind, 'part': event.part, 'text': event.text})
        self.waited, self.count = self.waited + waited, self.count + 1
        self.images += len(self.model.lq) * world_size()
        self.bar.update()
        settings, last = self.opt['logger'], iteration == self.opt['train']['total_iter']
        if iteration % settings['print_freq'] == 0 or last:
            self._log(epoch, iteration)
        if iteration % settings['save_checkpoint_freq'] == 0:
            get_root_logger().info('Saving models and training states.')
            self.model.save(epoch, iteration)
        val = self.opt.get('val')
        if val and iteration % int(val['val_freq']) == 0 and not last:
            self.validate(iteration)

    def _log(self, epoch: int, iteration: int) -> None:
        losses, rates = self.model.get_current_log(), self.model.get_current_learning_rate()
        seconds = (time.perf_counter() - self.since) / self.count
        speed = {'images_per_s': self.images / self.count / seconds, 'peak_gb': peak_bytes(self.model.device) / 1e9}
        self.bar.set_postfix({'images/s': f'{speed["images_per_s"]:.1f}', 'lr': f'{rates[0]:.1e}',
                              'peak GB': f'{speed["peak_gb"]:.1f}',
                              **{name: f'{value:.3g}' for name, value in losses.items() if name.startswith('l_')}})
        self.messages({'epoch': epoch, 'iter': iteration, 'lrs': rates, 'time': seconds,
                       'data_time': self.waited / self.count, **losses, **speed})
        shown = {'batch': len(self.model.lq) * world_size(), 'gt_size': self.model.gt.shape[-1]}
        self._write({'iter': iteration, 'epoch': epoch, 'lr': rates[0], **losses, **speed, **shown})
        self.since, self.waited, self.count, self.images = time.perf_counter(), 0.0, 0, 0

    def validate(self, iteration: int) -> None:
        """Validate on every validation set and write down the metrics."""
        val = self.opt.get('val') or {}
        for loader in self.val_loaders if val else []:
            before = time.perf_counter()
            self.model.validation(loader, iteration, self.tb_logger, val.get('save_img', False))
            metrics = getattr(self.model, 'metric_results', {})
            self._write({'iter': iteration, 'val': loader.dataset.opt['name'],
                         **{name: float(value) for name, value in metrics.items()}})
            self.since += time.perf_counter() - before

    def _write(self, record: dict[str, Any]) -> None:
        if rank() == 0:
            with self.log_file.open('a', encoding='utf-8') as file:
                file.write(json.dumps(record) + '\n')
