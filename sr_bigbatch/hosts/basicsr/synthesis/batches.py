"""Makes the batch of an iteration: a function of the seed, the iteration and the photographs alone.

The batch of all processes is degraded in groups. A group has random numbers of its own, and is computed as a whole, also
where its images are spread over processes: neither micro-batches nor the number of processes change a bit of the result.
"""
from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sr_bigbatch.hosts.basicsr.synthesis.degradation import Degradation, Photographs
from sr_bigbatch.hosts.basicsr.synthesis.pool import PairPool, packed, unpacked
from sr_bigbatch.hosts.basicsr.synthesis.settings import SynthesisSettings
from sr_bigbatch.hosts.basicsr.training.loader import seed_everything
from sr_bigbatch.step.distributed import batch_sizes, gather_from_host, my_samples, worst
from sr_bigbatch.step.replay import RngState

_POOL = 2**31  # a group of this number does not occur


def seed_of(seed: int, iteration: int, group: int) -> int:
    """The seed of one group of an iteration; near ones have nothing to do with each other."""
    return int(np.random.SeedSequence([seed, iteration, group]).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def random_numbers_of(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from generators with this seed; afterwards the training's own go on as if nothing had been drawn."""
    before = RngState.capture(device)
    seed_everything(seed, device)
    try:
        yield
    finally:
        before.restore(device)


class SynthesisedBatches:
    """Low-resolution images and ground truth of each iteration.

    Args:
        settings: of the training.
        device: where images are degraded, one group at a time.
    """

    def __init__(self, settings: SynthesisSettings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self._degradation = Degradation(settings, device)
        self._pool: PairPool | None = None
        self._saved: Mapping[str, Any] | None = None

    def make(self, photographs: Photographs, iteration: int) -> tuple[Tensor, Tensor]:
        """The batch of this process.

        Args:
            photographs: of this process.
            iteration: from 1 on.

        Returns:
            Low-resolution images (B, C, h, w) and ground truth (B, C, H, W), on the CPU.
        """
        sizes = batch_sizes(len(photographs.gt))
        lq, gt = self._degraded(photographs, sizes, iteration)
        if self._pool_of(sum(sizes)) is None:
            return lq, gt
        return self._from_pool(lq, gt, sizes, iteration)

    def _degraded(self, photographs: Photographs, sizes: Sequence[int], iteration: int) -> tuple[Tensor, Tensor]:
        mine, size = my_samples(sizes), self.settings.group
        shared = _shared_between_processes(sizes, size)
        others = _exchanged(photographs, sizes, shared) if shared else photographs
        parts = []
        for number in range(mine.start // size, -(-mine.stop // size)):
            group = range(number * size, min((number + 1) * size, sum(sizes)))
            if group[0] in shared:
                first = shared.index(group[0])
                images = Photographs(*(tensor[first:first + len(group)] for tensor in others))
            else:
                images = Photographs(*(tensor[group[0] - mine.start:group[-1] + 1 - mine.start] for tensor in photographs))
            with random_numbers_of(seed_of(self.settings.seed, iteration, number), self.device):
                pair = self._degradation(images)
            kept = slice(max(mine.start - group[0], 0), min(mine.stop - group[0], len(group)))
            parts.append([tensor[kept] for tensor in pair])
        lq, gt = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return lq, gt

    def _pool_of(self, effective_batch: int) -> PairPool | None:
        size = self.settings.pool_size(effective_batch)
        if size and self._pool is None:
            if self._saved and self.settings.queue_size is None:  # the default hangs on the batch, which may have changed
                size = len(self._saved['order'])
            self._pool = PairPool(size)
            if self._saved:
                self._pool.load_state_dict(self._saved)
                self._saved = None
        return self._pool

    def _from_pool(self, lq: Tensor, gt: Tensor, sizes: Sequence[int], iteration: int) -> tuple[Tensor, Tensor]:
        """Every process has the whole pool, so that all processes draw what a single one would, and one of them saves it."""
        pairs = []
        for images in (lq, gt):
            small = packed(images)
            if worst(int(small.dtype is not torch.uint8), self.device):  # all processes send the same type
                small = unpacked(small)
            pairs.append(gather_from_host(small, sizes))
        pool = self._pool_of(sum(sizes))
        if pool is None:
            return lq, gt
        taken = pool.exchange(pairs[0], pairs[1], seed_of(self.settings.seed, iteration, _POOL))
        lq, gt = (images[my_samples(sizes)] for images in taken)
        return lq, gt

    def state_dict(self) -> Mapping[str, Any] | None:
        """The pool; None before the first batch, or without one."""
        return self._saved if self._pool is None else self._pool.state_dict()

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Take over a state of :meth:`state_dict`; it counts from the next batch on."""
        self._pool, self._saved = None, state


def _shared_between_processes(sizes: Sequence[int], group: int) -> list[int]:
    """The samples of the whole batch whose group lies in more than one process."""
    borders = list(itertools.accumulate(sizes))[:-1]
    cut = {border // group for border in borders if border % group}
    return [sample for sample in range(sum(sizes)) if sample // group in cut]


def _exchanged(photographs: Photographs, sizes: Sequence[int], shared: Sequence[int]) -> Photographs:
    """The photographs of ``shared`` samples, from all processes."""
    first = [0, *itertools.accumulate(sizes)]
    counts = [sum(start <= sample < stop for sample in shared) for start, stop in itertools.pairwise(first)]
    mine = my_samples(sizes)
    chosen = [sample - mine.start for sample in shared if mine.start <= sample < mine.stop]
    return Photographs(*(gather_from_host(tensor[chosen], counts) for tensor in photographs))
