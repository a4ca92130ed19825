"""Checks the options of a BasicSR training before anything is built, and completes them as BasicSR does."""
from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from sr_bigbatch.files.names import fault_of_name, path_of
from sr_bigbatch.hosts.basicsr.build import build_findings, part_findings
from sr_bigbatch.hosts.basicsr.construct import reason
from sr_bigbatch.hosts.basicsr.options.data_files import data_findings
from sr_bigbatch.hosts.basicsr.options.files import file_findings, vgg_findings
from sr_bigbatch.hosts.basicsr.options.real_esrgan import REAL_ESRGAN_KEYS, is_real, real_esrgan_findings
from sr_bigbatch.hosts.basicsr.options.schema import schema_findings, with_whole_numbers
from sr_bigbatch.hosts.basicsr.settings import Options, TrainingSettings, gpus_of
from sr_bigbatch.hosts.basicsr.synthesis.settings import REAL_ESRGAN
from sr_bigbatch.hosts.basicsr.tried_parts import trial_findings
from sr_bigbatch.hosts.shared_memory import batch_bytes, lack_of_room
from sr_bigbatch.options import OptionError, unknown_keys
from sr_bigbatch.progressive.batch_schedule import BatchSchedule
from sr_bigbatch.step.distributed import world_size
from sr_bigbatch.step.precision import NO_BFLOAT16, has_bfloat16

_SECTIONS: dict[str, set[str]] = {
    '': {'name', 'model_type', 'scale', 'num_gpu', 'manual_seed', 'datasets', 'network_g', 'network_d', 'path', 'train',
         'val', 'logger', 'dist_params', 'custom_hooks', 'find_unused_parameters'},
    'path': {'pretrain_network_g', 'param_key_g', 'strict_load_g', 'pretrain_network_d', 'param_key_d', 'strict_load_d',
             'resume_state', 'ignore_resume_networks', 'experiments_root'},
    'train': {'ema_decay', 'optim_g', 'optim_d', 'scheduler', 'total_iter', 'warmup_iter', 'pixel_opt', 'perceptual_opt',
              'ldl_opt', 'gan_opt', 'net_d_iters', 'net_d_init_iters', 'micro_batch_size', 'memory_budget_gb',
              'kept_graphs', 'accumulation', 'relativistic_gan', 'optim_wrapper', 'batch_schedule', 'verify_every',
              'tf32'},
    'val': {'val_freq', 'val_at_start', 'save_img', 'pbar', 'suffix', 'metrics'},
    'logger': {'print_freq', 'save_checkpoint_freq', 'use_tb_logger', 'wandb', 'keep_last', 'keep_best'},
}
_PAIRED = {'name', 'type', 'dataroot_gt', 'dataroot_lq', 'meta_info_file', 'io_backend', 'filename_tmpl', 'gt_size',
           'use_hflip', 'use_rot', 'mean', 'std', 'color', 'num_worker_per_gpu', 'batch_size_per_gpu', 'prefetch_mode',
           'num_prefetch_queue', 'pin_memory', 'persistent_workers', 'dataset_enlarge_ratio', 'use_shuffle', 'on_bad_image'}
_REQUIRED = {'': ('name', 'model_type', 'scale', 'num_gpu', 'datasets', 'network_g', 'path', 'train', 'logger'),
             'train': ('total_iter', 'optim_g', 'scheduler'),
             'logger': ('print_freq', 'save_checkpoint_freq')}
_TRAIN_DATA_REQUIRED = ('name', 'type', 'dataroot_gt', 'io_backend', 'gt_size', 'use_hflip', 'use_rot',
                        'batch_size_per_gpu', 'num_worker_per_gpu')


def check(opt: Options, *, data: bool = True, weights: bool = True) -> None:
    """Look for everything that would stop the training or make it another one than was meant.

    Args:
        opt: options as they stand in the file, with overrides applied.
        data: whether photographs and pretrained weights must be there, too.
        weights: whether the weights of the perceptual network must be there.

    Raises:
        OptionError: with all findings at once.
    """
    findings = [f'{name} must be a section of "key: value" lines' for name in ('datasets', *_SECTIONS)
                if name in opt and not isinstance(opt[name], dict) and not (name == 'val' and opt[name] is None)]
    if findings:
        raise OptionError(findings)
    findings = [*_known_names(opt), *_missing(opt), *_name(opt)]
    for look in (schema_findings, real_esrgan_findings, part_findings, _numbers):
        findings += _as_far_as_possible(look, opt, findings)
    if not findings:
        opt = with_whole_numbers(copy.deepcopy(opt))  # as `complete` has them
    for look in (build_findings, trial_findings):
        if not findings:
            findings += _as_far_as_possible(look, opt, findings)
    if data or weights:
        findings += _as_far_as_possible(file_findings if data else vgg_findings, opt, findings)
    if data:
        findings += _as_far_as_possible(_shared_memory, opt, findings)
    if data and not findings:
        findings += _as_far_as_possible(data_findings, opt, findings)
    if findings:
        raise OptionError(list(dict.fromkeys(findings)))


def _as_far_as_possible(look: Callable[[Options], Iterable[str]], opt: Options, known: list[str]) -> list[str]:
    """What a check finds; it may stumble over what is known to be wrong."""
    found = []
    try:
        for finding in look(opt):
            found.append(finding)
    except Exception as error:  # of whatever code it is that the options name
        if not known and not found:
            place = traceback.extract_tb(error.__traceback__)[-1]
            found.append(f'the options could not be checked ({Path(place.filename).name}, line {place.lineno}: '
                         f'{reason(error)})')
    return found


