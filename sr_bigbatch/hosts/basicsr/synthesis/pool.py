"""The pool of training pairs from which each batch is drawn, so that its images come from many draws of degradations."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_ROUNDING = 1e-6  # a GPU divides by 255 less exactly than this machine's CPU; 8-bit levels lie 4e-3 apart


def packed(images: Tensor) -> Tensor:
    """``images`` as 8-bit levels if they are that already, as photographs are; otherwise as they are."""
    levels = (images * 255).round()
    if levels.min() < 0 or levels.max() > 255 or (levels / 255 - images).abs().max() > _ROUNDING:
        return images
    return levels.to(torch.uint8)


def unpacked(images: Tensor) -> Tensor:
    """Images in float32 with values in [0, 1], of what :func:`packed` has made."""
    return images.float() / 255 if images.dtype is torch.uint8 else images


class PairPool:
    """Pairs of low-resolution images and ground truth, on the CPU, in 8 bits where nothing is lost by it.

    A batch of any size up to the pool's enters, and as many pairs leave, chosen at random; until the pool is full, a batch
    enters and is what leaves, too. Without 8-bit values, as of ground truth that was sharpened before, the pool is kept in
    float32.

    Args:
        size: in pairs.
    """

    def __init__(self, size: int) -> None:
        self.size, self._filled = size, 0
        self._order = torch.arange(size)
        self._lq: Tensor | None = None
        self._gt: Tensor | None = None

    def exchange(self, lq: Tensor, gt: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Put a batch in and take one out.

        Args:
            lq: (B, C, h, w), packed or not.
            gt: (B, C, H, W), packed or not.
            seed: of the choice.

        Returns:
            Low-resolution images and ground truth, in float32.

        Raises:
            ValueError: if the batch is larger than the pool.
        """
        count = len(lq)
        if count > self.size:
            raise ValueError(f'a batch of {count} pairs does not fit into a pool of {self.size} (queue_size)')
        self._lq, self._gt = self._with_room(self._lq, lq), self._with_room(self._gt, gt)
        room = self.size - self._filled
        if room:
            places = slice(self._filled, self._filled + min(room, count))
            self._put(places, lq[:room], gt[:room])
            self._filled += min(room, count)
            return unpacked(lq), unpacked(gt)
        self._order = self._order[torch.randperm(self.size, generator=torch.Generator().manual_seed(seed))]
        chosen = self._order[:count]
        taken = unpacked(self._lq[chosen]), unpacked(self._gt[chosen])
        self._put(chosen, lq, gt)
        return taken

    def _with_room(self, pool: Tensor | None, images: Tensor) -> Tensor:
        """The pool, in the type that its images and the new ones need."""
        if pool is None:
            return images.new_zeros(self.size, *images.shape[1:])
        return unpacked(pool) if images.dtype is not torch.uint8 else pool

    def _put(self, places: slice | Tensor, lq: Tensor, gt: Tensor) -> None:
        for pool, images in ((self._lq, lq), (self._gt, gt)):
            if pool is not None:
                pool[places] = images if pool.dtype is torch.uint8 else unpacked(images)

    def state_dict(self) -> dict[str, Tensor | int | None]:
        """All pairs: which ones are left hangs on all batches since the first, so they could not be made again."""
        return {'filled': self._filled, 'order': self._order, 'lq': self._lq, 'gt': self._gt}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state of a pool of the same size.

        Raises:
            ValueError: if it was a pool of another size.
        """
        if len(state['order']) != self.size:
            raise ValueError(f'the pool of the saved training holds {len(state["order"])} pairs, this one {self.size}: '
                             'set queue_size to the former')
        self._filled, self._order = int(state['filled']), state['order']
        self._lq, self._gt = state['lq'], state['gt']
