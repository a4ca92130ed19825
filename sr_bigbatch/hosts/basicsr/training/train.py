"""Runs a BasicSR training: BasicSR's loop with checks before it, a progress bar in it and pictures after it."""
from __future__ import annotations

import errno
import logging
import math
import os
import random
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from basicsr.data import build_dataloader
from basicsr.models import build_model
from basicsr.utils import (
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
from tqdm.contrib.logging import logging_redirect_tqdm

from sr_bigbatch.files.checkpoint_set import newest_valid, set_aside
from sr_bigbatch.files.run_lock import FolderInUse, only_run_in
from sr_bigbatch.files.storage import BadFile
from sr_bigbatch.hosts.basicsr.construct import reason
from sr_bigbatch.hosts.basicsr.dataset import dataset_of
from sr_bigbatch.hosts.basicsr.model.best_metrics import take_logged
from sr_bigbatch.hosts.basicsr.model.host import TrainingState
from sr_bigbatch.hosts.basicsr.model.saved_state import OURS, GaveUp
from sr_bigbatch.hosts.basicsr.options.files import say_which_vgg
from sr_bigbatch.hosts.basicsr.settings import SEVERAL_GPUS, LoopSettings, Options, stages_of
from sr_bigbatch.hosts.basicsr.training.fingerprint import Fingerprint, difference_between_processes, fingerprint
from sr_bigbatch.hosts.basicsr.training.loader import BadImage, BatchOrder, training_loader
from sr_bigbatch.hosts.basicsr.training.pictures import draw_run
from sr_bigbatch.hosts.basicsr.training.resume import compared, state_to_resume
from sr_bigbatch.hosts.basicsr.training.run import Run
from sr_bigbatch.hosts.signals import StopRequest
from sr_bigbatch.options import OptionError
from sr_bigbatch.report.progress import draw_progress
from sr_bigbatch.report.run_log import LOG_FILE, read_log, trim_log
from sr_bigbatch.step.distributed import everywhere, rank, world_size, worst
from sr_bigbatch.step.words import count


def train(opt: Options, option_file: str) -> int:
    """Train with checked and completed options.

    Args:
        opt: see :func:`sr_bigbatch.hosts.basicsr.options.check.check` and ``complete``.
        option_file: its path; a copy goes into the experiment's folder.

    Returns:
        The exit status: 0 finished; 128 and the number of a signal that ended it, after a save.

    Raises:
        FolderInUse: if another run has the experiment's folder.
        OptionError: if processes were given different options or data, or the state to go on from is of another training.
        GaveUp: if it cannot go on, or its last save could not be written.
    """
    now = fingerprint(opt)
    difference = difference_between_processes(everywhere(now))
    if difference is not None:
        raise OptionError([difference])
    with _alone_in(Path(opt['path']['experiments_root']), _device(opt)), StopRequest() as stop, _log_may_fail():
        return _train(opt, option_file, now, stop)


@contextmanager
def _log_may_fail() -> Iterator[None]:
    """Keep Python from printing a traceback for each line of a log that has no room left."""
    before, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        yield
    finally:
        logging.raiseExceptions = before


@contextmanager
def _alone_in(folder: Path, device: torch.device) -> Iterator[None]:
    """Lock the folder for all processes of this run, by the first of them."""
    refusal = ''
    with ExitStack() as lock:
        if rank() == 0:
            try:
                lock.enter_context(only_run_in(folder))
            except (FolderInUse, OSError) as error:
                refusal = str(error)
        if worst(int(bool(refusal)), device):
            raise FolderInUse(refusal or f'process 0 cannot have {folder}')
        yield


def _device(opt: Options) -> torch.device:
    return torch.device('cuda' if opt['num_gpu'] else 'cpu')


def _train(opt: Options, option_file: str, now: Fingerprint, stop: StopRequest) -> int:
    resume_state, to_be_told = state_to_resume(opt)
    _seed(opt, resume_state)
    now['options'] = dict(sorted({**now['options'], 'manual_seed': opt['manual_seed']}.items()))
    if resume_state is not None:
        to_be_told += compared(resume_state, now)
    settings = LoopSettings.from_options(opt)
    torch.backends.cudnn.benchmark = True
    try:
        tb_logger = _open_experiment(opt, option_file, fresh=resume_state is None)
    except OSError as error:
        raise GaveUp(f'the folder of the run cannot be written ({error})') from error
    logger = get_root_logger()
    for line in to_be_told:
        logger.warning(line)
    loader, order, val_loaders = _loaders(opt, settings)
    model = _built_model(opt)
    model.fingerprint = now
    if resume_state is not None:
        _resume(opt, settings, model, order, resume_state)
    run = Run(opt, settings, model, val_loaders, tb_logger, order.iteration, stop)
    if order.iteration == 0 and settings.validate_first:
        run.validate(0)
    started = time.time()
    with logging_redirect_tqdm([logger]), run.bar:
        if _iterate(run, loader, order):
            return 128 + _worst_signal(run)
    logger.info(f'End of training after {time.time() - started:.0f} s. Save the latest model.')
    run.save(-1, -1, last=True)
    return _after_training(opt, run)


def _after_training(opt: Options, run: Run) -> int:
    if not _worst_signal(run):
        run.validate(run.settings.total_iter)
    if run.tb_logger:
        run.beside('TensorBoard', run.tb_logger.close)
    number = _worst_signal(run)
    if number:
        get_root_logger().warning(f'{signal.Signals(number).name}: the training is finished and saved; what comes after is '
                                  'left out.')
        return 128 + number
    if rank() == 0 and run.val_loaders:
        run.beside('The pictures', lambda: _draw(opt, run.settings.folder, run.model, run.val_loaders[0]))
    return 0


def _built_model(opt: Options) -> Any:
    try:
        return build_model(opt)
    except (RuntimeError, BadFile) as error:
        files = [f'path.{key}: {value}' for key, value in opt['path'].items() if 'pretrain_network' in key and value]
        if not files or ('size mismatch' not in str(error) and 'loading state_dict' not in str(error) and not isinstance(
                error, BadFile)):
            raise
        said = ' '.join(str(error).split())[:300]
        raise OptionError([f'{" or ".join(files)} does not belong to the networks of these options ({said})']) from error


def _resume(opt: Options, settings: LoopSettings, model: Any, order: BatchOrder, state: TrainingState) -> None:
    try:
        model.resume_training(state)
    except Exception as error:  # states of other networks and optimizers fail in many ways
        raise OptionError([f'path.resume_state: {opt["path"]["resume_state"]} does not belong to these options '
                           f'({reason(error)})']) from error
    iteration = order.iteration = state['iter']
    if not opt['auto_resume']:
        _set_later_saves_aside(settings.folder, iteration, model.device)
    if rank() == 0 and (settings.folder / LOG_FILE).is_file():
        trim_log(settings.folder / LOG_FILE, iteration)
        take_logged(model, read_log(settings.folder / LOG_FILE), iteration)
    get_root_logger().info(f'Resuming training from epoch: {iteration // order.per_epoch}, iter: {iteration}.')


def _where(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f'{reason(error)}; {place.filename}, line {place.lineno}'


def _newest(folder: Path) -> str:
    newest, _ = newest_valid(folder)
    return ('Nothing was saved before' if newest is None else
            f'The newest whole save is that of iteration {newest.stem}: go on from it with --auto_resume')


def _worst_signal(run: Run) -> int:
    return worst(run.stop.signal, run.model.device)


def _iterate(run: Run, loader: Any, order: BatchOrder) -> bool:
    """Make the iterations that are left; whether a signal has ended them, after a save."""
    logger, total, done = get_root_logger(), run.settings.total_iter, order.iteration
    batches = iter(loader) if done < total else iter(())
    for iteration in range(done + 1, total + 1):
        waiting = time.perf_counter()
        try:
            batch = next(batches)
        except Exception as error:  # an image that cannot be read, a worker that was killed: the last iteration is whole
            if iteration > 1:
                run.save((iteration - 2) // order.per_epoch, iteration - 1, last=True)
            if isinstance(error, BadImage):
                raise
            raise GaveUp(f'iteration {iteration} has no images ({reason(error)}); iteration {iteration - 1} is saved: go on '
                         'with --auto_resume') from error
        try:
            run.one((iteration - 1) // order.per_epoch, iteration, batch, time.perf_counter() - waiting)
        except Exception as error:  # of a hook, a loss or an optimizer of somebody's own
            if type(error).__module__.startswith('sr_bigbatch'):
                raise
            raise GaveUp(f'iteration {iteration} has failed ({_where(error)}). {_newest(run.settings.folder)}') from error
        number = _worst_signal(run)
        if number:
            logger.warning(f'{signal.Signals(number).name}: iteration {iteration} is finished; a save, then the end.')
            run.save((iteration - 1) // order.per_epoch, iteration, last=True)
            return True
    return False


def _set_later_saves_aside(folder: Path, iteration: int, device: torch.device) -> None:
    failure = ''
    if rank() == 0:
        try:
            aside, later = set_aside(folder, iteration)
            if aside is not None:
                if (folder / LOG_FILE).is_file():
                    shutil.copy2(folder / LOG_FILE, aside)  # before its later lines are removed
                get_root_logger().warning(f'This run goes back to iteration {iteration}. The saves of iterations '
                                          f'{", ".join(map(str, later))} are set aside in {aside}.')
        except OSError as error:
            failure = str(error)
    if worst(int(bool(failure)), device):
        raise GaveUp(f'the saves after iteration {iteration} are in the way and could not be set aside: {failure}')


def _draw(opt: Options, folder: Path, model: Any, val_loader: Any) -> None:
    pictures = draw_run(model, val_loader, folder, opt['scale'])
    if stages_of(opt):
        pictures.append(draw_progress([folder], folder / 'progressive.png'))
    for picture in pictures:
        get_root_logger().info(f'Picture: {picture}')


def _seed(opt: Options, state: TrainingState | None) -> None:
    """Seed as the options say; otherwise as the run has begun, or as rank 0 draws: the order of the data hangs on it."""
    if opt.get('manual_seed') is None:
        saved = None if state is None else state.get(OURS, {}).get('seed')  # version 0.1.0 and BasicSR save none
        if saved is None:
            drawn = random.randint(1, 10000) if rank() == 0 else 0
            saved = worst(drawn, _device(opt))
        opt['manual_seed'] = saved
    set_random_seed(opt['manual_seed'] + opt['rank'])


def start_processes(opt: Options, launcher: str) -> None:
    """Join the other processes of the run: nccl on GPUs, gloo on CPUs.

    Raises:
        OptionError: if the processes and the GPUs are not as many as the options say.
    """
    opt['dist'] = launcher != 'none'
    if opt['num_gpu'] > 1 and not opt['dist']:
        raise OptionError([SEVERAL_GPUS.format(opt['num_gpu'])])
    if opt['dist']:
        if launcher == 'slurm':
            from basicsr.utils.dist_util import init_dist
            init_dist(launcher, **{key: value for key, value in opt.get('dist_params', {}).items() if key == 'port'})
        else:
            if opt['num_gpu'] > 0:
                torch.cuda.set_device(_own_gpu(int(os.environ['LOCAL_RANK'])))
            torch.distributed.init_process_group('nccl' if opt['num_gpu'] > 0 else 'gloo')
    opt['rank'], opt['world_size'] = rank(), world_size()


def _own_gpu(place: int) -> int:
    """The GPU of a process by its place among those of this machine."""
    here = torch.cuda.device_count()
    if place >= here:
        raise OptionError([f'process {place} has no GPU of its own, there are {here}: start one process for each '
                           f'(--nproc_per_node={here}), or train on the CPU (num_gpu: 0)'])
    return place


def _open_experiment(opt: Options, option_file: str, fresh: bool) -> Any:
    """Make the folders and open the logs, where BasicSR has them; returns the TensorBoard writer or None."""
    settings = opt['logger']
    writes_tb = settings.setdefault('use_tb_logger', False) and not opt['name'].startswith('debug')
    tb_folder = Path(opt['root_path']) / 'tb_logger' / opt['name']
    if fresh:
        _unless_just_archived(lambda: make_exp_dirs(opt))
        if writes_tb and opt['rank'] == 0:
            _unless_just_archived(lambda: mkdir_and_rename(str(tb_folder)))
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


def _unless_just_archived(make: Callable[[], None]) -> None:
    """Make folders as BasicSR does, which renames old ones by the second: two runs may begin in the same one."""
    while True:
        try:
            make()
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            time.sleep(1)


def _loaders(opt: Options, loop: LoopSettings) -> tuple[Any, BatchOrder, list[Any]]:
    train, val_loaders = opt['datasets']['train'], []
    dataset = dataset_of(train)
    order = BatchOrder(len(dataset), int(train['batch_size_per_gpu']), loop.seed, train.get('dataset_enlarge_ratio', 1),
                       loop.crop_sizes)
    loader = training_loader(dataset, train, order, pin_memory=opt['num_gpu'] > 0)
    get_root_logger().info(f'{count(len(dataset), "training image")}, {count(order.per_epoch, "iteration")} an epoch, '
                           f'{count(math.ceil(loop.total_iter / order.per_epoch), "epoch")}.')
    for phase, settings in opt['datasets'].items():
        if phase != 'train':
            val_loaders.append(build_dataloader(dataset_of(settings), settings, num_gpu=opt['num_gpu'], dist=opt['dist']))
    return loader, order, val_loaders