def _known_names(opt: Options) -> Iterable[str]:
    elsewhere = {key: section or 'top level' for section, keys in _SECTIONS.items() for key in keys}
    for section, known in _SECTIONS.items():
        known = {*known, *REAL_ESRGAN_KEYS} if section == '' and is_real(opt) else known
        yield from unknown_keys(opt if section == '' else opt.get(section) or {}, known, section, elsewhere)
    for phase, dataset in opt.get('datasets', {}).items():
        if phase != 'train' and str(phase).split('_')[0] != 'val':
            yield f'datasets.{phase}: a data set is named train, val or val_...'
        elif not isinstance(dataset, dict):
            yield f'datasets.{phase} must be a section of "key: value" lines'
        elif 'Paired' in str(dataset.get('type')):
            known = {*_PAIRED, 'meta_info'} if dataset['type'] == 'RealESRGANPairedDataset' else _PAIRED
            yield from unknown_keys(dataset, known, f'datasets.{phase}', elsewhere)


def _missing(opt: Options) -> Iterable[str]:
    for section, keys in _REQUIRED.items():
        present = opt if section == '' else opt.get(section, {})
        yield from (f'{section + "." if section else ""}{key} is missing' for key in keys if present.get(key) is None)
    train_set = opt.get('datasets', {}).get('train')
    if not isinstance(train_set, dict):
        yield 'datasets.train is missing'
    elif 'Paired' in str(train_set.get('type')):
        yield from (f'datasets.train.{key} is missing' for key in _TRAIN_DATA_REQUIRED if train_set.get(key) is None)
    train = opt.get('train', {})
    wanted = ['gan_opt', 'optim_d'] if opt.get('model_type') in ('AccumulatingESRGANModel', REAL_ESRGAN) else []
    yield from (f'train.{key} is missing' for key in wanted if not train.get(key))
    if wanted and not opt.get('network_d'):
        yield 'network_d is missing'
    if train.get('ldl_opt') and not train.get('ema_decay'):
        yield 'train.ldl_opt compares with the averaged generator: set train.ema_decay, e.g. to 0.999'
    if opt.get('val') and opt['val'].get('val_freq') is None:
        yield 'val.val_freq is missing'
    if not wanted and not train.get('pixel_opt') and not train.get('perceptual_opt'):
        yield 'train.pixel_opt and train.perceptual_opt are both missing: one of them is needed'


def _name(opt: Options) -> Iterable[str]:
    # The folder of the run is renamed when another run of this name begins, so it must be none but its own.
    because = None if opt.get('name') is None else fault_of_name(opt['name'])
    if because is not None:
        yield f'name {because}, got {opt["name"]!r}'


def _numbers(opt: Options) -> Iterable[str]:
    train, data = opt['train'], opt['datasets']['train']
    wrapper = train.get('optim_wrapper')
    half = isinstance(wrapper, dict) and wrapper.get('dtype') == 'bfloat16'
    if half and gpus_of(opt) and not has_bfloat16(torch.device('cuda')):
        yield f'train.optim_wrapper.dtype: {NO_BFLOAT16}'
    if train.get('batch_schedule') is not None:
        try:
            BatchSchedule(train['batch_schedule'], int(data['batch_size_per_gpu']) * world_size(), world_size())
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            yield f'train.batch_schedule: {error}'
    if data['gt_size'] % opt['scale']:
        yield f'datasets.train.gt_size {data["gt_size"]} is not a multiple of scale {opt["scale"]}'
    judged = (opt.get('network_d') or {}).get('input_size')
    if judged is not None and judged != data['gt_size']:
        yield (f'network_d.input_size is {judged} but datasets.train.gt_size is {data["gt_size"]}: the discriminator '
               'judges whole crops, so make them equal')


def _shared_memory(opt: Options) -> Iterable[str]:
    settings, data = TrainingSettings.from_options(opt), opt['datasets']['train']
    largest = max([int(data['gt_size']), *(stage.gt_size for stage in settings.stages)])
    size = batch_bytes(settings.batch_size, largest, settings.scale, settings.channels)
    lack = lack_of_room(size, int(data.get('num_worker_per_gpu') or 0), 'datasets.train.num_worker_per_gpu')
    if lack is not None:
        yield f'datasets.train: {lack}'


def complete(opt: Options, root: Path, *, auto_resume: bool, debug: bool) -> None:
    """Fill in what BasicSR's ``parse_options`` fills in: phases, paths under ``root``, debug frequencies."""
    with_whole_numbers(opt)
    opt['is_train'], opt['auto_resume'], opt['root_path'] = True, auto_resume, str(root)
    if debug and not opt['name'].startswith('debug'):
        opt['name'] = f'debug_{opt["name"]}'
    opt['num_gpu'] = gpus_of(opt)
    for phase, dataset in opt['datasets'].items():
        dataset['phase'], dataset['scale'] = phase.split('_')[0], opt['scale']
        for key in ('dataroot_gt', 'dataroot_lq', 'meta_info'):
            if dataset.get(key) is not None:
                dataset[key] = str(path_of(dataset[key]))
    path = opt['path']
    for key, value in path.items():
        if value is not None and ('resume_state' in key or 'pretrain_network' in key):
            path[key] = str(path_of(value))
    experiment = Path(path.get('experiments_root') or root / 'experiments') / opt['name']
    path.update(experiments_root=str(experiment), models=str(experiment / 'models'), log=str(experiment),
                training_states=str(experiment / 'training_states'), visualization=str(experiment / 'visualization'))
    if opt['name'].startswith('debug'):
        if opt.get('val'):
            opt['val']['val_freq'] = 8
        opt['logger'].update(print_freq=1, save_checkpoint_freq=8)
