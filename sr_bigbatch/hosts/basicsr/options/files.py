"""Are the files there that a training needs, and are there enough photographs for one batch?"""
from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torchvision
from basicsr.archs.vgg_arch import NAMES, VGG_PRETRAIN_PATH
from basicsr.utils import get_root_logger

from sr_bigbatch.files.names import path_of
from sr_bigbatch.hosts.basicsr.images import photographs_of, size_of
from sr_bigbatch.hosts.basicsr.made_pairs import is_made
from sr_bigbatch.hosts.basicsr.options.lmdb_check import lmdb_findings
from sr_bigbatch.hosts.basicsr.options.pretrained import pretrained_findings
from sr_bigbatch.hosts.basicsr.settings import Options, stages_of
from sr_bigbatch.options import did_you_mean
from sr_bigbatch.step.words import count

_MOST_SHOWN = 10**8  # images of an epoch: their order takes 8 bytes each
_VGG_URL = 'https://download.pytorch.org/models/vgg19-dcbb9e9d.pth'


def file_findings(opt: Options) -> list[str]:
    """A finding for each file or folder of the options that is missing, and for a training set that fills no batch."""
    findings = [*vgg_findings(opt), *pretrained_findings(opt)]
    for phase, dataset in opt['datasets'].items():
        findings += _dataset(dataset, f'datasets.{phase}')
        listing = dataset.get('meta_info_file')
        if listing is not None and not os.path.isfile(path_of(listing)):  # not Path.is_file: a name may be too long
            findings.append(f'datasets.{phase}.meta_info_file: there is no file {listing}')
    if not findings:
        findings += [*_batch(opt), *_too_small(opt)]
    return findings


def vgg_findings(opt: Options) -> Iterable[str]:
    """A finding for the perceptual loss, and one for the metric, if the weights of its network are missing."""
    for where, settings in _users_of_vgg(opt).items():
        without = '--force_yml train:perceptual_opt=~' if where.startswith('train') else f'take {where} out'
        yield from _vgg(settings.get('vgg_type', 'vgg19'), where, without)


def _users_of_vgg(opt: Options) -> dict[str, Options]:
    """Settings of the perceptual loss and of metrics that use its network, by their place in the options."""
    loss, metrics = opt['train'].get('perceptual_opt'), (opt.get('val') or {}).get('metrics') or {}
    return {**({'train.perceptual_opt': loss} if loss and loss.get('type') == 'PerceptualLoss' else {}),
            **{f'val.metrics.{name}': metric for name, metric in metrics.items()
               if metric['type'] == 'calculate_perceptual_distance'}}


def _vgg(kind: Any, where: str, without: str) -> Iterable[str]:
    known = [name + ending for name in NAMES for ending in ('', '_bn')]
    if kind not in known:  # BasicSR takes any attribute of a module of torchvision by this name
        yield f'{where}.vgg_type: {kind} is not known{did_you_mean(kind, known)}'
        return
    if Path(VGG_PRETRAIN_PATH).exists():
        if kind != 'vgg19':
            yield (f'{where}.vgg_type is {kind}, but BasicSR would load {VGG_PRETRAIN_PATH} into it: move that '
                   'file away or use vgg19')
        return
    weights = getattr(torchvision.models, f'{kind.upper()}_Weights', None)
    url = weights.IMAGENET1K_V1.url if weights is not None else _VGG_URL
    cached = Path(torch.hub.get_dir()) / 'checkpoints' / os.path.basename(url)
    if not cached.exists():
        target = Path(VGG_PRETRAIN_PATH).absolute() if kind == 'vgg19' else cached
        yield (f'{where} needs the ImageNet weights of {kind}, which are not on this machine. Get {url} and '
               f'put it at {target}; or do without: {without}')


def say_which_vgg(opt: Options) -> None:
    """Warn if the file that stands for VGG19's ImageNet weights holds others (its name ends in its hash)."""
    path = Path(VGG_PRETRAIN_PATH)
    if _users_of_vgg(opt) and path.exists():
        expected = path.stem.rpartition('-')[2]
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if not found.startswith(expected):
            get_root_logger().warning(f'{path} does not hold the ImageNet weights of VGG19 (its hash begins with '
                                      f'{found[:8]}, not {expected}): perceptual loss and distance mean something else.')


