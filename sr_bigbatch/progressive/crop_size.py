"""A crop size that live loader workers follow."""
from __future__ import annotations

import multiprocessing
import weakref

_alive: weakref.WeakSet[CropSize] = weakref.WeakSet()


class CropSize:
    """The crop size of a training set, in memory that its worker processes share.

    Args:
        first: in pixels of the ground truth.
    """

    def __init__(self, first: int) -> None:
        self._shared = multiprocessing.Value('i', first)
        _alive.add(self)

    @property
    def pixels(self) -> int:
        """The present size."""
        return int(self._shared.value)

    @pixels.setter
    def pixels(self, size: int) -> None:
        self._shared.value = size


def set_crop_size(size: int) -> bool:
    """Have every training set of this process cut crops of this size from now on; False if there is none."""
    for crop_size in _alive:
        crop_size.pixels = size
    return bool(_alive)
