"""A paired data set whose crop size can change while its workers live."""
from __future__ import annotations

from collections.abc import Sequence

from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.utils.registry import DATASET_REGISTRY
from mmengine.registry import DATASETS

from sr_bigbatch.hosts.basicsr.settings import Options
from sr_bigbatch.progressive.crop_size import CropSize


@DATASETS.register_module()
@DATASET_REGISTRY.register()
class ProgressivePairedImageDataset(PairedImageDataset):  # type: ignore[misc]
    """BasicSR's ``PairedImageDataset`` with the crop size in memory that all worker processes share.

    All samples of a batch have one size: the one that was set when a worker began to load the batch.

    Args:
        opt: the options of ``PairedImageDataset``; ``gt_size`` is the first crop size, in pixels. Under mmengine, too.
    """

    def __init__(self, opt: Options) -> None:
        super().__init__(opt)
        self.crop_size = CropSize(int(opt['gt_size'])) if opt['phase'] == 'train' else None

    def __getitems__(self, indices: Sequence[int]) -> list[Options]:
        """The samples of one batch."""
        if self.crop_size is not None:
            self.opt['gt_size'] = self.crop_size.pixels
        return [self[index] for index in indices]
