"""Do the images of a data set fit one another? Only their heads are read, and one sample of each set."""
from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.utils.registry import DATASET_REGISTRY

from sr_bigbatch.files.names import path_of
from sr_bigbatch.hosts.basicsr.construct import reason
from sr_bigbatch.hosts.basicsr.dataset import type_of
from sr_bigbatch.hosts.basicsr.images import MOST_PIXELS, size_of
from sr_bigbatch.hosts.basicsr.made_pairs import is_made
from sr_bigbatch.hosts.basicsr.settings import Options, TrainingSettings


def data_findings(opt: Options) -> Iterator[str]:
    """Build each data set as the training does, and look whether its pairs belong together and its samples fit."""
    for phase, settings in opt['datasets'].items():
        where, given = f'datasets.{phase}', copy.deepcopy(settings)
        given.update(phase=str(phase).split('_')[0], scale=opt['scale'])
        for key in ('dataroot_gt', 'dataroot_lq'):
            if given.get(key) is not None:
                given[key] = str(path_of(given[key]))
        try:
            dataset = DATASET_REGISTRY.get(type_of(given))(given)  # `build_dataset` would open the log before its time
        except Exception as error:  # of whatever class it is that the options name
            yield f'{where}: {reason(error)}'
            continue
        paired = isinstance(dataset, PairedImageDataset) and not is_made(given)
        found = list(_pairs(dataset, opt['scale'], where)) if paired else []
        yield from found or _sample(dataset, opt, where, settings.get('on_bad_image') == 'skip')


def _pairs(dataset: Any, scale: int, where: str) -> Iterable[str]:
    """A finding for the first pair whose low resolution does not belong to its ground truth."""
    if dataset.io_backend_opt['type'] != 'disk':
        return
    training = dataset.opt['phase'] == 'train'
    for pair in dataset.paths:
        sizes = [size_of(Path(pair[key])) for key in ('lq_path', 'gt_path')]
        if None in sizes:
            continue  # no image: the loader names it
        huge = [pair[key] for key, size in zip(('lq_path', 'gt_path'), sizes, strict=True)
                if size and size[0] * size[1] > MOST_PIXELS]
        if huge:
            yield f'{where}: {huge[0]} has more than {MOST_PIXELS:,} pixels: cut it into sub-images (tools/prepare_data.py)'
            return
        (width, height), (gt_width, gt_height) = (size or (0, 0) for size in sizes)
        exact = (gt_width, gt_height) == (width * scale, height * scale)
        if not exact and (training or gt_width < width * scale or gt_height < height * scale):
            yield (f'{where}: {pair["lq_path"]} is {width}x{height} and {pair["gt_path"]} is {gt_width}x{gt_height} pixels, '
                   f'which is not {scale} times as much')
            return


def _sample(dataset: Any, opt: Options, where: str, skips: bool) -> Iterable[str]:
    """A finding if the first image gives no sample, or one that the networks do not take."""
    if len(dataset) == 0:
        yield f'{where} has no images'
        return
    try:
        sample = dataset[0]
    except Exception as error:
        if not skips:
            yield f'{where}: its first image gives no sample ({reason(error)})'
        return
    channels = TrainingSettings.from_options(opt).channels
    for key in ('lq', 'gt'):
        image = sample.get(key)
        if image is not None and image.shape[0] != channels:
            yield f'{where}: its images have {image.shape[0]} channel(s), and network_g takes {channels}'
            return
