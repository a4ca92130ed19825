"""Pairs from photographs alone: the low-resolution image is made when it is asked for."""
from __future__ import annotations

import random
from pathlib import Path

import cv2
import numpy as np
from basicsr.data.transforms import augment
from basicsr.utils import bgr2ycbcr, img2tensor
from torchvision.transforms.functional import normalize

from sr_bigbatch.hosts.basicsr.images import bicubic, photographs_of
from sr_bigbatch.hosts.basicsr.settings import Options

_MARGIN = 4  # pixels of the low-resolution image, two more than a bicubic kernel reaches
_TYPES = ('PairedImageDataset', 'ProgressivePairedImageDataset')


class MadePairs:
    """The samples of BasicSR's ``PairedImageDataset`` whose low-resolution images were prepared from whole photographs.

    Args:
        opt: the options of ``PairedImageDataset``, without ``dataroot_lq``. ``gt_size`` is looked at for each sample.
    """

    def __init__(self, opt: Options) -> None:
        self.opt, self.paths = opt, photographs_of(opt)
        self._whole: dict[int, np.ndarray] = {}  # the same at each validation

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Options:
        """A crop and its low-resolution partner; in a validation the whole photograph."""
        path, scale, opt = self.paths[index], int(self.opt['scale']), self.opt
        decoded = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
        if decoded is None:
            raise ValueError(f'{path} is no image')
        gt: np.ndarray = np.asarray(decoded)
        gt = gt[:gt.shape[0] - gt.shape[0] % scale, :gt.shape[1] - gt.shape[1] % scale]
        if opt['phase'] == 'train':
            gt, lq = _random_crop(gt, int(opt['gt_size']), scale, path)
        else:
            if index not in self._whole:
                self._whole[index] = bicubic(gt, 1 / scale)
            lq = self._whole[index]
        pair = [np.ascontiguousarray(image, np.float32) / 255 for image in (gt, lq)]
        if opt['phase'] == 'train':
            pair = augment(pair, opt['use_hflip'], opt['use_rot'])
        if opt.get('color') == 'y':
            pair = [bgr2ycbcr(image, y_only=True)[..., None] for image in pair]
        tensors = img2tensor(pair, bgr2rgb=True, float32=True)
        if opt.get('mean') is not None or opt.get('std') is not None:
            for tensor in tensors:
                normalize(tensor, opt.get('mean'), opt.get('std'), inplace=True)
        return {'lq': tensors[1], 'gt': tensors[0], 'lq_path': str(path), 'gt_path': str(path)}


def is_made(dataset: Options) -> bool:
    """Whether the low-resolution images of a data set are made from its photographs."""
    return dataset.get('type') in _TYPES and dataset.get('dataroot_lq') is None and dataset.get('dataroot_gt') is not None


def _random_crop(gt: np.ndarray, gt_size: int, scale: int, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A crop as BasicSR draws it, and that part of the whole photograph's low-resolution image."""
    size, (height, width) = gt_size // scale, (length // scale for length in gt.shape[:2])
    if min(height, width) < size:
        raise ValueError(f'{path} has {gt.shape[1]}x{gt.shape[0]} pixels, less than a crop of {gt_size}')
    top, left = random.randint(0, height - size), random.randint(0, width - size)
    above, before = max(0, top - _MARGIN), max(0, left - _MARGIN)
    around = gt[above * scale:(top + size + _MARGIN) * scale, before * scale:(left + size + _MARGIN) * scale]
    lq = bicubic(around, 1 / scale)[top - above:top - above + size, left - before:left - before + size]
    return gt[top * scale:(top + size) * scale, left * scale:(left + size) * scale], lq
