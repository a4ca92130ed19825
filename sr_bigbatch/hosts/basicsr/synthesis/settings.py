"""What the options of Real-ESRGAN mean: read once, here."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

REAL_ESRGAN, REAL_ESRNET = 'AccumulatingRealESRGANModel', 'AccumulatingRealESRNetModel'
GROUP = 12  # the batch of one GPU in Real-ESRGAN's own trainings
_DRAWS_IN_POOL, _BATCHES_IN_POOL = 15, 6  # the first is Real-ESRGAN's: 180 pairs, of batches of 12


@dataclass(frozen=True)
class Half:
    """One of the two rounds of resizing, noise and JPEG. Ranges are (lowest, highest).

    Attributes:
        resize_prob: of enlarging, shrinking and keeping.
        resize_range: factors.
        gaussian_noise_prob: the rest is Poisson noise.
        noise_range: standard deviations of Gaussian noise, in 8-bit levels.
        poisson_scale_range: factors of Poisson noise.
        gray_noise_prob: of noise that is the same in all channels.
        jpeg_range: qualities.
    """

    resize_prob: list[float]
    resize_range: list[float]
    gaussian_noise_prob: float
    noise_range: list[float]
    poisson_scale_range: list[float]
    gray_noise_prob: float
    jpeg_range: list[float]

    @classmethod
    def from_options(cls, opt: Mapping[str, Any], suffix: str) -> Half:
        """Read ``resize_prob`` and so on, or ``resize_prob2`` and so on."""
        return cls(**{name: opt[name + suffix] for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class SynthesisSettings:
    """How low-resolution images are made.

    Attributes:
        first, second: the two rounds.
        second_blur_prob: of a blur in the second one.
        gt_size: of the crops, in pixels.
        scale: of the generator.
        sharpens: whether photographs are sharpened before they are degraded.
        keeps_sharp: whether the sharpened ones are the ground truth, too.
        group: how many images share one draw of what is drawn once for all images of a call.
        queue_size: pairs of the pool; 0 for none; None for the default of :meth:`pool_size`.
        seed: of the run.
    """

    first: Half
    second: Half
    second_blur_prob: float
    gt_size: int
    scale: int
    sharpens: bool
    keeps_sharp: bool
    group: int
    queue_size: int | None
    seed: int

    @classmethod
    def from_options(cls, opt: Mapping[str, Any]) -> SynthesisSettings | None:
        """Those of a training of Real-ESRGAN or Real-ESRNet; None if its pairs are ready-made."""
        if not opt.get('high_order_degradation', True):
            return None
        of_net = opt['model_type'] == REAL_ESRNET
        sharpens, queue = not of_net or opt.get('gt_usm', True) is True, opt.get('queue_size')
        return cls(Half.from_options(opt, ''), Half.from_options(opt, '2'), float(opt['second_blur_prob']),
                   int(opt['gt_size']), int(opt['scale']), sharpens, of_net and sharpens,
                   int(opt.get('degradation_group', GROUP)), None if queue is None else int(queue),
                   int(opt.get('manual_seed') or 0))

    def pool_size(self, effective_batch: int) -> int:
        """Pairs of the pool: fifteen draws, as Real-ESRGAN has them, and at least six batches of all processes."""
        if self.queue_size is not None:
            return self.queue_size
        return max(_DRAWS_IN_POOL * self.group, _BATCHES_IN_POOL * effective_batch)


def sharpened_for(opt: Mapping[str, Any]) -> frozenset[str]:
    """Which of ``pixel``, ``perceptual`` and ``gan`` loss see sharpened ground truth: all but those with ``false``."""
    if opt.get('model_type') != REAL_ESRGAN:
        return frozenset()
    keys = {'pixel': 'l1_gt_usm', 'perceptual': 'percep_gt_usm', 'gan': 'gan_gt_usm'}
    return frozenset(loss for loss, key in keys.items() if opt.get(key, True) is not False)