def _dataset(dataset: Options, where: str) -> Iterable[str]:
    if is_made(dataset) and (dataset.get('io_backend') or {}).get('type') == 'lmdb':
        yield f'{where}.dataroot_lq is missing: only from a folder of photographs are low-resolution images made, no LMDB'
    if dataset.get('meta_info') is not None and not os.path.isfile(path_of(dataset['meta_info'])):
        yield f'{where}.meta_info: there is no file {dataset["meta_info"]}; it has a line for each photograph'
    for key in ('dataroot_gt', 'dataroot_lq'):
        value = dataset.get(key)
        if value is None:
            continue
        folder = path_of(value)
        if not os.path.isdir(folder):
            yield (f'{where}.{key}: there is no folder {value}; make it with tools/prepare_data.py (for a look: '
                   'python tools/prepare_data.py --bundled)')
        elif (dataset.get('io_backend') or {}).get('type') == 'lmdb':
            if not value.endswith('.lmdb') or not os.path.isfile(folder / 'meta_info.txt'):
                yield (f'{where}.{key}: {value} is not an LMDB of BasicSR: its name must end in .lmdb and it holds '
                       'meta_info.txt')
            else:
                yield from (f'{where}.{key}: {finding}' for finding in lmdb_findings(folder))
        elif folder.suffix == '.lmdb':
            yield f'{where}.{key}: {value} is an LMDB, so set {where}.io_backend.type to lmdb'


def _batch(opt: Options) -> Iterable[str]:
    data = opt['datasets']['train']
    if data.get('dataroot_gt') is None:
        return
    images, batch = count_images(data), int(data['batch_size_per_gpu'])
    processes = int(os.environ.get('WORLD_SIZE', 1))
    everything = images * data.get('dataset_enlarge_ratio', 1)
    shown = int(everything) // processes
    if everything > _MOST_SHOWN:
        yield (f'datasets.train.dataset_enlarge_ratio shows {everything:.0f} images an epoch, and at most {_MOST_SHOWN} can '
               'be put in order: lower it')
    if shown < batch:
        yield (f'datasets.train has {count(images, "image")}, which cannot fill a batch of {batch} in '
               f'{count(processes, "process", "processes")}, and an unfilled batch is dropped: add photographs, lower '
               'batch_size_per_gpu, or show each image more than once an epoch '
               f'(dataset_enlarge_ratio: {-(-batch * processes // max(images, 1))})')


def _too_small(opt: Options) -> Iterable[str]:
    """A finding for the first photograph that is smaller than the crops of the last stage."""
    data = opt['datasets']['train']
    needed = max([int(data['gt_size']), *(stage.gt_size for stage in stages_of(opt))])
    for name, width, height in _sizes(data):
        if min(width, height) < needed:
            yield (f'datasets.train: {name} is {width}x{height} pixels, and crops will be {needed} pixels wide: leave '
                   'smaller photographs out, cut larger sub-images (tools/prepare_data.py --size), or lower gt_size')
            return


def _sizes(data: Options) -> Iterator[tuple[str, int, int]]:
    """Name, width and height of each ground-truth image of a paired data set; only the head of a file is read."""
    if data.get('dataroot_gt') is None or _listing(data) is not None or data['type'] == 'RealESRGANDataset':
        return
    folder = path_of(data['dataroot_gt'])
    if data['io_backend']['type'] == 'lmdb':
        for line in (folder / 'meta_info.txt').read_text(encoding='utf-8', errors='replace').splitlines():
            match = re.match(r'(.+) \((\d{1,9}),(\d{1,9}),\d+\)', line)
            if match:
                yield match[1], int(match[3]), int(match[2])
        return
    for file in photographs_of(data) if is_made(data) else sorted(folder.iterdir()):
        size = size_of(file) if file.is_file() and not file.name.startswith('.') else None
        if size is not None:  # if not, the loader names it
            yield file.name, *size


def _listing(data: Options) -> str | None:
    """The file that names the images of a training set; Real-ESRGAN's data sets have another key for it."""
    listing: str | None = data.get('meta_info_file', data.get('meta_info'))
    return listing


def count_images(data: Options) -> int:
    """Number of ground-truth images of a paired data set, without opening them."""
    folder = path_of(data['dataroot_gt'])
    if is_made(data):
        return len(photographs_of(data))
    listing = folder / 'meta_info.txt' if data['io_backend']['type'] == 'lmdb' else _listing(data)
    if listing is not None:
        lines = path_of(listing).read_text(encoding='utf-8', errors='replace').splitlines()
        return sum(1 for line in lines if line.strip())
    return sum(1 for entry in os.scandir(folder) if entry.is_file() and not entry.name.startswith('.'))
