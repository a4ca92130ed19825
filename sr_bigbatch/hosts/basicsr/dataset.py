"""A paired data set whose crop size can change while its workers live."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from basicsr.data import build_dataset
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.utils.registry import DATASET_REGISTRY
from mmengine.registry import DATASETS

from sr_bigbatch.hosts.basicsr.made_pairs import MadePairs, is_made
from sr_bigbatch.hosts.basicsr.settings import Options
from sr_bigbatch.progressive.crop_size import CropSize


@DATASETS.register_module()
@DATASET_REGISTRY.register()
class ProgressivePairedImageDataset(PairedImageDataset):  # type: ignore[misc]
    """BasicSR's ``PairedImageDataset`` with the crop size in memory that all worker processes share.

    All samples of a batch have one size: the one that was set when a worker began to load the batch. Without
    ``dataroot_lq`` the low-resolution images are made from the photographs, by bicubic interpolation.

    Args:
        opt: the options of ``PairedImageDataset``; ``gt_size`` is the first crop size, in pixels. Under mmengine, too.
    """

    def __init__(self, opt: Options) -> None:
        self.made = MadePairs(opt) if opt.get('dataroot_lq') is None else None
        if self.made is None:
            super().__init__(opt)
        else:
            self.opt, self.paths = opt, [{'lq_path': str(path), 'gt_path': str(path)} for path in self.made.paths]
        self.crop_size = CropSize(int(opt['gt_size'])) if opt['phase'] == 'train' else None

    def __getitem__(self, index: int) -> Options:
        """One sample."""
        sample: Options = super().__getitem__(index) if self.made is None else self.made[index]
        return sample

    def __getitems__(self, indices: Sequence[int]) -> list[Options]:
        """The samples of one batch."""
        if self.crop_size is not None:
            self.opt['gt_size'] = self.crop_size.pixels
        return [self[index] for index in indices]


def dataset_of(opt: Options) -> Any:
    """The data set that BasicSR's registry builds; ours stands in for BasicSR's where low-resolution images are made."""
    return build_dataset({**opt, 'type': type_of(opt)})


def type_of(opt: Options) -> str:
    """The registered name of the class that makes a data set."""
    name: str = ProgressivePairedImageDataset.__name__ if is_made(opt) else opt['type']
    return name
