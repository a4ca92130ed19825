"""A paired data set whose crop size can change while its workers live."""
from __future__ import annotations

import multiprocessing
import weakref
from collections.abc import Sequence
from typing import Any

from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.utils.registry import DATASET_REGISTRY
from mmengine.registry import DATASETS

_alive: weakref.WeakSet[ProgressivePairedImageDataset] = weakref.WeakSet()


@DATASETS.register_module()
@DATASET_REGISTRY.register()
class ProgressivePairedImageDataset(PairedImageDataset):  # type: ignore[misc]
    """BasicSR's ``PairedImageDataset`` with the crop size in memory that all worker processes share.

    All samples of a batch have one size: the one that was set when a worker began to load the batch.

    Args:
        opt: the options of ``PairedImageDataset``; ``gt_size`` is the first crop size, in pixels. Under mmengine, too.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        super().__init__(opt)
        self.first_gt_size = opt.get('gt_size')
        self._gt_size = multiprocessing.Value('i', int(opt['gt_size']) if opt['phase'] == 'train' else 0)
        if opt['phase'] == 'train':
            _alive.add(self)

    def set_gt_size(self, gt_size: int) -> None:
        """Cut crops of this size, in pixels, in every batch that is begun from now on."""
        self._gt_size.value = gt_size

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The samples of one batch."""
        self.opt['gt_size'] = self._gt_size.value
        return [self[index] for index in indices]


def set_gt_size(gt_size: int) -> bool:
    """Set the crop size of every progressive training set of this process; False if there is none."""
    for dataset in _alive:
        dataset.set_gt_size(gt_size)
    return bool(_alive)
