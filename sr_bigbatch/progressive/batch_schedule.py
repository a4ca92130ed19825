"""An effective batch that grows during a training: small while the gradient is clear, large when it is noise.

See :mod:`sr_bigbatch.step.noise_scale`; Smith et al. 2018 (https://arxiv.org/abs/1711.00489) grow the batch in place of
lowering the learning rate.
"""
from __future__ import annotations

import itertools
from typing import Any

from sr_bigbatch.step.words import count


class BatchSchedule:
    """Says the effective batch of an iteration.

    Args:
        settings: ``[{batch_size: 32, until: 1000}, {batch_size: 128}]``: sizes and last iterations; or
            ``{start: 32, by: noise_scale}``: doubled whenever the noise scale of the generator is larger than the batch.
        largest: the effective batch of the data loader, in images.
        processes: that share each batch.

    Attributes:
        size: the batch of the last iteration that was asked for.

    Raises:
        ValueError: for sizes that shrink, exceed ``largest`` or cannot be shared, or other settings.
    """

    def __init__(self, settings: list[dict[str, Any]] | dict[str, Any], largest: int, processes: int = 1) -> None:
        self.largest, self._by_noise = largest, isinstance(settings, dict)
        if isinstance(settings, dict):
            if set(settings) != {'start', 'by'} or settings['by'] != 'noise_scale':
                raise ValueError('must be a list of {batch_size, until}, or {start: ..., by: noise_scale}, got '
                                 f'{settings}')
            self._stages: list[dict[str, Any]] = [{'batch_size': settings['start']}]
        else:
            self._stages = list(settings)
        self.size = self._check(processes)

    def _check(self, processes: int) -> int:
        for number, stage in enumerate(self._stages, 1):
            last = number == len(self._stages)
            if set(stage) != ({'batch_size'} if last else {'batch_size', 'until'}):
                raise ValueError(f'stage {number} needs batch_size and, unless it is the last, until; it has '
                                 f'{sorted(stage)}')
            size = stage['batch_size']
            if not isinstance(size, int) or not 1 <= size <= self.largest or size % processes:
                raise ValueError(f'stage {number} has batch_size {size!r}: it must be a number up to the batch of the data '
                                 f'loader, {self.largest}, that {count(processes, "process", "processes")} can share')
        for before, after in itertools.pairwise(self._stages):
            if after['batch_size'] < before['batch_size'] or after.get('until', before['until'] + 1) <= before['until']:
                raise ValueError('batches must grow from stage to stage, and each stage must end after the one before')
        return int(self._stages[0]['batch_size'])

    def at(self, iteration: int, noise_scale: float | None) -> int:
        """The effective batch, in images.

        Args:
            iteration: counted from 1.
            noise_scale: of the generator's gradient, in images; None while it is not known.
        """
        if self._by_noise:
            if noise_scale is not None and noise_scale > self.size:
                self.size = min(2 * self.size, self.largest)
        else:
            self.size = next(int(stage['batch_size']) for stage in self._stages
                             if 'until' not in stage or iteration <= stage['until'])
        return self.size
