"""What a run was made of, so that a resumed one, or one in another process, is not silently another."""
from __future__ import annotations

import inspect
import json
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypedDict

import torch
from basicsr.utils.registry import ARCH_REGISTRY

import sr_bigbatch
from sr_bigbatch.files.listing import listing
from sr_bigbatch.hosts.basicsr.settings import Options
from sr_bigbatch.step.distributed import world_size

_NOT_OF_THE_TRAINING = {'name', 'path', 'logger', 'is_train', 'auto_resume', 'root_path', 'dist', 'rank', 'world_size'}
_PACKAGES = ('basicsr', 'torch', 'torchvision', 'numpy', 'opencv-python')
_SAME_SCHEDULER = {'MultiStepLR': 'MultiStepRestartLR'}  # to BasicSR
_SAME_WEIGHTS = {'RRDBNet', 'CheckpointedRRDBNet'}
_OF_ANOTHER_RUN = re.compile(r'model_type|scale|network_\w+\.(?!activation_memory).*|train\.(optim_[a-z]|scheduler)\.type')
_SAVED = re.compile(r'train\.optim_[a-z]\.\w+|train\.scheduler\.\w+|train\.optim_wrapper\.loss_scale(\.init_scale)?')
_MAY_DIFFER_BETWEEN_HOSTS = re.compile(r'datasets\.\w+\.(dataroot_\w+|meta_info_file)')
_ABSENT = 'not set'


class Fingerprint(TypedDict):
    """Plain values by name, for a training state.

    Attributes:
        options: by path, as ``train.optim_g.lr``; values that are no number, truth value or text are JSON.
        data: by the path of the option that names it, see :func:`sr_bigbatch.files.listing.listing`.
        versions: of packages, and what the run is made on.
    """

    options: Options
    data: dict[str, Options]
    versions: dict[str, str]


def fingerprint(opt: Options) -> Fingerprint:
    """That of a run with completed options."""
    return {'options': _flat(opt), 'data': dict(_data(opt)), 'versions': _versions(opt)}


def _flat(opt: Options) -> Options:
    flat = dict(_values({key: value for key, value in opt.items() if key not in _NOT_OF_THE_TRAINING}, ''))
    flat = {key: value for key, value in flat.items() if not re.fullmatch(r'datasets\.\w+\.(phase|scale)', key)}
    for network in ('network_g', 'network_d'):  # what is not given has the value of the network's own signature
        known = dict(iter(ARCH_REGISTRY)).get(flat.get(f'{network}.type'))
        parameters = {} if known is None else inspect.signature(known).parameters
        defaults = {name: each.default for name, each in parameters.items() if each.default is not inspect.Parameter.empty}
        flat = {**{f'{network}.{name}': value for name, value in _values(defaults, '')}, **flat}
    scheduler = flat.get('train.scheduler.type')
    return {**flat, **({} if scheduler is None else {'train.scheduler.type': _SAME_SCHEDULER.get(scheduler, scheduler)})}


def _values(section: Mapping[str, Any], where: str) -> Iterator[tuple[str, Any]]:
    """Every value by its path; a section or a value that is empty is as good as absent."""
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _values(value, f'{where}{key}.')
        elif isinstance(value, float) and value.is_integer():
            yield f'{where}{key}', int(value)  # 1e5 and 100000 are the same number
        elif isinstance(value, bool | int | float | str):
            yield f'{where}{key}', value
        elif value is not None and value != []:
            yield f'{where}{key}', json.dumps(value, sort_keys=True, default=str)


def _data(opt: Options) -> Iterator[tuple[str, Options]]:
    for phase, dataset in opt['datasets'].items():
        for key, value in dataset.items():
            if key.startswith('dataroot') and isinstance(value, str) and Path(value).exists():
                yield f'datasets.{phase}.{key}', dict(listing(Path(value)))


def _versions(opt: Options) -> dict[str, str]:
    found = {'python': platform.python_version(), 'sr_bigbatch': sr_bigbatch.__version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    device = torch.cuda.get_device_name() if opt['num_gpu'] else 'CPU'
    return {**found, 'device': device, 'processes': str(world_size())}


def differences(then: Mapping[str, Any], now: Fingerprint) -> tuple[list[str], list[str]]:
    """What is not as it was, a line for each.

    Args:
        then: the fingerprint in a training state.
        now: that of this run.

    Returns:
        What makes it a run that cannot go on from that state, and what does not. The second say what counts from now on.
    """
    refused, told = [], []
    for key, before, after in _pairs(then.get('options'), now['options']):
        if _OF_ANOTHER_RUN.fullmatch(key) and not (key == 'network_g.type' and {before, after} == _SAME_WEIGHTS):
            refused.append(f'{key} was {before} at the save and is {after}: a run cannot go on with that')
        elif _SAVED.fullmatch(key):
            told.append(f'{key} was {before} and is {after} in the options: it stays as saved.')
        else:
            told.append(f'{key} was {before} and is {after}: from now on the latter.')
    told += [f'{key}: {line}' for key, before, after in _pairs(then.get('data'), now['data'])
             for line in _data_line(before, after)]
    told += [f'{key} was {before} and is {after}.' for key, before, after in _pairs(then.get('versions'), now['versions'])]
    return refused, told


def _pairs(then: Any, now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    before = then if isinstance(then, Mapping) else {}
    for key in sorted({*before, *now}, key=str):
        if before.get(key) != now.get(key):
            yield str(key), before.get(key, _ABSENT), now.get(key, _ABSENT)


def _data_line(before: Any, after: Any) -> Iterator[str]:
    """The coarsest difference of two listings: the finer ones follow from it."""
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        yield 'this data set is new, or no longer there.'
    elif before.get('files') != after.get('files'):
        yield f'there were {before.get("files")} files and there are {after.get("files")}: images come in another order.'
    elif before.get('names') != after.get('names'):
        yield 'files have other names: images were replaced or renamed.'
    elif before.get('sizes') != after.get('sizes'):
        yield 'files have other sizes: images were replaced under their names.'
    else:
        yield 'files were written again since, or copied without their times.'


def difference_between_processes(every: Sequence[Fingerprint]) -> str | None:
    """The sentence that ends a run whose processes were not given the same; None if they were.

    Args:
        every: that of each process, by rank. Where their data lie may differ, but not what is there.
    """
    first = _of_all_processes(every[0])
    for number, other in enumerate(every[1:], 1):
        found = [f'{key} is {before} and {after}' for key, before, after in _pairs(first, _of_all_processes(other))]
        if found:
            return f'the processes 0 and {number} must be given the same, and differ: {"; ".join(found)}'
    return None


def _of_all_processes(one: Fingerprint) -> Options:
    options = {key: value for key, value in one['options'].items() if not _MAY_DIFFER_BETWEEN_HOSTS.fullmatch(key)}
    data = {f'{key} ({kind})': value for key, found in one['data'].items() for kind, value in found.items()
            if kind != 'times'}
    return {**options, **data}
