"""Batches whose content depends on the seed and the iteration alone, so that a resumed run sees what it would have seen."""
from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from sr_bigbatch.hosts.basicsr.settings import Options
from sr_bigbatch.step.distributed import rank, world_size
from sr_bigbatch.system import leave_signals_to_parent

_EPOCHS = 1_000_003  # a prime: seeds of two runs whose seeds are near do not meet
_SEEDS = 2**32
_ATTEMPTS = 10


class BadImage(RuntimeError):
    """An image that cannot be read; the message names it."""


class Request(NamedTuple):
    """What a worker is asked for: an image, the random numbers of its augmentation, and the crop size if it changes."""

    image: int
    seed: int
    gt_size: int | None


class BatchOrder(Sampler[list[Request]]):
    """The batches of this process, without end, from an iteration on.

    Each epoch is a permutation of the images, shown as often as ``enlarge`` says. With the same effective batch the order
    does not depend on the number of processes.

    Args:
        count: images of the data set.
        batch_size: of this process.
        seed: of the run.
        enlarge: ``dataset_enlarge_ratio``.
        gt_size: crop size, in pixels, of an iteration counted from 1; None if it never changes.

    Attributes:
        iteration: the last one that is already done; 0 at the beginning.
        per_epoch: iterations of an epoch.
    """

    def __init__(self, count: int, batch_size: int, seed: int, enlarge: float = 1,
                 gt_size: Callable[[int], int] | None = None) -> None:
        self.count, self.batch_size, self.seed, self.gt_size = count, batch_size, seed, gt_size
        self.shown, self.iteration = int(count * enlarge), 0
        self.per_epoch = self.shown // (batch_size * world_size())

    def __iter__(self) -> Iterator[list[Request]]:
        """The batch of the iteration after :attr:`iteration`, and so on."""
        whole, mine, epoch, order = self.batch_size * world_size(), self.batch_size * rank(), -1, torch.empty(0)
        iteration = self.iteration
        while True:
            if iteration // self.per_epoch != epoch:
                epoch = iteration // self.per_epoch
                order = torch.randperm(self.shown, generator=torch.Generator().manual_seed(self.seed * _EPOCHS + epoch))
            first = iteration % self.per_epoch * whole + mine
            iteration += 1
            size = None if self.gt_size is None else self.gt_size(iteration)
            yield [Request(int(image) % self.count, (self.seed * _EPOCHS + iteration * whole + mine + place) % _SEEDS, size)
                   for place, image in enumerate(order[first:first + self.batch_size].tolist())]


class Requested(Dataset[Options]):
    """A data set of BasicSR that answers requests.

    Args:
        dataset: draws its random numbers from ``random``, numpy or torch, and its crop size from ``opt['gt_size']``.
        skip: whether the next image stands in for one that cannot be read.
    """

    def __init__(self, dataset: Any, skip: bool = False) -> None:
        self.dataset, self.skip = dataset, skip

    def __getitem__(self, request: Request) -> Options:
        """The sample of a request. In the main process the random numbers of the training stay as they are."""
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        seed_everything(request.seed)
        if request.gt_size is not None:
            self.dataset.opt['gt_size'] = request.gt_size
        sample = self._readable(request.image)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        return sample


    def _readable(self, image: int) -> Options:
        """The sample of an image; under ``unreadable`` the names of those in whose place it stands."""
        unreadable: list[str] = []
        for attempt in range(_ATTEMPTS):
            index = (image + attempt) % len(self.dataset)
            try:
                return {**self.dataset[index], 'unreadable': ', '.join(unreadable)}
            except Exception as error:
                # Every library has errors of its own for a file that it cannot decode; cv2 even returns None.
                name = self._name(index)
                if not self.skip:
                    reason = str(error).split('\n')[0]
                    raise BadImage(f'{name} cannot be read ({type(error).__name__}: {reason}). Remove or replace it, or go '
                                   'on without such images: datasets.train.on_bad_image: skip') from None
                unreadable.append(name)
        raise BadImage(f'{_ATTEMPTS} images in a row cannot be read: {", ".join(unreadable)}')

    def _name(self, index: int) -> str:
        paths = getattr(self.dataset, 'paths', None)
        entry = paths[index] if paths else f'image {index}'
        return str(entry.get('gt_path', entry)) if isinstance(entry, dict) else str(entry)


def seed_everything(seed: int, device: torch.device | None = None) -> None:
    """Seed ``random``, numpy and torch on the CPU, and torch on the GPU of a training.

    Args:
        seed: from 0 on.
        device: of the training. None in the workers of a loader, which must not touch the GPU.
    """
    random.seed(seed)
    np.random.seed(seed % _SEEDS)
    torch.default_generator.manual_seed(seed)
    if device is not None and device.type == 'cuda':
        torch.cuda.manual_seed(seed)  # of the current GPU, on which each process trains


def training_loader(dataset: Any, settings: Options, order: BatchOrder, *, pin_memory: bool) -> Any:
    """An endless loader of training batches.

    Args:
        dataset: as BasicSR's registry builds it.
        settings: ``datasets.train``; ``num_worker_per_gpu`` counts.
        order: of the batches.
        pin_memory: for a GPU.
    """
    workers = int(settings['num_worker_per_gpu'])
    return DataLoader(Requested(dataset, settings.get('on_bad_image', 'fatal') == 'skip'), batch_sampler=order,
                      num_workers=workers, pin_memory=pin_memory,
                      worker_init_fn=leave_signals_to_parent if workers else None)
